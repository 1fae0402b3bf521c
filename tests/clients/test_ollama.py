"""The package `ollama` against a node, over each kind of backend. What the model says is its own affair; the form of it is ours."""

import asyncio
import base64
import json
import math
import re
import time

import httpx
import ollama
import pydantic
import pytest

from metrics import in_flight

# What is about managing models, or knowing them well, has no meaning where a model is only a name.
where_models_are_known = pytest.mark.only_over("embedded", "peer", "ollama")
# Naming them is up to the node that has them.
where_models_are_named = pytest.mark.only_over("embedded", "ollama", "llama-server")
# Taking weights in, and out of memory, is more than a server of OpenAI's dialect lets anybody do.
where_weights_are_managed = pytest.mark.only_over("embedded", "ollama")

QUESTION = [{"role": "user", "content": "Name three things that bees do."}]
WAIT_LIMIT_S = 20
DOT = base64.b64encode(base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)).decode()
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells the weather.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
}}}


def chat(client, model, messages=QUESTION, **arguments):
    options = {"temperature": 0, "num_predict": 24} | arguments.pop("options", {})
    return client.chat(model=model, messages=messages, options=options, **arguments)


def generate(client, model, prompt="Bees live in", **arguments):
    options = {"temperature": 0, "num_predict": 16} | arguments.pop("options", {})
    return client.generate(model=model, prompt=prompt, options=options, **arguments)


def eventually(what):
    """Waits until `what()` is true."""
    deadline = time.monotonic() + WAIT_LIMIT_S
    while not what():
        assert time.monotonic() < deadline, "it has not come about"
        time.sleep(0.05)


def loaded(client):
    return {entry.model for entry in client.ps().models}


class TestModels:
    def test_the_list_names_what_can_be_asked(self, ollama_client, model, embedder, served):
        listed = {entry.model: entry for entry in ollama_client.list().models}
        assert {model, f"{embedder}:latest"} <= set(listed)
        for entry in listed.values():
            assert re.fullmatch(r"[0-9a-f]{64}", entry.digest), "Ollama's command line prints twelve digits of it"
            assert entry.modified_at is not None
        if not served.is_openai_behind:
            entry = listed[model]
            assert entry.size > 90_000_000
            assert (entry.details.family, entry.details.format, entry.details.quantization_level) == ("llama", "gguf", "Q4_1")
            assert entry.details.parameter_size == "134.52M"

    def test_show_tells_of_a_model(self, ollama_client, model, served):
        shown = ollama_client.show(model)
        assert "completion" in shown.capabilities
        assert shown.details is not None
        if not served.is_openai_behind:
            assert shown.modelinfo["general.architecture"] == "llama"
            assert shown.modelinfo["llama.context_length"] == 8192
            assert shown.modelinfo["general.parameter_count"] == 134515008
            # Another node tells what a model is, not what it is told.
            assert served.worker or "<|im_start|>" in shown.template
            assert shown.details.quantization_level == "Q4_1"

    @where_models_are_known
    def test_show_says_what_an_embedding_model_is_for(self, ollama_client, embedder):
        assert "embedding" in ollama_client.show(embedder).capabilities

    def test_an_unknown_model_is_not_found(self, ollama_client):
        for ask in (
            lambda: ollama_client.show("nope"),
            lambda: chat(ollama_client, "nope"),
            lambda: list(chat(ollama_client, "nope", stream=True)),
            lambda: generate(ollama_client, "nope"),
        ):
            with pytest.raises(ollama.ResponseError) as caught:
                ask()
            assert (caught.value.status_code, caught.value.error) == (404, "model 'nope' not found")
        for ask in (lambda: ollama_client.embed("nope", "text"), lambda: ollama_client.embeddings("nope", "text")):
            with pytest.raises(ollama.ResponseError) as caught:
                ask()
            assert caught.value.status_code == 404 and "not found" in caught.value.error

    def test_a_name_without_a_tag_means_latest(self, ollama_client, embedder):
        for name in (embedder, f"{embedder}:latest"):
            assert len(ollama_client.embed(name, "the bee").embeddings) == 1


