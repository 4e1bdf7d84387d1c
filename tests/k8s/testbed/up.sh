#!/bin/sh
# Starts a cluster of real components as local processes. Root only.
#
#   up.sh ROOT STATE [NODES]   ROOT: what prepare.sh prints; STATE: scratch
#
# Everything lives in one private network and mount namespace; enter it with
# STATE/in COMMAND..., for example `STATE/in kubectl get nodes`. Stop it with
# down.sh STATE. Environment:
#   TESTBED_API_ONLY=1  etcd, the API server and JobSet's webhooks, no controller
#   TESTBED_PATH=DIR    in front of PATH in every container
#   TESTBED_LIBS=DIR    LD_LIBRARY_PATH in every container
# Both folders must be readable by any user and lie on the root file system.
set -eu
if [ -z "${TESTBED_INNER:-}" ]; then
  mkdir -p "$2"
  TESTBED_INNER=1 exec unshare -n -m "$0" "$(cd "$1" && pwd)" "$(cd "$2" && pwd)" "${3:-2}"
fi
root=$1 bin=$1/bin st=$2 nodes=$3
export PATH="$bin:$PATH"
mkdir -p "$st/log" "$st/pid" "$st/cmd" "$st/pki"
for v in http_proxy https_proxy HTTP_PROXY HTTPS_PROXY all_proxy ALL_PROXY; do unset $v; done

# --- network: one bridge. The API server has the address that pods expect
# (10.96.0.1:443), so that no kube-proxy is needed.
ip link set lo up
ip link add pods0 type bridge
ip addr add 10.244.0.1/16 dev pods0
ip link set pods0 up
ip addr add 10.96.0.1/32 dev lo
ip addr add 10.96.0.10/32 dev lo
ip addr add 10.245.0.254/24 dev pods0
i=1; while [ $i -le "$nodes" ]; do ip addr add 10.245.0.$i/24 dev pods0; i=$((i+1)); done
echo 1 > /proc/sys/net/ipv4/ip_forward

