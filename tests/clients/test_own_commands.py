"""Bombus's own commands at a running node, over each kind of backend."""

import json

import pytest

from bombus_node import bombus

# Naming them is up to the node that has them.
where_models_are_named = pytest.mark.only_over("embedded", "ollama", "llama-server")


@pytest.fixture
def told(served):
    """Runs a command on the node's data directory and returns what it tells programs."""

    def run(*arguments):
        data_dir = served.node.data_dir
        return json.loads(bombus(data_dir, *arguments, "--json", "--config", data_dir / "test.toml", timeout=300).stdout)

    return run


def answer(told, model, *arguments):
    return told("ask", "--model", model, "--max-tokens", "8", "--temperature", "0", *arguments, "Name three things that bees do.")


def test_models_are_listed_and_shown_with_what_is_known_of_them(told, served, model):
    entry = next(entry for entry in told("models", "list") if entry["name"] == model)
    assert entry["context_tokens"] > 0 and isinstance(entry["warm"], bool)
    shown = told("models", "show", model)
    assert shown["name"] == model and "completion" in shown["capabilities"]
    if not served.is_openai_behind:
        assert entry["size_bytes"] > 90_000_000 and entry["quantization"] == "Q4_1"


def test_an_answer_explains_who_gave_it(told, served, model):
    answered = answer(told, model, "--explain")
    assert answered["answer"].strip() and answered["usage"]["completion_tokens"] == 8
    assert answered["route"]["backend"] == served.backend
    best = answered["placement"][0]
    # To the node that is asked, another node is one backend.
    assert best["score"] > 0 and best["backend"] == (served.worker.id if served.worker else served.backend)
    assert told("route", model)["candidates"][0]["backend"] == best["backend"]


@where_models_are_named
def test_a_copy_answers_until_it_is_removed(told, model):
    assert told("models", "cp", model, "copy-by-bombus") == {"name": "copy-by-bombus:latest", "copy_of": model}
    try:
        assert "copy-by-bombus:latest" in {entry["name"] for entry in told("models", "list")}
        assert answer(told, "copy-by-bombus")["answer"].strip()
    finally:
        assert told("models", "rm", "copy-by-bombus") == {"name": "copy-by-bombus:latest", "removed": True}
    assert "copy-by-bombus:latest" not in {entry["name"] for entry in told("models", "list")}


@where_models_are_named
def test_every_backend_that_has_the_model_is_measured(told, model):
    measured = told("bench", model, "--tokens", "8", "--prompt-tokens", "16", "--rounds", "1")["backends"]
    rounds = [one for backend in measured for one in backend["rounds"]]
    assert len(rounds) == 1, f"one backend has it: {measured}"
    # Ollama cannot be kept from ending an answer early.
    assert 1 <= rounds[0]["completion_tokens"] <= 8 and rounds[0]["first_token_ms"] > 0


def test_detect_tells_of_the_backends_that_answer(told, served):
    backends = {backend["name"]: backend for backend in told("detect")["backends"]}
    own = "embedded" if served.worker else served.backend
    assert backends[own]["ready"] is True
