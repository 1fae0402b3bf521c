"""API keys, on a node that listens beyond loopback."""

import openai
import pytest

from bombus_node import Node, bombus
from test_curl import curl, openai_error, problem

CONFIG = """
[[backends]]
kind = "fake"
models = ["small"]
"""


@pytest.fixture(scope="module")
def key(open_node):
    return bombus(open_node.data_dir, "keys", "create", "laptop").stdout.strip()


@pytest.fixture(scope="module")
def open_node(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("open-node")
    bombus(data_dir, "keys", "create", "first")
    with Node(data_dir, CONFIG, listen="0.0.0.0:0") as node:
        yield node


def client_with(node, key):
    return openai.OpenAI(base_url=f"{node.api}/v1", api_key=key, max_retries=0, timeout=10)


def test_a_key_opens_the_api(open_node, key):
    with client_with(open_node, key) as client:
        assert [model.id.removesuffix(":latest") for model in client.models.list()] == ["small"]


@pytest.mark.parametrize("wrong", ["bk_guessed", "laptop", "x" * 5000])
def test_a_wrong_key_is_an_authentication_error(open_node, wrong):
    with client_with(open_node, wrong) as client, pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"


def test_without_a_key_only_health_answers(open_node):
    assert curl(open_node, "/health").status == 200
    openai_error(curl(open_node, "/v1/models"), 401)
    problem(curl(open_node, "/status"), 401)
    problem(curl(open_node, "/metrics"), 401)


def test_a_key_may_come_in_either_header(open_node, key):
    assert curl(open_node, "/v1/models", "--header", f"x-api-key: {key}").status == 200
    assert curl(open_node, "/v1/models", "--header", f"authorization: bearer {key}").status == 200


def test_a_revoked_key_is_refused_from_then_on(open_node):
    key = bombus(open_node.data_dir, "keys", "create", "lost").stdout.strip()
    with client_with(open_node, key) as client:
        client.models.list()
        bombus(open_node.data_dir, "keys", "revoke", "lost")
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_the_key_itself_is_nowhere_on_disk(open_node, key):
    for path in open_node.data_dir.rglob("*"):
        if path.is_file():
            assert key.encode() not in path.read_bytes(), path


def test_a_command_on_the_nodes_data_directory_needs_no_key(open_node):
    assert bombus(open_node.data_dir, "ask", "--model", "small", "hello").stdout.strip()
