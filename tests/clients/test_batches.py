"""Files and batches by the package `openai`, against a node and with a node that has none of the models itself."""

import io
import json
import time

import openai
import pytest

from bombus_node import Node

LIMIT_S = 120
ECHO_CONFIG = """
[[backends]]
kind = "fake"
models = ["echo"]
reply = "echo"
token_ms = 1
"""


@pytest.fixture(scope="module")
def batching(tmp_path_factory):
    """OpenAI's own client before a node whose model repeats what it is told."""
    with Node(tmp_path_factory.mktemp("batching"), ECHO_CONFIG) as node:
        with openai.OpenAI(base_url=f"{node.api}/v1", api_key="unused", max_retries=0, timeout=60) as client:
            yield client


def lines(bodies, url="/v1/chat/completions"):
    """Makes a file of requests; the ids are their places."""
    requests = [{"custom_id": f"q{number}", "method": "POST", "url": url, "body": body} for number, body in enumerate(bodies)]
    return "".join(json.dumps(request) + "\n" for request in requests).encode()


def chat(text, model="echo", **options):
    return {"model": model, "messages": [{"role": "user", "content": text}]} | options


def upload(client, content):
    return client.files.create(file=("questions.jsonl", content), purpose="batch")


def begin(client, content, endpoint="/v1/chat/completions", **options):
    return client.batches.create(input_file_id=upload(client, content).id, endpoint=endpoint, completion_window="24h", **options)


def ended(client, batch):
    """Waits for the end of a batch."""
    until = time.monotonic() + LIMIT_S
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < until, batch
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    return batch


def results(client, file_id):
    content = client.files.content(file_id).text
    return {line["custom_id"]: line for line in map(json.loads, content.splitlines())}


def test_a_file_is_kept_told_of_and_removed(batching):
    content = lines([chat("Hi")])
    file = upload(batching, io.BytesIO(content))
    assert (file.object, file.bytes, file.purpose, file.filename) == ("file", len(content), "batch", "questions.jsonl")
    assert batching.files.retrieve(file.id) == file
    assert batching.files.content(file.id).read() == content
    others = [upload(batching, content).id for _ in range(4)]
    listed = [listed.id for listed in batching.files.list(limit=2, order="asc")]
    assert [file.id, *others] == [known for known in listed if known in {file.id, *others}], "the client walks through all parts"
    assert batching.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError) as caught:
        batching.files.retrieve(file.id)
    assert caught.value.code == "file_not_found"


def test_each_line_is_answered_as_a_request_by_itself_is(batching):
    batch = begin(batching, lines([chat(f"Question number {number}") for number in range(200)]), metadata={"night": "7"})
    assert (batch.status, batch.metadata) == ("validating", {"night": "7"})
    batch = ended(batching, batch)
    assert batch.status == "completed", batch
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (200, 200, 0)
    assert batch.error_file_id is None and batch.errors is None
    assert batch.created_at <= batch.in_progress_at <= batch.completed_at < batch.expires_at
    answers = results(batching, batch.output_file_id)
    for number in range(200):
        response = answers[f"q{number}"]["response"]
        assert response["status_code"] == 200 and response["request_id"]
        completion = openai.types.chat.ChatCompletion.model_validate(response["body"])
        assert completion.choices[0].message.content == f"Question number {number}"
        assert completion.usage.completion_tokens > 0
    output = batching.files.retrieve(batch.output_file_id)
    assert output.purpose == "batch_output"
    assert batch.output_file_id in [file.id for file in batching.files.list(purpose="batch_output")]
    assert batch.id in [known.id for known in batching.batches.list(limit=1)]
    batching.files.delete(batch.output_file_id)
    assert batching.batches.retrieve(batch.id).output_file_id is None


def test_a_line_that_cannot_be_done_is_told_beside_the_answers(batching):
    bodies = [chat("Hi"), chat("Hi", temperature=9), {"model": "echo"}]
    batch = ended(batching, begin(batching, lines(bodies)))
    counts = batch.request_counts
    assert (batch.status, counts.total, counts.completed, counts.failed) == ("completed", 3, 1, 2)
    errors = results(batching, batch.error_file_id)
    assert {name: line["response"]["body"]["error"]["param"] for name, line in errors.items()} == {"q1": "temperature", "q2": "messages"}
    assert list(results(batching, batch.output_file_id)) == ["q0"]


