# Every target works on a fresh clone; `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test check fmt bench bench-engine bench-gateway bench-mesh bench-node bench-orbitdb bench-swarm bench-tasks fuzz soak clean

export PATH := $(HOME)/.cargo/bin:$(PATH)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

setup: ## install what building and testing need (Debian and its relatives: with apt)
	@scripts/setup.sh --tests

demo: ## a small model answers; then three nodes, of which one is killed while it answers
	@scripts/demo.sh

test: ## run every test: Rust, then real clients and servers before and behind running nodes
	@scripts/test.sh

check: ## what a change has to pass: format, lints, tests, docs, licences
	@scripts/check.sh

fmt: ## format the Rust code
	cargo fmt --all

bench: bench-node bench-mesh bench-swarm bench-orbitdb bench-tasks bench-engine bench-gateway ## run all benchmarks and print their tables

bench-engine: ## our engine against llama.cpp's own server on the same model and threads
	@bench/engine.sh

bench-gateway: ## what a node adds before an upstream, beside LiteLLM and sglang-router
	@bench/gateway.sh

bench-mesh: ## how soon nodes see each other, what an idle node costs, and how many bytes it sends
	@bench/mesh.sh

bench-node: ## start-up time and memory of a node without a model
	@bench/node.sh

bench-orbitdb: ## replicated databases beside @orbitdb/core: puts, reads, joins, updates
	@bench/orbitdb.sh

bench-swarm: ## what a hop costs, how long a client waits when its worker dies, weights between nodes, several workers
	@bench/swarm.sh

bench-tasks: ## durable tasks beside peers of @orbitdb/core without leases; many tasks, many nodes, much history
	@bench/tasks.sh

fuzz: ## feed every decoder what nobody should send (FUZZ_SECONDS for each, 20 by default)
	@scripts/fuzz.sh

soak: ## the fault tests in many rounds (BOMBUS_FAULT_ROUNDS, 20 by default)
	@scripts/soak.sh

clean: ## remove what was built (the caches under ~/.cache/bombus stay)
	cargo clean
