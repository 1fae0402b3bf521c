"""What another node costs and what it gives: routed answers against direct ones, a worker's death, weights between nodes, and several
workers against one.

All of it on this machine, over loopback. What is compared is measured in turns, round by round, so that both meet the same machine. Fake
backends have a pace of their own and cost hardly any processor time: with them the nodes are measured and not the model.
"""

import argparse
import asyncio
import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "clients"))

import load
import machine
import setups
import streams
from bombus_node import MODEL, Swarm, bombus, cached_models, link_models
from setups import EMPTY, in_turns, median, netloc

CONNECTIONS = 64
TEXT = "one two three four five six seven eight"
ENGINE = '[[backends]]\nkind = "embedded"\nthreads = 1\n'
PACED_MS = 5
GB = 1_000_000_000


def fake(name, more="", *, reply=f" {TEXT}"):
    return setups.fake(name, more, reply=reply)


def routed(folder, options):
    """Through a node that has no model against the node that has it."""
    worker = fake("instant", reply=TEXT) + fake("paced", f"tokens = 100000\ntoken_ms = {PACED_MS}") + ENGINE

    def prepare(node):
        if node.name == "node1":
            link_models(cached_models(), node.data_dir)

    with Swarm(folder / "routed", [EMPTY, worker], prepare) as swarm:
        for model in ("instant", "paced", MODEL):
            swarm.wait_for(model, 1)
        hop, direct = swarm[0], swarm[1]
        for node in (hop, direct):
            load.whole_us(netloc(node), "instant", 200)
            streams.take_all(node.api, MODEL, ["Bees live in"], 8)

        def both(measure):
            return in_turns(options.rounds, lambda: measure(direct), lambda: measure(hop))

        def row(what, unit, values, digits, change, target):
            far, near = median(values[1]), median(values[0])
            return [f"{what} ({unit})", f"{near:.{digits}f}", f"{far:.{digits}f}", change(near, far), target]

        def added(near, far):
            return f"{far - near:+.2f}"

        def ratio(near, far):
            return f"x {far / near:.3f}"

        first = both(lambda node: median(load.first_token_us(netloc(node), "instant", "one", options.requests)) / 1000)
        whole = both(lambda node: median(load.whole_us(netloc(node), "instant", options.requests)) / 1000)
        rates = both(lambda node: load.requests_per_second(netloc(node), "instant", CONNECTIONS, options.seconds))

        def speed(model, prompt, tokens):
            return both(lambda node: streams.generation_rate(streams.take_all(node.api, model, [prompt], tokens)))

        paced = speed("paced", "Count.", options.tokens)
        real = speed(MODEL, "Bees live in", options.tokens)
        failed = sum(failed for rate in rates for _, failed in rate)
        rates = [[rate for rate, _ in values] for values in rates]
        return [
            row("first token", "ms", first, 3, added, "<= +1"),
            row("short answer, 1 at a time", "ms", whole, 3, added, ""),
            row(f"stream at {1000 // PACED_MS} tok/s", "tok/s", paced, 1, ratio, ">= x 0.97"),
            row(f"stream of {MODEL}", "tok/s", real, 1, ratio, ">= x 0.97"),
            row(f"short answers, {CONNECTIONS} connections", "per s", rates, 0, ratio, ""),
            ["requests failed meanwhile", "", str(failed), "", "0"],
        ]


async def follow(node, model, tokens, at_piece, strike):
    """Takes a stream and at this piece strikes the node that gives it. Returns the longest time without a piece from then on, in
    milliseconds, the whole text, and how often another node went on with it."""
    host, port = netloc(node).rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({
        "model": model, "messages": [{"role": "user", "content": "Tell me a long story about bees."}], "stream": True,
        "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
    }).encode()
    writer.write(load.request(netloc(node), body))
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    if " 200 " not in head.split("\r\n", 1)[0]:
        raise RuntimeError(f"the node answered {head}")
    route = next(line for line in head.split("\r\n") if line.lower().startswith("x-bombus-route:"))
    victim = route.split(":", 1)[1].strip().split(";")[0]
    times, seams, text = [], 0, ""
    while line := await reader.readline():
        if line.startswith(b": continued by "):
            seams += 1
        if line.startswith(b"data: [DONE]"):
            break
        if not line.startswith(b"data: "):
            continue
        event = json.loads(line.removeprefix(b"data: "))
        if "error" in event:
            raise RuntimeError(f"the answer broke off: {event}")
        piece = event["choices"][0]["delta"].get("content") if event.get("choices") else None
        if piece:
            text += piece
            times.append(time.perf_counter())
            if len(times) == at_piece:
                struck = time.perf_counter()
                strike(victim)
    else:
        raise RuntimeError("the stream ended without its end")
    writer.close()
    after = [struck, *(at for at in times if at > struck)]
    return max(b - a for a, b in zip(after, after[1:])) * 1000, text, seams


