#!/usr/bin/env bash
# How soon nodes see each other, what an idle node costs and sends; prints tables. Arguments go to bench/mesh.py.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../scripts/lib.sh"

scripts/setup.sh --tests
with_heartbeat "building the release" cargo build --release -p bombus
export BOMBUS_BIN=$target_dir/release/bombus
exec python3 bench/mesh.py "$@"
