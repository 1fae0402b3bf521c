"""Fixtures: nodes under test and clients that talk to them."""

import os

import openai
import pytest

import tiny_bert
from bombus_node import MODEL, Node, bombus, cached_models, link_models

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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """With BOMBUS_TEST_ALL=1 a test that skips itself has failed: there everything has to be there."""
    report = yield
    if report.skipped and os.environ.get("BOMBUS_TEST_ALL") == "1":
        report.outcome = "failed"
        report.longrepr = f"skipped, but BOMBUS_TEST_ALL=1 allows no skips: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def node(tmp_path_factory):
    """A node with the small chat model and a tiny embedding model."""
    data_dir = tmp_path_factory.mktemp("node")
    link_models(cached_models(), data_dir)
    embedder = data_dir / f"{EMBEDDER}.gguf"
    tiny_bert.write(embedder)
    bombus(data_dir, "models", "import", embedder, "--name", EMBEDDER)
    with Node(data_dir) as node:
        yield node


@pytest.fixture(scope="session")
def slow_node(tmp_path_factory):
    """A node whose only model is a script that takes its time."""
    with Node(tmp_path_factory.mktemp("slow-node"), SLOW_CONFIG) as node:
        yield node


@pytest.fixture(scope="session")
def client(node):
    """OpenAI's own client, without retries: a test has to see each error."""
    with openai.OpenAI(base_url=f"{node.api}/v1", api_key="unused", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture
def model():
    return MODEL


@pytest.fixture
def embedder():
    return EMBEDDER
