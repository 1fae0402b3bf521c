"""Starts and stops a `bombus` node for the tests, each with a data directory of its own."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = "smollm2:135m"
START_LIMIT_S = 60
STOP_LIMIT_S = 30


def binary():
    """Returns the path of the program under test."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    path = pathlib.Path(os.environ.get("BOMBUS_BIN") or ROOT / target / "debug" / "bombus")
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run `cargo build -p bombus`")
    return path


def clean_environment(home):
    """Returns an environment in which nothing of the developer's own settings reaches the program."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("BOMBUS_", "OLLAMA_", "OPENAI_", "LITELLM_"))}
    # Nodes under test meet no other nodes, of this machine or of its network.
    alone = {"BOMBUS_P2P__LISTEN": "127.0.0.1:0", "BOMBUS_P2P__MDNS": "false"}
    return env | alone | {"XDG_CONFIG_HOME": str(home / "config"), "XDG_DATA_HOME": str(home / "data"), "NO_COLOR": "1"}


def bombus(data_dir, *arguments, **options):
    """Runs a command that ends by itself and returns what it left; fails the test when the command failed."""
    command = [binary(), *arguments, "--data-dir", data_dir]
    options = {"capture_output": True, "text": True, "timeout": 600, "env": clean_environment(data_dir)} | options
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, **options)
    assert done.returncode == 0, f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def cached_models():
    """Returns a data directory that holds the small model, pulled by the program itself at the first call."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "bombus" / "test-models"
    cache.mkdir(parents=True, exist_ok=True)
    bombus(cache, "models", "pull", MODEL)
    return cache


def link_models(source, data_dir):
    """Gives a new data directory the models of another one, without copying where the file system can link."""

    def link(from_path, to_path):
        try:
            os.link(from_path, to_path)
        except OSError:
            shutil.copy2(from_path, to_path)

    bombus(data_dir, "models", "list")
    shutil.copytree(source / "models", data_dir / "models", copy_function=link, dirs_exist_ok=True)


class Node:
    """A running node. Use it as a context manager."""

    def __init__(self, data_dir, config="", listen="127.0.0.1:0", name="clients"):
        self.data_dir = pathlib.Path(data_dir)
        self.config = config
        self.listen = listen
        self.name = name
        self.process = None
        self.api = None
        self.id = None
        self.killed = False

    def __enter__(self):
        self.data_dir.mkdir(parents=True, exist_ok=True)
        config = self.data_dir / "test.toml"
        config.write_text(self.config)
        log = open(self.data_dir / "node.log", "wb")
        self.process = subprocess.Popen(
            [binary(), "up", "--data-dir", self.data_dir, "--config", config, "--api", self.listen, "--name", self.name],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=clean_environment(self.data_dir),
        )
        log.close()
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            record = self._record()
            if record:
                self.api = record["api"].rstrip("/")
                self.id = record["node_id"]
                self.killed = False
                return self
            if self.process.poll() is not None or time.monotonic() > deadline:
                code = self.process.poll()
                self.kill()
                raise AssertionError(f"the node is not up (exit status {code})\n{self.log()}")
            time.sleep(0.02)

    def __exit__(self, *_):
        self.stop()

    def _record(self):
        try:
            record = json.loads((self.data_dir / "node.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return record if record["pid"] == self.process.pid else None

    @property
    def port(self):
        return int(self.api.rsplit(":", 1)[1])

    def log(self):
        return (self.data_dir / "node.log").read_text(errors="replace")[-8000:]

    def stop(self):
        """Ends the node as a service manager would and expects it to end well, unless a test has killed it."""
        if self.killed:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"the node did not stop within {STOP_LIMIT_S} s\n{self.log()}") from None
        assert self.process.returncode == 0, f"the node ended with {self.process.returncode}\n{self.log()}"

    def kill(self):
        """Ends the node as a machine that fails does."""
        self.killed = True
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def get(self, path):
        """Gets JSON from the node's API."""
        with urllib.request.urlopen(f"{self.api}{path}", timeout=20) as answer:
            return json.load(answer)

    def candidates(self, model):
        """Returns the ids of the nodes that could answer for a model now, best first, as this node sees it."""
        route = self.get(f"/route?model={model}")
        return [candidate["node_id"] for candidate in route["candidates"] if "score" in candidate]


class Swarm:
    """Nodes of one swarm on this machine, called node0, node1, ... Use it as a context manager.

    `configs` has a configuration for each; `prepare` gets each node before it starts, for example to give it models.
    """

    def __init__(self, folder, configs, prepare=None):
        self.nodes = [Node(pathlib.Path(folder) / f"node{index}", config, name=f"node{index}") for index, config in enumerate(configs)]
        self.prepare = prepare
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        with self.stack:
            for node in self.nodes if self.prepare else []:
                node.data_dir.mkdir(parents=True, exist_ok=True)
                self.prepare(node)
            first, *others = self.nodes
            self.stack.enter_context(first)
            ticket = bombus(first.data_dir, "invite", "--quiet").stdout.strip()
            for node in others:
                bombus(node.data_dir, "join", "--quiet", ticket)
                self.stack.enter_context(node)
            # What follows ends the nodes only at the end of the swarm.
            self.stack = self.stack.pop_all()
        return self

    def __exit__(self, *error):
        return self.stack.__exit__(*error)

    def __getitem__(self, index):
        return self.nodes[index]

    def wait_for(self, model, *workers, at=0):
        """Waits until a node would send requests for a model to each of these."""
        wanted = {self.nodes[index].id for index in workers}
        deadline = time.monotonic() + START_LIMIT_S
        while not wanted <= set(self.nodes[at].candidates(model)):
            assert time.monotonic() < deadline, f"node{at} does not know of {model} at {workers}\n{self.nodes[at].log()}"
            time.sleep(0.02)
