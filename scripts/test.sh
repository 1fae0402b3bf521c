#!/usr/bin/env bash
# Runs every test and sums up: seconds and counts for each group, then one line with the counts of all.
#   scripts/test.sh [rust|clients|others]...   only these parts; without arguments all of them
# `others` is about servers and clients that are slow to make: Ollama, llama-server, LiteLLM, the npm packages. They are made once and
# kept under ~/.cache/bombus; what cannot be made on this machine skips its tests and says why.
# BOMBUS_TEST_ALL=1 turns a skipped test into a failed one.
set -uo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

scripts/setup.sh || exit 1

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(rust clients others)
logs=$target_dir/test-logs
mkdir -p "$logs"
summary=$logs/summary.tsv
built=false
: > "$summary"

# One line for each group: name, passed, failed, skipped, seconds.
record() { printf '%s\t%s\t%s\t%s\t%s\n' "$@" >> "$summary"; }

# Reads what `cargo test` printed; each test binary becomes a group. A binary that ended without a result counts as one failure.
count_cargo() {
  awk -v OFS='\t' '
    function close_open() { if (name != "") print name, 0, 1, 0, 0; name = "" }
    /^ +Running / {
      close_open()
      name = $NF; gsub(/[()]/, "", name); sub(/.*\//, "", name); sub(/-[0-9a-f]+$/, "", name)
      if ($0 ~ /unittests/) name = name " (units)"
    }
    /^ +Doc-tests / { close_open(); name = $2 " (doc)" }
    /^test result: / {
      seconds = $NF; sub(/s$/, "", seconds)
      if ($4 + $6 + $8 > 0) print name, $4, $6, $8, seconds
      name = ""
    }
    END { close_open() }
  ' "$1"
}

test_rust() {
  local began=$SECONDS status=0
  say "== building the tests"
  if ! with_heartbeat "building the tests" cargo test --workspace --no-run --quiet; then
    record "build" 0 1 0 "$((SECONDS - began))"
    return
  fi
  record "build" 0 0 0 "$((SECONDS - began))"
  built=true
  say "== Rust tests"
  cargo test --workspace --no-fail-fast > >(tee "$logs/cargo.log") 2>&1 || status=$?
  wait $!
  count_cargo "$logs/cargo.log" >> "$summary"
  # Cargo can fail without any test that did, as when a binary cannot be started.
  if [ "$status" -ne 0 ] && ! awk -F '\t' '$3 > 0 { found = 1 } END { exit !found }' "$summary"; then record "cargo test" 0 1 0 0; fi
}

# Runs those of the client tests that carry a mark, or do not.
#   run_clients NAME MARK
run_clients() {
  local name=$1 mark=$2 began=$SECONDS venv status=0
  # The Rust tests have built the program with the features of their own dependencies; building it anew would compile much once more.
  if [ "$built" = false ]; then
    if ! with_heartbeat "building bombus" cargo build -p bombus --quiet; then
      record "$name" 0 1 0 "$((SECONDS - began))"
      return
    fi
    built=true
  fi
  if ! venv=$(scripts/venv.sh tests/clients/requirements.txt); then
    record "$name" 0 1 0 "$((SECONDS - began))"
    return
  fi
  rm -f "$logs/$name.xml"
  BOMBUS_BIN=$target_dir/debug/bombus "$venv/bin/python" -m pytest tests/clients -m "$mark" -p no:cacheprovider -rs --junit-xml "$logs/$name.xml" || status=$?
  "$venv/bin/python" scripts/junit_groups.py "$name" "$logs/$name.xml" "$status" >> "$summary"
}

test_clients() {
  say "== clients: openai, ollama, curl and schemathesis against a running node"
  run_clients clients "not others"
}

# Makes one of the others and leaves word for the tests where it is, or why it is not there.
#   prepare NAME COMMAND...
prepare() {
  local name=$1 began=$SECONDS folder log=$logs/prepare-$1.log
  shift
  say "== making $name"
  if folder=$({ "$@" 2>&1 >&3 | tee "$log" >&2; } 3>&1); then
    export "BOMBUS_TEST_${name^^}=$folder"
  else
    export "BOMBUS_TEST_${name^^}_MISSING=$(tail -n 1 "$log" 2> /dev/null || true) ($*)"
    say "== $name cannot be made here: its tests are skipped"
  fi
  record "making $name" 0 0 0 "$((SECONDS - began))"
}

test_others() {
  prepare npm scripts/npm.sh tests/clients/npm
  prepare litellm scripts/venv.sh tests/clients/litellm-requirements.txt
  prepare llama_server scripts/llama-cpp.sh build portable
  prepare ollama scripts/ollama.sh build
  say "== others: real clients before nodes, real servers behind them"
  run_clients others others
}

for part in "${parts[@]}"; do
  case $part in
    rust) test_rust ;;
    clients) test_clients ;;
    others) test_others ;;
    *) die "unknown part '$part': rust, clients or others" ;;
  esac
done

awk -F '\t' '
  BEGIN { printf "\n%-40s %8s %8s %8s %9s\n", "group", "passed", "failed", "skipped", "seconds" }
  { printf "%-40s %8d %8d %8d %9.1f\n", $1, $2, $3, $4, $5; passed += $2; failed += $3; skipped += $4 }
  END {
    if (ENVIRON["BOMBUS_TEST_ALL"] == "1" && skipped > 0) {
      printf "\n%d tests were skipped, which BOMBUS_TEST_ALL=1 does not allow\n", skipped
      failed += skipped
    }
    printf "\n%d passed, %d failed\n", passed, failed
    exit failed > 0 || passed == 0
  }
' "$summary"
