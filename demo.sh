#!/usr/bin/env bash
# Installs what is missing, builds, and runs the main job on this machine's
# CPU: pretrain, sft, collect, rm, ppo, eval. Arguments are overrides, for
# example: ./demo.sh seed=2 ppo.steps=20
set -euo pipefail
cd "$(dirname "$0")"
tools/setup.sh
cmake --preset release > /dev/null
cmake --build --preset release --target cox-coordinator cox-actor cox-reward \
  cox-learner cox cox-chat
exec build/release/bin/cox run examples/sentiment.yaml "$@"
