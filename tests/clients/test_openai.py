"""The package `openai` against a node with a real model, over each kind of backend.

What the model says is its own affair; the form of it is ours.
"""

import base64
import json
import math
import re
import struct

import openai
import pydantic
import pytest

QUESTION = [{"role": "user", "content": "Name three things that bees do."}]


def ask(client, model, **options):
    options = {"messages": QUESTION, "temperature": 0, "max_tokens": 24} | options
    return client.chat.completions.create(model=model, **options)


def collect(stream):
    """Joins the text of each choice of a stream; returns it with the finish reasons and the usage."""
    texts, reasons, usage, ids = {}, {}, None, set()
    for chunk in stream:
        ids.add(chunk.id)
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                assert choice.index not in reasons, "a choice finishes once"
                reasons[choice.index] = choice.finish_reason
    assert len(ids) == 1, "all chunks of an answer carry its id"
    return texts, reasons, usage


def test_the_list_of_models_names_what_can_be_asked(client, model, embedder):
    assert {model, embedder} <= {entry.id.removesuffix(":latest") for entry in client.models.list()}


def test_a_model_can_be_looked_up(client, model):
    entry = client.models.retrieve(model)
    assert (entry.id, entry.object) == (model, "model")


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("no-such-model")
    assert caught.value.code == "model_not_found"


def test_an_answer_has_text_usage_and_a_reason_to_end(client, model):
    answer = ask(client, model, max_tokens=8)
    assert answer.object == "chat.completion"
    assert answer.model == model
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 8
    assert answer.usage.prompt_tokens > 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_ids_differ_between_answers(client, model):
    assert len({ask(client, model, max_tokens=1).id for _ in range(5)}) == 5


def test_max_completion_tokens_limits_too(client, model):
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_completion_tokens=5)
    assert answer.usage.completion_tokens == 5


def test_temperature_zero_repeats_itself(client, model):
    first, second = (ask(client, model).choices[0].message.content for _ in range(2))
    assert first == second


def test_a_seed_repeats_a_random_answer(client, model, served):
    answers = [ask(client, model, temperature=1.5, seed=seed).choices[0].message.content for seed in (1, 1, 2)]
    # llama-server's numbers depend on what else it computes at the time, and a random choice may then fall elsewhere.
    assert answers[0] == answers[1] or served.is_openai_behind
    assert answers[0] != answers[2]


def test_the_answer_ends_before_a_stop_text(client, model):
    whole = ask(client, model, max_tokens=40).choices[0].message.content
    words = whole.split()
    assert len(words) >= 6, f"too short to be cut: {whole!r}"
    stop = f"{words[3]} {words[4]}"
    answer = ask(client, model, max_tokens=40, stop=[stop])
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == whole[: whole.index(stop)]


def test_a_stream_says_the_same_as_a_whole_answer(client, model):
    whole = ask(client, model)
    texts, reasons, usage = collect(ask(client, model, stream=True, stream_options={"include_usage": True}))
    assert texts[0] == whole.choices[0].message.content
    assert reasons == {0: whole.choices[0].finish_reason}
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens == whole.usage.prompt_tokens


def test_a_stream_without_include_usage_has_none(client, model):
    assert collect(ask(client, model, stream=True, max_tokens=4))[2] is None


def test_n_gives_as_many_answers(client, model):
    answer = ask(client, model, n=3, temperature=1.2, max_tokens=6)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert 3 <= answer.usage.completion_tokens <= 18


def test_n_streams_interleave_and_each_ends(client, model):
    texts, reasons, _ = collect(ask(client, model, n=2, stream=True, temperature=1, max_tokens=6))
    assert set(texts) == set(reasons) == {0, 1}


def test_log_probabilities_belong_to_the_text(client, model):
    choice = ask(client, model, logprobs=True, top_logprobs=3, max_tokens=10).choices[0]
    entries = choice.logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == choice.message.content
    for entry in entries:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 3
        likeliest = [alternative.logprob for alternative in entry.top_logprobs]
        assert likeliest == sorted(likeliest, reverse=True)
        assert math.isclose(likeliest[0], entry.logprob, abs_tol=1e-4), "at temperature 0 the likeliest token is taken"


def test_json_mode_gives_an_object(client, model):
    answer = ask(client, model, response_format={"type": "json_object"}, max_tokens=120, messages=[
        {"role": "user", "content": "Answer with a small JSON object that has the key `legs`, for a bee."},
    ])
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    else:
        assert answer.choices[0].message.content.lstrip().startswith("{")


class Insect(pydantic.BaseModel):
    legs: int
    flies: bool
    colour: str = pydantic.Field(max_length=12)


def test_a_schema_shapes_the_answer(client, model):
    answer = client.chat.completions.parse(
        model=model, messages=[{"role": "user", "content": "Describe a bee."}], response_format=Insect, max_tokens=200, temperature=0
    )
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(answer.choices[0].message.parsed, Insect)


