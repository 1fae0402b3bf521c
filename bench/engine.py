"""Our engine, through `bombus up`, against llama.cpp's own llama-server and llama-bench: same model file, same threads, interleaved.

Each round starts both servers anew, since one process may be some percent faster than the next for the whole of its life. Every
measurement goes to one server soon after the other, several times in a round, and who comes first turns around from one time to the next,
since the speed of a virtual machine changes within seconds. Between them the machine rests, so that nobody pays for what the other does
after its answer. The numbers are medians over all of them, and so is the ratio: of the ratios of the pairs. Prompts are random token ids,
the same for all servers and never used twice, so that nothing is answered from a cache unless a row says so.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "clients"))

import machine
import streams
from bombus_node import MODEL, Node, bombus, cached_models, link_models

PROMPT_TOKENS = 512
GENERATED_TOKENS = 128
SHORT_PROMPT_TOKENS = 16
SHARED_PREFIX_TOKENS = 400
SLOTS = 8
CONTEXT_TOKENS = 8192
KV_TOKENS = 2 * CONTEXT_TOKENS
# After an answer, a thread of llama-server looks for more work for up to 0.1 s, on a core that the next server wants.
REST_S = 0.3
REFERENCE = ROOT / "scripts" / "llama-cpp.sh"

# Row: what is measured, unit, digits, whether more is better, target for ours relative to the reference.
ROWS = {
    "prompt": (f"prompt, {PROMPT_TOKENS} tokens", "tok/s", 0, True, 0.97),
    "streams_1": ("generation, 1 stream", "tok/s", 1, True, 0.97),
    "streams_4": ("generation, 4 streams", "tok/s", 1, True, 1.0),
    "streams_8": ("generation, 8 streams", "tok/s", 1, True, 1.0),
    "whole_8": (f"8 requests at once, {SHORT_PROMPT_TOKENS} + {GENERATED_TOKENS} tokens each, all of it", "s", 2, False, None),
    "first_token": (f"first token, {SHARED_PREFIX_TOKENS + SHORT_PROMPT_TOKENS} new tokens", "ms", 0, False, None),
    "first_token_shared": (f"first token, {SHARED_PREFIX_TOKENS} of them shared", "ms", 1, False, None),
}


class Prompts:
    """Random prompts that are the same for every server in a round."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def next(self, tokens):
        return [self.random.randrange(1000, 40000) for _ in range(tokens)]


def measure_prompt(base, model, prompts):
    stream = streams.take_all(base, model, [prompts.next(PROMPT_TOKENS)], 1)[0]
    if stream.prompt_tokens != PROMPT_TOKENS:
        raise RuntimeError(f"{base} read {stream.prompt_tokens} tokens of a prompt of {PROMPT_TOKENS}")
    return {"prompt": PROMPT_TOKENS / stream.first_token_s}


def measure_generation(count):
    def measure(base, model, prompts):
        taken = streams.take_all(base, model, [prompts.next(SHORT_PROMPT_TOKENS) for _ in range(count)], GENERATED_TOKENS)
        short = [stream.completion_tokens for stream in taken if stream.completion_tokens != GENERATED_TOKENS]
        if short:
            raise RuntimeError(f"{base} generated {short} tokens where {GENERATED_TOKENS} were asked for")
        result = {f"streams_{count}": streams.generation_rate(taken)}
        if count == SLOTS:
            result["whole_8"] = streams.whole_s(taken)
        return result

    return measure


def measure_first_token(base, model, prompts):
    prefix = prompts.next(SHARED_PREFIX_TOKENS)
    cold, warm = (
        streams.take_all(base, model, [prefix + prompts.next(SHORT_PROMPT_TOKENS)], 4)[0].first_token_s * 1000 for _ in range(2)
    )
    return {"first_token": cold, "first_token_shared": warm}


MEASUREMENTS = [measure_prompt, *(measure_generation(count) for count in (1, 4, SLOTS)), measure_first_token]


