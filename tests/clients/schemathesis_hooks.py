"""Keeps generated requests cheap and lets most of them reach the model."""

import os
import zlib

import schemathesis

TOKENS_MAX = 4
CHOICES_MAX = 2
ROUTES_THAT_GENERATE = {"/v1/chat/completions", "/v1/completions"}


def is_number(value):
    return isinstance(value, int) and not isinstance(value, bool)


def name_a_model(body, route):
    """A random name would always be a 404: one in eight is left as it is."""
    known = os.environ["TRIED_EMBEDDER" if route == "/v1/embeddings" else "TRIED_MODEL"]
    name = body.get("model", known)
    example = name in (known, os.environ["TRIED_MODEL"])
    if name is None or example or isinstance(name, str) and zlib.crc32(name.encode(errors="replace")) % 8:
        body["model"] = known


def say_something(body):
    """The document cannot say that a message may go without content only beside tool calls."""
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else []:
        if isinstance(message, dict) and not message.get("tool_calls"):
            message.setdefault("content", "Hello")


def generate_little(body):
    limits = [name for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None]
    for name in limits:
        if is_number(body[name]) and TOKENS_MAX < body[name] < 2**32:
            body[name] = TOKENS_MAX
    if not limits:
        body["max_tokens"] = TOKENS_MAX
    for name in ("n", "best_of"):
        if is_number(body.get(name)) and CHOICES_MAX < body[name] <= 16:
            body[name] = CHOICES_MAX


@schemathesis.hook
def before_call(context, case, kwargs):
    name = (case.path_parameters or {}).get("id")
    if isinstance(name, str) and zlib.crc32(name.encode(errors="replace")) % 2:
        case.path_parameters["id"] = os.environ["TRIED_MODEL"]
    if not isinstance(case.body, dict):
        return
    name_a_model(case.body, case.path)
    if case.path in ROUTES_THAT_GENERATE:
        say_something(case.body)
        generate_little(case.body)
