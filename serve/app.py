"""The HTTP application: OpenAI's chat completions over one model, for a loopback address.

    POST /v1/chat/completions   plain or streamed (server-sent events)
    GET  /v1/models             the one model
    GET  /livez, /readyz        the engine thread is there; new requests are taken

A full queue answers 429 at once; a client that goes away frees the engine within one step; nothing is cut silently; no
text of a conversation is logged. There is no authentication yet: keep it on the loopback address.
"""

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from serve.api import ChatRequest, ResponseBuilder, error_body, error_shape, parse_chat
from serve.errors import BadRequest, BodyTooLarge, Overloaded, ServeError, UnknownModel, UnsupportedEncoding
from serve.history import FittedPrompt, check_length, fit, ids_of_bot
from serve.options import SamplingOptions
from serve.protocols import Codec
from serve.reply import ChatReply, json_response
from serve.scheduler import Runner
from serve.worker import ReplyJob, ReplyWorker


@dataclass(frozen=True)
class Settings:
    """Settings of the server: the model's name, default sampling options, and limits."""

    model: str = "chitchat"
    options: SamplingOptions = field(default_factory=SamplingOptions)
    queue: int = 16  # requests that wait beside those that run
    body_bytes: int = 256 * 1024
    messages: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.queue <= 100_000:
            raise BadRequest(f"--queue {self.queue}: give a whole number from 0 to 100000")


def create_app(runner: Runner, codec: Codec, settings: Settings | None = None) -> Starlette:
    """Build the ASGI application over a loaded model; its lifespan starts and stops the thread that runs it.

    `app.state.worker` is the ReplyWorker, for tests and for what watches over the process.
    """
    settings = settings or Settings()
    worker = ReplyWorker(runner, settings.queue)
    started = int(time.time())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        worker.start()
        try:
            yield
        finally:
            await run_in_threadpool(worker.stop)

    async def live(request: Request) -> Response:
        return _status(worker.alive)

    async def ready(request: Request) -> Response:
        return _status(worker.ready)

    async def models(request: Request) -> Response:
        entry = {"id": settings.model, "object": "model", "created": started, "owned_by": "local"}
        name = request.path_params.get("name")
        if name is None:
            return json_response({"object": "list", "data": [entry]})
        if name != settings.model:
            raise UnknownModel(f"this server has one model, {settings.model!r}")
        return json_response(entry)

    async def chat(request: Request) -> ChatReply:
        body = await _read_body(request, settings.body_bytes)
        asked = await run_in_threadpool(parse_chat, body, settings.options, settings.messages)
        prompt = await run_in_threadpool(_prompt, runner, codec, asked)
        job = ReplyJob(prompt.ids, asked.options.for_reply(prompt.max_new_tokens, prompt.bot_ids))
        worker.submit(job)
        shapes = ResponseBuilder(f"chatcmpl-{uuid.uuid4().hex}", settings.model, prompt.dropped)
        return ChatReply(worker, job, codec, asked, shapes)

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name}", models),
            Route("/livez", live),
            Route("/readyz", ready),
        ],
        exception_handlers={
            ServeError: _serve_error,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
            Exception: _internal_error,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.worker = worker
    return app


def _prompt(runner: Runner, codec: Codec, asked: ChatRequest) -> FittedPrompt:
    """The ids to continue. Old turns are dropped only if the request allows it, else a long prompt is refused."""
    turns = [codec.encode(text) for text in asked.texts]
    if not turns[-1]:
        raise BadRequest("messages: the last one has no text; there is nothing to answer")
    limit = asked.options.max_new_tokens
    if asked.truncate:
        return fit(runner.dialogue, turns, runner.context, limit, asked.from_bot)
    ids = runner.dialogue.encode(turns)
    remedy = 'shorten it, or send "truncate": true to drop its oldest turns'
    check_length(len(ids), runner.context, "the conversation", remedy)
    return FittedPrompt(ids, min(limit, runner.context - len(ids)), 0, ids_of_bot(turns, asked.from_bot))


async def _read_body(request: Request, limit: int) -> bytes:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedEncoding("Content-Encoding: a compressed body is not taken; send plain JSON")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:19]) > limit:
        raise BodyTooLarge(f"the body is above {limit} bytes; send less")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise BodyTooLarge(f"the body is above {limit} bytes; send less")
    return bytes(body)


def _status(good: bool) -> Response:
    return json_response({"status": "ok" if good else "unavailable"}, 200 if good else 503)


async def _serve_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServeError)
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, Overloaded) else None
    return json_response(error_body(error), error.status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    body = error_shape(str(error.detail), "invalid_request_error", code)
    return json_response(body, error.status_code, dict(error.headers or {}))


async def _internal_error(request: Request, error: Exception) -> Response:
    return json_response(error_shape("the server failed on this request", "server_error", "server_error"), 500)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it
