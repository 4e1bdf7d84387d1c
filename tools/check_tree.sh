#!/usr/bin/env bash
# Layering and size rules that a compiler does not check. Prints each
# violation; exit 1 if there is one.
set -euo pipefail
cd "$(dirname "$0")/.."
bad=0
report() { [ -z "$2" ] || { printf '%s\n%s\n' "check: $1" "$2" >&2; bad=1; }; }

report "LibTorch outside lib/model, lib/gpu, lib/comm/gloo*" \
  "$(git grep -nE '#include [<"](torch|ATen|c10)/' -- '*.h' '*.cc' \
     ':!lib/model' ':!lib/gpu' ':!lib/comm/gloo*' ':!tests/model' || true)"
report "gRPC outside lib/rpc, services, clients and mains" \
  "$(git grep -nE '#include [<"](grpcpp|grpc)/' -- '*.h' '*.cc' ':!lib/rpc' \
     ':!*_service*' ':!*_client*' ':!*main.cc' ':!tests' || true)"
report "a file above its limit (.cc 600 lines, .h 300)" \
  "$(git ls-files '*.cc' '*.h' | while read -r f; do
       n=$(wc -l < "$f"); l=600; case $f in *.h) l=300;; esac
       [ "$n" -le "$l" ] || echo "$f: $n lines"; done)"
report "a tracked file above 1 MiB" \
  "$(git ls-files -z | xargs -0 -r du -k | awk '$1 > 1024' || true)"
[ "$bad" = 0 ] && echo "check: tree is in order"
exit "$bad"
