"""What durable tasks cost: a hundred on two workers beside peers of @orbitdb/core that do the same without leases, ten thousand on eight nodes,
and how the cost of a task grows with the number of nodes and with the tasks that there were before.

All of it on this machine, over loopback, each node and each peer a process of its own. The models answer at once, so that the tasks are
measured and not the model. JavaScript keeps everything in memory, which is its fastest way; ours are on the disk before anybody is told.
How often tasks were run is counted where they run.
"""

import argparse
import asyncio
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "clients"))

import machine
import setups
from bombus_node import Node, Swarm
from node import memory_mb
from setups import EMPTY, in_turns, median, netloc, quantile

# Nothing here takes so long.
LIMIT_S = 600
MODEL = "instant"
WORKER = setups.fake(MODEL, reply="one two three four five six seven eight")
# What has ended is kept, as many as it is.
KEEPING = "[tasks]\nkeep = 200000\n"
IN_FLIGHT = 64
# How long what is written about tasks behind their ends is waited for.
AFTER_S = 2
# How peers in JavaScript choose among what is PENDING, and how long they wait before they look whether their claim held.
JS_WAYS = (("oldest", 0), ("random", 0), ("random", 300))


def say(text):
    print(f"  ... {text}", file=sys.stderr, flush=True)


def loopback_bytes():
    for line in pathlib.Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[0])
    raise KeyError("lo")


def disk_bytes(node):
    """Returns how much room the databases of a node take."""
    files = (node.data_dir / "swarms").rglob("*")
    return sum(file.stat().st_blocks * 512 for file in files if file.is_file())


def cpu_seconds(node):
    numbers = pathlib.Path(f"/proc/{node.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")


def runs(nodes):
    """Returns how often tasks were run, as each node counted its own runs."""
    return int(sum(sum(setups.metrics(node, "bombus_task_runs_begun_total").values()) for node in nodes))


def entry_bytes(node):
    """Returns how many bytes the entries of the databases of tasks have."""
    names = [database["name"] for database in node.get("/db")["databases"]]
    return sum(node.get(f"/db/{name}")["log_bytes"] for name in names if name.startswith("swarm-"))


