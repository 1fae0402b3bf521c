"""The asynchronous client of the package `openai`: many answers at once, and clients that go away."""

import asyncio
import time

import openai
import pytest

from metrics import in_flight

# An answer that nobody stops takes longer.
CANCEL_LIMIT_S = 30


def run(node, work):
    """Runs `work(client)` in an event loop of its own."""

    async def main():
        async with openai.AsyncOpenAI(base_url=f"{node.api}/v1", api_key="unused", max_retries=0, timeout=120) as client:
            return await work(client)

    return asyncio.run(main())


def wait_until_idle(node):
    deadline = time.monotonic() + CANCEL_LIMIT_S
    while in_flight(node) > 0:
        assert time.monotonic() < deadline, "the answer goes on though nobody reads it"
        time.sleep(0.05)


async def text_of(stream):
    return "".join([choice.delta.content or "" async for chunk in stream for choice in chunk.choices])


def test_many_streams_at_once_all_end(node, model):
    async def work(client):
        async def one(number):
            stream = await client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": f"Count to {number + 3}."}], max_tokens=16, temperature=0, stream=True
            )
            return await text_of(stream)

        return await asyncio.gather(*(one(number) for number in range(16)))

    assert all(run(node, work))


def test_an_answer_does_not_wait_for_a_longer_one(node, model):
    """Continuous batching: a short answer that comes later ends first."""

    async def work(client):
        ended = []

        async def one(name, tokens):
            stream = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": f"Tell me about bees ({name})."}],
                max_tokens=tokens,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            first = await anext(aiter(stream))
            assert first.id
            began.set()
            await text_of(stream)
            ended.append(name)

        began = asyncio.Event()
        long = asyncio.create_task(one("long", 2000))
        await began.wait()
        await one("short", 4)
        assert not long.done()
        long.cancel()
        await asyncio.wait([long])
        return ended

    assert run(node, work) == ["short"]
    wait_until_idle(node)


@pytest.mark.parametrize("fixture,name", [("node", "smollm2:135m"), ("slow_node", "slow")])
def test_a_client_that_goes_away_stops_the_model(request, fixture, name):
    node = request.getfixturevalue(fixture)

    async def work(client):
        stream = await client.chat.completions.create(
            model=name,
            messages=[{"role": "user", "content": "bee " * 800}],
            max_tokens=6000,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        await anext(aiter(stream))
        assert in_flight(node) == 1
        await stream.close()

    run(node, work)
    wait_until_idle(node)


def test_cancelling_one_stream_leaves_the_others_alone(node, model):
    async def work(client):
        async def one(tokens):
            return await client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "Tell me about hives."}], max_tokens=tokens, stream=True, temperature=0
            )

        leaving, staying = await asyncio.gather(one(400), one(24))
        await anext(aiter(leaving))
        await leaving.close()
        return await text_of(staying)

    assert run(node, work)


def test_a_timeout_of_the_client_is_its_own(slow_node):
    async def work(client):
        with pytest.raises(openai.APITimeoutError):
            await client.with_options(timeout=0.2).chat.completions.create(
                model="slow", messages=[{"role": "user", "content": "bee " * 200}]
            )

    run(slow_node, work)
