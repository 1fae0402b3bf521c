#!/usr/bin/env bash
# Runs every test and sums up: seconds and counts for each group, then one line with the counts of all.
#   scripts/test.sh [rust|mesh|clients|others]...   only these parts; without arguments all of them
# `mesh` is about peers made of js-libp2p in swarms of nodes.
# `others` is about servers and clients that are slow to make: Ollama, llama-server, LiteLLM, the npm packages. They are made once and
# kept under ~/.cache/bombus; what cannot be made on this machine skips its tests and says why.
# BOMBUS_TEST_ALL=1 turns a skipped test into a failed one.
set -uo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

scripts/setup.sh --tests || exit 1

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(rust mesh clients others)
logs=$target_dir/test-logs
mkdir -p "$logs"
summary=$logs/summary.tsv
built=true
: > "$summary"

# One line for each group: name, passed, failed, skipped, seconds.
record() { printf '%s\t%s\t%s\t%s\t%s\n' "$@" >> "$summary"; }

# Reads what `cargo test` printed; each test binary becomes a group. A binary that ended without a result counts as one failure. A test
# that cannot run on a machine says `skipped: ...` and passes; it counts as skipped.
count_cargo() {
  awk -v OFS='\t' '
    function close_open() { if (name != "") print name, 0, 1, 0, 0; name = ""; left_out = 0 }
    /^ +Running / {
      close_open()
      name = $NF; gsub(/[()]/, "", name); sub(/.*\//, "", name); sub(/-[0-9a-f]+$/, "", name)
      if ($0 ~ /unittests/) name = name " (units)"
    }
    /^ +Doc-tests / { close_open(); name = $2 " (doc)" }
    /^test result: / {
      seconds = $NF; sub(/s$/, "", seconds)
      if ($4 + $6 + $8 > 0) print name, $4 - left_out, $6, $8 + left_out, seconds
      name = ""; left_out = 0
    }
    /(^|\.\.\. )skipped: / { left_out++ }
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

# Builds the program, unless the Rust tests have built it with the features of their own dependencies: building it anew would compile
# much once more.
#   build_program GROUP
build_program() {
  local began=$SECONDS
  [ "$built" = false ] || return 0
  if ! with_heartbeat "building bombus" cargo build -p bombus --quiet; then
    record "$1" 0 1 0 "$((SECONDS - began))"
    return 1
  fi
  built=true
}

# Packages are found beside the file that imports them, and they are not installed in the repository: the tests are copied there.
test_mesh() {
  local began=$SECONDS folder log=$logs/mesh.tap status=0
  build_program mesh || return
  say "== mesh: peers made of js-libp2p in swarms of nodes"
  if ! folder=$(scripts/npm.sh tests/mesh); then
    say "== the packages cannot be had here: the tests are skipped"
    record "mesh: js-libp2p" 0 0 1 "$((SECONDS - began))"
    return
  fi
  cp tests/mesh/*.mjs "$folder/"
  BOMBUS_BIN=$target_dir/debug/bombus "$folder/node" --test --test-reporter=spec --test-reporter-destination=stderr \
    --test-reporter=tap --test-reporter-destination="$log" "$folder/mesh.test.mjs" < /dev/null || status=$?
  awk -v OFS='\t' -v seconds="$((SECONDS - began))" -v status="$status" '
    $1 == "#" && ($2 == "pass" || $2 == "skipped" || $2 == "tests") { count[$2] = $3 }
    END {
      failed = count["tests"] - count["pass"] - count["skipped"]
      if (status != 0 && failed == 0) failed = 1
      print "mesh: js-libp2p", count["pass"] + 0, failed, count["skipped"] + 0, seconds
    }
  ' "$log" >> "$summary"
}

# Runs those of the client tests that carry a mark, or do not.
#   run_clients NAME MARK
run_clients() {
  local name=$1 mark=$2 began=$SECONDS venv status=0
  build_program "$name" || return
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
    mesh) test_mesh ;;
    clients) test_clients ;;
    others) test_others ;;
    *) die "unknown part '$part': rust, mesh, clients or others" ;;
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
