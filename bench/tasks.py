"""What durable tasks cost: a hundred on two workers beside peers of @orbitdb/core that do the same without leases, ten thousand on eight nodes,
and how the cost of a task grows with the number of nodes and with the tasks that there were before.

All of it on this machine, over loopback, each node and each peer a process of its own. The models answer at once, so that the tasks are
measured and not the model. JavaScript keeps everything in memory, which is its fastest way; ours are on the disk before anybody is told.
"""

import argparse
import asyncio
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "clients"))

import machine
from bombus_node import Swarm
from node import memory_mb

LIMIT_S = 900
MODEL = "instant"
REPLY = "one two three four five six seven eight"
EMPTY = '[[backends]]\nkind = "embedded"\n'
WORKER = f'[[backends]]\nkind = "fake"\nmodels = ["{MODEL}"]\nreply = "{REPLY}"\n'
# How peers in JavaScript choose among what is PENDING, and how long they wait before they look whether their claim held.
JS_WAYS = (("oldest", 0), ("random", 0), ("random", 300))


def quantile(values, part):
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def loopback_bytes():
    for line in pathlib.Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[0])
    raise KeyError("lo")


def disk_bytes(folder):
    return sum(file.stat().st_size for file in pathlib.Path(folder).rglob("*") if file.is_file())


async def exchange(reader, writer, netloc, body):
    """Submits one task over a connection that is kept; returns its id."""
    head = f"POST /task HTTP/1.1\r\nhost: {netloc}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")).split(b":")[1])
    answer = await reader.readexactly(length)
    if b" 202 " not in head.split(b"\r\n", 1)[0]:
        raise RuntimeError(f"the node answered {head!r} {answer!r}")
    return json.loads(answer)["task_id"]


async def submit_all(netloc, count, connections, begun):
    """Submits so many tasks over so many connections, and notes when each was begun."""
    host, port = netloc.rsplit(":", 1)
    numbers = iter(range(count))

    async def one():
        reader, writer = await asyncio.open_connection(host, int(port))
        for number in numbers:
            body = json.dumps({"task_type": "inference", "payload": {"model": MODEL, "prompt": f"question {number}"}}).encode()
            at = time.perf_counter()
            begun[await exchange(reader, writer, netloc, body)] = at
        writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))


