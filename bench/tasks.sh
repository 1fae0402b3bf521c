#!/usr/bin/env bash
# Durable tasks: how long a hundred take on two workers, beside peers of @orbitdb/core without leases, and what many cost; prints tables.
# Arguments go to bench/tasks.py. BOMBUS_BIN names another program than the release of this source, for example target/debug/bombus.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../scripts/lib.sh"

if [ -z "${BOMBUS_BIN:-}" ]; then
  scripts/setup.sh
  with_heartbeat "building the release" cargo build --release -p bombus --quiet
fi
npm=$(scripts/npm.sh tests/orbitdb-js)
# Packages are found beside the file that imports them.
mkdir -p "$npm/bench"
cp bench/orbitdb-js/*.mjs "$npm/bench/"
BOMBUS_BIN=$(realpath "${BOMBUS_BIN:-$target_dir/release/bombus}")
export BOMBUS_BIN BOMBUS_BENCH_NPM=$npm
exec python3 bench/tasks.py "$@"
