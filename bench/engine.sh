#!/usr/bin/env bash
# Our engine against llama.cpp's own server; prints a table. Arguments go to bench/engine.py (--help lists them).
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../scripts/lib.sh"

scripts/setup.sh
with_heartbeat "building the release" cargo build --release -p bombus
export BOMBUS_BIN=$target_dir/release/bombus
exec python3 bench/engine.py "$@"