def deaths(folder, options):
    """How long a client waits when the node that answers it is killed with -9, or stands still."""
    rows = []
    kinds = [
        ("paced", fake("paced", f"tokens = 100000\ntoken_ms = {PACED_MS}"), f"{1000 // PACED_MS} tok/s", None),
        (MODEL, ENGINE, MODEL, lambda node: link_models(cached_models(), node.data_dir)),
    ]
    for model, config, label, prepare in kinds:
        def prepared(node, prepare=prepare):
            if prepare and node.name != "node0":
                prepare(node)

        with Swarm(folder / f"deaths-{model.replace(':', '-')}", [EMPTY, config, config], prepared) as swarm:
            swarm.wait_for(model, 1, 2)
            for index in (1, 2):
                streams.take_all(swarm[index].api, model, ["Hello"], 2)
            whole = asyncio.run(follow(swarm[0], model, options.tokens, 1, lambda _: None))[1]
            gaps, seams, same = [], 0, 0
            for number in range(options.kills):
                struck = []

                def strike(victim, struck=struck):
                    struck.extend(node for node in swarm.nodes if node.id == victim)
                    os.kill(struck[0].process.pid, signal.SIGKILL)

                gap, text, count = asyncio.run(follow(swarm[0], model, options.tokens, 3 + number % 20, strike))
                gaps.append(gap)
                seams += count
                same += text == whole
                struck[0].kill()
                struck[0].__enter__()
                swarm.wait_for(model, 1, 2)
                streams.take_all(struck[0].api, model, ["Hello"], 2)
            rows.append([
                f"gap at kill -9, {label} (ms)", f"{median(gaps):.0f}", f"{max(gaps):.0f}", f"{same} of {options.kills}", f"{seams} of {options.kills}", "< 1500",
            ])
    return rows


def write_model(file, size):
    """Writes a GGUF file of one tensor with bytes that do not compress."""
    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    count = size // 4
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2)
    for key, value in (("general.architecture", "llama"), ("general.name", "Bulk")):
        head += text(key) + struct.pack("<I", 8) + text(value)
    head += text("token_embd.weight") + struct.pack("<IQIQ", 1, count, 0, 0)
    head += b"\0" * (-len(head) % 32)
    block = os.urandom(1 << 20)
    with open(file, "wb") as out:
        out.write(head)
        for number in range(0, count * 4, len(block)):
            # Each block is another one, so that a block in the wrong place would show.
            out.write((struct.pack("<Q", number) + block[8:])[:count * 4 - number])