class TestChat:
    def test_an_answer_has_text_counts_and_durations(self, ollama_client, model):
        answer = chat(ollama_client, model, options={"num_predict": 8})
        assert (answer.model, answer.message.role, answer.done, answer.done_reason) == (model, "assistant", True, "length")
        assert answer.message.content
        assert answer.eval_count == 8
        assert answer.prompt_eval_count > 5
        assert answer.eval_duration > 0 and answer.prompt_eval_duration > 0
        assert answer.total_duration >= answer.eval_duration
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", answer.created_at)

    def test_a_stream_says_the_same_as_a_whole_answer(self, ollama_client, model):
        whole = chat(ollama_client, model)
        *parts, last = chat(ollama_client, model, stream=True)
        assert "".join(part.message.content or "" for part in [*parts, last]) == whole.message.content
        assert len(parts) > 3 and not any(part.done for part in parts)
        assert last.done and last.done_reason == whole.done_reason
        assert (last.eval_count, last.prompt_eval_count) == (whole.eval_count, whole.prompt_eval_count)
        assert {part.model for part in parts} == {model}

    def test_the_first_parts_come_before_the_last_is_made(self, ollama_client, model):
        arrivals = [time.monotonic() for _ in chat(ollama_client, model, stream=True, options={"num_predict": 64})]
        assert arrivals[-1] - arrivals[0] > 0.05

    def test_a_seed_repeats_a_random_answer(self, ollama_client, model, served):
        texts = [chat(ollama_client, model, options={"temperature": 1.5, "seed": seed}).message.content for seed in (1, 1, 2)]
        # llama-server's numbers depend on what else it computes at the time, and a random choice may then fall elsewhere.
        assert texts[0] == texts[1] or served.is_openai_behind
        assert texts[0] != texts[2]

    def test_the_answer_ends_before_a_stop_text(self, ollama_client, model):
        whole = chat(ollama_client, model, options={"num_predict": 40}).message.content
        words = whole.split()
        assert len(words) >= 6, f"too short to be cut: {whole!r}"
        stop = f"{words[3]} {words[4]}"
        answer = chat(ollama_client, model, options={"num_predict": 40, "stop": [stop]})
        assert (answer.done_reason, answer.message.content) == ("stop", whole[: whole.index(stop)])

    def test_a_long_conversation_is_followed(self, ollama_client, model):
        messages, counts = [], []
        for turn in range(3):
            messages.append({"role": "user", "content": f"Say something about bee number {turn}."})
            answer = chat(ollama_client, model, messages, options={"num_predict": 8})
            counts.append(answer.prompt_eval_count)
            messages.append(answer.message)
        assert counts == sorted(set(counts)), "each prompt holds the turns before it"

    def test_json_mode_gives_an_object(self, ollama_client, model):
        answer = chat(ollama_client, model, [{"role": "user", "content": "Describe a bee as a small JSON object."}],
                      format="json", options={"num_predict": 120})
        if answer.done_reason == "stop":
            assert isinstance(json.loads(answer.message.content), dict)
        else:
            assert answer.message.content.lstrip().startswith("{")

    def test_a_schema_is_kept_to(self, ollama_client, model):
        class Insect(pydantic.BaseModel):
            legs: int
            flies: bool

        answer = chat(ollama_client, model, [{"role": "user", "content": "Describe a bee."}],
                      format=Insect.model_json_schema(), options={"num_predict": 200})
        assert answer.done_reason == "stop"
        Insect.model_validate_json(answer.message.content)

    def test_log_probabilities_belong_to_the_text(self, ollama_client, model):
        answer = chat(ollama_client, model, logprobs=True, top_logprobs=3, options={"num_predict": 10})
        assert "".join(entry.token for entry in answer.logprobs) == answer.message.content
        for entry in answer.logprobs:
            assert entry.logprob <= 0
            likeliest = [alternative.logprob for alternative in entry.top_logprobs]
            assert len(likeliest) == 3 and likeliest == sorted(likeliest, reverse=True)

    def test_log_probabilities_carry_the_bytes_of_the_tokens(self, served, model):
        body = {"model": model, "messages": QUESTION, "stream": False, "logprobs": True, "options": {"num_predict": 4, "temperature": 0}}
        answer = httpx.post(f"{served.api}/api/chat", json=body, timeout=120).json()
        assert b"".join(bytes(entry["bytes"]) for entry in answer["logprobs"]).decode() == answer["message"]["content"]
        assert not any(entry.get("top_logprobs") for entry in answer["logprobs"]), "none were asked for"

    @where_models_are_known
    def test_tools_are_refused_where_the_model_has_no_place_for_them(self, ollama_client, model):
        with pytest.raises(ollama.ResponseError) as caught:
            chat(ollama_client, model, tools=[TOOL])
        assert caught.value.status_code == 400
        assert "does not support tools" in caught.value.error

    @where_models_are_known
    def test_thinking_is_refused_where_the_model_does_not_think(self, ollama_client, model):
        with pytest.raises(ollama.ResponseError) as caught:
            chat(ollama_client, model, think=True)
        assert caught.value.status_code == 400
        assert "does not support thinking" in caught.value.error

    @pytest.mark.only_over("embedded", "peer", "llama-server")
    def test_images_are_refused_where_the_model_does_not_see(self, ollama_client, model):
        """Ollama itself overlooks them."""
        with pytest.raises(ollama.ResponseError) as caught:
            chat(ollama_client, model, [{"role": "user", "content": "What is this?", "images": [DOT]}])
        assert caught.value.status_code == 400
        assert re.search("image|picture", caught.value.error)

    @where_models_are_known
    def test_the_oldest_turns_go_where_a_conversation_is_too_long(self, ollama_client, model):
        turns = [{"role": role, "content": f"{role} {turn} " + "bee " * 60} for turn in range(12) for role in ("user", "assistant")]
        answer = chat(ollama_client, model, [{"role": "system", "content": "Be short."}, *turns, *QUESTION], options={"num_ctx": 512, "num_predict": 8})
        assert answer.message.content
        assert 60 < answer.prompt_eval_count < 512

    @pytest.mark.only_over("embedded")
    def test_a_node_that_leaves_turns_out_says_so(self, served, model):
        messages = [{"role": "user", "content": "bee " * 300}, {"role": "assistant", "content": "honey " * 300}, *QUESTION]
        body = {"model": model, "messages": messages, "stream": False, "options": {"num_ctx": 512, "num_predict": 4}}
        answer = httpx.post(f"{served.api}/api/chat", json=body, timeout=120)
        assert answer.status_code == 200 and answer.headers["x-bombus-truncated"]

    def test_nothing_is_cut_where_that_was_ruled_out(self, served, model):
        messages = [{"role": "user", "content": "bee " * 9000}, {"role": "assistant", "content": "honey"}, *QUESTION]
        body = {"model": model, "messages": messages, "stream": False, "truncate": False, "options": {"num_predict": 4}}
        if not served.is_openai_behind:
            body["options"]["num_ctx"] = 512
        answer = httpx.post(f"{served.api}/api/chat", json=body, timeout=120)
        assert answer.status_code == 400
        assert "context" in answer.json()["error"]


