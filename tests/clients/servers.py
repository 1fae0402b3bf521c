"""Servers that nobody here wrote, for nodes to stand before and behind: Ollama, llama-server, LiteLLM.

Each is built or installed by a script of this project on first use, which takes minutes; `scripts/test.sh` does that before the tests.
"""

import functools
import json
import os
import pathlib
import pty
import select
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

from bombus_node import ROOT, clean_environment

START_LIMIT_S = 120
STOP_LIMIT_S = 30
TALK_LIMIT_S = 300
SCRIPTS = ROOT / "scripts"
HERE = pathlib.Path(__file__).parent


class Missing(Exception):
    """A server cannot be had on this machine; says why."""


@functools.cache
def prepared(what, script, *arguments):
    """Returns the folder that a script prints. `scripts/test.sh` leaves word of what it has prepared, or why it could not."""
    name = f"BOMBUS_TEST_{what.upper()}"
    if why := os.environ.get(f"{name}_MISSING"):
        raise Missing(f"{what} cannot be had here: {why}")
    if folder := os.environ.get(name):
        return pathlib.Path(folder)
    done = subprocess.run([SCRIPTS / script, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
        raise Missing(f"{what} cannot be had here: {script} ended with {done.returncode}: {last}")
    return pathlib.Path(done.stdout.strip())


def ollama_program():
    return prepared("ollama", "ollama.sh", "build") / "bin" / "ollama"


def llama_server_program():
    return prepared("llama_server", "llama-cpp.sh", "build", "portable") / "llama-server"


def litellm_program():
    return prepared("litellm", "venv.sh", HERE / "litellm-requirements.txt") / "bin" / "litellm"


def npm_folder():
    return prepared("npm", "npm.sh", HERE / "npm")


def free_port():
    """Returns a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A program that serves HTTP on a port of 127.0.0.1. Use it as a context manager, or `start` and `stop` it."""

    def __init__(self, state, port=None):
        self.state = pathlib.Path(state)
        self.state.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.api = f"http://127.0.0.1:{self.port}"
        self.process = None

    def command(self):
        raise NotImplementedError

    def environment(self):
        return clean_environment(self.state) | {"HOME": str(self.state)}

    ready_path = "/"

    def start(self):
        with open(self.state / "server.log", "ab") as log:
            # A process group of its own, so that what it starts can be ended with it.
            self.process = subprocess.Popen(
                [str(part) for part in self.command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
                cwd=self.state,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_LIMIT_S
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                code = self.process.poll()
                self.kill()
                raise AssertionError(f"{type(self).__name__} is not up (exit status {code})\n{self.log()}")
            time.sleep(0.05)
        return self

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"{self.api}{self.ready_path}", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                pass
        self.kill()

    def kill(self):
        """Ends the server at once, with all that it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def log(self):
        return (self.state / "server.log").read_text(errors="replace")[-8000:]

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()


class Ollama(Server):
    """A real Ollama with a home and models of its own."""

    ready_path = "/api/version"

    def command(self):
        return [ollama_program(), "serve"]

    def environment(self):
        return super().environment() | ollama_environment(self.api, self.state)

    def create(self, name, file):
        """Makes a model of a GGUF file. One thread, since Ollama's spin at barriers and slow down what else runs."""
        modelfile = self.state / f"Modelfile-{file.stem}"
        modelfile.write_text(f"FROM {file}\nPARAMETER num_thread 1\n")
        run_ollama(self.api, self.state, "create", name, "-f", modelfile)


def ollama_environment(api, home):
    """Returns what makes Ollama's program use a server and nothing else."""
    return {
        "HOME": str(home),
        "OLLAMA_HOST": api.removeprefix("http://"),
        "OLLAMA_MODELS": str(pathlib.Path(home) / "models"),
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_NOHISTORY": "1",
    }


def run_ollama(api, home, *arguments, check=True, **options):
    """Runs Ollama's own command line against a server."""
    options = {"capture_output": True, "text": True, "timeout": 300, "stdin": subprocess.DEVNULL} | options
    if "input" in options:
        del options["stdin"]
    environment = clean_environment(pathlib.Path(home)) | ollama_environment(api, home)
    done = subprocess.run([str(ollama_program()), *map(str, arguments)], check=False, env=environment, **options)
    if check:
        assert done.returncode == 0, f"ollama {arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


class LlamaServer(Server):
    """llama.cpp's own server with one model."""

    ready_path = "/health"

    def __init__(self, state, model_file, *arguments, port=None):
        super().__init__(state, port)
        self.model_file, self.arguments = model_file, arguments

    def command(self):
        return [llama_server_program(), "--model", self.model_file, "--host", "127.0.0.1", "--port", self.port, *self.arguments]


class LiteLlm(Server):
    """LiteLLM's proxy. `models` is its `model_list`: names with what each of them leads to."""

    ready_path = "/health/liveliness"
    key = "sk-litellm-of-the-tests"

    def __init__(self, state, models, port=None, *, workers=1, guarded=True):
        super().__init__(state, port)
        self.workers = workers
        config = {
            "model_list": [{"model_name": name, "litellm_params": parameters} for name, parameters in models],
            "general_settings": {"master_key": self.key} if guarded else {"dangerously_permit_weak_or_unset_master_key": True},
            # Ollama's dialect has no word for some of what OpenAI's clients send.
            "litellm_settings": {"num_retries": 0, "telemetry": False, "drop_params": True},
        }
        # JSON is YAML.
        (self.state / "config.yaml").write_text(json.dumps(config))

    def command(self):
        command = [litellm_program(), "--config", self.state / "config.yaml", "--host", "127.0.0.1", "--port", self.port]
        return [*command, "--num_workers", self.workers]

    def environment(self):
        # The table of prices comes with the package; without this it is fetched from the network at every start.
        return super().environment() | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_DOCS": "True"}




def converse(api, home, arguments, lines):
    """Runs Ollama's command line in a terminal, types a line at each prompt, and returns what it showed."""
    master, terminal = pty.openpty()
    environment = clean_environment(pathlib.Path(home)) | ollama_environment(api, home) | {"TERM": "dumb"}
    process = subprocess.Popen(
        [str(ollama_program()), *arguments], stdin=terminal, stdout=terminal, stderr=terminal, env=environment, start_new_session=True
    )
    os.close(terminal)
    shown, waiting, deadline = "", list(lines), time.monotonic() + TALK_LIMIT_S
    prompts = 0
    try:
        while time.monotonic() < deadline:
            readable, _, _ = select.select([master], [], [], 0.2)
            if readable:
                try:
                    shown += os.read(master, 65536).decode(errors="replace")
                except OSError:
                    # The terminal's other end is closed: the program has ended.
                    break
            if waiting and shown.count(">>> ") > prompts:
                prompts = shown.count(">>> ")
                os.write(master, f"{waiting.pop(0)}\r".encode())
            if process.poll() is not None and not readable:
                break
        assert process.wait(10) == 0, f"ollama {arguments} ended with {process.returncode}\n{shown}"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(master)
    assert not waiting, f"the prompt did not come back; shown was\n{shown}"
    return shown
