"""The same requests to a real Ollama and to a node: status, kind of content, form of the JSON and the words of errors have to agree."""

import json

import httpx
import pytest

from bombus_node import MODEL
from conftest import EMBEDDER

pytestmark = pytest.mark.others

SAY = [{"role": "user", "content": "Say hello."}]
SHORT = {"num_predict": 3, "temperature": 0}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "object", "properties": {"legs": {"type": "integer"}}, "required": ["legs"]}

GOOD = {
    "root": ("GET", "/", None),
    "root, head": ("HEAD", "/", None),
    "version": ("GET", "/api/version", None),
    "version, head": ("HEAD", "/api/version", None),
    "tags": ("GET", "/api/tags", None),
    "tags, head": ("HEAD", "/api/tags", None),
    "show": ("POST", "/api/show", {"model": MODEL}),
    "show by its older field": ("POST", "/api/show", {"name": MODEL}),
    "load": ("POST", "/api/generate", {"model": MODEL}),
    "load without a stream": ("POST", "/api/generate", {"model": MODEL, "stream": False}),
    "load by chat": ("POST", "/api/chat", {"model": MODEL, "messages": []}),
    "ps": ("GET", "/api/ps", None),
    "generate": ("POST", "/api/generate", {"model": MODEL, "prompt": "Hello", "stream": False, "options": SHORT}),
    "generate, stream": ("POST", "/api/generate", {"model": MODEL, "prompt": "Hello", "options": SHORT}),
    "generate, raw": ("POST", "/api/generate", {"model": MODEL, "prompt": "Hello", "raw": True, "stream": False, "options": SHORT}),
    "generate, log probabilities": ("POST", "/api/generate", {
        "model": MODEL, "prompt": "Hello", "stream": False, "logprobs": True, "top_logprobs": 2, "options": SHORT,
    }),
    "generate, JSON": ("POST", "/api/generate", {"model": MODEL, "prompt": "A bee as JSON", "format": "json", "stream": False, "options": SHORT}),
    "chat": ("POST", "/api/chat", {"model": MODEL, "messages": SAY, "stream": False, "options": SHORT}),
    "chat, stream": ("POST", "/api/chat", {"model": MODEL, "messages": SAY, "options": SHORT}),
    "chat, schema": ("POST", "/api/chat", {"model": MODEL, "messages": SAY, "format": SCHEMA, "stream": False, "options": {"temperature": 0, "num_predict": 40}}),
    "chat, log probabilities": ("POST", "/api/chat", {"model": MODEL, "messages": SAY, "stream": False, "logprobs": True, "options": SHORT}),
    "chat, log probabilities in a stream": ("POST", "/api/chat", {"model": MODEL, "messages": SAY, "logprobs": True, "top_logprobs": 1, "options": SHORT}),
    "chat, keep_alive as a number": ("POST", "/api/chat", {"model": MODEL, "messages": SAY, "stream": False, "keep_alive": 60, "options": SHORT}),
    "chat, unknown fields": ("POST", "/api/chat", {"model": MODEL, "messages": SAY, "stream": False, "no_such": 1, "options": SHORT | {"no_such": 1}}),
    "chat, thinking switched off": ("POST", "/api/chat", {"model": MODEL, "messages": SAY, "stream": False, "think": False, "options": SHORT}),
    "embed": ("POST", "/api/embed", {"model": EMBEDDER, "input": "the bee"}),
    "embed, several": ("POST", "/api/embed", {"model": EMBEDDER, "input": ["the bee", "a flower"]}),
    "embed, none": ("POST", "/api/embed", {"model": EMBEDDER, "input": []}),
    "embed, no input": ("POST", "/api/embed", {"model": EMBEDDER}),
    "embeddings": ("POST", "/api/embeddings", {"model": EMBEDDER, "prompt": "the bee"}),
    "embeddings, empty": ("POST", "/api/embeddings", {"model": EMBEDDER, "prompt": ""}),
    "unload": ("POST", "/api/generate", {"model": MODEL, "keep_alive": 0, "stream": False}),
    "unload by chat": ("POST", "/api/chat", {"model": MODEL, "messages": [], "keep_alive": 0, "stream": False}),
    "blob that is not there, head": ("HEAD", f"/api/blobs/sha256:{'0' * 64}", None),
}

