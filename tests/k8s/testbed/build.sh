#!/bin/sh
# Builds the cluster's programs at the pins of go.mod: build.sh BIN NAME...
# What lies in BIN is not built again: its folder is named after the pins. Our
# own two programs always go through `go build`, which knows what changed.
set -eu
bin=${1:?usage: build.sh BIN NAME...}; shift
cd "$(dirname "$0")"
mkdir -p "$bin"
bin=$(cd "$bin" && pwd)
# The version that the API server reports comes from the linker.
v=k8s.io/component-base/version
kube=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
ld="-s -w -X $v.gitVersion=$kube -X $v.gitMajor=1 -X $v.gitMinor=$(echo "$kube" | cut -d. -f2) -X $v.gitTreeState=clean"
for name; do
  dir=.
  case $name in
    etcd) pkg=go.etcd.io/etcd/server/v3 ;;
    jobset) pkg=sigs.k8s.io/jobset ;;
    kubeconform) pkg=github.com/yannh/kubeconform/cmd/kubeconform dir=../kubeconform ;;
    proccri|minidns) pkg=./$name ;;
    *) pkg=k8s.io/kubernetes/cmd/$name ;;
  esac
  case $name in proccri|minidns) ;; *) [ ! -x "$bin/$name" ] || continue ;; esac
  t0=$(date +%s)
  (cd $dir && CGO_ENABLED=0 go build -trimpath -ldflags "$ld" -o "$bin/.$name" "$pkg")
  mv "$bin/.$name" "$bin/$name"  # whole or not at all
  echo "testbed: built $name in $(($(date +%s) - t0)) s" >&2
done
