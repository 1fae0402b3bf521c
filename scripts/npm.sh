#!/usr/bin/env bash
# Prints the folder of an installed npm project, with `node` and the packages of its lock file in it; makes it where it is missing.
#   scripts/npm.sh PROJECT
# The folder's name carries a hash of the lock file. No package's install script runs. On Linux the lock file brings Node.js itself;
# elsewhere the machine's own is used. Where there is no npm, one is taken from a Python package with pip.
set -euo pipefail
project=$(realpath "${1:?usage: scripts/npm.sh PROJECT}")
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

node_needed=22

# Prints the folder with an npm and the node that runs it.
find_npm() {
  local venv
  if have node && have npm; then dirname "$(command -v npm)"; return; fi
  say "npm: not installed; taking it from a Python package"
  if ! venv=$(scripts/venv.sh "$project/node-requirements.txt") || [ ! -x "$venv/bin/npm" ]; then
    die "npm is neither here nor to be had with pip: install Node.js $node_needed or newer, then run this again"
  fi
  printf '%s\n' "$venv/bin"
}

# Prints the node that was installed, or else that of npm, where it is new enough.
find_node() {
  local node
  for node in "$folder"/node_modules/node-linux-*/bin/node "$1/node"; do
    if [ -x "$node" ] && [ "$("$node" -p 'parseInt(process.versions.node)')" -ge "$node_needed" ]; then
      printf '%s\n' "$node"
      return
    fi
  done
  die "Node.js $node_needed or newer is needed: install it, then run this again"
}

[ -r "$project/package-lock.json" ] || die "$project has no package-lock.json"
key=$(cat "$project/package.json" "$project/package-lock.json" "$project/node-requirements.txt" | sha256sum | cut -c 1-12)
folder=$cache_dir/npm-$key

if [ ! -e "$folder/.complete" ] || [ ! -x "$folder/node" ]; then
  bin=$(find_npm)
  say "npm: installing the packages of $project into $folder"
  rm -rf "$folder"
  mkdir -p "$folder"
  cp "$project/package.json" "$project/package-lock.json" "$folder/"
  # A package of the project's own, which stands in for one that nobody needs here.
  [ ! -d "$project/stub" ] || cp -R "$project/stub" "$folder/"
  PATH=$bin:$PATH npm ci --ignore-scripts --no-audit --no-fund --silent --prefix "$folder" >&2
  node=$(find_node "$bin")
  ln -sf "$node" "$folder/node"
  touch "$folder/.complete"
fi
printf '%s\n' "$folder"
