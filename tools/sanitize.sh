#!/usr/bin/env bash
# The tests under a sanitizer, in a build of their own.
#
#   tools/sanitize.sh address [ctest options]   ASan and UBSan: every test
#   tools/sanitize.sh thread  [ctest options]   TSan: all but LibTorch's users,
#                                               whose OpenMP it cannot see
#
# Suppressions are in tests/sanitizers, each with the third-party frame it is
# for. A finding ends the program that had it, so its test fails. Twenty to
# forty minutes cold on two cores, each.
set -euo pipefail
cd "$(dirname "$0")/.."
source=$PWD/tests/sanitizers
case "${1:-}" in
  address) preset=asan ;;
  thread) preset=tsan ;;
  *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
shift
export ASAN_OPTIONS="detect_stack_use_after_return=1:strict_string_checks=1:check_initialization_order=1:abort_on_error=0:exitcode=99"
export LSAN_OPTIONS="suppressions=$source/lsan.txt:print_suppressions=0"
export UBSAN_OPTIONS="print_stacktrace=1"
export TSAN_OPTIONS="suppressions=$source/tsan.txt:history_size=5:second_deadlock_stack=1:exitcode=99"
cmake --preset "$preset" > /dev/null
cmake --build --preset "$preset"
ctest --preset "$preset" -j "$(nproc)" "$@"
