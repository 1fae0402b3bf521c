"""How soon nodes are ready and see each other, what an idle node costs, and how many bytes it sends.

Nodes run on machines of their own, made of network namespaces with real multicast, and find each other by that alone. Bytes are those of
each machine's interface, with all headers.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "clients"))

import machine
from bombus_node import binary, clean_environment
from machines import Network
from node import memory_mb

START_LIMIT_S = 20
MEET_LIMIT_S = 60
STOP_LIMIT_S = 30
CONFIG = 'default_model = "fake"\n[[backends]]\nkind = "fake"\n'
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def environment(folder):
    """Returns an environment in which the mesh has its defaults."""
    ours = ("BOMBUS_P2P__LISTEN", "BOMBUS_P2P__MDNS")
    env = {name: value for name, value in clean_environment(folder).items() if name not in ours}
    return env | {"BOMBUS_DATA_DIR": str(folder), "BOMBUS_DISCOVER__OLLAMA": "false"}


class MeshNode:
    """A node with the mesh's defaults, on a machine or on this one. Use it as a context manager."""

    def __init__(self, folder, name, place=None, arguments=()):
        self.folder, self.name, self.place, self.arguments = pathlib.Path(folder), name, place, arguments
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "bench.toml").write_text(CONFIG)

    def command(self, *arguments):
        command = [str(binary()), *arguments]
        return self.place.enter(*command) if self.place else command

    def done(self, *arguments):
        """Runs a command on the node's data directory and returns what it printed. A ticket of a node that does not run has no address."""
        env = environment(self.folder) | {"BOMBUS_P2P__LISTEN": "127.0.0.1:0"}
        run = subprocess.run(self.command(*arguments), env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            raise RuntimeError(f"{arguments[0]} failed: {run.stderr}")
        return run.stdout.strip()

    def __enter__(self):
        """Starts the node and waits until it serves; `started` and `ready` are the times of both."""
        arguments = ["up", "--name", self.name, "--config", self.folder / "bench.toml", "--api", "127.0.0.1:0", *self.arguments]
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            self.command(*map(str, arguments)), env=environment(self.folder), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.log = []
        serves = threading.Event()

        def read():
            for line in self.process.stderr:
                if " serves on " in line and not serves.is_set():
                    self.ready = time.perf_counter()
                    serves.set()
                self.log = [*self.log[-40:], line]

        self.reader = threading.Thread(target=read, daemon=True)
        self.reader.start()
        if not serves.wait(START_LIMIT_S):
            self.process.kill()
            raise RuntimeError(f"{self.name} does not serve:\n{''.join(self.log)}")
        self.record = json.loads((self.folder / "node.json").read_text())
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join()

    def get(self, path):
        command = ["curl", "--silent", "--fail", "--max-time", "20", self.record["api"].rstrip("/") + path]
        return json.loads(subprocess.run(self.place.enter(*command) if self.place else command, check=True, capture_output=True).stdout)

    def alive(self):
        return {peer["node_id"] for peer in self.get("/peers") if peer["state"] == "alive"}

    def cpu_s(self):
        """Returns the processor time that the node has used, in seconds."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


class Joined(threading.Thread):
    """Notes the time at which a node tells that another one has joined."""

    def __init__(self, watcher):
        super().__init__(daemon=True)
        url = watcher.record["api"].rstrip("/") + "/events?kind=peer:joined"
        command = watcher.place.enter("curl", "--silent", "--no-buffer", "--include", url)
        self.curl = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.seen = threading.Event()
        # Behind the headers the stream is open.
        while self.curl.stdout.readline().strip():
            pass
        self.start()

    def run(self):
        for line in self.curl.stdout:
            if line.startswith("event: peer:joined"):
                self.at = time.perf_counter()
                self.seen.set()
                return

    def wait(self):
        if not self.seen.wait(MEET_LIMIT_S):
            raise RuntimeError("the peer was not seen")
        self.curl.kill()
        self.curl.wait()
        self.curl.stdout.close()
        return self.at


def start_ms(rounds):
    """Returns the times from start to readiness, with new and with known data directories, the mesh with its defaults."""
    new, known = [], []
    with Network(1) as network:
        for _ in range(rounds):
            with tempfile.TemporaryDirectory(prefix="bombus-bench-") as folder:
                for times in (new, known):
                    with MeshNode(folder, "alone", network.machines[0]) as node:
                        times.append((node.ready - node.started) * 1000)
    return new, known


def peer_seen_ms(rounds):
    """Returns the times until a node tells of a newcomer, from the newcomer's start and from its readiness."""
    from_start, from_ready = [], []
    with Network(2) as network, tempfile.TemporaryDirectory(prefix="bombus-bench-") as folder:
        folder = pathlib.Path(folder)
        watcher = MeshNode(folder / "watcher", "watcher", network.machines[0])
        ticket = watcher.done("invite")
        with watcher:
            for number in range(rounds):
                newcomer = MeshNode(folder / f"newcomer{number}", f"newcomer{number}", network.machines[1])
                newcomer.done("join", ticket)
                joined = Joined(watcher)
                with newcomer:
                    at = joined.wait()
                from_start.append((at - newcomer.started) * 1000)
                from_ready.append((at - newcomer.ready) * 1000)
    return from_start, from_ready


def meet(nodes):
    """Waits until all nodes see each other and returns how long that took, in seconds."""
    begin = time.perf_counter()
    everyone = {node.record["node_id"] for node in nodes}
    for node in nodes:
        while node.alive() != everyone - {node.record["node_id"]}:
            if time.perf_counter() - begin > MEET_LIMIT_S:
                raise RuntimeError(f"{node.name} sees {len(node.alive())} of {len(nodes) - 1}:\n{''.join(node.log)}")
            time.sleep(0.02)
    return time.perf_counter() - begin


def idle(count, settle_s, window_s):
    """Runs so many nodes that do nothing and returns a row of the table: what each of them costs."""
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(Network(count))
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bombus-bench-")))
        nodes = [MeshNode(folder / str(index), f"node{index}", network.machines[index]) for index in range(count)]
        ticket = nodes[0].done("invite")
        for node in nodes[1:]:
            node.done("join", ticket)
        for node in nodes:
            stack.enter_context(node)
        meet_s = meet(nodes)
        time.sleep(settle_s)
        traffic = [machine.traffic() for machine in network.machines]
        cpu = [node.cpu_s() for node in nodes]
        begin = time.perf_counter()
        time.sleep(window_s)
        seconds = time.perf_counter() - begin
        rates = [[(now - then) / seconds for then, now in zip(before, place.traffic())] for before, place in zip(traffic, network.machines)]
        busy = [100 * (node.cpu_s() - before) / seconds for before, node in zip(cpu, nodes)]
        memory = [memory_mb(node.process.pid) for node in nodes]
        if any(len(node.alive()) != count - 1 for node in nodes):
            raise RuntimeError("a node lost sight of another one meanwhile")
    sent = [rate[2] / 1000 for rate in rates]
    return [
        str(count), f"{meet_s:.1f}",
        f"{statistics.mean(sent):.2f}", f"{max(sent):.2f}", f"{statistics.mean(rate[0] for rate in rates) / 1000:.2f}",
        f"{statistics.mean(rate[3] for rate in rates):.1f}",
        f"{statistics.median(memory):.1f}", f"{max(memory):.1f}", f"{statistics.median(busy):.2f}", f"{max(busy):.2f}",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--nodes", type=int, nargs="*", default=[5, 10, 20])
    parser.add_argument("--settle", type=float, default=60, help="seconds before the measurement of idle nodes")
    parser.add_argument("--window", type=float, default=90, help="seconds that it takes")
    options = parser.parse_args()
    load_before = machine.load()

    def row(label, values, target):
        return [label, f"{statistics.median(values):.0f}", f"{min(values):.0f}", f"{max(values):.0f}", target]

    new, known = start_ms(options.rounds)
    from_start, from_ready = peer_seen_ms(options.rounds)
    machine.print_table(["milliseconds", "median", "least", "most", "target"], [
        row("start to ready, new data directory", new, "< 300"),
        row("start to ready, known data directory", known, "< 300"),
        row("newcomer seen by multicast, from its start", from_start, "< 1000"),
        row("newcomer seen by multicast, from its readiness", from_ready, ""),
    ])
    print()
    head = ["idle nodes", "all meet (s)", "sent (kB/s)", "most sent", "received (kB/s)", "packets sent/s", "memory (MiB)", "most memory", "CPU (%)", "most CPU"]
    machine.print_table(head, [idle(count, options.settle, options.window) for count in options.nodes])
    print()
    print(
        f"Per node, over {options.window:.0f} s, {options.settle:.0f} s after all see each other; kB of 1000 bytes, with Ethernet, IP and TCP headers; CPU of one core. "
        "Targets at 10 nodes: < 2 kB/s sent, <= 57 MiB (60 MB), < 1 %."
    )
    print(f"{options.rounds} rounds of each time.")
    print(machine.describe(load_before))


if __name__ == "__main__":
    main()