def llama_bench(binary, model_file, threads):
    command = [binary, "-m", model_file, "-t", str(threads), "-p", str(PROMPT_TOKENS), "-n", str(GENERATED_TOKENS), "-r", "1", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    tests = json.loads(done.stdout)
    return {("prompt" if test["n_prompt"] else "streams_1"): test["avg_ts"] for test in tests}


class Reference:
    """A running llama-server."""

    def __init__(self, flavour, state, model_file, threads):
        self.flavour, self.state = flavour, state
        arguments = ["-t", str(threads), "-np", str(SLOTS), "-c", str(KV_TOKENS), "--kv-unified"]
        done = subprocess.run([REFERENCE, "up", flavour, state, model_file, *arguments], stdout=subprocess.PIPE, text=True, check=True)
        self.api = done.stdout.strip()
        self.binaries = pathlib.Path(reference_folder(flavour))

    def stop(self):
        subprocess.run([REFERENCE, "down", self.state], check=True)


def reference_folder(flavour):
    done = subprocess.run([REFERENCE, "build", flavour], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def median(rounds, key):
    return statistics.median(round[key] for round in rounds)


def report(results, load_before, options):
    head = ["", "bombus", *[name for name in results if name != "bombus"], "bombus / llama-server", "target"]
    rows = []
    for key, (label, unit, digits, more_is_better, target) in ROWS.items():
        cells = [f"{median(rounds, key):.{digits}f}" if key in rounds[0] else "" for rounds in results.values()]
        pairs = [(ours[key], reference[key]) for ours, reference in zip(results["bombus"], results["llama-server"])]
        ratio = statistics.median(ours / reference if more_is_better else reference / ours for ours, reference in pairs)
        rows.append([f"{label} ({unit})", *cells, f"{ratio:.2f}", "" if target is None else f">= {target:.2f}"])
    machine.print_table(head, rows)
    print()
    pairs = options.rounds * options.repeats
    print(f"Medians of {pairs} pairs in {options.rounds} rounds, {options.threads} threads, {MODEL}. In the last three rows the ratio is the reference's time by ours.")
    print(machine.describe(load_before))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=3, help="times that everything is measured in a round")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each engine")
    parser.add_argument("--native", action="store_true", help="also measure llama.cpp built for this very CPU")
    parser.add_argument("--raw", type=pathlib.Path, help="write every single measurement to this file as JSON")
    options = parser.parse_args()

    flavours = ["portable", "native"] if options.native else ["portable"]
    for flavour in flavours:
        reference_folder(flavour)
    config = f"""
[[backends]]
kind = "embedded"
threads = {options.threads}
slots = {SLOTS}
context_tokens = {CONTEXT_TOKENS}
kv_tokens = {KV_TOKENS}
"""
    with tempfile.TemporaryDirectory(prefix="bombus-bench-") as work:
        work = pathlib.Path(work)
        data_dir = work / "data"
        data_dir.mkdir()
        link_models(cached_models(), data_dir)
        listed = json.loads(bombus(data_dir, "models", "list", "--json").stdout)
        model_file = next(model["path"] for model in listed if model["name"] == MODEL)
        load_before = machine.load()
        rounds = {}
        for number in range(options.rounds):
            take_round(number, rounds, options, flavours, work, config, data_dir, model_file)
            print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)
    if options.raw:
        options.raw.write_text(json.dumps(rounds, indent=1))
    report(rounds, load_before, options)


def take_round(number, rounds, options, flavours, work, config, data_dir, model_file):
    """Starts all servers, takes every measurement from each, and stops them."""
    with contextlib.ExitStack() as running:
        references = {}
        for flavour in flavours:
            name = "llama-server" if flavour == "portable" else "llama-server, native"
            references[name] = Reference(flavour, work / flavour, model_file, options.threads)
            running.callback(references[name].stop)
        node = running.enter_context(Node(data_dir, config))
        servers = {"bombus": (node.api, MODEL)} | {name: (reference.api, "reference") for name, reference in references.items()}
        for place, (base, model) in enumerate(servers.values()):
            streams.take_all(base, model, [Prompts(-1 - place).next(SHORT_PROMPT_TOKENS)] * 2, 16)
        for repeat in range(options.repeats):
            seed = number * options.repeats + repeat
            order = list(servers.items()) if seed % 2 == 0 else list(reversed(servers.items()))
            prompts = {name: Prompts(seed) for name in servers}
            taken = {name: {} for name in servers}
            for take in MEASUREMENTS:
                for name, (base, model) in order:
                    time.sleep(REST_S)
                    taken[name] |= take(base, model, prompts[name])
            for name, result in taken.items():
                rounds.setdefault(name, []).append(result)
    of_bench = llama_bench(references["llama-server"].binaries / "llama-bench", model_file, options.threads)
    rounds.setdefault("llama-bench", []).append(of_bench)


if __name__ == "__main__":
    main()