class TestGenerate:
    def test_an_answer_has_text_counts_and_durations(self, ollama_client, model):
        answer = generate(ollama_client, model)
        assert (answer.model, answer.done) == (model, True)
        assert answer.response and answer.eval_count <= 16 and answer.eval_duration > 0

    def test_a_stream_says_the_same_as_a_whole_answer(self, ollama_client, model):
        whole = generate(ollama_client, model)
        *parts, last = generate(ollama_client, model, stream=True)
        assert "".join(part.response for part in [*parts, last]) == whole.response
        assert last.done and not any(part.done for part in parts)

    def test_a_raw_prompt_is_taken_as_it_is(self, ollama_client, model):
        answer = generate(ollama_client, model, "One, two, three,", raw=True, options={"num_predict": 6})
        assert "four" in answer.response, "the model continues a count that stands in its prompt"
        assert answer.prompt_eval_count < generate(ollama_client, model, "One, two, three,").prompt_eval_count

    def test_a_system_message_makes_the_prompt_longer(self, ollama_client, model):
        plain = generate(ollama_client, model, system="Be brief.", options={"num_predict": 1})
        longer = generate(ollama_client, model, system="Be brief. " + "Say nothing of wasps. " * 10, options={"num_predict": 1})
        assert longer.prompt_eval_count > plain.prompt_eval_count + 30

    @where_models_are_known
    def test_a_template_of_the_request_is_used(self, ollama_client, model):
        answer = generate(ollama_client, model, "three,", template="One, two, {{ .Prompt }}", options={"num_predict": 6})
        assert "four" in answer.response

    @where_models_are_known
    def test_the_context_goes_on_where_an_answer_ended(self, ollama_client, model):
        first = generate(ollama_client, model, "My name is Hildegard.")
        assert len(first.context) == first.prompt_eval_count + first.eval_count
        second = generate(ollama_client, model, "What is my name?", context=first.context, options={"num_predict": 4})
        assert second.prompt_eval_count > len(first.context)
        assert second.context[: len(first.context) - 1] == first.context[:-1]

    @where_models_are_known
    def test_a_suffix_is_refused_where_the_model_cannot_insert(self, ollama_client, model):
        with pytest.raises(ollama.ResponseError) as caught:
            generate(ollama_client, model, "def bee():", suffix="return honey")
        assert caught.value.status_code == 400
        assert "does not support insert" in caught.value.error

    def test_json_mode_gives_json(self, ollama_client, model):
        answer = generate(ollama_client, model, "Describe a bee as a small JSON object.", format="json", options={"num_predict": 120})
        assert answer.response.lstrip().startswith("{")

    def test_log_probabilities_belong_to_the_text(self, ollama_client, model):
        answer = generate(ollama_client, model, logprobs=True, top_logprobs=2)
        assert "".join(entry.token for entry in answer.logprobs) == answer.response


