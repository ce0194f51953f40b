"""The HTTP server: OpenAI's shapes, streams equal to whole replies, limits, a full queue, clients that leave.

Most tests drive the application in this process with a generator whose steps the test allows one by one; the last ones
use real sockets, and the real engine over a tiny bundle.
"""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from support.bundles import exported, random_gpt2
from support.http import CODEC, TALK, Endless, Scripted, app_of, ask, events, joined, run, running, until, worker_of
from support.tiny_codecs import word_piece

from serve.app import Settings
from serve.bundle import Bundle
from serve.engine import Engine
from serve.errors import Overloaded, ServeError
from serve.options import SamplingOptions
from serve.scheduler import Scheduler
from serve.worker import ReplyJob, ReplyWorker


def test_a_reply_has_the_shape_that_openai_clients_read() -> None:
    """Stops drift from the interface that clients are written for."""

    async def scenario() -> None:
        generator = Scripted()
        async with running(app_of(generator, CODEC, Settings(model="tiny"))) as client:
            body = (await ask(client)).json()
            assert body["object"] == "chat.completion"
            assert body["id"].startswith("chatcmpl-")
            assert body["model"] == "tiny"
            assert isinstance(body["created"], int)
            (choice,) = body["choices"]
            assert choice["message"] == {"role": "assistant", "content": "I'm fine, 我觉得很好 😅👩‍👧!"}
            assert (choice["index"], choice["finish_reason"]) == (0, "stop")
            prompt, new = len(generator.prompts[0]), len(generator.reply)
            assert body["usage"] == {
                "prompt_tokens": prompt,
                "completion_tokens": new,
                "total_tokens": prompt + new,
            }
            assert generator.prompts[0] == [*CODEC.encode(TALK["messages"][0]["content"]), 4]
            listed = (await client.get("/v1/models")).json()
            assert [model["id"] for model in listed["data"]] == ["tiny"]
            assert (await client.get("/v1/models/tiny")).json()["id"] == "tiny"

    run(scenario)


@pytest.mark.parametrize("stop", [[], ["觉得"], ["fine", "I'm fi"], [" 我觉得很好 😅👩‍👧!x"], ["!"]])
@pytest.mark.parametrize("max_tokens", [1, 7, 11, 12, 13, 60])
def test_a_stream_joins_to_the_whole_reply(stop: list[str], max_tokens: int) -> None:
    """Stops split characters, a leaked beginning of a stop string, and a finish reason that depends on the way."""

    async def scenario() -> None:
        async with running(app_of(Scripted())) as client:
            whole = (await ask(client, stop=stop, max_tokens=max_tokens)).json()
            response = await ask(
                client, stop=stop, max_tokens=max_tokens, stream=True, stream_options={"include_usage": True}
            )
            assert response.headers["content-type"].startswith("text/event-stream")
            *chunks, usage = events(response.text)
            choice = whole["choices"][0]
            assert joined(chunks) == choice["message"]["content"]
            assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
            assert chunks[-1]["choices"][0] == {
                "index": 0,
                "delta": {},
                "finish_reason": choice["finish_reason"],
                "logprobs": None,
            }
            assert usage["usage"] == whole["usage"]
            assert len({chunk["id"] for chunk in chunks}) == 1
            complete = CODEC.decode(Scripted().reply[:max_tokens])
            cut = min((complete.find(text) for text in stop if text in complete), default=None)
            assert choice["message"]["content"] == complete[:cut]
            expected = "length" if cut is None and max_tokens <= len(Scripted().reply) else "stop"
            assert choice["finish_reason"] == expected

    run(scenario)