BAD = {
    "chat, unknown model": ("POST", "/api/chat", {"model": "nope", "messages": SAY}),
    "chat, unknown model with a tag": ("POST", "/api/chat", {"model": "nope:7b", "messages": SAY}),
    "chat, empty body": ("POST", "/api/chat", b""),
    "chat, too many alternatives": ("POST", "/api/chat", {"model": MODEL, "messages": SAY, "logprobs": True, "top_logprobs": 21}),
    "chat with an embedding model": ("POST", "/api/chat", {"model": EMBEDDER, "messages": SAY}),
    "generate, unknown model": ("POST", "/api/generate", {"model": "nope", "prompt": "Hello"}),
    "generate, empty body": ("POST", "/api/generate", b""),
    "generate, raw with a system message": ("POST", "/api/generate", {"model": MODEL, "prompt": "Hello", "raw": True, "system": "x"}),
    "generate with an embedding model": ("POST", "/api/generate", {"model": EMBEDDER, "prompt": "Hello"}),
    "show, unknown model": ("POST", "/api/show", {"model": "nope"}),
    "show, empty body": ("POST", "/api/show", b""),
    "embed, unknown model": ("POST", "/api/embed", {"model": "nope", "input": "x"}),
    "embed, wrong input": ("POST", "/api/embed", {"model": EMBEDDER, "input": 7}),
    "embed, wrong inputs": ("POST", "/api/embed", {"model": EMBEDDER, "input": [7]}),
    "embed, empty body": ("POST", "/api/embed", b""),
    "embeddings, unknown model": ("POST", "/api/embeddings", {"model": "nope", "prompt": "x"}),
    "copy of an unknown model": ("POST", "/api/copy", {"source": "nope", "destination": "other"}),
    "copy to a name that is none": ("POST", "/api/copy", {"source": MODEL, "destination": "a b"}),
    "copy, empty body": ("POST", "/api/copy", b""),
    "delete of an unknown model": ("DELETE", "/api/delete", {"model": "nope"}),
    "delete, empty body": ("DELETE", "/api/delete", b""),
    "create, no name": ("POST", "/api/create", {"from": MODEL}),
    "create of nothing": ("POST", "/api/create", {"model": "never"}),
    "create, empty body": ("POST", "/api/create", b""),
    "pull, empty body": ("POST", "/api/pull", b""),
    "blob of another digest": ("POST", f"/api/blobs/sha256:{'0' * 64}", b"not that"),
}

# What a node says in words of its own, of which clients look for these.
IN_OTHER_WORDS = {
    "tools": ("does not support tools", "POST", "/api/chat", {"model": MODEL, "messages": SAY, "tools": [TOOL]}),
    "thinking": ("does not support thinking", "POST", "/api/chat", {"model": MODEL, "messages": SAY, "think": True}),
    "suffix": ("does not support insert", "POST", "/api/generate", {"model": MODEL, "prompt": "Hello", "suffix": "x"}),
    "too long": ("exceeds the context length", "POST", "/api/embed", {"model": EMBEDDER, "input": "the bee " * 200, "truncate": False}),
    "chat by GET": ("", "GET", "/api/chat", None),
    "tags by POST": ("", "POST", "/api/tags", {}),
    "no such route": ("", "GET", "/api/no-such-route", None),
}

# What Ollama says of a model and a node does not: the defaults that the real one's model has here, and what its file is made of.
NOT_OURS = {"parameters", "tensors"}


def ask(api, method, path, body):
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    return httpx.request(method, f"{api}{path}", content=content, timeout=120)


def shape(value):
    """Describes a value of JSON by its keys and kinds. Numbers are one kind, and lists are told by their first entry."""
    match value:
        case dict():
            return {key: shape(entry) for key, entry in value.items() if key not in NOT_OURS}
        case list():
            return [shape(value[0])] if value else []
        case bool():
            return "bool"
        case int() | float():
            return "number"
        case _:
            return type(value).__name__


def lacking(theirs, ours, place="answer"):
    """Lists what stands in their shape and does not stand alike in ours. More may stand in ours."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return [line for key in theirs for line in (
            lacking(theirs[key], ours[key], f"{place}.{key}") if key in ours else [f"{place}.{key} is missing"]
        )]
    if isinstance(theirs, list) and isinstance(ours, list):
        return lacking(theirs[0], ours[0], f"{place}[0]") if theirs and ours else []
    return [] if theirs == ours else [f"{place} is {ours}, theirs {theirs}"]


def parts(answer):
    """Returns the values of an answer, one for each line of a stream."""
    if not answer.text or "json" not in answer.headers.get("content-type", ""):
        return [answer.text]
    return [json.loads(line) for line in answer.text.splitlines() if line]


def kind(answer):
    return answer.headers.get("content-type", "").replace(" ", "").removesuffix(";charset=utf-8")


@pytest.mark.parametrize("request_name", GOOD)
def test_an_answer_has_the_same_form(request_name, real_ollama, node):
    theirs, ours = (ask(api, *GOOD[request_name]) for api in (real_ollama.api, node.api))
    assert (ours.status_code, kind(ours)) == (theirs.status_code, kind(theirs)), ours.text
    expected, got = parts(theirs), parts(ours)
    assert len(got) > 1 or len(expected) == 1
    assert not lacking(shape(expected[0]), shape(got[0]))
    assert not lacking(shape(expected[-1]), shape(got[-1]))


@pytest.mark.parametrize("request_name", BAD)
def test_an_error_has_the_same_status_and_words(request_name, real_ollama, node):
    theirs, ours = (ask(api, *BAD[request_name]) for api in (real_ollama.api, node.api))
    assert theirs.status_code >= 400
    assert (ours.status_code, kind(ours)) == (theirs.status_code, kind(theirs)), ours.text
    assert ours.text.strip() == theirs.text.strip()


@pytest.mark.parametrize("request_name", IN_OTHER_WORDS)
def test_an_error_has_the_same_status_and_says_the_same(request_name, real_ollama, node):
    words, *request = IN_OTHER_WORDS[request_name]
    theirs, ours = (ask(api, *request) for api in (real_ollama.api, node.api))
    assert theirs.status_code >= 400
    assert ours.status_code == theirs.status_code
    assert words in theirs.text
    assert words in ours.json()["error"]