def test_an_impossible_schema_is_the_requests_fault(client, model):
    schema = {"name": "bad", "schema": {"type": "no-such-type"}}
    with pytest.raises(openai.BadRequestError):
        ask(client, model, response_format={"type": "json_schema", "json_schema": schema})


@pytest.mark.only_over("embedded", "peer", "ollama")
def test_tools_are_refused_where_the_model_has_no_place_for_them(client, model):
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, model, tools=[tool])
    assert caught.value.param == "tools"


def test_a_completion_continues_raw_text(client, model):
    answer = client.completions.create(model=model, prompt="One, two, three,", max_tokens=6, temperature=0)
    assert answer.object == "text_completion"
    assert "four" in answer.choices[0].text, "the model continues a count that stands in its prompt"


def test_a_list_of_prompts_gives_an_answer_to_each(client, model):
    answer = client.completions.create(model=model, prompt=["A B C", "1 2 3", "red green"], max_tokens=3, temperature=0)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.completion_tokens <= 9


def test_a_completion_streams(client, model):
    whole = client.completions.create(model=model, prompt="One, two, three,", max_tokens=8, temperature=0).choices[0].text
    stream = client.completions.create(model=model, prompt="One, two, three,", max_tokens=8, temperature=0, stream=True)
    assert "".join(choice.text for chunk in stream for choice in chunk.choices) == whole


@pytest.mark.only_over("embedded", "peer", "llama-server")
def test_a_prompt_of_tokens_is_taken_as_it_is(client, model):
    answer = client.completions.create(model=model, prompt=[504, 253, 702], max_tokens=2)
    assert answer.usage.prompt_tokens == 3


def test_embeddings_have_length_one_and_repeat_themselves(client, embedder):
    texts = ["the bee makes honey", "a red flower", "the bee makes honey"]
    answer = client.embeddings.create(model=embedder, input=texts)
    vectors = [entry.embedding for entry in answer.data]
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    for vector in vectors:
        assert math.isclose(math.sqrt(sum(value * value for value in vector)), 1, abs_tol=1e-3)
    assert all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(vectors[0], vectors[2], strict=True))
    assert any(abs(a - b) > 1e-2 for a, b in zip(vectors[0], vectors[1], strict=True))
    assert answer.usage.prompt_tokens > 6


def test_embeddings_as_base64_are_the_same_numbers(client, embedder):
    floats = client.embeddings.create(model=embedder, input="a red flower", encoding_format="float").data[0].embedding
    coded = client.embeddings.with_raw_response.create(model=embedder, input="a red flower", encoding_format="base64")
    raw = base64.b64decode(json.loads(coded.text)["data"][0]["embedding"])
    assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(floats, abs=1e-5)


@pytest.mark.only_over("embedded", "peer", "llama-server")
def test_embeddings_of_tokens_are_made(client, embedder):
    assert len(client.embeddings.create(model=embedder, input=[[5, 6, 7], [8]]).data) == 2


@pytest.mark.only_over("ollama")
def test_tokens_are_refused_where_the_server_behind_takes_only_text(client, model, embedder):
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=model, prompt=[504, 253, 702], max_tokens=2)
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model=embedder, input=[[5, 6, 7], [8]])


@pytest.mark.only_over("embedded", "peer", "llama-server")
def test_an_image_is_refused_where_the_model_does_not_see(client, model):
    dot = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": dot}}]
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, model, messages=[{"role": "user", "content": content}])
    assert re.search("image|picture", str(caught.value))


def test_an_answer_names_the_backend_that_gave_it(client, model, served):
    raw = client.chat.completions.with_raw_response.create(model=model, messages=QUESTION, max_tokens=1)
    node_id, model_there, backend, reason = raw.headers["x-bombus-route"].split(";")
    assert node_id == (served.worker or served.node).id
    assert model_there and backend == served.backend and reason


def test_a_chat_with_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, "no-such-model")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("options", [
    {"temperature": "warm"},
    {"messages": "hello"},
    {"messages": []},
    {"max_tokens": -1},
    {"n": 0},
    {"top_logprobs": 3},
    {"response_format": {"type": "poem"}},
    {"messages": [{"role": "nobody", "content": "x"}]},
], ids=str)
def test_a_request_that_makes_no_sense_is_refused(client, model, options):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, model, **options)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.body["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_over_the_context_says_both_numbers(client, model, stream):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, model, messages=[{"role": "user", "content": "bee " * 9000}], stream=stream)
    assert caught.value.code == "context_length_exceeded"
    numbers = [int(word.strip(".,;")) for word in caught.value.body["message"].split() if word.strip(".,;").isdigit()]
    assert len(numbers) >= 2 and max(numbers) > 9000


def test_unknown_fields_are_tolerated(client, model):
    assert ask(client, model, max_tokens=1, extra_body={"no_such_field": {"a": 1}}).choices


def test_a_long_conversation_is_followed(client, model):
    messages = []
    for turn in range(4):
        messages.append({"role": "user", "content": f"Say something about bee number {turn}."})
        answer = ask(client, model, messages=messages, max_tokens=12)
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})
    prompts = [message["content"] for message in messages]
    assert all(prompts), "each turn was answered"
