"""What replicated databases cost, beside @orbitdb/core 4.0.0 in the same run: puts, reads, joins, and how soon one peer has what another wrote.

All of it on this machine, over loopback. What is compared is measured in turns, round by round, so that both meet the same machine. JavaScript
keeps everything in Level on the disk, which waits for nothing (`level`), or in memory (`memory`), which loses everything at its end; ours is
redb and a journal before it, where a durable put is on the disk when it returns.
"""

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

import machine
from setups import in_turns, median, quantile

LIMIT_S = 1800
READY_LIMIT_S = 60
OURS = "bombus"
THEIRS = "JS"


def output_of(command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=LIMIT_S, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def ours(*arguments):
    return output_of([os.environ["BOMBUS_BENCH_DATABASES"], "--bench", *map(str, arguments)])


def node_script(name, *arguments):
    npm = pathlib.Path(os.environ["BOMBUS_BENCH_NPM"])
    return [npm / "node", npm / "bench" / name, *map(str, arguments)]


def theirs(*arguments):
    return output_of(node_script("local.mjs", *arguments))


class Peer:
    """A peer in a process of its own that takes commands line by line. Use it as a context manager."""

    def __init__(self, kind, folder):
        self.kind = kind
        self.folder = folder
        self.process = None
        self.answers = {}
        self.events = []
        self.changed = threading.Condition()
        self.asked = 0
        self.addresses = []

    def __enter__(self):
        command = [os.environ["BOMBUS_BENCH_PEER"], self.folder] if self.kind == OURS else node_script("peer.mjs", "level")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        threading.Thread(target=self._read, daemon=True).start()
        self.addresses = self._wait(lambda: next((event for event in self.events if event["event"] == "ready"), None), READY_LIMIT_S)["addresses"]
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _read(self):
        for line in self.process.stdout:
            message = json.loads(line)
            with self.changed:
                if "event" in message:
                    self.events.append(message)
                else:
                    self.answers[message["id"]] = message
                self.changed.notify_all()
        with self.changed:
            self.changed.notify_all()

    def _wait(self, found, limit_s):
        with self.changed:
            if not self.changed.wait_for(lambda: found() or self.process.poll() is not None, limit_s) or not found():
                raise RuntimeError(f"a peer of {self.kind} gave no answer (exit status {self.process.poll()})")
            return found()

    def call(self, command, /, **arguments):
        self.asked += 1
        number = self.asked
        self.process.stdin.write(json.dumps({"id": number, "do": command, **arguments}) + "\n")
        self._wait(lambda: number in self.answers, LIMIT_S)
        answer = self.answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{command} at a peer of {self.kind}: {answer['error']}")
        return answer["value"]

    def updates(self):
        return {event["key"]: event["at_ms"] for event in list(self.events) if event["event"] == "update"}


@contextlib.contextmanager
def pair(first, second):
    """Two peers that are connected; the first has opened the database that is measured."""
    with tempfile.TemporaryDirectory(prefix="bombus-bench-") as folder:
        folder = pathlib.Path(folder)
        with Peer(first, folder / "first") as left, Peer(second, folder / "second") as right:
            address = left.call("open", name="bench")["address"]
            # Ours comes to JavaScript as JavaScript comes to JavaScript: the one that joins is the one that is dialled.
            left.call("dial", address=right.addresses[0])
            yield left, right, address


def until_peers(peer):
    deadline = time.monotonic() + READY_LIMIT_S
    while peer.call("peers") == 0:
        if time.monotonic() > deadline:
            raise RuntimeError(f"a peer of {peer.kind} never met the other one")
        time.sleep(0.02)


def rounds_for(count, options, kinds=(OURS,)):
    """Returns how often so many documents are measured: what takes long, as 5000 and more do in JavaScript, once."""
    return options.rounds if count <= (1000 if THEIRS in kinds else 5000) else 1


def replicate(first, second, count):
    """Seconds from the first of so many puts, one after another, until the other peer has them all."""
    with pair(first, second) as (left, right, address):
        right.call("open", name=address)
        until_peers(left)
        right.call("wait", head=left.call("put", **{"from": count, "count": 1})["head"], limit_ms=60_000)
        put = left.call("put", **{"from": 0, "count": count})
        return (right.call("wait", head=put["head"], limit_ms=LIMIT_S * 1000)["at_ms"] - put["begin_ms"]) / 1000


def cold(first, second, counts, options):
    """For each count: the seconds that a peer which has nothing needs to get everything, and its memory then."""
    results = {}
    with tempfile.TemporaryDirectory(prefix="bombus-bench-") as folder:
        folder = pathlib.Path(folder)
        with Peer(first, folder / "first") as left:
            address, filled = left.call("open", name="bench")["address"], 0
            for count in counts:
                head = left.call("put", **{"from": filled, "count": count - filled})["head"]
                filled = count
                taken, memory = [], []
                for number in range(rounds_for(count, options, (first, second))):
                    with Peer(second, folder / f"second-{count}-{number}") as right:
                        left.call("dial", address=right.addresses[0])
                        begin = time.time() * 1000
                        right.call("open", name=address)
                        taken.append((right.call("wait", head=head, limit_ms=LIMIT_S * 1000)["at_ms"] - begin) / 1000)
                        memory.append(right.call("rss"))
                results[count] = (median(taken), median(memory))
    return results


def latencies(first, second, count):
    """Milliseconds from a put to the update that the other peer tells, one document at a time."""
    with pair(first, second) as (left, right, address):
        right.call("open", name=address, watch=True)
        until_peers(left)
        # One heartbeat of gossipsub, in which its mesh forms; the first entries bring identities along.
        time.sleep(1.5)
        begun = {}
        for number in range(count + 5):
            begun[f"task-{number:08}"] = left.call("put", **{"from": number, "count": 1})["begin_ms"]
            time.sleep(0.01)
        right.call("wait", head=left.call("put", **{"from": count + 5, "count": 1})["head"], limit_ms=60_000)
        updates = right.updates()
        return [updates[key] - at for key, at in list(begun.items())[5:] if key in updates]


def times(value, reference):
    return f"x {value / reference:.1f}" if reference else ""


def local(folder, options):
    """Puts and reads in one process."""
    def put(in_flight, durability):
        with tempfile.TemporaryDirectory(dir=folder) as directory:
            return ours("put", directory, 0, options.puts * (10 if in_flight > 1 else 1), in_flight, durability)["per_second"]

    rates = in_turns(
        options.rounds,
        lambda: theirs("put", "memory", options.puts)["per_second"],
        lambda: theirs("put", "level", options.puts)["per_second"],
        lambda: put(1, "durable"), lambda: put(64, "durable"), lambda: put(1, "relaxed"), lambda: put(64, "relaxed"),
    )
    memory, level, *mine = map(median, rates)
    labels = ["put, durable, one at a time", "put, durable, 64 in flight", "put, relaxed, one at a time", "put, relaxed, 64 in flight"]
    rows = [
        [f"{label} (per s)", f"{rate:.0f}", f"{memory:.0f}", f"{level:.0f}", times(rate, level), ">= x 20" if "64" in label and "durable" in label else ""]
        for label, rate in zip(labels, mine)
    ]
    for count in options.reads:
        is_shared = count <= options.js_reads_most

        def read(count=count):
            with tempfile.TemporaryDirectory(dir=folder) as directory:
                ours("put", directory, 0, count, 64, "relaxed")
                return ours("read", directory, count)

        others = [lambda: theirs("read", "memory", count), lambda: theirs("read", "level", count)] if is_shared else [dict, dict]
        results = in_turns(rounds_for(count, options), *others, read)

        def cells(name, digits, results=results):
            values = [median([result[name] for result in side]) if name in side[0] else None for side in results]
            return [f"{value:.{digits}f}" if value is not None else "" for value in values], values

        for label, name, digits, target in [
            ("get (us)", "get_us", 2, "< 10"), ("query (ms)", "query_ms", 2, "< 2" if count == 5000 else ""),
            ("opening again (ms)", "open_ms", 0, ""), ("memory (MiB)", "rss_mib", 0, ""), ("on the disk, each (bytes)", "disk_bytes_per_entry", 0, ""),
        ]:
            (in_memory, in_level, own), (_, slow, fast) = cells(name, digits)
            rows.append([f"{count} documents: {label}", own, in_memory, in_level, times(slow, fast) if slow else "", target])
    return rows


def growth(folder, options):
    """How ours grows."""
    rows = []
    for count in options.sizes:
        with tempfile.TemporaryDirectory(dir=folder) as directory:
            put = ours("put", directory, 0, count, 64, "durable")["per_second"]
            last = ours("put", directory, count, 1000, 64, "durable")["per_second"]
            join, read = ours("join", directory)["per_second"], ours("read", directory, count + 1000)
        rows.append([
            str(count), f"{put:.0f}", f"{last:.0f}", f"{join:.0f}", f"{read['open_ms']:.0f}", f"{read['get_us']:.2f}", f"{read['query_ms']:.2f}",
            f"{read['rss_mib']:.0f}", str(read["log_bytes_per_entry"]), str(read["disk_bytes_per_entry"]),
        ])
    return rows


PAIRS = [(OURS, OURS), (THEIRS, OURS), (OURS, THEIRS), (THEIRS, THEIRS)]


def peers(_, options):
    """Between two peers, each in a process of its own, in all four combinations."""
    rows = []
    taken = in_turns(options.rounds, *(lambda pair=pair: replicate(*pair, options.replicate) for pair in PAIRS))
    taken = [median(values) for values in taken]
    rows.append([f"replicate {options.replicate} (s)", *(f"{value:.2f}" for value in taken), times(taken[3], taken[0]), ""])
    delays = in_turns(options.rounds, *(lambda pair=pair: latencies(*pair, options.updates) for pair in PAIRS))
    delays = [[delay for values in side for delay in values] for side in delays]
    middle = [median(values) for values in delays]
    rows.append(["put to update, median (ms)", *(f"{value:.2f}" for value in middle), times(middle[3], middle[0]), "< 1"])
    late = [quantile(values, 0.99) for values in delays]
    rows.append(["put to update, p99 (ms)", *(f"{value:.2f}" for value in late), times(late[3], late[0]), ""])
    joins = []
    for first, second in PAIRS:
        most = {0: sys.maxsize, 1: options.js_most, 2: options.js_js_most}[(first, second).count(THEIRS)]
        joins.append(cold(first, second, [count for count in options.cold if count <= most], options))
    for count in options.cold:
        values = [side.get(count) for side in joins]
        seconds = [f"{value[0]:.2f}" if value else "" for value in values]
        gain = times(values[3][0], values[0][0]) if values[3] else ""
        rows.append([f"cold join of {count} (s)", *seconds, gain, ">= x 50" if count == 5000 else ""])
        rows.append(["memory after it (MiB)", *(f"{value[1]:.0f}" if value else "" for value in values), "", ""])
    return rows


PARTS = {
    "local": (local, ["one process", OURS, f"{THEIRS}, memory", f"{THEIRS}, level", f"{OURS} / level", "target"]),
    "peers": (peers, ["from one process to another", *(f"{first} -> {second}" for first, second in PAIRS), f"{THEIRS} / {OURS}", "target"]),
    "growth": (growth, [
        "entries", "put, durable, 64 (per s)", "the next 1000 (per s)", "join (per s)", "open (ms)", "get (us)", "query (ms)", "memory (MiB)", "log bytes each",
        "disk bytes each",
    ]),
}


def numbers(text):
    return [int(number) for number in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of what is not large: joins of more than 1000 documents with JavaScript, and of more than 5000, are measured once")
    parser.add_argument("--puts", type=int, default=1000, help="documents put one after another; ten times as many with 64 in flight")
    parser.add_argument("--reads", type=numbers, default=[5000, 100_000], help="numbers of documents that are read")
    parser.add_argument("--js-reads-most", type=int, default=5000, help="the most of them in JavaScript, which puts 100000 in ten minutes")
    parser.add_argument("--replicate", type=int, default=1000)
    parser.add_argument("--updates", type=int, default=200, help="documents put one at a time, to see how soon each is told")
    parser.add_argument("--cold", type=numbers, default=[1000, 5000, 50_000], help="numbers of documents that a new peer gets")
    parser.add_argument("--js-most", type=int, default=50_000, help="the most documents of a cold join in which JavaScript has one part")
    parser.add_argument("--js-js-most", type=int, default=5000, help="the most where it has both")
    parser.add_argument("--sizes", type=numbers, default=[1000, 5000, 20_000, 100_000])
    parser.add_argument("--only", action="append", choices=list(PARTS), help="this part; may be given several times")
    options = parser.parse_args()
    load_before, begin = machine.load(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bombus-bench-") as folder:
        for name in options.only or PARTS:
            part, head = PARTS[name]
            print(f"measuring: {name}, after {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
            machine.print_table(head, part(pathlib.Path(folder), options))
            print(flush=True)
    print(
        f"{options.rounds} rounds, one of joins of 5000 and more with JavaScript and of more than 5000 documents; {time.monotonic() - begin:.0f} s in all. JavaScript: @orbitdb/core 4.0.0 on Helia 6, blocks, heads and index in Level on the disk (never synced) or in "
        "memory; between peers Level. Ours: redb behind a journal; durable means synced before the put returns."
    )
    print(machine.describe(load_before))


if __name__ == "__main__":
    sys.exit(main())