MALFORMED: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("not JSON", b"{"),
    ("not an object", b"[]"),
    ("not UTF-8", b'{"messages": "\xff"}'),
    ("a BOM", b'\xef\xbb\xbf{"messages": []}'),
    ("deep", b"[" * 100_000),
    ("NaN", b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}'),
    ("Infinity", b'{"messages": [{"role": "user", "content": "a"}], "temperature": 1e999}'),
    ("5000 digits", b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": ' + b"9" * 5000 + b"}"),
    ("half a surrogate pair", b'{"messages": [{"role": "user", "content": "\\ud800"}]}'),
    ("surrogate in a name", b'{"messages": [{"role": "user", "content": "a"}], "\\ud800": 1}'),
    *[
        (f"{name}={str(value)[:30]}", json.dumps({**TALK, name: value}).encode())
        for name, value in [
            ("messages", []),
            ("messages", "hello"),
            ("messages", [5]),
            ("messages", [{"role": "user"}]),
            ("messages", [{"role": "tool", "content": "a"}]),
            ("messages", [{"role": ["user"], "content": "a"}]),
            ("messages", [{"role": "user", "content": [{"type": "image_url"}]}]),
            ("messages", [{"role": "user", "content": [5]}]),
            ("messages", [{"role": "user", "content": ""}]),
            ("messages", [{"role": "user", "content": "a"}] * 257),
            ("max_tokens", 0),
            ("max_tokens", -1),
            ("max_tokens", 10**18),
            ("max_tokens", 1.5),
            ("max_tokens", "5"),
            ("max_tokens", True),
            ("temperature", -1),
            ("temperature", 10**400),
            ("top_p", -1),
            ("top_k", -1),
            ("repetition_penalty", 0),
            ("seed", -1),
            ("seed", 2**70),
            ("n", 2),
            ("n", 10**6),
            ("logprobs", 5),
            ("logit_bias", {"5": 100}),
            ("stop", ""),
            ("stop", ["a"] * 5),
            ("stop", ["a" * 65]),
            ("stop", [5]),
            ("stream", "yes"),
            ("stream_options", []),
            ("truncate", 1),
            ("model", 5),
            ("unheard_of", 1),
            ("max_completion_tokens", -5),
        ]
    ],
]


def test_malformed_bodies_are_refused_in_one_line_and_a_good_request_works_after_them() -> None:
    """Stops an odd request from becoming a 500, and from ending the engine for everyone (vLLM issue 27194)."""

    async def scenario() -> None:
        app = app_of(Scripted())
        async with running(app) as client:
            for what, body in MALFORMED:
                response = await client.post("/v1/chat/completions", content=body)
                assert response.status_code == 400, what
                error = response.json()["error"]
                assert set(error) == {"message", "type", "param", "code"}, what
                assert error["type"] == "invalid_request_error", what
                assert len(error["message"]) < 200, what
                assert "\n" not in error["message"], what
            assert not worker_of(app).running
            assert (await ask(client)).status_code == 200

    run(scenario)


def test_a_system_message_is_refused_with_the_reason() -> None:
    """Stops a silent loss: the model family has no such turn."""

    async def scenario() -> None:
        async with running(app_of(Scripted())) as client:
            response = await ask(client, messages=[{"role": "system", "content": "be nice"}, *TALK["messages"]])
            assert response.status_code == 400
            assert "messages[0].role: 'system'" in response.json()["error"]["message"]

    run(scenario)


def test_other_paths_methods_and_bodies_get_json_errors() -> None:
    """Stops plain-text errors that clients cannot read, and bodies without an end."""

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b" " * 1024

    async def scenario() -> None:
        async with running(app_of(Scripted())) as client:
            answers = [
                (404, await client.get("/nothing")),
                (404, await client.get("/v1/models/other")),
                (404, await client.get("/livez/")),
                (405, await client.get("/v1/chat/completions")),
                (405, await client.post("/livez")),
                (413, await client.post("/v1/chat/completions", content=b" " * (256 * 1024 + 1))),
                (413, await client.post("/v1/chat/completions", content=endless())),
                (415, await client.post("/v1/chat/completions", content=b"x", headers={"Content-Encoding": "gzip"})),
            ]
            for status, response in answers:
                assert response.status_code == status
                assert response.json()["error"]["type"] == "invalid_request_error"
            padded = json.dumps(TALK).encode().ljust(256 * 1024)
            assert (await client.post("/v1/chat/completions", content=padded)).status_code == 200

    run(scenario)