class Job:
    """So many tasks for one node, and when each was begun and ended."""

    def __init__(self, node, task, count, in_flight):
        self.netloc = netloc(node)
        self.count, self.in_flight = count, in_flight
        body = json.dumps(task).encode()
        head = f"POST /task HTTP/1.1\r\nhost: {self.netloc}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self.request = head.encode() + body
        self.begun, self.ended = {}, {}
        self.waiting = {}
        self.listening = None

    async def connect(self, **options):
        host, port = self.netloc.rsplit(":", 1)
        return await asyncio.open_connection(host, int(port), **options)

    async def submit(self, reader, writer):
        """Submits one task over a connection that is kept; returns its id."""
        at = time.perf_counter()
        writer.write(self.request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")).split(b":")[1])
        answer = await reader.readexactly(length)
        if b" 202 " not in head.split(b"\r\n", 1)[0]:
            raise RuntimeError(f"the node answered {head!r} {answer!r}")
        task = json.loads(answer)["task_id"]
        self.begun[task] = at
        return task

    async def follow(self, ready):
        """Notes when the requester says of each task that it is completed: its result is there, and accepted for ever."""
        reader, writer = await self.connect(limit=1 << 20)
        writer.write(f"GET /events?kind=task:completed,task:failed HTTP/1.1\r\nhost: {self.netloc}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            raise RuntimeError(f"the node answered {head!r}")
        ready.set()
        while len(self.ended) < self.count:
            line = (await reader.readline()).strip()
            if not line.startswith(b"data:"):
                continue
            event = json.loads(line[5:])
            if event.get("kind") == "lagged" or "missed" in event:
                raise RuntimeError("the events came faster than they were read")
            if event["kind"] == "task:failed":
                raise RuntimeError(f"a task failed: {event}")
            task = event["data"]["task_id"]
            self.ended.setdefault(task, time.perf_counter())
            waiting = self.waiting.pop(task, None)
            if waiting:
                waiting.set()
        writer.close()

    async def submit_some(self, numbers):
        reader, writer = await self.connect()
        for _ in numbers:
            task = await self.submit(reader, writer)
            if self.in_flight and task not in self.ended:
                waiting = self.waiting[task] = asyncio.Event()
                # Whoever ends the tasks tells of errors.
                await asyncio.wait([asyncio.ensure_future(waiting.wait()), self.listening], return_when=asyncio.FIRST_COMPLETED)
        writer.close()

    async def run(self, connections):
        ready = asyncio.Event()
        self.listening = asyncio.create_task(self.follow(ready))
        await asyncio.wait([asyncio.ensure_future(ready.wait()), self.listening], return_when=asyncio.FIRST_COMPLETED)
        begin, numbers = time.perf_counter(), iter(range(self.count))
        await asyncio.gather(*(self.submit_some(numbers) for _ in range(connections)))
        await asyncio.wait_for(self.listening, LIMIT_S)
        if set(self.begun) != set(self.ended):
            raise RuntimeError("other tasks ended than were submitted")
        return max(self.ended.values()) - begin, [self.ended[task] - at for task, at in self.begun.items()]


INFERENCE = {"task_type": "inference", "payload": {"model": MODEL, "prompt": "How are you?"}}
PING = {"task_type": "ping", "payload": {"n": 1}}


def at_once(node, count, connections):
    """Submits so many tasks as fast as the node takes them. Returns the seconds from the first task to the last result, and those of each."""
    return asyncio.run(Job(node, INFERENCE, count, False).run(connections))


def in_flight(node, count, task=INFERENCE):
    """Has so many tasks done, 64 at a time, each followed by another one when it has ended. Returns the same."""
    return asyncio.run(Job(node, task, count, True).run(min(count, IN_FLIGHT)))


def js_job(tasks, workers, pick, settle_ms):
    npm = pathlib.Path(os.environ["BOMBUS_BENCH_NPM"])
    command = [npm / "node", npm / "bench" / "swarm.mjs", str(tasks), str(workers), pick, str(settle_ms)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=LIMIT_S, check=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    seconds = None if result["all_ms"] is None else result["all_ms"] / 1000
    say(f"@orbitdb/core, {pick}, {settle_ms} ms: {seconds} s, {result['executions']} executions")
    return seconds, result["executions"]


def headline(folder, options):
    """A hundred tasks on two workers, beside JavaScript, in turns."""
    with Swarm(folder / "headline", [EMPTY, WORKER, WORKER]) as swarm:
        swarm.wait_for(MODEL, 1, 2)
        # Connections, identities and code are warm, as they are after the 2.5 s that the peers in JavaScript have.
        at_once(swarm[0], 10, 1)

        def ours():
            time.sleep(AFTER_S)
            before = runs(swarm.nodes)
            seconds, _ = at_once(swarm[0], options.tasks, options.connections)
            executed = runs(swarm.nodes) - before
            say(f"bombus: {seconds:.3f} s, {executed} executions")
            return seconds, executed

        js = [lambda way=way: js_job(options.tasks, 2, *way) for way in JS_WAYS]
        results, *others = in_turns(options.rounds, ours, *js)
        # JavaScript takes a hundred times as long; of ours there are more rounds.
        results += [ours() for _ in range(2 * options.rounds)]

    def row(label, results, digits, target):
        seconds = [seconds for seconds, _ in results if seconds is not None]
        executed = [executed for _, executed in results]
        never = f" ({len(results) - len(seconds)} never)" if len(seconds) < len(results) else ""
        times = [f"{of(seconds):.{digits}f}" for of in (median, min, max)] if seconds else ["never", "", ""]
        return [label, times[0] + never, *times[1:], f"{min(executed)} to {max(executed)}", target]

    rows = [row("bombus", results, 3, f"< 0.3, exactly {options.tasks}")]
    for (pick, settle_ms), results in zip(JS_WAYS, others):
        rows.append(row(f"@orbitdb/core 4.0.0, {pick} first, {settle_ms} ms to settle", results, 2, ""))
    return rows


COSTS = ["tasks/s", "p50 (ms)", "p99 (ms)", "executions", "CPU (ms)", "wire (kB)", "entries (kB)", "disk (kB)", "memory (MiB)"]


def measured(label, swarm, count):
    """Has tasks done in a swarm and returns a row of what they cost."""
    nodes = swarm.nodes
    time.sleep(AFTER_S)

    def look():
        totals = [sum(map(cpu_seconds, nodes)), sum(map(disk_bytes, nodes))]
        return [loopback_bytes(), runs(nodes), entry_bytes(nodes[0]), *totals]

    before = look()
    seconds, latencies = in_flight(swarm[0], count)
    time.sleep(AFTER_S)
    wire, executed, entries, cpu, disk = (after - earlier for earlier, after in zip(before, look()))
    per_node = count * len(nodes)
    row = [
        label, f"{count / seconds:.0f}", f"{quantile(latencies, 0.5) * 1000:.0f}", f"{quantile(latencies, 0.99) * 1000:.0f}", str(executed),
        f"{cpu * 1000 / per_node:.2f}", f"{wire / per_node / 1000:.1f}", f"{entries / count / 1000:.1f}", f"{disk / per_node / 1000:.1f}",
        f"{max(memory_mb(node.process.pid) for node in nodes):.0f}",
    ]
    say(", ".join(row))
    return row


def with_workers(folder, count, more=""):
    return Swarm(folder, [EMPTY + more] + [WORKER + more] * (count - 1))


def warm(swarm):
    swarm.wait_for(MODEL, *range(1, len(swarm.nodes)))
    at_once(swarm[0], 4 * len(swarm.nodes), 1)


def many(folder, options):
    """Many tasks on eight nodes."""
    with with_workers(folder / "many", 8) as swarm:
        warm(swarm)
        return [measured(f"{options.many:,} tasks on 8 nodes", swarm, options.many)]


def by_nodes(folder, options):
    """The same number of tasks on swarms of different sizes."""
    rows = []
    for count in options.nodes:
        with with_workers(folder / f"nodes-{count}", count) as swarm:
            warm(swarm)
            rows.append(measured(f"{count} nodes", swarm, options.step))
    return rows


def started(node):
    """Starts a node; returns the seconds until it tells of its tasks."""
    begin = time.perf_counter()
    node.__enter__()
    while True:
        try:
            node.get("/tasks?limit=1")
            return time.perf_counter() - begin
        except OSError:
            time.sleep(0.01)


def known(node):
    return setups.metrics(node, "bombus_tasks").get('status="completed"', 0)


def by_history(folder, options):
    """The same number of tasks after more and more others. Those are pings, which the requester answers itself before the workers come."""
    rows, done = [], 0
    for history in options.history:
        folder_now = folder / "history"
        requester = Node(folder_now / "node0", EMPTY + KEEPING, name="node0")
        with requester:
            while done < history:
                count = min(history - done, 10_000)
                seconds, _ = in_flight(requester, count, PING)
                done += count
                say(f"{done:,} tasks before, {count / seconds:.0f} a second, {memory_mb(requester.process.pid):.0f} MiB")
        requester = Node(folder_now / "node0", EMPTY + KEEPING, name="node0")
        start = started(requester)
        requester.stop()
        with with_workers(folder_now, 3, KEEPING) as swarm:
            begin = time.perf_counter()
            while not all(known(node) >= done for node in swarm.nodes):
                if time.perf_counter() - begin > LIMIT_S:
                    raise RuntimeError(f"the nodes know {[known(node) for node in swarm.nodes]} of {done} tasks")
                time.sleep(0.2)
            say(f"started in {start:.2f} s; the workers knew all after {time.perf_counter() - begin:.1f} s")
            warm(swarm)
            rows.append([*measured(f"after {history:,} tasks", swarm, options.step), f"{start:.2f}"])
            done += options.step + 4 * len(swarm.nodes)
    return rows


PARTS = {
    "headline": (headline, ["{tasks} tasks, 2 workers: first task to last result (s)", "median", "least", "most", "executions", "target"]),
    "many": (many, ["many tasks", *COSTS]),
    "nodes": (by_nodes, ["{step} tasks on", *COSTS]),
    "history": (by_history, ["{step} tasks on 3 nodes", *COSTS, "start (s)"]),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of JavaScript in each way; ours are three times as many")
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--connections", type=int, default=8, help="over which the hundred are submitted")
    parser.add_argument("--many", type=int, default=10_000)
    parser.add_argument("--step", type=int, default=1_000, help="tasks in the tables of growth")
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--history", type=int, nargs="+", default=[0, 10_000, 100_000])
    parser.add_argument("--only", action="append", choices=list(PARTS), help="this part; may be given several times")
    options = parser.parse_args()
    load_before, begin = machine.load(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="bombus-bench-") as folder:
        for name in options.only or PARTS:
            say(f"{name}, after {time.perf_counter() - begin:.0f} s")
            part, head = PARTS[name]
            machine.print_table([cell.format(**vars(options)) for cell in head], part(pathlib.Path(folder), options))
            print(flush=True)
    print(
        f"The hundred are submitted at once, over {options.connections} connections, to a node without the model; all others {IN_FLIGHT} at a "
        "time. CPU, wire and disk are those of one task at one node: all of the swarm's divided by its nodes; the wire is all that goes over "
        "loopback, the client's part of it included. Entries: what one task adds to the three databases. Disk: how the files of these grow, "
        "which they do in steps. Memory: resident, of the largest node. Before the tasks after others nothing that has ended was let go."
    )
    print(machine.describe(load_before))


if __name__ == "__main__":
    main()
