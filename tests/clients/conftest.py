"""Fixtures: nodes under test and clients that talk to them."""

import dataclasses
import json
import os
import pathlib

import ollama
import openai
import pytest

import servers
import tiny_bert
from bombus_node import MODEL, Node, Swarm, bombus, cached_models, link_models

EMBEDDER = "tiny-bert"

# Answers slowly and at length, so that a test can act in the middle of an answer.
SLOW_CONFIG = """
[[backends]]
kind = "fake"
models = ["slow"]
reply = "echo"
token_ms = 50
"""


def pytest_configure(config):
    config.option.disable_warnings = False
    config.addinivalue_line("markers", "others: needs servers of others (Ollama, llama-server, LiteLLM) or npm packages, which are slow to make")
    config.addinivalue_line("markers", "only_over(*kinds): has a meaning over these kinds of backends only, see `served`")


def pytest_collection_modifyitems(config, items):
    """Leaves out what has no meaning over a kind of backend: that is no skipped test."""

    def has_meaning(item):
        kinds = [kind for mark in item.iter_markers("only_over") for kind in mark.args]
        return not kinds or item.callspec.params["served"] in kinds

    left_out = [item for item in items if not has_meaning(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if has_meaning(item)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """With BOMBUS_TEST_ALL=1 a test that skips itself has failed: there everything has to be there."""
    report = yield
    if report.skipped and os.environ.get("BOMBUS_TEST_ALL") == "1":
        report.outcome = "failed"
        report.longrepr = f"skipped, but BOMBUS_TEST_ALL=1 allows no skips: {report.longrepr}"
    return report


@dataclasses.dataclass(frozen=True)
class Served:
    """A node whose models are run by one kind of backend."""

    kind: str
    node: Node
    # The node that runs the models, where that is another one.
    worker: Node | None = None

    @property
    def api(self):
        return self.node.api

    @property
    def backend(self):
        """The name of the backend that answers."""
        return "embedded" if self.worker else self.kind

    @property
    def manager_api(self):
        """Where models are made and removed."""
        return (self.worker or self.node).api

    @property
    def is_ollama_behind(self):
        return self.kind == "ollama"

    @property
    def is_openai_behind(self):
        """Behind OpenAI's dialect a model is a name, and little more is known of it."""
        return self.kind == "llama-server"


KINDS = ["embedded", "peer", pytest.param("ollama", marks=pytest.mark.others), pytest.param("llama-server", marks=pytest.mark.others)]


def or_skip(make, *arguments):
    """Returns what `make` returns; skips the test, saying why, where that needs what this machine lacks."""
    try:
        return make(*arguments)
    except servers.Missing as why:
        pytest.skip(str(why))


@pytest.fixture(scope="session")
def model_file():
    """The GGUF file of the small chat model."""
    listed = json.loads(bombus(cached_models(), "models", "list", "--json").stdout)
    return pathlib.Path(next(model["path"] for model in listed if model["name"] == MODEL))


@pytest.fixture(scope="session")
def embedder_file(tmp_path_factory):
    """A GGUF file of the tiny embedding model."""
    file = tmp_path_factory.mktemp("embedder") / f"{EMBEDDER}.gguf"
    tiny_bert.write(file)
    return file


def give_models(data_dir, embedder_file):
    """Puts the small chat model and a tiny embedding model into a data directory."""
    link_models(cached_models(), data_dir)
    bombus(data_dir, "models", "import", embedder_file, "--name", EMBEDDER)


def node_with_models(data_dir, embedder_file):
    """Returns a node, not yet started, with the two models, which it runs itself."""
    give_models(data_dir, embedder_file)
    return Node(data_dir)


@pytest.fixture(scope="session")
def node(tmp_path_factory, embedder_file):
    """A running node with the two models."""
    with node_with_models(tmp_path_factory.mktemp("node"), embedder_file) as node:
        yield node


@pytest.fixture(scope="session")
def swarm(tmp_path_factory, embedder_file):
    """Two running nodes, of which the second has the two models and the first has none."""

    def prepare(node):
        if node.name == "node1":
            give_models(node.data_dir, embedder_file)

    embedded = '[[backends]]\nkind = "embedded"\n'
    with Swarm(tmp_path_factory.mktemp("swarm"), [embedded, embedded], prepare) as swarm:
        for model in (MODEL, EMBEDDER):
            swarm.wait_for(model, 1)
        yield swarm


@pytest.fixture(scope="session")
def real_ollama(tmp_path_factory, model_file, embedder_file):
    """A real Ollama with the same two models."""
    or_skip(servers.ollama_program)
    with servers.Ollama(tmp_path_factory.mktemp("ollama")) as server:
        server.create(MODEL, model_file)
        server.create(EMBEDDER, embedder_file)
        yield server


@pytest.fixture(scope="session")
def node_before_ollama(tmp_path_factory, real_ollama):
    """A node whose only backend is a real Ollama."""
    config = f'[[backends]]\nkind = "ollama"\nurl = "{real_ollama.api}"\n'
    with Node(tmp_path_factory.mktemp("before-ollama"), config) as node:
        yield node


@pytest.fixture(scope="session")
def real_llama_server(tmp_path_factory, model_file):
    """A real llama-server with the small chat model."""
    or_skip(servers.llama_server_program)
    arguments = ["--alias", "a-name-of-its-own", "--parallel", "4", "--ctx-size", "8192", "--kv-unified", "--threads", "2", "--predict", "128"]
    with servers.LlamaServer(tmp_path_factory.mktemp("llama-server"), model_file, *arguments) as server:
        yield server


@pytest.fixture(scope="session")
def node_before_llama_server(tmp_path_factory, real_llama_server, embedder_file):
    """A node with two real llama-servers, one for each of the two models."""
    arguments = ["--alias", EMBEDDER, "--embeddings", "--pooling", "mean", "--threads", "1"]
    with servers.LlamaServer(tmp_path_factory.mktemp("llama-server"), embedder_file, *arguments) as embedder:
        config = f"""
[[backends]]
name = "llama-server"
kind = "openai"
url = "{real_llama_server.api}/v1"
aliases = {{ "{MODEL}" = "a-name-of-its-own" }}

[[backends]]
name = "embedder"
kind = "openai"
url = "{embedder.api}/v1"
models = ["{EMBEDDER}"]
"""
        with Node(tmp_path_factory.mktemp("before-llama-server"), config) as node:
            yield node


@pytest.fixture(scope="session", params=KINDS)
def served(request):
    """Each kind of node in turn: one that runs the models itself, one whose peer does, one before a real Ollama, one before real
    llama-servers."""
    if request.param == "peer":
        swarm = request.getfixturevalue("swarm")
        return Served("peer", swarm[0], worker=swarm[1])
    names = {"embedded": "node", "ollama": "node_before_ollama", "llama-server": "node_before_llama_server"}
    return Served(request.param, request.getfixturevalue(names[request.param]))


@pytest.fixture(scope="session")
def slow_node(tmp_path_factory):
    """A node whose only model is a script that takes its time."""
    with Node(tmp_path_factory.mktemp("slow-node"), SLOW_CONFIG) as node:
        yield node


@pytest.fixture(scope="session")
def client(served):
    """OpenAI's own client, without retries: a test has to see each error."""
    with openai.OpenAI(base_url=f"{served.api}/v1", api_key="unused", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def ollama_client(served):
    """Ollama's own client."""
    return ollama.Client(host=served.api, timeout=120)


@pytest.fixture
def model():
    return MODEL


@pytest.fixture
def embedder():
    return EMBEDDER
