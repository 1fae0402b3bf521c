#!/usr/bin/env bash
# What a node adds before an upstream, beside LiteLLM and sglang-router in the same run. Arguments: see `bench/gateway.py --help`.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/../scripts/lib.sh"

scripts/setup.sh wrk
with_heartbeat "building bombus" cargo build --release -p bombus --quiet
litellm=$(scripts/venv.sh tests/clients/litellm-requirements.txt)
sglang_router=$(scripts/venv.sh bench/gateway-requirements.txt)
export BOMBUS_BIN=$target_dir/release/bombus BOMBUS_TEST_LITELLM=$litellm BOMBUS_BENCH_SGLANG_ROUTER=$sglang_router
exec python3 bench/gateway.py "$@"
