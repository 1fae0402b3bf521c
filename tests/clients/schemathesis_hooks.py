"""Keeps generated requests cheap and lets most of them reach the model."""

import itertools
import json
import os
import zlib

import schemathesis

TOKENS_MAX = 4
CHOICES_MAX = 2
OPENAI_GENERATES = {"/v1/chat/completions", "/v1/completions"}
OLLAMA_GENERATES = {"/api/chat", "/api/generate"}
EMBEDS = {"/v1/embeddings", "/api/embed", "/api/embeddings"}
# Keys that may be taken away, once each.
KEYS = itertools.count()
EXPORT = b'{"format":"bombus-db-1","name":"tried","type":"keyvalue"}\n{"key":"imported","value":1}\n'
# The model that requests may make anew; those that the tests need are never overwritten or deleted.
OURS_TO_CHANGE = "tried-and-changed"


def is_number(value):
    return isinstance(value, int) and not isinstance(value, bool)


def is_left(text):
    """A random name would always be a 404: one in eight is left as it is."""
    return zlib.crc32(text.encode(errors="replace")) % 8 == 0


def name_a_model(body, route):
    known = os.environ["TRIED_EMBEDDER" if route in EMBEDS else "TRIED_MODEL"]
    name = body.get("model", known)
    example = name in (known, os.environ["TRIED_MODEL"])
    if name is None or example or isinstance(name, str) and not is_left(name):
        body["model"] = known


def manage_little(body, route):
    """Keeps requests that change models to one that nobody needs, and from registries."""
    known = os.environ["TRIED_MODEL"]
    if route == "/api/copy":
        if isinstance(body.get("source"), str) and not is_left(body["source"]):
            body["source"] = known
        if isinstance(body.get("destination"), str):
            body["destination"] = OURS_TO_CHANGE
        return
    # Older clients write `name` for `model`.
    for field in ("model", "name"):
        if isinstance(body.get(field), str):
            body[field] = known if route == "/api/pull" else OURS_TO_CHANGE
    if route == "/api/create" and isinstance(body.get("from"), str):
        body["from"] = known


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


def predict_little(body):
    options = body.setdefault("options", {})
    if options is None:
        options = body["options"] = {}
    if isinstance(options, dict) and (is_number(options.get("num_predict", 0)) or options["num_predict"] is None):
        options["num_predict"] = TOKENS_MAX


def end_streams(case):
    """A stream of events that is followed never ends."""
    query = dict(case.query or {})
    if str(query.get("follow", "true")).lower() == "true":
        case.query = query | {"follow": "false"}


def stay_here(case):
    """The node is alone, so that hardly any scope leads to an answer: one in eight of the others is left as it is."""
    headers = case.headers or {}
    scope = headers.get("x-bombus-scope")
    if isinstance(scope, str) and scope != "local" and not is_left(scope):
        headers["x-bombus-scope"] = "local"


def use_a_database(case):
    """Leads most requests to a database that is there, and to rows in it: a stream without any has no line to look at."""
    route = case.path.removeprefix("/db/{database}")
    name = (case.path_parameters or {}).get("database")
    if isinstance(name, str) and not is_left(name):
        case.path_parameters["database"] = {"/add": "tried-events", "/del": "tried-keys"}.get(route, "tried")
    query, body = dict(case.query or {}), case.body
    if route == "/get" and isinstance(query.get("key"), str) and not is_left(query["key"]):
        case.query = query | {"key": "known"}
    if route == "/all" and str(query.get("amount")) == "0":
        case.query = query | {"amount": "1"}
    if not isinstance(body, dict):
        return
    if route == "/del" and isinstance(body.get("key"), str) and not is_left(body["key"]):
        body["key"] = str(next(KEYS))
    if route == "/query":
        body["where"] = {} if isinstance(body.get("where"), dict) else body.get("where")
        body["amount"] = 1 if body.get("amount") == 0 else body.get("amount")


