#!/bin/sh
# prepare.sh api|all: builds what the Kubernetes tests need and prints the
# folder, ${COX_CACHE:-$HOME/.cache/coxswain}/testbed-<hash of the pins>:
#   bin/       the programs; `api` = etcd, API server, JobSet, kubectl,
#              kubeconform
#   crds.yaml  custom resource definitions
#   schemas/   strict JSON schemas of every kind
#   jobset/    JobSet's own manifests
# A cold build takes about ten minutes on two cores, a warm call a second.
# Exit code 77 with a reason when the machine has no Go or no network.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
case ${1:-} in
  api) names="etcd kube-apiserver kubectl jobset kubeconform" ;;
  all) names="etcd kube-apiserver kubectl jobset kubeconform
    kube-controller-manager kube-scheduler kubelet proccri minidns" ;;
  *) echo "usage: prepare.sh api|all" >&2; exit 2 ;;
esac
skip() { echo "testbed: not available: $*" >&2; exit 77; }
cd "$here"
pins=$(cat go.mod go.sum ../kubeconform/go.mod ../kubeconform/go.sum |
  sha256sum | cut -c1-16)
root=${COX_CACHE:-$HOME/.cache/coxswain}/testbed-$pins
mkdir -p "$root"
stamp=$root/.schemas-$(cat crds.sh schemas.py | sha256sum | cut -c1-16)
# One build at a time: test.sh and a test may ask at once.
exec 9> "$root/lock"
flock 9
ready=yes
for name in $names; do [ -x "$root/bin/$name" ] || ready=no; done
[ "$1" = api ] || ready=no  # our own programs may have changed
[ -f "$stamp" ] || ready=no
if [ $ready = no ]; then
  command -v go >/dev/null || skip "Go is not installed"
  if ! go version | grep -qE 'go1\.(2[1-9]|[3-9][0-9])'; then
    # Debian 12's Go does not know that it can fetch the release which go.mod
    # asks for. It is a module, though, checked like any other.
    go=golang.org/toolchain@v0.0.1-go1.26.0.linux-amd64
    goroot=$(cd / && go mod download -json $go |
      sed -n 's/.*"Dir": "\(.*\)",*/\1/p')
    [ -n "$goroot" ] || skip "Go 1.26 cannot be fetched (network?)"
    chmod u+x "$goroot"/bin/* "$goroot"/pkg/tool/linux_amd64/*
    export PATH="$goroot/bin:$PATH"
  fi
  if ! facts=$(go mod download -json k8s.io/kubernetes 2>&1); then
    skip "Go modules cannot be fetched (network?): $(echo "$facts" | tail -n1)"
  fi
  "$here/build.sh" "$root/bin" $names
  if [ ! -f "$stamp" ]; then
    "$here/crds.sh" > "$root/crds.yaml.tmp" ||
      skip "modules with resource definitions cannot be fetched"
    mv "$root/crds.yaml.tmp" "$root/crds.yaml"
    kube=$(go list -m -f '{{.Dir}}' k8s.io/kubernetes)
    # Another Python may come first, without the Debian package's module.
    python=python3
    $python -c 'import yaml' 2>/dev/null || python=/usr/bin/python3
    $python "$here/schemas.py" "$root/schemas" \
      "$kube/api/openapi-spec/swagger.json" < "$root/crds.yaml"
    rm -rf "$root/jobset"
    cp -r "$(go list -m -f '{{.Dir}}' sigs.k8s.io/jobset)/config" \
      "$root/jobset"
    chmod -R u+w "$root/jobset"
    touch "$stamp"
  fi
fi
echo "$root"
