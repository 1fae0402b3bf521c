"""Machines on one network, made of network namespaces: each has an interface, counters and real multicast of its own.

A namespace belongs to a process that waits on a pipe from this one, so nothing is left behind, however this one ends. Root makes them
directly, everybody else inside a user namespace where the system allows that.
"""

import os
import pathlib
import subprocess

os.environ["PATH"] += ":/usr/sbin:/sbin"


class Namespace:
    """A network namespace. Use it as a context manager."""

    def __init__(self, inside=None):
        self.inside = inside
        self.keeper = None

    def __enter__(self):
        as_root = os.geteuid() == 0
        if self.inside:
            command = self.inside.enter("unshare", "--net")
        else:
            command = ["unshare", "--net"] if as_root else ["unshare", "--user", "--map-root-user", "--net"]
        command += ["--", "sh", "-c", "echo ready && exec cat"]
        self.keeper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.keeper.stdout.readline() != "ready\n":
            raise SystemExit("network namespaces cannot be made here: run this as root, or allow unprivileged user namespaces")
        self.run("ip link set lo up")
        return self

    def __exit__(self, *_):
        self.keeper.stdin.close()
        self.keeper.wait()
        self.keeper.stdout.close()

    def enter(self, *command):
        """Returns the command that runs a command inside; the process that is started becomes that command."""
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return ["nsenter", "--target", str(self.keeper.pid), *user, "--net", "--", *map(str, command)]

    def run(self, script):
        subprocess.run(self.enter("sh", "-ec", script), check=True)

    def traffic(self):
        """Returns what the machine's interface has carried: bytes and packets received, bytes and packets sent."""
        for line in pathlib.Path(f"/proc/{self.keeper.pid}/net/dev").read_text().splitlines():
            name, _, numbers = line.partition(":")
            if name.strip() == "eth0":
                numbers = [int(number) for number in numbers.split()]
                return numbers[0], numbers[1], numbers[8], numbers[9]
        raise KeyError("eth0")


class Network:
    """A switch with machines that have the addresses 10.78.0.1, 10.78.0.2, ... Use it as a context manager."""

    def __init__(self, count):
        self.count = count
        self.room = Namespace()
        self.machines = []

    def __enter__(self):
        self.room.__enter__()
        self.room.run("ip link add lan type bridge mcast_snooping 0 && ip link set lan up")
        for index in range(self.count):
            machine = Namespace(self.room).__enter__()
            self.machines.append(machine)
            peer = f"eth0 netns {machine.keeper.pid}"
            self.room.run(f"ip link add cable{index} type veth peer name {peer} && ip link set cable{index} master lan up")
            machine.run(f"ip address add 10.78.0.{index + 1}/24 dev eth0 && ip link set eth0 up && ip route add default dev eth0")
        return self

    def __exit__(self, *_):
        for machine in self.machines:
            machine.__exit__()
        self.room.__exit__()
