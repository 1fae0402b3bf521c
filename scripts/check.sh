#!/usr/bin/env bash
# What a change has to pass before it is merged. Every part runs; the end says which failed.
set -uo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

scripts/setup.sh --tests

failed=()
skipped=()
part() {
  local name=$1 began=$SECONDS
  shift
  say "== $name"
  if "$@"; then say "== $name: passed in $((SECONDS - began)) s"; else failed+=("$name") && say "== $name: FAILED after $((SECONDS - began)) s"; fi
}

part "format" cargo fmt --all --check
part "lints" with_heartbeat "linting" cargo clippy --workspace --all-targets --quiet -- -D warnings
part "without the engine" with_heartbeat "checking" cargo check -p bombus --no-default-features --tests --quiet
part "documentation" env RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --quiet
if have shellcheck; then
  part "shell scripts" shellcheck -x scripts/*.sh bench/*.sh .ci/run
else
  skipped+=("shell scripts (shellcheck is not installed)")
fi
if have cargo-deny; then
  # Advisories need a database from the network: the workflow under .github checks them.
  part "licences and sources" cargo deny --all-features check bans licenses sources
else
  skipped+=("licences and sources (cargo-deny is not installed: cargo install cargo-deny --locked)")
fi
part "tests" scripts/test.sh

for what in "${skipped[@]}"; do say "check: skipped $what"; done
if [ ${#failed[@]} -gt 0 ]; then
  say "check: FAILED: ${failed[*]}"
  exit 1
fi
say "check: all passed"
