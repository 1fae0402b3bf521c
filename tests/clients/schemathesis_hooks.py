"""Keeps generated requests cheap and lets most of them reach the model."""

import os
import zlib

import schemathesis

TOKENS_MAX = 4
CHOICES_MAX = 2
ROUTES_THAT_GENERATE = {"/v1/chat/completions", "/v1/completions"}


def is_number(value):
    return isinstance(value, int) and not isinstance(value, bool)


@schemathesis.hook
def before_call(context, case, kwargs):
    body = case.body
    if not isinstance(body, dict):
        return
    # A random name would always be a 404. One in eight is left as it is.
    if isinstance(body.get("model"), str) and zlib.crc32(body["model"].encode(errors="replace")) % 8:
        embeds = case.path == "/v1/embeddings"
        body["model"] = os.environ["TRIED_EMBEDDER" if embeds else "TRIED_MODEL"]
    if case.path in ROUTES_THAT_GENERATE:
        limits = [name for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None]
        for name in limits:
            if is_number(body[name]) and body[name] > TOKENS_MAX:
                body[name] = TOKENS_MAX
        if not limits:
            body["max_tokens"] = TOKENS_MAX
        for name in ("n", "best_of"):
            if is_number(body.get(name)) and CHOICES_MAX < body[name] <= 128:
                body[name] = CHOICES_MAX
