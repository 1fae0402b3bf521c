"""Takes streamed completions from an OpenAI-compatible server and notes when each event came. One thread, no libraries."""

import asyncio
import dataclasses
import json
import time
import urllib.parse


@dataclasses.dataclass
class Stream:
    """One answer: the times of its events in seconds, and its tokens as the server counted them."""

    sent: float
    events: list
    prompt_tokens: int
    completion_tokens: int

    @property
    def first_token_s(self):
        return self.events[0] - self.sent


async def take(base, model, prompt, tokens):
    """Asks for exactly `tokens` tokens after a prompt of token ids."""
    url = urllib.parse.urlsplit(base)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    body = json.dumps({
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {url.netloc}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    sent = time.perf_counter()
    writer.write(head.encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"{base} answered {status.decode().strip()}: {(await reader.read(2000)).decode(errors='replace')}")
    events, usage = [], None
    while line := await reader.readline():
        if not line.startswith(b"data: {"):
            continue
        now = time.perf_counter()
        event = json.loads(line.removeprefix(b"data: "))
        if "error" in event:
            raise RuntimeError(f"{base} broke off: {event}")
        usage = event.get("usage") or usage
        if event["choices"] and event["choices"][0].get("text"):
            events.append(now)
    writer.close()
    if not events or usage is None:
        raise RuntimeError(f"{base} sent no text or no usage")
    return Stream(sent, events, usage["prompt_tokens"], usage["completion_tokens"])


def take_all(base, model, prompts, tokens):
    """Takes one stream for each prompt, all at once."""

    async def main():
        return await asyncio.gather(*(take(base, model, prompt, tokens) for prompt in prompts))

    return asyncio.run(main())


def generation_rate(streams):
    """Returns tokens per second over all streams while every one of them is running: from the last first token to the first last one.

    What each stream generated in that time is taken from its share of the events, since an event may tell more than one token.
    """
    begin = max(stream.events[0] for stream in streams)
    end = min(stream.events[-1] for stream in streams)
    if end <= begin:
        raise RuntimeError("the streams never ran all at the same time")
    tokens = 0.0
    for stream in streams:
        inside = sum(begin < event <= end for event in stream.events)
        tokens += stream.completion_tokens * inside / len(stream.events)
    return tokens / (end - begin)


def whole_s(streams):
    """Returns the time from the first request to the last token, in seconds."""
    return max(stream.events[-1] for stream in streams) - min(stream.sent for stream in streams)
