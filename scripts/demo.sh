#!/usr/bin/env bash
# Builds bombus, fetches a small model, and prints what the model answers. Leaves nothing running.
#   scripts/demo.sh [QUESTION...]
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

question=${*:-In one sentence, why do bees live in colonies?}
model=smollm2:135m

scripts/setup.sh
if [ ! -x "$target_dir/debug/bombus" ]; then
  say "demo: building bombus; the first build compiles llama.cpp too and takes several minutes"
fi
with_heartbeat "building" cargo build -p bombus
bombus=$target_dir/debug/bombus
export BOMBUS_DATA_DIR=$target_dir/demo

"$bombus" models pull "$model" >&2
say
say "\$ bombus ask --model $model \"$question\""
"$bombus" ask --model "$model" "$question" < /dev/null