class TestMemory:
    @where_weights_are_managed
    def test_an_empty_prompt_loads_and_keep_alive_zero_unloads(self, ollama_client, model):
        answer = ollama_client.generate(model=model)
        assert (answer.response, answer.done, answer.done_reason) == ("", True, "load")
        assert model in loaded(ollama_client)
        answer = ollama_client.generate(model=model, keep_alive=0)
        assert (answer.done, answer.done_reason) == (True, "unload")
        eventually(lambda: model not in loaded(ollama_client))

    @where_weights_are_managed
    def test_no_messages_load_and_unload_too(self, ollama_client, model):
        assert ollama_client.chat(model=model).done_reason == "load"
        assert model in loaded(ollama_client)
        assert ollama_client.chat(model=model, keep_alive=0).done_reason == "unload"
        eventually(lambda: model not in loaded(ollama_client))

    @where_weights_are_managed
    def test_keep_alive_says_for_how_long(self, ollama_client, model):
        chat(ollama_client, model, keep_alive="10m", options={"num_predict": 1})
        entry = next(entry for entry in ollama_client.ps().models if entry.model == model)
        left_s = entry.expires_at.timestamp() - time.time()
        assert 500 < left_s < 700
        assert entry.size > 90_000_000 and entry.context_length > 0 and entry.details.family == "llama"
        chat(ollama_client, model, keep_alive=0, options={"num_predict": 1})
        eventually(lambda: model not in loaded(ollama_client))

    @pytest.mark.only_over("llama-server")
    def test_a_server_that_keeps_its_model_is_asked_to_load_and_unload_it_in_vain(self, ollama_client, model):
        assert ollama_client.generate(model=model).done_reason == "load"
        entry = next(entry for entry in ollama_client.ps().models if entry.model == "a-name-of-its-own:latest")
        assert entry.size > 0 and entry.context_length > 0
        assert ollama_client.generate(model=model, keep_alive=0).done_reason == "unload"
        assert "a-name-of-its-own:latest" in loaded(ollama_client)
        assert chat(ollama_client, model).message.content

    @where_weights_are_managed
    def test_a_short_keep_alive_ends_by_itself(self, ollama_client, model):
        chat(ollama_client, model, keep_alive="300ms", options={"num_predict": 1})
        eventually(lambda: model not in loaded(ollama_client))


class TestEmbeddings:
    def test_each_text_gets_a_vector_of_length_one(self, ollama_client, embedder):
        texts = ["the bee makes honey", "a red flower", "the bee makes honey"]
        answer = ollama_client.embed(embedder, texts)
        first, other, again = answer.embeddings
        for vector in answer.embeddings:
            assert len(vector) == 64
            assert math.isclose(math.sqrt(sum(value * value for value in vector)), 1, abs_tol=1e-3)
        assert list(first) == pytest.approx(list(again), abs=1e-4)
        assert any(abs(a - b) > 1e-2 for a, b in zip(first, other, strict=True))
        assert answer.prompt_eval_count > 6

    def test_one_text_gives_a_list_of_one(self, ollama_client, embedder):
        assert len(ollama_client.embed(embedder, "the bee").embeddings) == 1

    def test_no_text_gives_no_vector(self, ollama_client, embedder):
        assert list(ollama_client.embed(embedder, []).embeddings) == []

    def test_the_older_route_gives_one_vector(self, ollama_client, embedder):
        old, new = ollama_client.embeddings(embedder, "the bee").embedding, ollama_client.embed(embedder, "the bee").embeddings[0]
        length = math.sqrt(sum(value * value for value in old))
        assert [value / length for value in old] == pytest.approx(list(new), abs=1e-4)

    def test_fewer_dimensions_can_be_asked_for(self, ollama_client, embedder):
        vector = ollama_client.embed(embedder, "the bee", dimensions=16).embeddings[0]
        assert len(vector) == 16
        assert math.isclose(math.sqrt(sum(value * value for value in vector)), 1, abs_tol=1e-3)

    @where_models_are_known
    def test_a_long_text_is_cut_unless_that_is_ruled_out(self, ollama_client, embedder):
        text = "the bee makes honey in the hive " * 100
        assert len(ollama_client.embed(embedder, text).embeddings) == 1
        with pytest.raises(ollama.ResponseError) as caught:
            ollama_client.embed(embedder, text, truncate=False)
        assert caught.value.status_code == 400
        assert "context length" in caught.value.error


