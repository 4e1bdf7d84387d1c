#!/usr/bin/env bash
# clang-format over every C++ and CUDA file, in place; with --check it only
# names those that would change, and exits 1.
set -euo pipefail
cd "$(dirname "$0")/.."
for program in clang-format-14 clang-format; do
  command -v "$program" > /dev/null && break
done
command -v "$program" > /dev/null || {
  echo "format: clang-format-14 is not installed (tools/setup.sh does)"
  exit 77
}
mapfile -t files < <(find actor cli coordinator learner lib proto reward tests \
  \( -name '*.cc' -o -name '*.h' -o -name '*.cu' \) -not -path '*/target/*')
[ "${#files[@]}" -gt 0 ] || { echo "format: no files found"; exit 1; }
case "${1:-}" in
  --check)
    bad=$("$program" --dry-run "${files[@]}" 2>&1 |
      sed -n 's/^\([^:]*\):.*\[-Wclang-format-violations\].*/\1/p' | sort -u)
    if [ -n "$bad" ]; then
      printf 'format: not formatted (tools/format.sh does it):\n%s\n' "$bad"
      exit 1
    fi
    echo "format: ${#files[@]} files in order" ;;
  "") "$program" -i "${files[@]}" ;;
  *) echo "usage: tools/format.sh [--check]" >&2; exit 2 ;;
esac
