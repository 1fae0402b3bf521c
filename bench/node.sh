#!/usr/bin/env bash
# Start-up time and memory of a node without a model; prints a table. Arguments go to bench/node.py.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../scripts/lib.sh"

scripts/setup.sh
with_heartbeat "building the release" cargo build --release -p bombus
export BOMBUS_BIN=$target_dir/release/bombus
exec python3 bench/node.py "$@"
