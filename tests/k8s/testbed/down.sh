#!/bin/sh
# down.sh STATE: stops what up.sh started, by recorded process id. The mounts
# and interfaces vanish with the namespace. Nodes first, so that no kubelet
# starts a container again.
set -u
st=${1:?usage: down.sh STATE}
[ -d "$st/pid" ] || exit 0
for file in "$st"/pid/kubelet-* "$st"/pid/proccri-* "$st"/pid/*; do
  [ -f "$file" ] && kill "$(cat "$file")" 2>/dev/null
done
sleep 1
for file in "$st"/pid/*; do
  [ -f "$file" ] && kill -9 "$(cat "$file")" 2>/dev/null
done
rm -rf "$st/pid"
exit 0
