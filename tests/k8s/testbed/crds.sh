#!/bin/sh
# Prints the custom resource definitions that our manifests refer to, from the
# Go module cache. Each module is checked against the sum in its line.
set -eu
crds() { # crds MODULE@VERSION SUM FILE...
  module=$1 sum=$2; shift 2
  facts=$(cd / && go mod download -json "$module")
  case $facts in
    *"\"$sum\""*) ;;
    *) echo "crds: $module: its checksum is not $sum" >&2; exit 1 ;;
  esac
  dir=$(echo "$facts" | sed -n 's/.*"Dir": "\(.*\)",*/\1/p')
  for pattern; do
    for file in "$dir"/$pattern; do
      case $file in */kustomization.yaml) continue ;; esac
      echo ---
      cat "$file"
    done
  done
}
crds sigs.k8s.io/jobset@v0.12.0 h1:YYPuV0px8Ongq/RXmJg6V0w2UC67aiR+rCMD06vhQQQ= \
  'config/components/crd/bases/*.yaml'
crds github.com/kedacore/keda/v2@v2.21.0 \
  h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps= 'config/crd/bases/*.yaml'
crds sigs.k8s.io/kueue@v0.19.2 \
  h1:mPNzr37u0nwI7ikST5QQl5gg6EgtYOAvC9ZbTgywdN8= \
  'config/components/crd/bases/*.yaml'
crds github.com/cert-manager/cert-manager@v1.21.2 \
  h1:UWgoYM+KLNtRlqmoWOKjKBOBUPVHeepQ6/ac3ERJW68= \
  'deploy/crds/cert-manager.io_*.yaml'
crds github.com/prometheus-operator/prometheus-operator@v0.85.0 \
  h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s= \
  'example/prometheus-operator-crd/*_podmonitors.yaml' \
  'example/prometheus-operator-crd/*_prometheusrules.yaml'
