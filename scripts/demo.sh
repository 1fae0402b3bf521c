#!/usr/bin/env bash
# Shows what Bombus does, on this machine alone: builds it, fetches a small model and lets it answer. Then it starts three nodes, of
# which one has the model; the second gets it from the first; the third, which has none, is asked. In the middle of its answer the node
# that gives it is killed, and another one goes on. Leaves nothing running.
#   scripts/demo.sh [QUESTION...]
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

question=${*:-In one sentence, why do bees live in colonies?}
story="Tell me a long story about a bee that found a new meadow."
model=smollm2:135m
demo=$target_dir/demo
limit_s=60

scripts/setup.sh
if [ ! -x "$target_dir/debug/bombus" ]; then
  say "demo: building bombus; the first build compiles llama.cpp too and takes several minutes"
fi
with_heartbeat "building" cargo build -p bombus
bombus=$target_dir/debug/bombus

# Only what this script says counts: no settings of yours, no other nodes, no Ollama.
export BOMBUS_CONFIG=$demo/bombus.toml BOMBUS_P2P__LISTEN=127.0.0.1:0 BOMBUS_P2P__MDNS=false BOMBUS_DISCOVER__OLLAMA=false

declare -A pids=()
end_all() {
  local name
  for name in "${!pids[@]}"; do kill "${pids[$name]}" 2> /dev/null || true; done
  for name in "${!pids[@]}"; do wait "${pids[$name]}" 2> /dev/null || true; done
}
trap end_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Runs a command on a node's data directory.
#   at NODE ARGUMENT...
at() {
  local node=$1
  shift
  "$bombus" --data-dir "$demo/$node" "$@" < /dev/null
}

# Waits until a command works.
#   until_true WHAT COMMAND...
until_true() {
  local what=$1 deadline=$((SECONDS + limit_s))
  shift
  until "$@" > /dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || die "$what: not within $limit_s s; the logs are $demo/*.log"
    sleep 0.05
  done
}

#   start NODE
start() {
  : > "$demo/$1.log"
  # Not by `at`: this is to be the process id of the node itself.
  "$bombus" --data-dir "$demo/$1" up --name "$1" --api 127.0.0.1:0 < /dev/null 2> "$demo/$1.log" &
  pids[$1]=$!
  until_true "the node '$1' serves" grep -q ' serves on ' "$demo/$1.log"
}

# Says whether so many nodes could answer for the model, as a node sees it.
#   offered AT COUNT
offered() { [ "$(at "$1" route "$model" --json | grep -c '"score"')" -ge "$2" ]; }

# Names the node that answers a request of another one; fails where none does.
answering() {
  local node api
  for node in hive meadow; do
    api=$(sed -n 's/.*"api": *"\([^"]*[^"\/]\)\/*".*/\1/p' "$demo/$node/node.json")
    if curl --silent --noproxy '*' "$api/node/sharing" | grep -Eq '"running": *[1-9]'; then
      echo "$node"
      return
    fi
  done
  return 1
}

# Waits until both nodes with the model are found, and has them load it, as after a first question.
warm_up() {
  local node
  until_true "both nodes with the model are found" offered garden 2
  for node in hive meadow; do at garden ask --quiet --node "$node" --model "$model" --max-tokens 8 Hello > /dev/null; done
}

# Says whether so many bytes of the answer have come, or all of it.
#   came BYTES
came() { [ "$(wc -c < "$answer")" -ge "$1" ] || ! kill -0 "${pids[question]}" 2> /dev/null; }

# Has 'garden' ask, and kills the node that answers when so many bytes have come. Fails where the answer was over before that. The node that
# was killed, if any, is $victim then.
#   interrupt MOST_TOKENS BYTES
interrupt() {
  : > "$answer"
  exec 3> >(exec tee "$answer")
  pids[tee]=$!
  "$bombus" --data-dir "$demo/garden" ask --model "$model" --max-tokens "$1" --temperature 0 --explain "$story" < /dev/null >&3 2> "$route" 3>&- &
  pids[question]=$!
  until_true "the answer begins" came "$2"
  if victim=$(answering); then
    kill -9 "${pids[$victim]}"
    wait "${pids[$victim]}" 2> /dev/null || true
    unset "pids[$victim]"
  fi
  wait "${pids[question]}" || die "the answer broke off: $(cat "$route")"
  exec 3>&-
  wait "${pids[tee]}"
  unset "pids[question]" "pids[tee]"
  grep -q ' went on$' "$route"
}

mkdir -p "$demo"
printf '[[backends]]\nkind = "embedded"\n' > "$demo/bombus.toml"
# The second and the third begin anew each time; the first keeps the model.
rm -rf -- "$demo/meadow" "$demo/garden"

at hive models pull "$model" >&2
say
say "\$ bombus ask --model $model \"$question\""
at hive ask --model "$model" "$question"

say
say "Three nodes; only 'hive' has the model."
start hive
ticket=$(at hive invite --quiet)
for node in meadow garden; do
  at "$node" join --quiet "$ticket" > /dev/null
  start "$node"
done
until_true "a node without a model finds it" offered garden 1

say
say "meadow\$ bombus models pull $model     # from 'hive', over the swarm"
at meadow models pull "$model" >&2
warm_up

say
say "garden\$ bombus ask --model $model \"$story\""
answer=$demo/answer.txt route=$demo/route.txt
if ! interrupt 160 120; then
  say
  say "This machine is quick: that was over before its node could be killed. Once more, with a longer answer."
  [ -z "$victim" ] || start "$victim"
  warm_up
  interrupt 1000 1 || die "that was over too before its node could be killed; the route was: $(cat "$route")"
fi

say
say "'$victim' was killed (kill -9) in the middle of that. The route, as 'garden' tells it:"
sed 's/^/  /' "$route" >&2
