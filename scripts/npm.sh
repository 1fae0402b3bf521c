#!/usr/bin/env bash
# Prints the folder of an installed npm project, with `node` and the packages of its lock file in it; makes it where it is missing.
#   scripts/npm.sh PROJECT
# The folder's name carries a hash of the lock file. No package's install script runs. Node.js 22 or newer is needed; where there is
# none, one is taken from a Python package with pip.
set -euo pipefail
project=$(realpath "${1:?usage: scripts/npm.sh PROJECT}")
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

node_needed=22

# Prints the folder with a node that is new enough and its npm.
find_node() {
  local here venv
  if have node && have npm; then
    here=$(node --version | sed 's/^v//; s/\..*//')
    if [ "$here" -ge "$node_needed" ]; then dirname "$(command -v node)"; return; fi
    say "npm: Node.js $here is here, $node_needed or newer is needed; taking one from a Python package"
  else
    say "npm: Node.js is not installed; taking one from a Python package"
  fi
  if ! venv=$(scripts/venv.sh "$project/node-requirements.txt") || [ ! -x "$venv/bin/node" ]; then
    die "Node.js $node_needed or newer is neither here nor to be had with pip: install it, then run this again"
  fi
  printf '%s\n' "$venv/bin"
}

[ -r "$project/package-lock.json" ] || die "$project has no package-lock.json"
key=$(cat "$project/package.json" "$project/package-lock.json" "$project/node-requirements.txt" | sha256sum | cut -c 1-12)
folder=$cache_dir/npm-$key

if [ ! -e "$folder/.complete" ] || [ ! -x "$folder/node" ]; then
  bin=$(find_node)
  say "npm: installing the packages of $project into $folder"
  rm -rf "$folder"
  mkdir -p "$folder"
  cp "$project/package.json" "$project/package-lock.json" "$folder/"
  # A package of the project's own, which stands in for one that nobody needs here.
  [ ! -d "$project/stub" ] || cp -R "$project/stub" "$folder/"
  PATH=$bin:$PATH npm ci --ignore-scripts --no-audit --no-fund --silent --prefix "$folder" >&2
  ln -s "$bin/node" "$folder/node"
  touch "$folder/.complete"
fi
printf '%s\n' "$folder"
