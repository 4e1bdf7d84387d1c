#!/bin/sh
# node.sh STATE kill|start N: loses node N as a power cut would (its containers
# die with proccri), or boots it.
set -eu
st=$1 i=$3
case $2 in
  kill) kill -9 "$(cat "$st/pid/kubelet-$i")" "$(cat "$st/pid/proccri-$i")" ;;
  start)
    for name in proccri kubelet; do
      cmd=$(cat "$st/cmd/$name-$i")
      "$st/in" sh -c "$cmd >>'$st/log/$name-$i' 2>&1 &
        echo \$! >'$st/pid/$name-$i'"
    done ;;
  *) echo "usage: node.sh STATE kill|start N" >&2; exit 2 ;;
esac
