"""What a node adds before an upstream: against asking the upstream directly, and beside LiteLLM and sglang-router, in the same run.

The upstream is a second node whose model is a script that answers at once, so that nearly all of the time is the gateway's. All servers
stay up for the whole run; those that are not being measured are stopped meanwhile (SIGSTOP). In each round each of them gets every
measurement, one server after the other, and the order turns around from round to round. The load of many connections comes first: it
leaves behind what a stopped server had to catch up with, and processors that are awake, which those of a virtual machine that rested
are not for many thousands of requests.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import signal
import statistics
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "clients"))

import load
import machine
from bombus_node import Node
from node import memory_mb, processes
from servers import LiteLlm, Server, free_port

TEXT = "one two three four five six seven eight"
SLOW_TOKENS = 40
STREAMS = 512
CONNECTIONS = 64
MOCK = f"""
[[backends]]
name = "fast"
kind = "fake"
models = ["fast"]
reply = "{TEXT}"

[[backends]]
name = "slow"
kind = "fake"
models = ["slow"]
reply = " {TEXT}"
tokens = {SLOW_TOKENS}
first_token_ms = 50
token_ms = 50
"""


class SglangRouter(Server):
    """SGLang's router in its default settings, but with one policy for one worker."""

    def __init__(self, state, upstream):
        super().__init__(state)
        self.upstream = upstream

    def command(self):
        program = pathlib.Path(os.environ["BOMBUS_BENCH_SGLANG_ROUTER"]) / "bin" / "python"
        command = [program, "-m", "sglang_router.launch_router", "--worker-urls", self.upstream, "--policy", "round_robin"]
        return [*command, "--host", "127.0.0.1", "--port", self.port, "--prometheus-port", free_port()]

    # It answers this only when its worker has been found well.
    ready_path = "/readiness"


def lite_llm(state, upstream):
    leads_to = {"api_base": f"{upstream}/v1", "api_key": "unused"}
    models = [(name, {"model": f"openai/{name}"} | leads_to) for name in ("fast", "slow")]
    return LiteLlm(state, models, workers=os.cpu_count(), guarded=False)


@dataclasses.dataclass
class Taken:
    """Everything that was measured on one server."""

    whole_us: list = dataclasses.field(default_factory=list)
    first_token_us: list = dataclasses.field(default_factory=list)
    rates: list = dataclasses.field(default_factory=list)
    failed: int = 0
    clean: list = dataclasses.field(default_factory=list)
    streams_s: list = dataclasses.field(default_factory=list)
    memory_mb: float = 0.0


