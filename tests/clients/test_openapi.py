"""The API document against the node that serves it: `schemathesis` makes requests of it, good and bad ones, and checks every answer."""

import json
import os
import pathlib
import subprocess
import sys
import urllib.request

import pytest

from metrics import read

HERE = pathlib.Path(__file__).parent
LIMIT_S = 300
ANSWERS_MIN = 2
PATHS = [
    "/health",
    "/identity",
    "/metrics",
    "/openapi.json",
    "/status",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/models",
    "/v1/models/{id}",
]


@pytest.fixture(scope="session")
def document(node):
    with urllib.request.urlopen(f"{node.api}/openapi.json", timeout=10) as answer:
        return json.load(answer)


def test_the_document_lists_the_paths_that_are_tried_here(document):
    assert document["openapi"].startswith("3.1")
    assert sorted(document["paths"]) == PATHS


def answers(node, path):
    """Returns how many requests to a route have been answered well so far."""
    samples = read(node).items()
    return sum(value for name, value in samples if name.startswith("bombus_http_requests_total") and f'"{path}"' in name and '"2xx"' in name)


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_is_as_declared(node, model, embedder, path):
    program = pathlib.Path(sys.executable).with_name("schemathesis")
    command = [program, "--config-file", HERE / "schemathesis.toml", "--no-color", "run", f"{node.api}/openapi.json"]
    command += ["--include-path", path, "--continue-on-failure"]
    answered = answers(node, path)
    hooks = {"SCHEMATHESIS_HOOKS": str(HERE / "schemathesis_hooks.py"), "TRIED_MODEL": model, "TRIED_EMBEDDER": embedder}
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=node.data_dir,
        env=os.environ | hooks,
        timeout=LIMIT_S,
    )
    if done.returncode != 0:
        pytest.fail(f"{done.stdout[-12000:]}\nthe node's log ends with:\n{node.log()[-2000:]}", pytrace=False)
    assert answers(node, path) >= answered + ANSWERS_MIN, "hardly any request was good enough to be answered"