def test_a_conversation_that_is_too_long_is_refused_or_loses_old_turns_if_the_client_says_so() -> None:
    """Stops silent truncation (ollama issue 3839)."""

    async def scenario() -> None:
        generator = Scripted()
        turn = "0123456789"
        size = len(CODEC.encode(turn)) + 1
        count = generator.context // size + 1
        messages = [{"role": ("user", "assistant")[place % 2], "content": turn} for place in range(count)]
        async with running(app_of(generator)) as client:
            response = await ask(client, messages=messages)
            assert response.status_code == 400
            error = response.json()["error"]
            assert error["code"] == "context_length_exceeded"
            assert f"{count * size} tokens" in error["message"]
            assert "takes 63" in error["message"]
            assert not generator.prompts
            response = await ask(client, messages=messages, truncate=True, max_tokens=20)
            assert response.status_code == 200
            kept = len(generator.prompts[0]) // size
            assert response.json()["truncated_turns"] == count - kept > 0
            assert generator.prompts[0] == generator.dialogue.encode([CODEC.encode(turn)] * kept)
            response = await ask(client, messages=[{"role": "user", "content": "x y" * 100}], truncate=True)
            assert response.json()["error"]["code"] == "context_length_exceeded"
            for limit in (1, 63, 64, 10**9, 2**31 - 1):
                assert (await ask(client, max_tokens=limit)).status_code == 200
                assert len(generator.prompts[-1]) + generator.options[-1].max_new_tokens <= generator.context

    run(scenario)


def test_sampling_fields_reach_the_generator_and_null_means_default() -> None:
    """Stops an option that is accepted and ignored."""

    async def scenario() -> None:
        generator = Scripted()
        defaults = SamplingOptions(temperature=0.5, max_new_tokens=9)
        async with running(app_of(generator, CODEC, Settings(options=defaults))) as client:
            await ask(client, temperature=None, n=1, presence_penalty=0, user="me", model="anything")
            await ask(
                client, temperature=0, top_p=0.5, top_k=3, repetition_penalty=1.5, seed=7, max_completion_tokens=5
            )
        assert generator.options[0] == defaults
        assert generator.options[1] == SamplingOptions(0, 3, 0.5, 1.5, 5, 1, 7)

    run(scenario)


def test_a_special_token_in_a_message_stays_text() -> None:
    """Stops a user from forging turns (llama.cpp issue 24382)."""

    async def scenario() -> None:
        generator = Scripted()
        async with running(app_of(generator)) as client:
            await ask(client, messages=[{"role": "user", "content": "a<|endoftext|>b"}])
        assert generator.prompts[0].count(generator.dialogue.end_of_turn_id) == 1

    run(scenario)


def test_a_full_queue_answers_429_at_once_and_the_others_are_served() -> None:
    """Stops an unbounded queue (vLLM issue 2901)."""

    async def scenario() -> None:
        generator = Scripted()
        app = app_of(generator, CODEC, Settings(queue=2))
        worker = worker_of(app)
        async with running(app) as client:
            generator.gate.clear()
            first = asyncio.create_task(ask(client))
            await until(lambda: worker.running)
            others = [asyncio.create_task(ask(client, stream=place == 0)) for place in range(2)]
            await until(lambda: len(worker.waiting) == 2)
            refused = [await asyncio.wait_for(ask(client, stream=place == 0), 20) for place in range(2)]
            for response in refused:
                assert response.status_code == 429
                assert int(response.headers["retry-after"]) >= 1
                assert response.json()["error"]["code"] == "queue_full"
            assert (await client.get("/readyz")).status_code == 200
            generator.gate.set()
            assert [response.status_code for response in await asyncio.gather(first, *others)] == [200] * 3
            assert len(generator.prompts) == 3
            assert (await ask(client)).status_code == 200

    run(scenario)