def measure(netloc, taken, options):
    """Takes every measurement of one round from one server. A few requests before each are not counted."""
    rate, failed = load.requests_per_second(netloc, "fast", CONNECTIONS, options.seconds)
    taken.rates.append(rate)
    taken.failed += failed
    load.whole_us(netloc, "fast", 20)
    taken.whole_us += load.whole_us(netloc, "fast", options.requests)
    load.first_token_us(netloc, "fast", "one", 10)
    taken.first_token_us += load.first_token_us(netloc, "fast", "one", options.requests // 2)


def measure_streams(netloc, taken):
    words = [f" {word}" for word in TEXT.split()]
    expected = "".join(words[number % len(words)] for number in range(SLOW_TOKENS))
    clean, seconds = load.clean_streams(netloc, "slow", expected, STREAMS)
    taken.clean.append(clean)
    taken.streams_s.append(seconds)


def percentile(values, percent):
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def report(results, load_before, options):
    direct = results["direct"]

    def added(field, percent):
        base = percentile(getattr(direct, field), percent)
        return [f"{percentile(getattr(taken, field), percent) - base:+.0f}" for name, taken in results.items() if name != "direct"]

    def absolute(field, percent):
        return f"{percentile(getattr(direct, field), percent):.0f}"

    def each(write, *, first=None):
        return [first if first is not None and name == "direct" else write(taken) for name, taken in results.items()]

    rows = [
        ["answer, 1 at a time, p50 (direct: us; others: us added)", absolute("whole_us", 50), *added("whole_us", 50), ""],
        ["answer, 1 at a time, p99 (direct: us; others: us added)", absolute("whole_us", 99), *added("whole_us", 99), "<= 150"],
        ["first token, p50 (direct: us; others: us added)", absolute("first_token_us", 50), *added("first_token_us", 50), "<= 300"],
        ["first token, p99 (direct: us; others: us added)", absolute("first_token_us", 99), *added("first_token_us", 99), ""],
        [f"answers per second, {CONNECTIONS} connections", *each(lambda taken: f"{statistics.median(taken.rates):.0f}"), "ahead"],
        ["requests failed meanwhile", *each(lambda taken: str(taken.failed)), "0"],
        [f"clean streams of {STREAMS} at once, worst round", *each(lambda taken: str(min(taken.clean))), str(STREAMS)],
        ["seconds until the last of them ended", *each(lambda taken: f"{statistics.median(taken.streams_s):.1f}"), ""],
        ["memory after all that (MiB)", *each(lambda taken: f"{taken.memory_mb:.0f}", first=""), "<= 57"],
    ]
    machine.print_table(["", *results, "target"], rows)
    print()
    print(
        f"{options.rounds} rounds; percentiles over {options.rounds * options.requests} answers and {options.rounds * (options.requests // 2)} streams, "
        f"rates: medians of {options.seconds} s each. The streams have {SLOW_TOKENS} tokens, one each 50 ms: {0.05 * SLOW_TOKENS:.1f} s at least."
    )
    print(machine.describe(load_before))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--requests", type=int, default=1000, help="answers that are timed one by one in each round")
    parser.add_argument("--seconds", type=int, default=4, help=f"time with {CONNECTIONS} connections in each round")
    parser.add_argument("--without", action="append", default=[], choices=["litellm", "sglang-router"], help="leave one out")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="bombus-bench-") as work:
        work = pathlib.Path(work)
        with Node(work / "mock", MOCK) as mock:
            config = f'[[backends]]\nname = "mock"\nkind = "openai"\nurl = "{mock.api}/v1"\n'
            others = {"litellm": lite_llm, "sglang-router": SglangRouter}
            running = {}
            try:
                for name, make in others.items():
                    if name not in options.without:
                        running[name] = make(work / name, mock.api).start()
                with Node(work / "bombus", config) as node:
                    run({"direct": mock, "bombus": node} | running, options)
            finally:
                for server in running.values():
                    server.stop()


@contextlib.contextmanager
def standing_still(servers):
    """Stops servers that are not being measured, so that what they do at rest costs the others nothing."""
    groups = [server.process.pid for server in servers]
    for group in groups:
        signal_all(group, signal.SIGSTOP)
    try:
        yield
    finally:
        for group in groups:
            signal_all(group, signal.SIGCONT)


def signal_all(pid, number):
    """Sends a signal to a process and to all that it started."""
    for process in processes(pid):
        os.kill(process, number)


def run(servers, options):
    netlocs = {name: server.api.removeprefix("http://") for name, server in servers.items()}
    results = {name: Taken() for name in servers}
    for netloc in netlocs.values():
        load.whole_us(netloc, "fast", 50)
    load_before = machine.load()
    for number in range(options.rounds):
        order = list(netlocs.items())
        for name, netloc in order if number % 2 == 0 else reversed(order):
            with standing_still(server for other, server in servers.items() if other not in ("direct", name)):
                measure(netloc, results[name], options)
                if number % 2 == 0:
                    measure_streams(netloc, results[name])
        print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)
    for name, server in servers.items():
        results[name].memory_mb = memory_mb(server.process.pid)
    report(results, load_before, options)


if __name__ == "__main__":
    main()
