# shellcheck shell=bash
# What the other scripts share. Source it; it changes into the repository's root.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1
case ":$PATH:" in *":$HOME/.cargo/bin:"*) ;; *) PATH="$HOME/.cargo/bin:$PATH" ;; esac

# shellcheck disable=SC2034 # used by the scripts that source this
cache_dir=${XDG_CACHE_HOME:-$HOME/.cache}/bombus
target_dir=${CARGO_TARGET_DIR:-$root/target}
case $target_dir in /*) ;; *) target_dir=$root/$target_dir ;; esac

# Prints to stderr: stdout is for results.
say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }
have() { command -v "$1" > /dev/null 2>&1; }

# Says now and then that COMMAND still runs, since a long C++ build prints nothing by itself.
#   with_heartbeat WHAT COMMAND...
with_heartbeat() {
  local what=$1 ticker status=0
  shift
  # The sleeper holds none of our pipes, so that nobody waits for it when the work is done; it ends with us, however we end.
  (
    while sleep 20 > /dev/null 2>&1 && kill -0 $$ 2> /dev/null; do say "  ... $what, $SECONDS s so far"; done
  ) &
  ticker=$!
  "$@" || status=$?
  kill "$ticker" 2> /dev/null || true
  wait "$ticker" 2> /dev/null || true
  return "$status"
}