async def raw(app: Starlette, body: dict[str, Any], leave: asyncio.Event) -> list[dict[str, Any]]:
    """Speak ASGI to the application as a client that leaves when the event is set; give what it sent."""
    sent: list[dict[str, Any]] = []
    bodies = [json.dumps(body).encode()]

    async def receive() -> dict[str, Any]:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "server": ("t", 80),
        "client": ("t", 1),
    }
    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_the_engine_within_one_step(stream: bool) -> None:
    """Stops a model that goes on talking to nobody (llama.cpp issue 24496)."""

    async def scenario() -> None:
        generator = Endless()
        app = app_of(generator)
        worker = worker_of(app)
        async with running(app) as client:
            leave = asyncio.Event()
            talk = asyncio.create_task(raw(app, {**TALK, "stream": stream, "max_tokens": 50_000}, leave))
            await until(lambda: generator.steps >= 3)
            generator.gate.clear()
            leave.set()
            sent = await talk
            before = generator.steps
            generator.gate.set()
            await until(lambda: not worker.running)
            assert generator.steps - before <= 2  # the one that was under way, and one more
            assert bool(sent) == stream
            assert (await ask(client, max_tokens=2)).status_code == 200

    run(scenario)


def test_a_queued_client_that_leaves_frees_its_place_and_disturbs_nobody() -> None:
    """Stops a cancel from hitting the request that runs (ik_llama.cpp issue 1929)."""

    async def scenario() -> None:
        generator = Scripted()
        app = app_of(generator, CODEC, Settings(queue=1))
        worker = worker_of(app)
        async with running(app) as client:
            generator.gate.clear()
            first = asyncio.create_task(ask(client))
            await until(lambda: worker.running)
            leave = asyncio.Event()
            queued = asyncio.create_task(raw(app, {**TALK, "max_tokens": 60}, leave))
            await until(lambda: len(worker.waiting) == 1)
            leave.set()
            assert await queued == []
            assert len(worker.waiting) == 0
            generator.gate.set()
            assert (await first).json()["choices"][0]["finish_reason"] == "stop"
            assert len(generator.prompts) == 1

    run(scenario)


