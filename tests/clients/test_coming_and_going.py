"""Backends that appear, go, come back, and refuse: whole processes, ended as machines end them."""

import collections
import concurrent.futures
import threading
import time

import httpx
import openai
import pytest

import servers
from bombus_node import MODEL, Node, bombus
from conftest import or_skip

WAIT_LIMIT_S = 60
ASK = {"model": "small", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}


def script(reply, first_token_ms=0):
    return f'[[backends]]\nkind = "fake"\nmodels = ["small"]\nreply = "{reply}"\nfirst_token_ms = {first_token_ms}\n'


def upstream(folder, port, reply, **options):
    """A node that stands for somebody else's server: what it says is `reply`."""
    return Node(folder, script(reply, **options), listen=f"127.0.0.1:{port}")


def before(*ports, more=""):
    """The configuration of a node with an OpenAI-compatible server at each port, the first preferred."""
    tables = [f'[[backends]]\nname = "at-{number}"\nkind = "openai"\nurl = "http://127.0.0.1:{port}/v1"\n' for number, port in enumerate(ports)]
    return "\n".join([*tables, more])


def ask(node, **options):
    return httpx.post(f"{node.api}/v1/chat/completions", json=ASK | options, timeout=60)


def content(answer):
    return answer.json()["choices"][0]["message"]["content"]


def eventually(what, *, limit_s=WAIT_LIMIT_S):
    """Waits until `what()` returns something true, and returns that."""
    deadline = time.monotonic() + limit_s
    while not (result := what()):
        assert time.monotonic() < deadline, "it has not come about"
        time.sleep(0.1)
    return result


def models(node):
    return {entry["id"].removesuffix(":latest") for entry in httpx.get(f"{node.api}/v1/models", timeout=30).json()["data"]}


def test_a_backend_appears_goes_and_comes_back(tmp_path):
    port = servers.free_port()
    with Node(tmp_path / "node", before(port)) as node:
        assert ask(node).status_code in (404, 503), "nobody has the model yet"
        with upstream(tmp_path / "first", port, "here I am"):
            eventually(lambda: "small" in models(node))
            assert content(eventually(lambda: (answer := ask(node)).status_code == 200 and answer)) == "here I am"
        gone = ask(node)
        assert gone.status_code in (404, 503) and gone.json()["error"]["message"]
        with upstream(tmp_path / "second", port, "back again"):
            assert content(eventually(lambda: (answer := ask(node)).status_code == 200 and answer)) == "back again"
        assert httpx.get(f"{node.api}/health", timeout=5).status_code == 200


def test_a_backend_that_is_down_does_not_hold_up_the_start(tmp_path):
    began = time.monotonic()
    with Node(tmp_path / "node", before(servers.free_port(), more=script("I am here"))) as node:
        assert time.monotonic() - began < 10
        assert content(ask(node)) == "I am here"


def test_the_next_backend_answers_where_the_first_is_gone(tmp_path):
    ports = servers.free_port(), servers.free_port()
    with upstream(tmp_path / "second", ports[1], "second"), Node(tmp_path / "node", before(*ports)) as node:
        with upstream(tmp_path / "first", ports[0], "first") as first:
            eventually(lambda: content(ask(node)) == "first")
            first.kill()
            answers = [ask(node) for _ in range(20)]
            assert [answer.status_code for answer in answers] == [200] * 20
            assert {content(answer) for answer in answers} == {"second"}
            assert "at-1" in answers[-1].headers["x-bombus-route"]
        with upstream(tmp_path / "first-again", ports[0], "first"):
            eventually(lambda: content(ask(node)) == "first")


