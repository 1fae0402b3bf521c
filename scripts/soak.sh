#!/usr/bin/env bash
# Runs the fault tests in many rounds: the same tests as in `make test`, with their loops at full counts.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

scripts/setup.sh --tests

export BOMBUS_FAULT_ROUNDS=${BOMBUS_FAULT_ROUNDS:-20}
say "soak: $BOMBUS_FAULT_ROUNDS rounds of every fault test"
# Of the whole workspace, as `make test` builds it: crates by themselves would be built anew with other features.
cargo test --workspace --lib -- simulation
cargo test --workspace --test simulated -- tasks::faults --nocapture
# Rounds of kills, freezes and partitions print their seeds and seconds; BOMBUS_FAULT_SEED repeats one.
exec cargo test --workspace --test it -- --nocapture \
  fault swarm::answers::real swarm::answers::departure tasks::rounds tasks::freezes tasks::partitions tasks::clocks