# --- keys: one CA, one server certificate, one service-account key
cd "$st/pki"
if [ ! -f ca.crt ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -keyout ca.key -out ca.crt -subj /CN=testbed-ca 2>/dev/null
  san="subjectAltName=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:10.96.0.1,IP:10.245.0.254"
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout tls.key -out tls.csr -subj /CN=testbed 2>/dev/null
  printf '%s\n' "$san" > san
  openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile san -out tls.crt 2>/dev/null
  openssl genrsa -out sa.key 2048 2>/dev/null; openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null
fi
users="admin=admin=system:masters kcm=system:kube-controller-manager= sched=system:kube-scheduler= dns=testbed-dns=system:masters jobset=system:serviceaccount:jobset-system:jobset-controller-manager=system:serviceaccounts"
i=1; while [ $i -le "$nodes" ]; do users="$users node-$i=system:node:node-$i=system:nodes"; i=$((i+1)); done
: > tokens.csv
for u in $users; do
  n=${u%%=*} rest=${u#*=}; user=${rest%%=*} group=${rest#*=}
  t=$(openssl rand -hex 16)
  echo "$t,$user,$user,\"$group\"" >> tokens.csv
  cat > "$st/$n.kubeconfig" <<K
apiVersion: v1
kind: Config
clusters: [{name: t, cluster: {server: "https://10.96.0.1:443", certificate-authority: $st/pki/ca.crt}}]
users: [{name: t, user: {token: $t}}]
contexts: [{name: t, context: {cluster: t, user: t}}]
current-context: t
K
done
cat > "$st/in" <<K
#!/bin/sh
exec env KUBECONFIG=$st/admin.kubeconfig PATH=$bin:\$PATH nsenter --target \$(cat $st/pid/ns) --net --mount --wd="\$PWD" -- "\$@"
K
chmod +x "$st/in"

run() { # run NAME COMMAND...: start in the background, log to STATE/log/NAME
  name=$1; shift
  echo "$*" > "$st/cmd/$name"
  "$@" >"$st/log/$name" 2>&1 & echo $! > "$st/pid/$name"
}
wait_for() { # wait_for WHAT COMMAND...
  what=$1; shift; k=0
  until "$@" >/dev/null 2>&1; do
    k=$((k+1)); [ $k -lt 240 ] || { echo "timeout: $what" >&2; exit 1; }
    sleep 0.5
  done
}
run ns sleep infinity
export KUBECONFIG="$st/admin.kubeconfig"
T0=$(date +%s)
run etcd etcd --data-dir "$st/etcd" --unsafe-no-fsync --log-level warn \
  --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380
run kube-apiserver kube-apiserver --etcd-servers http://127.0.0.1:2379 --secure-port 443 --advertise-address 10.245.0.254 \
  --tls-cert-file tls.crt --tls-private-key-file tls.key --client-ca-file ca.crt --token-auth-file tokens.csv \
  --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --allow-privileged=true \
  --service-cluster-ip-range 10.96.0.0/16 --service-account-issuer https://kubernetes.default.svc \
  --service-account-key-file sa.pub --service-account-signing-key-file sa.key \
  --kubelet-preferred-address-types InternalIP --event-ttl 1h \
  --default-not-ready-toleration-seconds 5 --default-unreachable-toleration-seconds 5
wait_for kube-apiserver kubectl get --raw /readyz
echo "kube-apiserver ready after $(($(date +%s)-T0)) s"

# --- controllers. The node grace period is short so that a killed kubelet shows
# within seconds.
if [ -z "${TESTBED_API_ONLY:-}" ]; then
  run kube-controller-manager kube-controller-manager --kubeconfig "$st/kcm.kubeconfig" --authentication-kubeconfig "$st/kcm.kubeconfig" \
    --authorization-kubeconfig "$st/kcm.kubeconfig" --service-account-private-key-file sa.key --root-ca-file ca.crt \
    --use-service-account-credentials --leader-elect=false --bind-address 127.0.0.1 --node-monitor-grace-period 12s --node-monitor-period 2s \
    --cluster-signing-cert-file ca.crt --cluster-signing-key-file ca.key
  run kube-scheduler kube-scheduler --kubeconfig "$st/sched.kubeconfig" --authentication-kubeconfig "$st/sched.kubeconfig" \
    --authorization-kubeconfig "$st/sched.kubeconfig" --leader-elect=false --bind-address 127.0.0.1
fi

# --- JobSet as upstream installs it, but the manager is a local process and its webhooks are called by URL
if [ -x "$bin/jobset" ]; then
  rm -rf "$st/jobset"; cp -r "$root/jobset" "$st/jobset"
  kubectl kustomize "$st/jobset/default" > "$st/jobset.yaml"
  kubectl apply --server-side -f "$st/jobset.yaml" > "$st/log/jobset-apply" 2>&1 || true
  kubectl -n jobset-system delete deployment --all >/dev/null
  ca=$(base64 -w0 ca.crt)
  hook() { # hook KIND NAME PATH0 PATH1
    kubectl patch "$1" "$2" --type=json -p "[
      {\"op\":\"replace\",\"path\":\"/webhooks/0/clientConfig\",\"value\":{\"url\":\"https://127.0.0.1:9443/$3\",\"caBundle\":\"$ca\"}},
      {\"op\":\"replace\",\"path\":\"/webhooks/1/clientConfig\",\"value\":{\"url\":\"https://127.0.0.1:9443/$4\",\"caBundle\":\"$ca\"}}]" >/dev/null
  }
  hook mutatingwebhookconfiguration jobset-mutating-webhook-configuration mutate-jobset-x-k8s-io-v1alpha2-jobset mutate--v1-pod
  hook validatingwebhookconfiguration jobset-validating-webhook-configuration validate-jobset-x-k8s-io-v1alpha2-jobset validate--v1-pod
  cat > "$st/jobset-manager.yaml" <<K
apiVersion: config.jobset.x-k8s.io/v1alpha1
kind: Configuration
leaderElection: {leaderElect: false}
internalCertManagement: {enable: false}
webhook: {port: 9443, host: 127.0.0.1, certDir: $st/pki}
metrics: {bindAddress: "127.0.0.1:9444", certDir: $st/pki}
health: {healthProbeBindAddress: "127.0.0.1:9445"}
K
  run jobset env KUBECONFIG="$st/jobset.kubeconfig" jobset --config "$st/jobset-manager.yaml"
fi

if [ -n "${TESTBED_API_ONLY:-}" ]; then
  wait_for jobset-webhook bash -c 'exec 3<>/dev/tcp/127.0.0.1/9443'
  exit 0
fi

# --- nodes: a real kubelet over proccri, so a container is a local process
i=1
while [ -x "$bin/kubelet" ] && [ $i -le "$nodes" ]; do
  d="$st/node-$i"; mkdir -p "$d"
  cat > "$d/kubelet.yaml" <<K
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 10.245.0.$i
healthzBindAddress: 10.245.0.$i
tlsCertFile: $st/pki/tls.crt
tlsPrivateKeyFile: $st/pki/tls.key
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix://$d/cri.sock
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
localStorageCapacityIsolation: false
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
resolvConf: ""
podLogsDir: $d/pods
volumePluginDir: $d/plugins
nodeStatusUpdateFrequency: 4s
nodeLeaseDurationSeconds: 8
syncFrequency: 5s
evictionHard: {memory.available: "0%", nodefs.available: "0%", imagefs.available: "0%", nodefs.inodesFree: "0%"}
imageGCHighThresholdPercent: 100
maxPods: 100
K
  run proccri-$i proccri -sock "$d/cri.sock" -dir "$d/cri" -subnet 10.244.$i -path "${TESTBED_PATH:-$bin}" \
    -libs "${TESTBED_LIBS:-}"
  run kubelet-$i kubelet --config "$d/kubelet.yaml" --kubeconfig "$st/node-$i.kubeconfig" --root-dir "$d/kubelet" --cert-dir "$d/pki" \
    --hostname-override node-$i --node-ip 10.245.0.$i
  i=$((i+1))
done
[ -x "$bin/minidns" ] && run minidns minidns -kubeconfig "$st/dns.kubeconfig" -listen 10.96.0.10:53
i=1
while [ -x "$bin/kubelet" ] && [ $i -le "$nodes" ]; do # 8 fake GPUs a node
  wait_for node-$i kubectl get node node-$i
  kubectl patch node node-$i --subresource=status --type=json -p '[{"op":"add","path":"/status/capacity/nvidia.com~1gpu","value":"8"}]' >/dev/null
  i=$((i+1))
done
kubectl wait --for=condition=Ready node --all --timeout=60s 2>/dev/null || true
[ -x "$bin/jobset" ] && wait_for jobset-webhook bash -c 'exec 3<>/dev/tcp/127.0.0.1/9443'
echo "cluster up after $(($(date +%s)-T0)) s; use $st/in kubectl ..."
