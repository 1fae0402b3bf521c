"""The API document against the node that serves it: `schemathesis` makes requests of it, good and bad ones, and checks every answer."""

import json
import os
import pathlib
import subprocess
import sys
import urllib.request

import pytest

HERE = pathlib.Path(__file__).parent
SECONDS_MAX = 120
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


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_is_as_declared(node, model, embedder, path):
    command = [pathlib.Path(sys.executable).with_name("st"), "--config-file", HERE / "schemathesis.toml", "run", f"{node.api}/openapi.json"]
    command += ["--include-path", path, "--continue-on-failure", "--no-color"]
    env = os.environ | {"SCHEMATHESIS_MODEL": model, "SCHEMATHESIS_EMBEDDER": embedder, "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=env, cwd=node.data_dir, stdin=subprocess.DEVNULL, timeout=SECONDS_MAX * 4
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\nnode:\n{node.log()}"
