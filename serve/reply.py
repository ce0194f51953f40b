"""Sending one reply over HTTP, whole or as server-sent events, while watching for a disconnect of the client.

However it ends, the job is cancelled, so that generation stops. Pure ASGI: a middleware or
response class in between would hide the disconnect. Reading the request is `serve.api`'s work.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.api import ChatRequest, ResponseBuilder, as_json, error_body, logprobs_of
from serve.errors import ServeError
from serve.protocols import Codec
from serve.scored import ScoredToken
from serve.text import StopFilter
from serve.worker import ReplyJob, ReplyWorker


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response of one JSON value."""
    return Response(as_json(value), status, headers, media_type="application/json")


async def send_event(send: Send, value: dict[str, Any]) -> None:
    """Send one server-sent event that holds a JSON value."""
    await send({"type": "http.response.body", "body": b"data: " + as_json(value) + b"\n\n", "more_body": True})


class LogprobBuffer:
    """Tokens with log-probabilities that wait for their text to go out.

    A token is listed once the text that it begins has been sent, so a list never runs ahead of the text. The token in
    which a stop string begins is listed whole if any text before the stop string is its; later ones are not.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, ScoredToken]] = deque()
        self._made = 0
        self._sent = 0

    def made(self, token: int, text: str) -> None:
        """Note a token and the text that it completed."""
        if isinstance(token, ScoredToken):
            self._waiting.append((self._made, token))
        self._made += len(text)

    def sent(self, text: str, ended: bool = False) -> list[ScoredToken]:
        """The tokens that are due now that `text` goes out; all, also those without text, if the reply ended."""
        self._sent += len(text)
        due = []
        while self._waiting and (ended or self._waiting[0][0] < self._sent):
            due.append(self._waiting.popleft()[1])
        return due


class ChatReply:
    """The response to one chat request, as an ASGI application of its own."""

    def __init__(
        self, worker: ReplyWorker, job: ReplyJob, codec: Codec, asked: ChatRequest, shapes: ResponseBuilder
    ) -> None:
        self._worker = worker
        self._job = job
        self._asked = asked
        self._shapes = shapes
        self._codec = codec
        self._tokens = 0
        self._finish = "stop"
        self._gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. An error before the first byte becomes an error response, a later one an error event."""
        watcher = asyncio.create_task(self._watch(receive))
        try:
            with suppress(OSError):  # a server may report in this way that the client has gone
                await (self._send_stream if self._asked.stream else self._send_whole)(scope, receive, send)
        finally:
            self._worker.cancel(self._job)
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._worker.cancel(self._job)

    async def _pieces(self) -> AsyncIterator[tuple[str, list[ScoredToken]]]:
        """Yield the reply's text as it comes, up to a stop string, and the tokens that it is listed with.

        Afterwards the finish reason is known.
        """
        decoder, stops, listing = self._codec.stream(), StopFilter(self._asked.stops), LogprobBuffer()
        async for token in self._job.ids():
            self._tokens += 1
            text = decoder.feed(token)
            listing.made(token, text)
            if piece := stops.feed(text):
                yield piece, listing.sent(piece)
            if stops.hit:
                return
        rest = stops.feed(decoder.flush()) + stops.flush()
        tokens = listing.sent(rest, ended=not stops.hit)
        if rest or tokens:
            yield rest, tokens
        if not stops.hit and self._tokens >= self._job.options.max_new_tokens:
            self._finish = "length"

    def _logprobs(self, tokens: list[ScoredToken]) -> dict[str, Any] | None:
        return None if self._asked.options.logprobs is None else logprobs_of(tokens, self._codec.token_bytes)

    async def _send_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        pieces = [piece async for piece in self._pieces()]
        if not self._gone:
            text = "".join(text for text, _ in pieces)
            logprobs = self._logprobs([token for _, tokens in pieces for token in tokens])
            body = self._shapes.whole(text, self._finish, len(self._job.prompt_ids), self._tokens, logprobs)
            await json_response(body)(scope, receive, send)

    async def _send_stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send server-sent events. Headers wait for the first piece, so that an early error has its own status."""
        pieces = self._pieces()
        piece = await anext(pieces, None)
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        headers.append((b"x-accel-buffering", b"no"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send_event(send, self._shapes.chunk({"role": "assistant", "content": ""}))
        try:
            while piece is not None and not self._gone:
                text, tokens = piece
                await send_event(send, self._shapes.chunk({"content": text}, logprobs=self._logprobs(tokens)))
                piece = await anext(pieces, None)
        except ServeError as error:
            await send_event(send, error_body(error))
        else:
            await self._send_end(send)
        await send({"type": "http.response.body", "body": b""})

    async def _send_end(self, send: Send) -> None:
        await send_event(send, self._shapes.chunk({}, self._finish))
        if self._asked.include_usage:
            await send_event(send, self._shapes.usage(len(self._job.prompt_ids), self._tokens))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
