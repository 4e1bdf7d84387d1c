#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test.
set -euo pipefail
cd "$(dirname "$0")"
tools/setup.sh --gpu
# The API server that the manifests are tried on is built beside the C++: ten
# minutes where nothing is cached, a second where all is.
tests/k8s/testbed/prepare.sh api > /dev/null &
testbed=$!
trap 'kill $testbed 2> /dev/null || true' EXIT
cmake --preset release > /dev/null
cmake --build --preset release
wait "$testbed" || [ $? = 77 ]  # 77: it cannot be; those tests say why
ctest --preset release -j "$(nproc)" "$@"