@contextlib.contextmanager
def file_server(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()


def weights(folder, options):
    """A large model from node to node, beside curl from a server of files."""
    size = int(options.gb * GB)
    file = folder / "bulk.gguf"
    write_model(file, size)
    size = file.stat().st_size
    with Swarm(folder / "weights", [ENGINE, ENGINE]) as swarm, file_server(folder) as port:
        bombus(swarm[1].data_dir, "models", "import", file, "--name", "bulk")

        def pull():
            begin = time.perf_counter()
            bombus(swarm[0].data_dir, "models", "pull", "bulk")
            seconds = time.perf_counter() - begin
            bombus(swarm[0].data_dir, "models", "rm", "bulk")
            return seconds

        def curl(*, check=False):
            copy = folder / "copy"
            begin = time.perf_counter()
            subprocess.run(["curl", "--silent", "--fail", "--noproxy", "*", "--output", copy, f"http://127.0.0.1:{port}/bulk.gguf"], check=True)
            if check:
                with open(copy, "rb") as written:
                    hashlib.file_digest(written, "sha256")
            seconds = time.perf_counter() - begin
            copy.unlink()
            return seconds

        pulls, curls, checked = in_turns(options.transfers, pull, curl, lambda: curl(check=True))

    def row(label, values):
        rates = [size / 1e6 / seconds for seconds in values]
        return [label, f"{median(rates):.0f}", f"{max(rates):.0f}"]

    return [
        row("models pull from a peer, checked and stored", pulls), row("curl over loopback", curls), row("curl, then SHA-256", checked),
    ]


async def all_at_once(node, model, count):
    """Asks for so many answers at once; returns the seconds until the last one ended."""
    host, port = netloc(node).rsplit(":", 1)

    async def one():
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(load.request(netloc(node), load.ask_body(model)))
        answer = b""
        while not load.is_whole(answer):
            more = await reader.read(65536)
            if not more:
                break
            answer += more
        writer.close()
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the node answered {answer[:500]!r}")

    begin = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    return time.perf_counter() - begin


def together(folder, name, workers, options):
    """Has so many workers answer all tasks, each one at a time; returns the median of the seconds."""
    with Swarm(folder / name, [EMPTY, *workers]) as swarm:
        swarm.wait_for("task", *range(1, len(workers) + 1))
        # What it has measured of each decides, too.
        asyncio.run(all_at_once(swarm[0], "task", 4 * len(workers)))
        return median([asyncio.run(all_at_once(swarm[0], "task", options.tasks)) for _ in range(options.rounds)])


def parallel(folder, options):
    """Tasks on 1, 2 and 4 workers, and on two of different speed against the faster one alone."""
    def worker(token_ms):
        return fake("task", f"tokens = 20\ntoken_ms = {token_ms}\nmax_concurrent = 1")

    rows, base = [], None
    for count in (1, 2, 4):
        seconds = together(folder, f"workers-{count}", [worker(5)] * count, options)
        base = base or seconds
        rows.append([f"{count} worker{'s' if count > 1 else ''} of the same speed", f"{seconds:.2f}", f"x {base / seconds:.2f}", f"x {count}"])
    fast = together(folder, "fast-alone", [worker(5)], options)
    both = together(folder, "fast-and-slow", [worker(5), worker(15)], options)
    rows.append(["the fast one of two alone", f"{fast:.2f}", "x 1.00", ""])
    rows.append(["both, of 1x and 3x speed", f"{both:.2f}", f"x {fast / both:.2f}", "x 1.33"])
    return rows


PARTS = {
    "routed": (routed, ["through one hop, on loopback", "direct", "routed", "change", "target"]),
    "deaths": (deaths, ["the worker dies in mid-stream", "median", "most", "same as undisturbed", "continued", "target"]),
    "weights": (weights, ["a model of {gb} GB (MB/s)", "median", "most"]),
    "parallel": (parallel, ["{tasks} tasks at once", "seconds", "speed", "ideal"]),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=400, help="answers that are timed one by one in each round")
    parser.add_argument("--seconds", type=int, default=4, help=f"time with {CONNECTIONS} connections in each round")
    parser.add_argument("--tokens", type=int, default=160, help="tokens of a stream")
    parser.add_argument("--kills", type=int, default=15)
    parser.add_argument("--gb", type=float, default=1.0, help="size of the model that travels, in GB of 10^9 bytes")
    parser.add_argument("--transfers", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=48)
    parser.add_argument("--only", action="append", choices=list(PARTS), help="this part; may be given several times")
    options = parser.parse_args()
    load_before = machine.load()
    with tempfile.TemporaryDirectory(prefix="bombus-bench-") as folder:
        for name in options.only or PARTS:
            part, head = PARTS[name]
            rows = part(pathlib.Path(folder), options)
            machine.print_table([cell.format(**vars(options)) for cell in head], rows)
            print(flush=True)
    print(
        f"{options.rounds} rounds, {options.requests} requests one by one in each, streams of {options.tokens} tokens. A gap is the longest time without "
        "text from the kill on. curl gets its file from Python's server of files. Tasks have 20 tokens of 5 ms, workers one slot."
    )
    print(machine.describe(load_before))


if __name__ == "__main__":
    main()
