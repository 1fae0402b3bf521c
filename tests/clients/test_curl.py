"""What `curl` sees: headers, protocol versions, errors in each dialect's shape, limits."""

import json
import re
import subprocess
import time

import pytest

from metrics import read

CHAT = "/v1/chat/completions"
# Bodies that differ in one thing are built on this one.
HELLO = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}


class Answer:
    """Status, headers (names in lower case) and body as `curl -i` prints them."""

    def __init__(self, raw):
        head, _, self.body = raw.partition(b"\r\n\r\n")
        while re.match(rb"HTTP/1\.. 1\d\d", head):
            head, _, self.body = self.body.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.version, status, *_ = first.split(" ")
        self.status = int(status)
        self.headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}

    def json(self):
        return json.loads(self.body)

    def events(self):
        """The data of each server-sent event; the last is [DONE]."""
        blocks = [block for block in self.body.decode().split("\n\n") if block]
        assert all(block.startswith("data: ") for block in blocks), blocks
        return [block.removeprefix("data: ") for block in blocks]


def curl(node, path, *options, body=None, api=None):
    """Runs curl as people do; `body` is sent as JSON."""
    command = ["curl", "--silent", "--show-error", "--include", "--max-time", "120", *options]
    if body is not None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        command += ["--header", "content-type: application/json", "--data-binary", "@-"]
    else:
        data = b""
    done = subprocess.run([*command, f"{api or node.api}{path}"], input=data, capture_output=True, check=False)
    assert done.returncode == 0, f"curl ended with {done.returncode}: {done.stderr.decode()}"
    return Answer(done.stdout)


def openai_error(answer, status, code=None):
    error = answer.json()["error"]
    assert answer.status == status, error
    assert answer.headers["content-type"] == "application/json"
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert code is None or error["code"] == code, error
    return error


def problem(answer, status):
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert answer.json()["detail"]


def test_health_says_who_answers(node):
    answer = curl(node, "/health").json()
    assert answer["status"] == "ok"
    record = json.loads((node.data_dir / "node.json").read_text())
    assert (answer["node_id"], answer["hostname"], answer["version"]) == (record["node_id"], "clients", record["version"])


@pytest.mark.parametrize("path", ["/status", "/identity"])
def test_the_native_pages_name_the_models(node, model, path):
    answer = curl(node, path).json()
    models = answer.get("available_models") or answer.get("ollama_models")
    assert model in models


def test_an_answer_carries_its_headers(node, model):
    answer = curl(node, CHAT, body=HELLO | {"model": model})
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["x-request-id"])
    assert "access-control-allow-origin" not in answer.headers
    node_id, answered_model, backend, reason = answer.headers["x-bombus-route"].split(";")
    assert node_id == curl(node, "/health").json()["node_id"]
    assert (answered_model, backend) == (model, "embedded") and reason


def test_the_clients_own_request_id_is_kept_and_stands_in_the_log(node):
    answer = curl(node, "/health", "--header", "x-request-id: from-the-client.1")
    assert answer.headers["x-request-id"] == "from-the-client.1"
    deadline = time.monotonic() + 30
    while "from-the-client.1" not in node.log():
        assert time.monotonic() < deadline, "the id does not appear in the log"
        time.sleep(0.05)


def test_a_request_id_that_could_forge_a_log_line_is_replaced(node):
    answer = curl(node, "/health", "--header", 'x-request-id: a"} {"level":"ERROR')
    assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["x-request-id"])


