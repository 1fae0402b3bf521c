#!/usr/bin/env bash
# Durable tasks: how long a hundred take on two workers, beside peers of @orbitdb/core without leases, and what many cost; prints tables.
# Arguments go to bench/tasks.py.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../scripts/lib.sh"

scripts/setup.sh
with_heartbeat "building the release" cargo build --release -p bombus --quiet
npm=$(scripts/npm.sh tests/orbitdb-js)
# Packages are found beside the file that imports them.
mkdir -p "$npm/bench"
cp bench/orbitdb-js/*.mjs "$npm/bench/"
export BOMBUS_BIN=$target_dir/release/bombus BOMBUS_BENCH_NPM=$npm
exec python3 bench/tasks.py "$@"