def test_a_file_that_is_none_of_requests_fails_with_its_lines(batching):
    content = lines([chat("Hi")]) + b"nonsense\n" + lines([chat("Hi")])
    batch = ended(batching, begin(batching, content))
    assert batch.status == "failed"
    assert [(error.code, error.line) for error in batch.errors.data] == [("invalid_json_line", 2), ("duplicate_custom_id", 3)]
    other = ended(batching, begin(batching, lines([chat("Hi")]), endpoint="/v1/embeddings"))
    assert [(error.code, error.param) for error in other.errors.data] == [("invalid_url", "url")]


def test_a_batch_is_cancelled_and_what_was_done_stays(batching):
    batch = begin(batching, lines([chat("word " * 100) for _ in range(300)]))
    assert batching.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = ended(batching, batch)
    assert batch.status == "cancelled" and batch.cancelled_at
    errors = results(batching, batch.error_file_id) if batch.error_file_id else {}
    assert {line["error"]["code"] for line in errors.values()} <= {"batch_cancelled"}
    with pytest.raises(openai.ConflictError):
        batching.batches.cancel(batch.id)


def test_what_cannot_be_is_refused_with_what_to_do(batching):
    with pytest.raises(openai.BadRequestError, match="'purpose' has to be 'batch'") as caught:
        batching.files.create(file=("a.jsonl", b"{}"), purpose="fine-tune")
    assert caught.value.param == "purpose"
    with pytest.raises(openai.BadRequestError) as caught:
        batching.batches.create(input_file_id="file-none", endpoint="/v1/chat/completions", completion_window="24h")
    assert caught.value.param == "input_file_id"
    file = upload(batching, lines([chat("Hi")]))
    for wrong in ({"endpoint": "/v1/responses"}, {"completion_window": "1h"}):
        arguments = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"} | wrong
        with pytest.raises(openai.BadRequestError) as caught:
            batching.batches.create(**arguments)
        assert [caught.value.param] == list(wrong)
    for ask in (batching.files.content, batching.files.delete, batching.files.retrieve):
        with pytest.raises(openai.NotFoundError):
            ask("file-none")
    for ask in (batching.batches.retrieve, batching.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            ask("batch_none")


def test_a_file_over_64_mib_is_refused(batching):
    with pytest.raises(openai.APIStatusError) as caught:
        batching.files.create(file=("large.jsonl", b"x" * (65 << 20)), purpose="batch")
    assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")


def test_all_endpoints_are_done_by_the_models_of_another_node(swarm, model, embedder):
    with openai.OpenAI(base_url=f"{swarm[0].api}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        options = {"max_tokens": 3, "temperature": 0}
        asked = lines([chat("Hi", model, logprobs=True, top_logprobs=2, **options), chat("Ho", model, n=2, seed=1, **options)])
        answers = results(client, ended(client, begin(client, asked)).output_file_id)
        first = openai.types.chat.ChatCompletion.model_validate(answers["q0"]["response"]["body"])
        assert all(len(token.top_logprobs) == 2 for token in first.choices[0].logprobs.content)
        assert len(answers["q1"]["response"]["body"]["choices"]) == 2

        asked = lines([{"model": model, "prompt": "Bees", **options}], "/v1/completions")
        answers = results(client, ended(client, begin(client, asked, "/v1/completions")).output_file_id)
        assert openai.types.Completion.model_validate(answers["q0"]["response"]["body"]).choices[0].text

        asked = lines([{"model": embedder, "input": ["a", "b"]}], "/v1/embeddings")
        answers = results(client, ended(client, begin(client, asked, "/v1/embeddings")).output_file_id)
        vectors = openai.types.CreateEmbeddingResponse.model_validate(answers["q0"]["response"]["body"])
        alone = client.embeddings.create(model=embedder, input=["a", "b"], encoding_format="float")
        for one, other in zip(vectors.data, alone.data, strict=True):
            assert one.embedding == pytest.approx(other.embedding, abs=1e-3)
