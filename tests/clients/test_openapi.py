"""The API document against the node that serves it: `schemathesis` makes requests of it, good and bad ones, and checks every answer."""

import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.request

import openai
import pytest

from conftest import node_with_models
from metrics import read

HERE = pathlib.Path(__file__).parent
LIMIT_S = 300
ANSWERS_MIN = 2
# No request to these is answered well: there is no registry to push to, and nothing that may be deleted or is a blob; the node is alone, and
# what changes its membership, or what it does for others, needs a key, as does who may write to a database, and closing one. A watch that is
# answered well never ends. The batch that is there has ended, and can be cancelled no more.
NEVER_WELL = [
    "/api/blobs/{digest}",
    "/api/delete",
    "/api/push",
    "/db/{database}/close",
    "/db/{database}/grant",
    "/db/{database}/revoke",
    "/db/{database}/watch",
    "/mesh/invite",
    "/mesh/join",
    "/mesh/kick",
    "/mesh/leave",
    "/mesh/owner",
    "/mesh/ping/{peer}",
    "/mesh/rekey",
    "/node/drain",
    "/node/models/pull",
    "/node/models/remove",
    "/node/pause",
    "/node/resume",
    "/node/undrain",
    "/tasks/prune",
    "/v1/batches/{batch_id}/cancel",
]
PATHS = [
    "/",
    "/api/blobs/{digest}",
    "/api/chat",
    "/api/copy",
    "/api/create",
    "/api/delete",
    "/api/embed",
    "/api/embeddings",
    "/api/generate",
    "/api/ps",
    "/api/pull",
    "/api/push",
    "/api/show",
    "/api/status",
    "/api/tags",
    "/api/version",
    "/backends",
    "/db",
    "/db/{database}",
    "/db/{database}/add",
    "/db/{database}/all",
    "/db/{database}/close",
    "/db/{database}/del",
    "/db/{database}/export",
    "/db/{database}/get",
    "/db/{database}/grant",
    "/db/{database}/import",
    "/db/{database}/put",
    "/db/{database}/query",
    "/db/{database}/revoke",
    "/db/{database}/watch",
    "/events",
    "/health",
    "/identity",
    "/mesh/invite",
    "/mesh/join",
    "/mesh/kick",
    "/mesh/leave",
    "/mesh/owner",
    "/mesh/ping/{peer}",
    "/mesh/rekey",
    "/mesh/report",
    "/metrics",
    "/models",
    "/node/drain",
    "/node/models/pull",
    "/node/models/remove",
    "/node/pause",
    "/node/resume",
    "/node/sharing",
    "/node/undrain",
    "/openapi.json",
    "/peers",
    "/route",
    "/status",
    "/swarm",
    "/task",
    "/task/{id}",
    "/task/{id}/stream",
    "/tasks",
    "/tasks/prune",
    "/v1/batches",
    "/v1/batches/{batch_id}",
    "/v1/batches/{batch_id}/cancel",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/files",
    "/v1/files/{file_id}",
    "/v1/files/{file_id}/content",
    "/v1/models",
    "/v1/models/{id}",
]


@pytest.fixture(scope="module")
def tried(tmp_path_factory, embedder_file):
    """A node of its own: some of the requests change its models."""
    with node_with_models(tmp_path_factory.mktemp("tried"), embedder_file) as node:
        make_databases(node)
        make_tasks(node)
        make_batch(node)
        yield node


def make_databases(node):
    """Makes a database for reading and writing, one of events, and one with keys that may go."""

    def post(path, body):
        request = urllib.request.Request(f"{node.api}{path}", json.dumps(body).encode(), {"content-type": "application/json"})
        urllib.request.urlopen(request, timeout=10).close()

    for name, kind in (("tried", "keyvalue"), ("tried-events", "events"), ("tried-keys", "keyvalue")):
        post("/db", {"name": name, "type": kind})
    post("/db/tried/put", {"key": "known", "value": 1})
    for number in range(200):
        post("/db/tried-keys/put", {"key": str(number), "value": number})


def make_tasks(node):
    """Makes a task that is asked for, and waits for its end: a stream of one that goes on would not end in time."""
    body = {"task_id": "tried", "task_type": "ping", "payload": {"n": 1}}
    request = urllib.request.Request(f"{node.api}/task", json.dumps(body).encode(), {"content-type": "application/json"})
    urllib.request.urlopen(request, timeout=10).close()
    urllib.request.urlopen(f"{node.api}/task/tried?wait=60", timeout=70).close()


def make_batch(node):
    """Uploads a file, and makes a batch that fails: it is none of requests."""
    with openai.OpenAI(base_url=f"{node.api}/v1", api_key="unused") as client:
        file = client.files.create(file=("tried.jsonl", b"none\n"), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
        while client.batches.retrieve(batch.id).status != "failed":
            time.sleep(0.05)
    node.tried = {"TRIED_FILE": file.id, "TRIED_BATCH": batch.id}


@pytest.fixture(scope="module")
def document(tried):
    with urllib.request.urlopen(f"{tried.api}/openapi.json", timeout=10) as answer:
        return json.load(answer)


def test_the_document_lists_the_paths_that_are_tried_here(document):
    assert document["openapi"].startswith("3.1")
    assert sorted(document["paths"]) == PATHS


def answers(node, path):
    """Returns how many requests to a route have been answered well so far."""
    samples = read(node).items()
    return sum(value for name, value in samples if name.startswith("bombus_http_requests_total") and f'"{path}"' in name and '"2xx"' in name)


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_is_as_declared(tried, model, embedder, path):
    program = pathlib.Path(sys.executable).with_name("schemathesis")
    command = [program, "--config-file", HERE / "schemathesis.toml", "--no-color", "run", f"{tried.api}/openapi.json"]
    command += ["--include-path", path, "--continue-on-failure"]
    answered = answers(tried, path)
    hooks = {"SCHEMATHESIS_HOOKS": str(HERE / "schemathesis_hooks.py"), "TRIED_MODEL": model, "TRIED_EMBEDDER": embedder} | tried.tried
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=tried.data_dir,
        env=os.environ | hooks,
        timeout=LIMIT_S,
    )
    if done.returncode != 0:
        pytest.fail(f"{done.stdout[-12000:]}\nthe node's log ends with:\n{tried.log()[-2000:]}", pytrace=False)
    assert path in NEVER_WELL or answers(tried, path) >= answered + ANSWERS_MIN, "hardly any request was good enough to be answered"