def test_a_stream_is_events_and_ends_with_done(node, model):
    answer = curl(node, CHAT, "--no-buffer", body=HELLO | {"model": model, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    *chunks, last = answer.events()
    assert last == "[DONE]"
    first = json.loads(chunks[0])
    assert (first["object"], first["choices"][0]["delta"]["role"]) == ("chat.completion.chunk", "assistant")


def test_each_token_leaves_at_once(slow_node):
    body = {"model": "slow", "stream": True, "messages": [{"role": "user", "content": " ".join(["bee"] * 40)}]}
    process = subprocess.Popen(
        ["curl", "--silent", "--no-buffer", "--json", json.dumps(body), f"{slow_node.api}{CHAT}"], stdout=subprocess.PIPE
    )
    arrivals = [time.monotonic() for line in process.stdout if line.startswith(b"data: {")]
    assert process.wait(10) == 0
    assert len(arrivals) >= 40
    assert arrivals[-1] - arrivals[0] > 0.2, "the events came all at once, though the model takes 50 ms for each token"


def test_http_1_0_gets_a_whole_answer(node, model):
    answer = curl(node, CHAT, "--http1.0", body=HELLO | {"model": model})
    assert answer.status == 200
    assert "transfer-encoding" not in answer.headers
    assert answer.json()["choices"]


def test_http_1_0_gets_a_stream_without_chunks(node, model):
    answer = curl(node, CHAT, "--http1.0", body=HELLO | {"model": model, "stream": True})
    assert "transfer-encoding" not in answer.headers
    assert answer.events()[-1] == "[DONE]"


def test_one_connection_serves_several_requests(node):
    command = ["curl", "--silent", "--write-out", "%{num_connects}\n", "--output", "/dev/null", f"{node.api}/health"]
    command += ["--next", *command[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0"]


def test_head_has_no_body(node):
    answer = curl(node, "/health", "--head")
    assert (answer.status, answer.body) == (200, b"")


def test_no_content_type_is_needed(node, model):
    body = json.dumps(HELLO | {"model": model})
    assert curl(node, CHAT, "--header", "content-type:", "--data", body).status == 200


def test_invalid_json_is_named_as_such(node):
    assert "JSON" in openai_error(curl(node, CHAT, body=b'{"model": '), 400, "invalid_json")["message"]


def test_a_missing_field_is_named(node, model):
    assert openai_error(curl(node, CHAT, body={"model": model}), 400)["param"] == "messages"


def test_a_wrong_type_is_named_with_its_place(node, model):
    messages = [{"role": "user", "content": "x"}, {"role": "user", "content": 7}]
    error = openai_error(curl(node, CHAT, body=HELLO | {"model": model, "messages": messages}), 400)
    assert error["param"].startswith("messages")


def test_an_unknown_model_is_404(node):
    openai_error(curl(node, CHAT, body=HELLO | {"model": "no-such"}), 404, "model_not_found")
    openai_error(curl(node, "/v1/models/hf.co/no/such"), 404, "model_not_found")


def test_each_dialect_has_its_own_errors(node):
    openai_error(curl(node, "/v1/no-such-route"), 404)
    problem(curl(node, "/no-such-route"), 404)
    wrong_method = curl(node, "/health", "--request", "DELETE")
    problem(wrong_method, 405)
    assert "GET" in wrong_method.headers["allow"]
    openai_error(curl(node, CHAT), 405)


def test_a_body_over_the_limit_is_refused(node):
    openai_error(curl(node, CHAT, body=b'{"x": "' + b"y" * (33 << 20) + b'"}'), 413)


def test_a_head_over_the_limit_is_refused(node):
    assert curl(node, "/health", "--header", f"x-long: {'a' * 100_000}").status == 431


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "tower.local"])
def test_a_foreign_host_is_refused(node, host):
    problem(curl(node, "/health", "--header", f"host: {host}"), 403)


@pytest.mark.parametrize("host", ["0.0.0.0:11434", "10.0.0.1", "host.docker.internal:11434"])
def test_a_host_that_no_page_can_own_is_taken_as_ollama_takes_it(node, host):
    assert curl(node, "/health", "--header", f"host: {host}").status == 200


def test_localhost_is_a_name_of_this_machine(node):
    assert curl(node, "/health", api=f"http://localhost:{node.port}", *["--ipv4"]).status == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example"])
def test_a_page_from_elsewhere_is_refused(node, model, origin):
    openai_error(curl(node, CHAT, "--header", f"origin: {origin}", body=HELLO | {"model": model}), 403)


def test_no_preflight_is_answered(node):
    answer = curl(node, CHAT, "--request", "OPTIONS", "--header", "origin: https://evil.example",
                  "--header", "access-control-request-method: POST")
    assert answer.status in (403, 405)
    assert "access-control-allow-origin" not in answer.headers


def test_metrics_count_what_happened(node, model):
    before = read(node)
    curl(node, CHAT, body=HELLO | {"model": model})
    after = read(node)
    grown = {name for name, value in after.items() if value > before.get(name, 0)}
    assert any(name.startswith("bombus_completion_tokens_total") and model in name for name in grown), grown
    assert any(name.startswith("bombus_http_requests_total") and CHAT in name for name in grown), grown
    assert any(name.startswith("bombus_first_token_seconds_count") for name in grown), grown


def test_metrics_take_no_label_from_a_client(node):
    curl(node, "/secret-path-of-a-client")
    curl(node, CHAT, body=HELLO | {"model": "model-name-of-a-client"})
    assert not [name for name in read(node) if "of-a-client" in name]
