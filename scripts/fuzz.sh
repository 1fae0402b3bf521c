#!/usr/bin/env bash
# Feeds every decoder of what comes from peers with what nobody should send, guided by which code that reaches.
#   scripts/fuzz.sh [TARGET]...   only these; without arguments all of them
# FUZZ_SECONDS is how long each runs, 20 by default. What was found stays under target/fuzz for the next run; an input that makes a target
# panic, or take more than 10 s or 1 GiB, ends the run with an error and is kept under target/fuzz/artifacts.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

scripts/setup.sh

seconds=${FUZZ_SECONDS:-20}
build=$target_dir/fuzz
triple=$(rustc -vV | sed -n 's/^host: //p')
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
  for file in fuzz/targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi

# LLVM's pass counts edges and shows libFuzzer the operands of comparisons. It needs no unstable compiler; with --target, build scripts
# and procedural macros stay without it.
flags=(--cfg fuzzing -Cpasses=sancov-module)
for flag in level=4 inline-8bit-counters pc-table trace-compares; do flags+=("-Cllvm-args=-sanitizer-coverage-$flag"); done
RUSTFLAGS="${RUSTFLAGS:-} ${flags[*]}" with_heartbeat "building the fuzz targets" \
  cargo build --quiet --release --locked --manifest-path fuzz/Cargo.toml --target "$triple" --target-dir "$build"

failed=()
for target in "${targets[@]}"; do
  say "== $target: $seconds s"
  corpus=$build/corpus/$target artifacts=$build/artifacts/$target
  mkdir -p "$corpus" "$artifacts"
  options=(-max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=70000 -print_final_stats=1 -artifact_prefix="$artifacts/")
  [ ! -e "fuzz/$target.dict" ] || options+=(-dict="fuzz/$target.dict")
  folders=("$corpus")
  [ ! -d "fuzz/seeds/$target" ] || folders+=("fuzz/seeds/$target")
  log=$build/$target.log
  if ! "$build/$triple/release/$target" "${options[@]}" "${folders[@]}" > "$log" 2>&1; then
    failed+=("$target")
    tail -n 40 "$log" >&2
    continue
  fi
  grep -E 'number_of_executed_units|average_exec_per_sec|peak_rss_mb' "$log" >&2 || true
  grep -Eo 'cov: [0-9]+ ft: [0-9]+ corp: [^ ]+' "$log" | tail -n 1 >&2 || true
done

if [ ${#failed[@]} -gt 0 ]; then
  say "fuzz: FAILED: ${failed[*]} (inputs under $build/artifacts)"
  exit 1
fi
say "fuzz: nothing was found in ${#targets[@]} targets"
