"""How fast a node is ready and how much memory it takes while no model is loaded."""

import argparse
import http.client
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "clients"))

import machine
from bombus_node import Node, binary, clean_environment

START_LIMIT_S = 10
REQUESTS = 2000


def start_ms(data_dir):
    """Returns the time from starting the process to the first answer of /health."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [binary(), "up", "--data-dir", data_dir, "--api", f"127.0.0.1:{port}"]
    begin = time.perf_counter()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=clean_environment(data_dir)
    )
    try:
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
            try:
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return (time.perf_counter() - begin) * 1000
            except ConnectionRefusedError:
                time.sleep(0.0005)
            finally:
                connection.close()
            if process.poll() is not None or time.perf_counter() - begin > START_LIMIT_S:
                raise RuntimeError(f"the node did not start (exit status {process.poll()})")
    finally:
        process.terminate()
        process.wait(30)


def processes(pid):
    """Yields a process and all that it started."""
    yield pid
    for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield from processes(int(child))


def memory_mb(pid):
    """Returns the resident memory of a process and its children, in units of 1024 x 1024 bytes."""
    total = 0
    for process in processes(pid):
        for line in pathlib.Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1])
    return total / 1024


def memory(data_dir):
    """Returns the node's memory at rest and after many requests."""
    with Node(data_dir) as node:
        time.sleep(1)
        at_rest = memory_mb(node.process.pid)
        connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=10)
        for number in range(REQUESTS):
            connection.request("GET", ["/health", "/status", "/v1/models", "/metrics"][number % 4])
            connection.getresponse().read()
        connection.close()
        return at_rest, memory_mb(node.process.pid)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    load_before = machine.load()
    first, again, at_rest, worked = [], [], [], []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="bombus-bench-") as data_dir:
            data_dir = pathlib.Path(data_dir)
            first.append(start_ms(data_dir))
            again.append(start_ms(data_dir))
    for _ in range(3):
        with tempfile.TemporaryDirectory(prefix="bombus-bench-") as data_dir:
            rest, after = memory(data_dir)
            at_rest.append(rest)
            worked.append(after)

    def row(label, unit, values, target):
        return [f"{label} ({unit})", f"{statistics.median(values):.1f}", f"{min(values):.1f}", f"{max(values):.1f}", target]

    machine.print_table(["no model loaded", "median", "least", "most", "target"], [
        row("start to ready, new data directory", "ms", first, "< 300"),
        row("start to ready, known data directory", "ms", again, "< 300"),
        row("memory at rest", "MiB", at_rest, "<= 57"),
        row(f"memory after {REQUESTS} requests", "MiB", worked, "<= 57"),
    ])
    print()
    print(f"{options.rounds} starts of each kind, 3 nodes for the memory (resident, children included).")
    print(machine.describe(load_before))


if __name__ == "__main__":
    main()
