"""LiteLLM's proxy before a node, and behind one."""

import ollama
import openai
import pytest

import servers
from bombus_node import Node
from conftest import or_skip

pytestmark = pytest.mark.others
QUESTION = [{"role": "user", "content": "Name three things that bees do."}]


def texts(stream):
    return "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)


@pytest.fixture(scope="module")
def before(tmp_path_factory, served):
    """A proxy whose models are a node's, by each of the two dialects, over each kind of backend."""
    or_skip(servers.litellm_program)
    by_openai = {"api_base": f"{served.api}/v1", "api_key": "unused"}
    models = [
        ("by-openai", {"model": "openai/smollm2:135m"} | by_openai),
        ("by-ollama", {"model": "ollama_chat/smollm2:135m", "api_base": served.api}),
        ("vectors-by-openai", {"model": "openai/tiny-bert"} | by_openai),
        ("vectors-by-ollama", {"model": "ollama/tiny-bert", "api_base": served.api}),
        ("unknown-by-openai", {"model": "openai/nope"} | by_openai),
        ("unknown-by-ollama", {"model": "ollama_chat/nope", "api_base": served.api}),
    ]
    with servers.LiteLlm(tmp_path_factory.mktemp("litellm"), models) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def through(before):
    with openai.OpenAI(base_url=f"{before.api}/v1", api_key=before.key, max_retries=0, timeout=120) as client:
        yield client


@pytest.mark.parametrize("name", ["by-openai", "by-ollama"])
class TestBefore:
    def test_it_passes_answers_on(self, through, name):
        answer = through.chat.completions.create(model=name, messages=QUESTION, max_tokens=8, temperature=0)
        assert answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 8

    def test_it_passes_streams_on(self, through, name):
        plain = {"model": name, "messages": QUESTION, "max_tokens": 16, "temperature": 0}
        whole = through.chat.completions.create(**plain).choices[0].message.content
        assert texts(through.chat.completions.create(**plain, stream=True)) == whole

    def test_it_passes_schemas_on(self, through, name):
        schema = {"type": "object", "properties": {"legs": {"type": "integer"}}, "required": ["legs"], "additionalProperties": False}
        answer = through.chat.completions.create(
            model=name, messages=QUESTION, max_tokens=100, temperature=0,
            response_format={"type": "json_schema", "json_schema": {"name": "insect", "schema": schema, "strict": True}},
        )
        assert '"legs"' in answer.choices[0].message.content

    def test_it_passes_vectors_on(self, through, name):
        answer = through.embeddings.create(model=f"vectors-{name}", input=["the bee", "a red flower"], encoding_format="float")
        assert [len(entry.embedding) for entry in answer.data] == [64, 64]

    def test_it_understands_that_a_model_is_unknown(self, through, name):
        with pytest.raises(openai.APIStatusError) as caught:
            through.chat.completions.create(model=f"unknown-{name}", messages=QUESTION)
        assert "nope" in str(caught.value)
        if name == "by-openai":
            assert caught.value.status_code == 404


@pytest.fixture(scope="module")
def behind(tmp_path_factory, real_llama_server):
    """A proxy whose model is a llama-server's."""
    or_skip(servers.litellm_program)
    models = [("smollm2:135m", {"model": "openai/a-name-of-its-own", "api_base": f"{real_llama_server.api}/v1", "api_key": "unused"})]
    with servers.LiteLlm(tmp_path_factory.mktemp("litellm"), models) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def node_before(tmp_path_factory, behind):
    folder = tmp_path_factory.mktemp("before-litellm")
    (folder / "key").write_text(f"{behind.key}\n")
    (folder / "key").chmod(0o600)
    config = f'[[backends]]\nname = "litellm"\nkind = "openai"\nurl = "{behind.api}/v1"\napi_key_file = "{folder / "key"}"\n'
    with Node(folder / "data", config) as node:
        yield node


class TestBehind:
    def test_an_answer_comes_through_both(self, node_before, model):
        with openai.OpenAI(base_url=f"{node_before.api}/v1", api_key="unused", max_retries=0, timeout=120) as client:
            plain = {"model": model, "messages": QUESTION, "max_tokens": 12, "temperature": 0}
            answer = client.chat.completions.create(**plain)
            assert answer.choices[0].message.content and answer.model == model
            assert answer.usage.completion_tokens == 12
            assert texts(client.chat.completions.create(**plain, stream=True)) == answer.choices[0].message.content

    def test_ollamas_client_is_answered_too(self, node_before, model):
        client = ollama.Client(host=node_before.api, timeout=120)
        answer = client.chat(model=model, messages=QUESTION, options={"temperature": 0, "num_predict": 6})
        assert (answer.eval_count, answer.done_reason) == (6, "length")
        assert [part.done for part in client.chat(model=model, messages=QUESTION, options={"temperature": 0, "num_predict": 6}, stream=True)][-1]

    def test_a_prompt_over_the_context_is_the_requests_fault(self, node_before, model):
        with openai.OpenAI(base_url=f"{node_before.api}/v1", api_key="unused", max_retries=0, timeout=120) as client:
            with pytest.raises(openai.BadRequestError) as caught:
                client.chat.completions.create(model=model, messages=[{"role": "user", "content": "bee " * 9000}])
            assert "context" in str(caught.value)