def use_a_task(case):
    """Leads most requests to a task that is there, and lets those that make one ask little of the model."""
    name = (case.path_parameters or {}).get("id")
    if isinstance(name, str) and not is_left(name):
        case.path_parameters["id"] = "tried"
    query, body = dict(case.query or {}), case.body
    wait = str(query.get("wait", ""))
    if wait.isdigit() and int(wait) <= 60:
        case.query = query | {"wait": "0"}
    if not isinstance(body, dict):
        return
    if isinstance(body.get("to"), str) and not is_left(body["to"]):
        del body["to"]
    payload = body.get("payload")
    if isinstance(payload, dict) and body.get("task_type") != "ping":
        if body.get("task_type") == "embedding":
            payload.setdefault("text", "Hello")
            payload["model"] = os.environ["TRIED_EMBEDDER"]
        else:
            payload.setdefault("prompt", "Hello")
            payload.pop("messages", None)
            payload["model"] = os.environ["TRIED_MODEL"]
            if payload.get("max_tokens", TOKENS_MAX) is None or is_number(payload.get("max_tokens", TOKENS_MAX)):
                payload["max_tokens"] = TOKENS_MAX


def use_a_batch(case):
    """Leads most requests to a file and a batch that are there. The file is never removed."""
    parameters = case.path_parameters or {}
    for name, known in (("file_id", "TRIED_FILE"), ("batch_id", "TRIED_BATCH")):
        if case.method.upper() == "DELETE":
            if parameters.get(name) == os.environ[known]:
                parameters[name] = "file-that-is-needed"
        elif isinstance(parameters.get(name), str) and not is_left(parameters[name]):
            parameters[name] = os.environ[known]
    query = dict(case.query or {})
    if isinstance(query.get("after"), str) and not is_left(query["after"]):
        case.query = query | {"after": os.environ["TRIED_BATCH" if "batches" in case.path else "TRIED_FILE"]}
    if isinstance(case.body, dict) and isinstance(case.body.get("input_file_id"), str) and not is_left(case.body["input_file_id"]):
        case.body["input_file_id"] = os.environ["TRIED_FILE"]


@schemathesis.hook
def before_call(context, case, kwargs):
    stay_here(case)
    if case.path.startswith(("/v1/files", "/v1/batches")):
        use_a_batch(case)
        return
    if case.path == "/task" or case.path.startswith(("/task/", "/tasks")):
        use_a_task(case)
        return
    if case.path == "/db" or case.path.startswith("/db/"):
        # One that is there would be watched for ever.
        if not case.path.endswith("/watch"):
            use_a_database(case)
        return
    if case.path == "/events":
        end_streams(case)
        return
    name = (case.path_parameters or {}).get("id")
    if isinstance(name, str) and zlib.crc32(name.encode(errors="replace")) % 2:
        case.path_parameters["id"] = os.environ["TRIED_MODEL"]
    if not isinstance(case.body, dict) or case.path.startswith(("/mesh/", "/node/")):
        return
    if case.path in {"/api/copy", "/api/create", "/api/delete", "/api/pull", "/api/push"}:
        manage_little(case.body, case.path)
        return
    name_a_model(case.body, case.path)
    if case.path in OPENAI_GENERATES:
        say_something(case.body)
        generate_little(case.body)
    if case.path in OLLAMA_GENERATES:
        say_something(case.body)
        predict_little(case.body)


@schemathesis.deserializer("application/x-ndjson")
def last_line(context, response):
    """A stream is described by what each of its lines is: the last one is looked at, which has the most in it. Of exports it is the first."""
    lines = response.content.splitlines()
    return json.loads(lines[0 if response.request.url.endswith("/export") else -1])


@schemathesis.serializer("application/x-ndjson")
def lines_of_an_export(context, value):
    """Random text would never be an export. What is no text is not meant to be one."""
    return EXPORT if isinstance(value, str) and not is_left(value) else str(value).encode()
