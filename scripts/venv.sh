#!/usr/bin/env bash
# Prints the folder of a Python environment that holds a requirements file's packages; makes it where it is missing.
#   scripts/venv.sh REQUIREMENTS
# The folder's name carries a hash of the file and of Python's version, so that a changed pin makes a new environment.
set -euo pipefail
requirements=$(realpath "${1:?usage: scripts/venv.sh REQUIREMENTS}")
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

[ -r "$requirements" ] || die "cannot read $requirements"
key=$({ python3 --version; command -v python3; cat "$requirements"; } | sha256sum | cut -c 1-12)
venv=$cache_dir/venv-$key

if [ ! -e "$venv/.complete" ]; then
  say "venv: installing $requirements into $venv"
  mkdir -p "$cache_dir"
  rm -rf "$venv"
  python3 -m venv "$venv" >&2 || die "python3 cannot make an environment: run \`make setup\`"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements" >&2
  touch "$venv/.complete"
fi
printf '%s\n' "$venv"