class TestManaging:
    @where_models_are_named
    def test_a_model_is_copied_and_deleted(self, ollama_client, model):
        assert ollama_client.copy(model, "copy-of-it").status == "success"
        assert "copy-of-it:latest" in {entry.model for entry in ollama_client.list().models}
        assert chat(ollama_client, "copy-of-it").message.content == chat(ollama_client, model).message.content
        assert ollama_client.delete("copy-of-it").status == "success"
        assert "copy-of-it:latest" not in {entry.model for entry in ollama_client.list().models}
        with pytest.raises(ollama.ResponseError) as caught:
            ollama_client.delete("copy-of-it")
        assert (caught.value.status_code, caught.value.error) == (404, "model 'copy-of-it' not found")

    @where_models_are_named
    def test_a_copy_of_nothing_is_not_found(self, ollama_client):
        with pytest.raises(ollama.ResponseError) as caught:
            ollama_client.copy("nope", "something")
        assert (caught.value.status_code, caught.value.error) == (404, 'model "nope" not found')

    @where_models_are_named
    def test_a_model_is_made_of_another_with_defaults_of_its_own(self, ollama_client, model):
        statuses = [step.status for step in ollama_client.create(
            "beekeeper", from_=model, system="You keep bees.", parameters={"temperature": 0, "num_predict": 3, "stop": ["wasp"]},
            license="Do as you like.", stream=True,
        )]
        assert statuses[-1] == "success"
        try:
            shown = ollama_client.show("beekeeper")
            assert "Do as you like." in shown.license
            assert re.search(r"num_predict\s+3", shown.parameters) and re.search(r'stop\s+"wasp"', shown.parameters)
            assert 'SYSTEM "You keep bees."' in shown.modelfile or "SYSTEM You keep bees." in shown.modelfile
            answer = ollama_client.chat(model="beekeeper", messages=QUESTION)
            assert answer.eval_count == 3
            spoken = ollama_client.chat(model=model, messages=[{"role": "system", "content": "You keep bees."}, *QUESTION], options={"num_predict": 3})
            assert answer.prompt_eval_count == spoken.prompt_eval_count
        finally:
            ollama_client.delete("beekeeper")

    @where_weights_are_managed
    def test_a_model_is_made_of_a_file(self, ollama_client, embedder_file):
        digest = ollama_client.create_blob(embedder_file)
        assert ollama_client.create("made-of-a-file", files={"model.gguf": digest}).status == "success"
        try:
            assert len(ollama_client.embed("made-of-a-file", "the bee").embeddings[0]) == 64
        finally:
            ollama_client.delete("made-of-a-file")

    @where_weights_are_managed
    def test_a_file_that_is_not_what_its_digest_says_is_refused(self, served):
        answer = httpx.post(f"{served.api}/api/blobs/sha256:{'0' * 64}", content=b"not that", timeout=30)
        assert answer.status_code == 400
        assert "digest mismatch" in answer.json()["error"]

    @pytest.mark.only_over("llama-server")
    def test_a_model_of_the_server_behind_is_not_deleted(self, ollama_client, model):
        for name, why in ((model, "is an alias of"), ("a-name-of-its-own", "belongs to the server")):
            with pytest.raises(ollama.ResponseError) as caught:
                ollama_client.delete(name)
            assert caught.value.status_code == 400 and why in caught.value.error
        assert model in {entry.model for entry in ollama_client.list().models}


def test_a_client_that_goes_away_stops_the_model(served, model):
    body = {"model": model, "messages": [{"role": "user", "content": "Tell me all about bees."}], "options": {"num_predict": 4000}}
    with httpx.stream("POST", f"{served.api}/api/chat", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        assert next(lines)
        assert in_flight(served.node) == 1
    eventually(lambda: in_flight(served.node) == 0)


def test_many_streams_at_once_all_end(served, model):
    async def main():
        client = ollama.AsyncClient(host=served.api, timeout=120)

        async def one(number):
            stream = await client.chat(model=model, messages=[{"role": "user", "content": f"Count to {number + 3}."}],
                                       options={"num_predict": 12}, stream=True)
            return [part async for part in stream][-1].done

        return await asyncio.gather(*(one(number) for number in range(8)))

    assert asyncio.run(main()) == [True] * 8
