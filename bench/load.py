"""Requests to OpenAI-compatible servers, timed: one at a time over a plain socket, many at once with `wrk`, and many streams at once.

The client of single requests does as little as it can, so that what it takes itself stays small beside what is measured; it is the same
for every server, and differences between servers do not contain it.
"""

import json
import pathlib
import re
import selectors
import socket
import subprocess
import tempfile
import time

ROUTE = "/v1/chat/completions"
LIMIT_S = 60
LAST_CHUNK = b"\r\n0\r\n\r\n"
WRK_SCRIPT = """
wrk.method = "POST"
wrk.body = [==[%s]==]
wrk.headers["content-type"] = "application/json"
"""


def request(netloc, body):
    head = f"POST {ROUTE} HTTP/1.1\r\nhost: {netloc}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def ask_body(model, *, stream=False):
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "Count to eight."}], "stream": stream}).encode()


class Connection:
    """One connection that is kept, for one request after the other."""

    def __init__(self, netloc):
        self.netloc = netloc
        host, port = netloc.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=LIMIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self):
        self.socket.close()

    def _take_until(self, is_enough):
        taken = b""
        while not is_enough(taken):
            more = self.socket.recv(65536)
            if not more:
                raise RuntimeError(f"{self.netloc} closed the connection after {taken[-300:]!r}")
            taken += more
        return taken

    def _check(self, answer):
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{self.netloc} answered {answer[:500]!r}")

    def whole_us(self, prepared):
        """Returns the time from sending a request to the last byte of its whole answer."""
        begin = time.perf_counter_ns()
        self.socket.sendall(prepared)
        answer = self._take_until(is_whole)
        taken = time.perf_counter_ns() - begin
        self._check(answer)
        return taken / 1000

    def first_token_us(self, prepared, first):
        """Returns the time from sending a request for a stream to the event with the first text; then takes the rest."""
        begin = time.perf_counter_ns()
        self.socket.sendall(prepared)
        answer = self._take_until(lambda taken: first in taken)
        taken = time.perf_counter_ns() - begin
        self._check(answer)
        if not answer.endswith(LAST_CHUNK):
            self._take_until(lambda rest: rest.endswith(b"0\r\n\r\n"))
        return taken / 1000


def is_whole(answer):
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        return False
    length = re.search(rb"(?im)^content-length: *(\d+)", head)
    return len(body) >= int(length.group(1)) if length else body.endswith(b"0\r\n\r\n")


def whole_us(netloc, model, count):
    """Times whole answers, one after the other over one connection."""
    connection = Connection(netloc)
    prepared = request(netloc, ask_body(model))
    times = [connection.whole_us(prepared) for _ in range(count)]
    connection.close()
    return times


def first_token_us(netloc, model, first, count):
    """Times first tokens of streams, one after the other over one connection."""
    connection = Connection(netloc)
    prepared = request(netloc, ask_body(model, stream=True))
    times = [connection.first_token_us(prepared, b'"content":"%s' % first.encode()) for _ in range(count)]
    connection.close()
    return times


def requests_per_second(netloc, model, connections, seconds):
    """Returns how many whole answers `wrk` gets over so many connections, and how many of its requests failed."""
    with tempfile.TemporaryDirectory(prefix="bombus-bench-") as work:
        script = pathlib.Path(work) / "chat.lua"
        script.write_text(WRK_SCRIPT % ask_body(model).decode())
        command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s", "--timeout", f"{LIMIT_S}s"]
        done = subprocess.run([*command, "--script", script, f"http://{netloc}{ROUTE}"], capture_output=True, text=True, check=True)
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", done.stdout).group(1))
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", done.stdout)
    failed = (int(refused.group(1)) if refused else 0) + (sum(map(int, broken.groups())) if broken else 0)
    return rate, failed


def without_chunks(body):
    """Joins the chunks of a body; proxies cut them elsewhere than between events."""
    joined = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        joined, body = joined + rest[:length], rest[length + 2:]
    return joined


def is_clean(answer, expected):
    """Says whether a streamed answer holds the whole text in order, and its end."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n", 1)[0] or not body.endswith(LAST_CHUNK):
        return False
    events = [line.removeprefix(b"data: ") for line in without_chunks(body).splitlines() if line.startswith(b"data: ")]
    if not events or events[-1] != b"[DONE]":
        return False
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    return text == expected and any(choice.get("finish_reason") == "stop" for choice in choices)


def clean_streams(netloc, model, expected, count):
    """Takes so many streams at once, each over a connection of its own. Returns how many came clean, and the seconds until the last ended.

    What came is looked at only afterwards, so that the client does not hold up whom it measures.
    """
    host, port = netloc.rsplit(":", 1)
    prepared = request(netloc, ask_body(model, stream=True))
    answers = []
    begin = ended = time.perf_counter()
    with selectors.DefaultSelector() as selector:
        for _ in range(count):
            connection = socket.create_connection((host, int(port)), timeout=LIMIT_S)
            connection.sendall(prepared)
            selector.register(connection, selectors.EVENT_READ, bytearray())
        while selector.get_map() and ended - begin < LIMIT_S:
            for key, _ in selector.select(LIMIT_S):
                try:
                    more = key.fileobj.recv(65536)
                except ConnectionError:
                    more = b""
                key.data.extend(more)
                if not more or key.data.endswith(LAST_CHUNK):
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
                    answers.append(bytes(key.data))
            ended = time.perf_counter()
        for key in list(selector.get_map().values()):
            key.fileobj.close()
    return sum(is_clean(answer, expected) for answer in answers), ended - begin