@pytest.mark.parametrize("fault", [ValueError("secret hello"), ServeError("no numbers")])
def test_a_fault_of_the_engine_is_that_requests_error_alone(fault: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """Stops one bad reply from ending the engine thread, and a prompt from reaching the log."""

    async def scenario() -> None:
        generator = Scripted("", fault)
        async with running(app_of(generator)) as client:
            for stream in (False, True):
                response = await ask(client, stream=stream)
                assert response.status_code == 500
                assert response.json()["error"]["type"] == "server_error"
                assert "secret" not in response.text
            generator.reply = CODEC.encode("half")
            response = await ask(client, stream=True)
            assert response.status_code == 200
            *_, last, end = response.text.split("\n\n")
            assert "error" in json.loads(last.removeprefix("data: "))
            assert end == ""
            generator.fault = None
            assert (await ask(client)).status_code == 200
            assert (await client.get("/livez")).status_code == 200

    run(scenario)
    assert "secret" not in caplog.text
    assert "hello" not in caplog.text
    logged = [record.getMessage().splitlines()[0] for record in caplog.records if record.name == "serve"]
    assert logged == ([] if isinstance(fault, ServeError) else ["a reply failed with ValueError at"] * 3)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_engine_is_visible_and_nobody_waits_for_it() -> None:
    """Stops a server that looks well while its engine is gone (mlx-lm issue 1834)."""

    async def scenario() -> None:
        generator = Scripted("")
        app = app_of(generator)
        async with running(app) as client:
            assert [(await client.get(path)).status_code for path in ("/livez", "/readyz")] == [200, 200]
            generator.fault = BaseException("gone")  # type: ignore[assignment]
            assert (await ask(client)).status_code == 503
            await until(lambda: not worker_of(app).alive)
            assert [(await client.get(path)).status_code for path in ("/livez", "/readyz")] == [503, 503]
            assert (await ask(client)).status_code == 503

    run(scenario)


def test_stopping_ends_running_and_waiting_requests_with_503() -> None:
    """Stops clients that hang when the server goes down."""

    async def scenario() -> None:
        generator = Endless()
        app = app_of(generator)
        worker = worker_of(app)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            assert (await client.get("/readyz")).status_code == 503, "ready before the engine runs"
            async with app.router.lifespan_context(app):
                talks = [asyncio.create_task(ask(client, max_tokens=50_000)) for _ in range(3)]
                await until(lambda: worker.running and len(worker.waiting) == 2)
            assert [response.status_code for response in await asyncio.gather(*talks)] == [503] * 3
            assert not worker.alive

    run(scenario)


def test_wordpiece_chinese_is_streamed_as_it_reads() -> None:
    """Stops spaces between Chinese characters from reaching the client."""

    async def scenario() -> None:
        codec = word_piece()
        generator = Scripted()
        generator.reply = codec.encode("你好，今天天气怎么样？")
        async with running(app_of(generator, codec)) as client:
            assert joined(events((await ask(client, stream=True)).text)) == "你好，今天天气怎么样？"

    run(scenario)


@contextlib.contextmanager
def listening(app: Starlette) -> Iterator[str]:
    """The application under uvicorn on a free loopback port, in a thread; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            app, http="h11", ws="none", loop="asyncio", log_level="warning", timeout_graceful_shutdown=5
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@pytest.mark.parametrize("stream", [False, True])
def test_over_a_socket_a_closed_connection_frees_the_engine(stream: bool) -> None:
    """Stops a disconnect that only the test's own ASGI client can signal."""
    generator = Endless()
    app = app_of(generator)
    worker = worker_of(app)

    async def scenario() -> None:
        async with httpx.AsyncClient(base_url=address, trust_env=False) as client:
            talk = asyncio.create_task(ask(client, stream=stream, max_tokens=90_000))
            await until(lambda: generator.steps >= 3)
            assert worker.running
            talk.cancel()
            await until(lambda: not worker.running)
            assert generator.steps < 90_000
            response = await ask(client, max_tokens=3, stream=True)
            assert joined(events(response.text)) == CODEC.decode([generator.reply[0]] * 3)

    with listening(app) as address:
        run(scenario)


class Stepped(Scripted):
    """A generator that takes a step only when the test allows one."""

    def __init__(self) -> None:
        super().__init__("how are you? 今天")
        self.allowed = threading.Semaphore(1)

    def stream(self, prompt_ids: list[int], options: Any) -> Iterator[int]:
        for token in self.reply:
            assert self.allowed.acquire(timeout=30), "the client did not get what was already made"
            yield token


def test_over_a_socket_every_piece_comes_before_the_next_is_made() -> None:
    """Stops a buffer between the engine and the client, and text that is held back without need."""
    generator = Stepped()
    app = app_of(generator)

    async def scenario() -> None:
        given, text = 1, ""
        async with (
            httpx.AsyncClient(base_url=address, trust_env=False, timeout=60) as client,
            client.stream("POST", "/v1/chat/completions", json={**TALK, "stream": True}) as response,
        ):
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                piece = json.loads(line[6:])["choices"][0]["delta"].get("content", "")
                text += piece
                if piece:
                    generator.allowed.release()
                    given += 1
                while CODEC.decode(generator.reply[:given]).endswith("\ufffd"):  # a part of a character gives nothing
                    generator.allowed.release()
                    given += 1
        assert text == "how are you? 今天"
        assert given >= len(generator.reply)

    with listening(app) as address:
        run(scenario)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A random model of context 256."""
    return exported(random_gpt2(n_positions=256), tmp_path_factory.mktemp("bundle"))


def job(seed: int, new: int = 40) -> ReplyJob:
    """A prompt of its own, sampled, of exactly `new` tokens."""
    return ReplyJob(
        [1, *range(3 + seed, 20 + seed)], SamplingOptions(seed=seed, max_new_tokens=new, min_new_tokens=new)
    )


async def ids_of(wanted: ReplyJob) -> list[int]:
    """Read a job to its end."""
    return [token async for token in wanted.ids()]


@contextlib.asynccontextmanager
async def working(engine: Engine, queue: int) -> AsyncIterator[ReplyWorker]:
    """A worker over an engine, started and stopped."""
    worker = ReplyWorker(Scheduler(engine), queue)
    worker.start()
    try:
        yield worker
    finally:
        await asyncio.to_thread(worker.stop)
        assert not worker.alive


def test_every_slot_serves_a_job_and_the_others_wait(bundle: Bundle) -> None:
    """Stops replies that mix, and a queue that starts before the slots are full."""

    async def scenario() -> None:
        async with working(Engine(bundle, 1, slots=3), queue=20) as worker:
            alone = []
            for seed in range(12):
                worker.submit(one := job(seed))
                alone.append(await ids_of(one))
            jobs = [job(seed) for seed in range(12)]
            for one in jobs:
                worker.submit(one)
            await until(lambda: len(worker.running) == 3)
            assert await asyncio.gather(*map(ids_of, jobs)) == alone
            await until(lambda: not worker.running)

    run(scenario)


def test_more_than_slots_and_queue_are_turned_away(bundle: Bundle) -> None:
    """Stops a bound that counts one slot when there are several."""

    async def scenario() -> None:
        async with working(Engine(bundle, 1, slots=2), queue=3) as worker:
            jobs = [job(seed, 230) for seed in range(5)]
            for one in jobs:
                worker.submit(one)
            with pytest.raises(Overloaded, match="3 requests"):
                worker.submit(job(9))
            for one in jobs:
                worker.cancel(one)
            assert len(worker.waiting) == 0
            await until(lambda: not worker.running)
            worker.submit(one := job(9, 4))
            assert len(await ids_of(one)) == 4

    run(scenario)


def test_a_cancelled_job_frees_its_slot_within_one_step(bundle: Bundle) -> None:
    """Stops a slot that is held by nobody while others wait (llama.cpp issue 24496)."""
    engine = Engine(bundle, 1, slots=2)
    allowed, decode, entered = threading.Semaphore(0), engine.decode, []

    def gated(slots: Any, tokens: Any) -> Any:
        entered.append(len(slots))
        assert allowed.acquire(timeout=30), "the test forgot the gate"
        return decode(slots, tokens)

    engine.decode = gated  # type: ignore[method-assign]

    async def scenario() -> None:
        async with working(engine, queue=3) as worker:
            jobs = [job(seed, 200) for seed in range(3)]
            for one in jobs:
                worker.submit(one)
            await until(lambda: bool(entered))
            while entered[-1] < 2:
                before = len(entered)
                allowed.release()
                await until(lambda before=before: len(entered) > before)
            assert (len(worker.running), len(worker.waiting)) == (2, 1)
            before = len(entered)
            worker.cancel(jobs[0])
            allowed.release()  # the step that was under way
            await until(lambda: len(entered) > before)
            assert (len(worker.running), len(worker.waiting)) == (2, 0)
            assert jobs[2] in worker.running
            worker.cancel(jobs[1])
            allowed.release(1000)
            assert len(await ids_of(jobs[2])) == 200

    run(scenario)


def test_a_request_that_cannot_run_is_its_own_error(bundle: Bundle) -> None:
    """Stops a bad prompt from ending the engine thread or holding a slot."""

    async def scenario() -> None:
        async with working(Engine(bundle, 1, slots=2), queue=3) as worker:
            for ids in ([], [101], [5] * 256):
                worker.submit(bad := ReplyJob(ids, SamplingOptions()))
                with pytest.raises(ServeError):
                    await ids_of(bad)
            assert not worker.running
            worker.submit(one := job(1, 4))
            assert len(await ids_of(one)) == 4

    run(scenario)


def test_a_loaded_engine_leaves_the_processor_alone(bundle: Bundle) -> None:
    """Stops threads that spin on between requests: heat and a flat battery on an edge box."""

    async def scenario() -> None:
        async with working(Engine(bundle, 2, slots=4), queue=3) as worker:
            worker.submit(one := job(1))
            await ids_of(one)
            await asyncio.sleep(0.3)  # onnxruntime's threads spin for some 50 ms after a run
            before, started = time.process_time(), time.monotonic()
            await asyncio.sleep(2)
            assert time.process_time() - before <= 0.01 * (time.monotonic() - started)

    run(scenario)
