#!/bin/sh
# cut.sh STATE NAMESPACE/POD down|up: unplugs a pod's network, or plugs it in.
set -eu
dev=$("$1/in" ip -o link |
  awk -v a="alias $2" 'index($0, a) { sub("@.*", "", $2); print $2; exit }')
"$1/in" ip link set "${dev:?no such pod}" "$3"