def test_the_first_of_two_backends_flaps_under_load(tmp_path):
    """No request fails that has not begun to be answered, and the one that comes back is used again."""
    ports = servers.free_port(), servers.free_port()
    ended = threading.Event()
    said, failed = collections.Counter(), []

    def load(node):
        with httpx.Client(timeout=60) as client:
            while not ended.is_set():
                answer = client.post(f"{node.api}/v1/chat/completions", json=ASK)
                if answer.status_code == 200:
                    said[content(answer)] += 1
                else:
                    failed.append(answer.text)

    with upstream(tmp_path / "second", ports[1], "second", first_token_ms=20), Node(tmp_path / "node", before(*ports)) as node:
        eventually(lambda: ask(node).status_code == 200)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            workers = [pool.submit(load, node) for _ in range(8)]
            try:
                for round in range(3):
                    first = upstream(tmp_path / f"first-{round}", ports[0], "first", first_token_ms=20)
                    with first:
                        before_it = said["first"]
                        eventually(lambda: said["first"] > before_it + 20)
                        first.kill()
                    without_it = said["second"]
                    eventually(lambda: said["second"] > without_it + 20)
            finally:
                ended.set()
            for worker in workers:
                worker.result(120)
    # An answer of one short reply can be cut off between its first token and its end, which takes no time: hardly ever, and it is said so. Of the
    # 24 that run when a busy machine ends the first, half may be so far.
    assert len(failed) <= 12, failed[:5]
    assert all("broke off" in text for text in failed), failed
    assert said["first"] > 60 and said["second"] > 60


def test_a_stream_that_breaks_off_in_the_middle_says_so(tmp_path):
    port = servers.free_port()
    config = '[[backends]]\nkind = "fake"\nmodels = ["small"]\nreply = "a b c d e f g h"\ntokens = 400\ntoken_ms = 20\n'
    with Node(tmp_path / "first", config, listen=f"127.0.0.1:{port}") as first, Node(tmp_path / "node", before(port)) as node:
        eventually(lambda: "small" in models(node))
        with openai.OpenAI(base_url=f"{node.api}/v1", api_key="unused", max_retries=0, timeout=60) as client:
            stream = client.chat.completions.create(model="small", messages=ASK["messages"], stream=True)
            next(iter(stream))
            first.kill()
            with pytest.raises(openai.APIError) as caught:
                list(stream)
            assert "broke off" in str(caught.value)
        assert httpx.get(f"{node.api}/health", timeout=5).status_code == 200


def test_the_nodes_key_is_wrong_and_is_put_right(tmp_path):
    """The other server has keys; a wrong one of ours is our fault, not our client's."""
    data_dir = tmp_path / "guarded"
    data_dir.mkdir()
    key = bombus(data_dir, "keys", "create", "the-node").stdout.strip()
    with Node(data_dir, script("come in"), listen="0.0.0.0:0") as guarded:
        file = tmp_path / "key"
        file.write_text("bk_wrong")
        file.chmod(0o600)
        config = f'[[backends]]\nname = "guarded"\nkind = "openai"\nurl = "http://127.0.0.1:{guarded.port}/v1"\nmodels = ["small"]\napi_key_file = "{file}"\n'
        with Node(tmp_path / "wrong", config) as node:
            answer = ask(node)
            assert answer.status_code >= 400 and answer.status_code != 401, answer.text
            assert "guarded" in answer.json()["error"]["message"] and "key" in answer.json()["error"]["message"]
            assert "bk_wrong" not in answer.text + node.log()
        file.write_text(key)
        with Node(tmp_path / "right", config) as node:
            assert content(ask(node)) == "come in"
            assert key not in node.log()


@pytest.mark.others
def test_a_real_ollama_appears_goes_and_comes_back(tmp_path, model_file):
    or_skip(servers.ollama_program)
    server = servers.Ollama(tmp_path / "ollama")
    body = {"model": MODEL, "messages": ASK["messages"], "max_tokens": 4}
    with Node(tmp_path / "node", f'[[backends]]\nkind = "ollama"\nurl = "{server.api}"\n') as node:
        assert ask(node, **body).status_code in (404, 503)
        with server:
            server.create(MODEL, model_file)
            assert content(eventually(lambda: (answer := ask(node, **body)).status_code == 200 and answer))
            server.kill()
            gone = ask(node, **body)
            assert gone.status_code in (404, 503) and gone.json()["error"]["message"]
        with server:
            assert content(eventually(lambda: (answer := ask(node, **body)).status_code == 200 and answer))
