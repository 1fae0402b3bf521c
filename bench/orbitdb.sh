#!/usr/bin/env bash
# What replicated databases cost, beside @orbitdb/core in the same run; prints tables. Arguments go to bench/orbitdb.py.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../scripts/lib.sh"

scripts/setup.sh
with_heartbeat "building the programs" cargo build --release --example orbitdb_peer -p bombus-swarm --quiet
# Cargo alone knows the name under which it built the benchmark.
built=$(with_heartbeat "building the benchmark" cargo bench -p orbitdb --bench databases --no-run --message-format=json --quiet)
BOMBUS_BENCH_DATABASES=$(python3 -c '
import json, sys
lines = (json.loads(line) for line in sys.stdin)
print([line["executable"] for line in lines if line.get("executable")][-1])
' <<< "$built")
npm=$(scripts/npm.sh tests/orbitdb-js)
# Packages are found beside the file that imports them.
mkdir -p "$npm/bench"
cp bench/orbitdb-js/*.mjs "$npm/bench/"
export BOMBUS_BENCH_DATABASES BOMBUS_BENCH_PEER=$target_dir/release/examples/orbitdb_peer BOMBUS_BENCH_NPM=$npm
exec python3 bench/orbitdb.py "$@"
