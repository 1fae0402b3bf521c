#!/usr/bin/env bash
# What another node costs and what it gives: hops, deaths, weights, parallel work; prints tables. Arguments go to bench/swarm.py.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../scripts/lib.sh"

scripts/setup.sh wrk
with_heartbeat "building the release" cargo build --release -p bombus --quiet
export BOMBUS_BIN=$target_dir/release/bombus
exec python3 bench/swarm.py "$@"
