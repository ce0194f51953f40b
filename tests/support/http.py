"""The HTTP application in this process, a client for it, and generators whose steps a test allows one by one."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx
from starlette.applications import Starlette

from serve.app import Settings, create_app
from serve.dialogue import Dialogue
from serve.options import SamplingOptions
from serve.protocols import Codec
from serve.worker import ReplyWorker
from support.runners import runner_of
from support.tiny_codecs import byte_level

TALK = {"messages": [{"role": "user", "content": "hello 你好 😀"}]}
CODEC = byte_level()


class Scripted:
    """A generator that says given ids; with `gate` closed it waits before each; it counts its steps."""

    context = 64
    dialogue = Dialogue("dialogpt", (), 4, 4, None, (4,), ())

    def __init__(self, text: str = "I'm fine, 我觉得很好 😅👩‍👧!", fault: Exception | None = None) -> None:
        self.reply = CODEC.encode(text)
        self.fault = fault
        self.gate = threading.Event()
        self.gate.set()
        self.steps = 0
        self.prompts: list[list[int]] = []
        self.options: list[SamplingOptions] = []

    def stream(self, prompt_ids: list[int], options: Any) -> Iterator[int]:
        self.prompts.append(prompt_ids)
        self.options.append(options)
        for token in self.reply[: options.max_new_tokens]:
            assert self.gate.wait(30), "the test forgot the gate"
            self.steps += 1
            yield token
        if self.fault is not None:
            raise self.fault


class Endless(Scripted):
    """A generator that speaks until it is cancelled or its limit is reached, a step per 1/1000 s."""

    context = 100_000

    def stream(self, prompt_ids: list[int], options: Any) -> Iterator[int]:
        self.prompts.append(prompt_ids)
        for _ in range(options.max_new_tokens):
            assert self.gate.wait(30)
            threading.Event().wait(0.001)
            self.steps += 1
            yield self.reply[0]


def app_of(generator: Any, codec: Codec = CODEC, settings: Settings | None = None) -> Starlette:
    """The application over an engine, or over a generator that has only `stream`."""
    return create_app(runner_of(generator), codec, settings)


@contextlib.asynccontextmanager
async def running(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """The application with its lifespan, and a client."""
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        yield client


async def until(condition: Callable[[], bool]) -> None:
    """Poll a state; fail after 30 s."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def ask(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    """One chat request."""
    return await client.post("/v1/chat/completions", json={**TALK, **fields}, timeout=60)


def events(text: str) -> list[Any]:
    """The JSON values of a stream of server-sent events, which must end in [DONE]."""
    lines = text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def joined(stream: list[Any]) -> str:
    """The text of a stream."""
    return "".join(choice["delta"].get("content", "") for event in stream for choice in event["choices"])


def worker_of(app: Starlette) -> ReplyWorker:
    """The worker of an application."""
    return app.state.worker


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run an asynchronous test."""
    asyncio.run(scenario())  # type: ignore[arg-type]