async def completions(netloc, count, ended, ready):
    """Notes when the requester says of each task that it is completed: its result is there then."""
    host, port = netloc.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
    writer.write(f"GET /events?kind=task:completed,task:failed HTTP/1.1\r\nhost: {netloc}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise RuntimeError(f"the node answered {head!r}")
    ready.set()
    while len(ended) < count:
        line = (await reader.readline()).strip()
        if not line.startswith(b"data:"):
            continue
        event = json.loads(line[5:])
        if event.get("kind") == "lagged" or "missed" in event:
            raise RuntimeError("the events came faster than they were read")
        if event["kind"] == "task:failed":
            raise RuntimeError(f"a task failed: {event}")
        ended.setdefault(event["data"]["task_id"], time.perf_counter())
    writer.close()


async def job(node, count, connections):
    """Has so many tasks done. Returns the seconds from the first task to the last result, and those of each."""
    netloc = node.api.removeprefix("http://")
    begun, ended, ready = {}, {}, asyncio.Event()
    listening = asyncio.create_task(completions(netloc, count, ended, ready))
    await ready.wait()
    begin = time.perf_counter()
    await submit_all(netloc, count, connections, begun)
    await asyncio.wait_for(listening, LIMIT_S)
    if set(begun) != set(ended):
        raise RuntimeError("other tasks ended than were submitted")
    return max(ended.values()) - begin, [ended[task] - at for task, at in begun.items()]


def runs(node):
    """Returns how often tasks were granted and run, by the attempts that the requester tells of each."""
    count, cursor = 0, ""
    while cursor is not None:
        page = node.get(f"/tasks?limit=100&cursor={cursor}" if cursor else "/tasks?limit=100")
        count += sum(task.get("attempt") or 0 for task in page["tasks"])
        cursor = page.get("next")
    return count


def js_job(tasks, workers, pick, settle_ms):
    npm = pathlib.Path(os.environ["BOMBUS_BENCH_NPM"])
    command = [npm / "node", npm / "bench" / "swarm.mjs", str(tasks), str(workers), pick, str(settle_ms)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=LIMIT_S, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def headline(folder, options):
    """A hundred tasks on two workers, beside JavaScript, in turns."""
    ways = {way: [] for way in JS_WAYS}
    ours, executed = [], []
    with Swarm(folder / "headline", [EMPTY, WORKER, WORKER]) as swarm:
        swarm.wait_for(MODEL, 1, 2)
        # Connections, identities and code are warm, as they are after the 2.5 s that the peers in JavaScript have.
        asyncio.run(job(swarm[0], 10, 1))
        for _ in range(options.rounds):
            before = runs(swarm[0])
            ours.append(asyncio.run(job(swarm[0], options.tasks, options.connections))[0])
            executed.append(runs(swarm[0]) - before)
            for way, results in ways.items():
                results.append(js_job(options.tasks, 2, *way))
    rows = [[
        "bombus", f"{statistics.median(ours):.3f}", f"{min(ours):.3f}", f"{max(ours):.3f}",
        f"{min(executed)} to {max(executed)}", f"< 0.3, exactly {options.tasks}",
    ]]
    for (pick, settle_ms), results in ways.items():
        seconds = [result["all_ms"] / 1000 for result in results if result["all_ms"] is not None]
        lost = f", {len(results) - len(seconds)} never" if len(seconds) < len(results) else ""
        executions = [result["executions"] for result in results]
        rows.append([
            f"@orbitdb/core 4.0.0, {pick} first, {settle_ms} ms to settle",
            f"{statistics.median(seconds):.2f}{lost}" if seconds else "never", f"{min(seconds, default=0):.2f}", f"{max(seconds, default=0):.2f}",
            f"{min(executions)} to {max(executions)}", "",
        ])
    return rows


def measured(label, swarm, count, connections):
    """Has tasks done in a swarm and returns a row of what they cost."""
    folders = [node.data_dir / "swarms" for node in swarm.nodes]
    disk_before, wire_before, runs_before = sum(map(disk_bytes, folders)), loopback_bytes(), runs(swarm[0])
    seconds, latencies = asyncio.run(job(swarm[0], count, connections))
    wire = loopback_bytes() - wire_before
    disk = sum(map(disk_bytes, folders)) - disk_before
    return [
        label, f"{count / seconds:.0f}", f"{quantile(latencies, 0.5) * 1000:.0f}", f"{quantile(latencies, 0.99) * 1000:.0f}",
        str(runs(swarm[0]) - runs_before), f"{max(memory_mb(node.process.pid) for node in swarm.nodes):.0f}",
        f"{wire / count / 1000:.1f}", f"{disk / count / len(folders) / 1000:.2f}",
    ]


def many(folder, options):
    """Many tasks on eight nodes."""
    with Swarm(folder / "many", [EMPTY] + [WORKER] * 7) as swarm:
        swarm.wait_for(MODEL, *range(1, 8))
        asyncio.run(job(swarm[0], 10, 1))
        return [measured(f"{options.many:,} tasks on 8 nodes", swarm, options.many, 64)]


def by_nodes(folder, options):
    """The same number of tasks on swarms of different sizes."""
    rows = []
    for count in (2, 4, 8, 16):
        with Swarm(folder / f"nodes-{count}", [EMPTY] + [WORKER] * (count - 1)) as swarm:
            swarm.wait_for(MODEL, *range(1, count))
            asyncio.run(job(swarm[0], 10, 1))
            rows.append(measured(f"{count} nodes", swarm, options.step, 16))
    return rows


def by_history(folder, options):
    """The same number of tasks after more and more others."""
    rows, done = [], 0
    with Swarm(folder / "history", [EMPTY, WORKER, WORKER]) as swarm:
        swarm.wait_for(MODEL, 1, 2)
        for history in options.history:
            while done < history:
                count = min(history - done, 10_000)
                asyncio.run(job(swarm[0], count, 64))
                done += count
            rows.append(measured(f"after {history:,} tasks", swarm, options.step, 16))
            done += options.step
    return rows


COSTS = ["tasks/s", "p50 (ms)", "p99 (ms)", "executions", "most memory (MiB)", "wire (kB/task)", "disk (kB/task and node)"]
PARTS = {
    "headline": (headline, ["{tasks} tasks, 2 workers: first task to last result (s)", "median", "least", "most", "executions", "target"]),
    "many": (many, ["many tasks", *COSTS]),
    "nodes": (by_nodes, ["{step} tasks on", *COSTS]),
    "history": (by_history, ["{step} tasks on 3 nodes", *COSTS]),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--connections", type=int, default=8, help="over which the hundred are submitted")
    parser.add_argument("--many", type=int, default=10_000)
    parser.add_argument("--step", type=int, default=1_000, help="tasks in the tables of growth")
    parser.add_argument("--history", type=int, nargs="+", default=[0, 10_000, 100_000])
    parser.add_argument("--only", action="append", choices=list(PARTS), help="this part; may be given several times")
    options = parser.parse_args()
    load_before = machine.load()
    with tempfile.TemporaryDirectory(prefix="bombus-bench-") as folder:
        for name in options.only or PARTS:
            part, head = PARTS[name]
            machine.print_table([cell.format(**vars(options)) for cell in head], part(pathlib.Path(folder), options))
            print(flush=True)
    print(
        f"{options.rounds} rounds of the first table. Wire: all bytes over loopback, those of the client that submits and listens among them. "
        "Memory: resident, of the largest node. Disk: of the swarm's folder. Executions of ours are the attempts that were granted."
    )
    print(machine.describe(load_before))


if __name__ == "__main__":
    main()
