"""The HTTP interface's data: reading a chat request, and the shapes of answers (OpenAI's chat completions).

Everything that comes from the network is checked here, by small functions that raise BadRequest with one line: which
field, what is wrong, what to do. Nothing here does input or output.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from serve.errors import BadRequest, ServeError
from serve.options import SamplingOptions, check_option
from serve.scored import ScoredToken

MAX_STOPS = 4
MAX_STOP_CHARS = 64

# request field -> sampling option
_SAMPLING = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram",
    "min_tokens": "min_new_tokens",
    "top_logprobs": "logprobs",
    "seed": "seed",
}
_MIN_LOGPROB = -9999.0  # stands for "as good as impossible" in OpenAI's interface; JSON has no infinity
# Fields of OpenAI's interface that this server does not act on, and the values at which they ask for nothing.
_INERT: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "response_format": ({"type": "text"},),
}
_OTHERS = {"messages", "model", "stop", "stream", "stream_options", "logprobs", "truncate", "user"}
_READ = {*_SAMPLING, *_INERT, *_OTHERS}


@dataclass(frozen=True)
class ChatRequest:
    """A checked request. `texts` are the turns, oldest first, `from_bot` their roles, which need not alternate."""

    texts: tuple[str, ...]
    from_bot: tuple[bool, ...]
    options: SamplingOptions
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    truncate: bool


def parse_chat(body: bytes, defaults: SamplingOptions, max_messages: int) -> ChatRequest:
    """Read the body of a chat request. Raises BadRequest; what the request leaves out is taken from `defaults`."""
    fields = {name: value for name, value in _json_object(body).items() if value is not None}  # null: left out
    for name in sorted(set(fields) - _READ):
        raise BadRequest(f"{name[:64]!r}: this server does not know the field; leave it out")
    for name, allowed in _INERT.items():
        if name in fields and fields[name] not in allowed:
            raise BadRequest(f"{name}: only {allowed[0]!r} is supported; leave it out")
    for name in ("model", "user"):
        _typed(fields, name, str, "a string")
    stream_options = _typed(fields, "stream_options", dict, "an object") or {}
    turns = _turns(fields.get("messages"), max_messages)
    return ChatRequest(
        texts=tuple(text for _, text in turns),
        from_bot=tuple(role == "assistant" for role, _ in turns),
        options=_options(fields, defaults),
        stops=_stops(fields.get("stop", [])),
        stream=_typed(fields, "stream", bool, "true or false") or False,
        include_usage=_typed(stream_options, "include_usage", bool, "true or false") or False,
        truncate=_typed(fields, "truncate", bool, "true or false") or False,
    )


def _json_object(body: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(body.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number of 10,000 digits, 10,000 levels
        raise BadRequest("the body is not JSON in UTF-8; send one JSON object") from error
    if not isinstance(value, dict):
        raise BadRequest('the body is not a JSON object; send {"messages": [...]}')
    return value


def _typed(fields: Mapping[str, Any], name: str, kind: type, shown: str) -> Any:
    value = fields.get(name)
    if value is not None and not isinstance(value, kind):
        raise BadRequest(f"{name}: not {shown}")
    return value


def _turns(messages: Any, max_messages: int) -> list[tuple[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise BadRequest('messages: not a list with a message in it; send [{"role": "user", "content": "..."}]')
    if len(messages) > max_messages:
        raise BadRequest(f"messages: {len(messages)} of them, at most {max_messages} are taken; leave out the oldest")
    return [_turn(f"messages[{index}]", message) for index, message in enumerate(messages)]


def _turn(where: str, message: Any) -> tuple[str, str]:
    """Role and text of a message."""
    if not isinstance(message, dict):
        raise BadRequest(f"{where}: not an object with role and content")
    role, content = message.get("role"), message.get("content")
    if role in ("system", "developer"):
        raise BadRequest(f"{where}.role: {role!r} is not possible, this model has no such turn; leave the message out")
    if role not in ("user", "assistant"):
        raise BadRequest(f"{where}.role: neither 'user' nor 'assistant'")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    if len(texts) < len(parts) or not all(isinstance(text, str) for text in texts):
        raise BadRequest(f"{where}.content: neither a string nor a list of text parts")
    return str(role), "".join(str(text) for text in texts)


def _options(fields: Mapping[str, Any], defaults: SamplingOptions) -> SamplingOptions:
    if "max_tokens" in fields and "max_completion_tokens" in fields:
        raise BadRequest("max_tokens and max_completion_tokens: the same thing twice; leave one out")
    given = {option: (name, fields[name]) for name, option in _SAMPLING.items() if name in fields}
    for option, (name, value) in given.items():
        check_option(option, value, shown=name)
    changed = {option: value for option, (_, value) in given.items()}
    if not _typed(fields, "logprobs", bool, "true or false"):
        if "logprobs" in changed:
            raise BadRequest('top_logprobs: needs logprobs; send "logprobs": true with it')
        changed["logprobs"] = None
    return replace(defaults, **{"logprobs": 0, **changed})


def _stops(stop: Any) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop
    good = isinstance(stops, list) and len(stops) <= MAX_STOPS
    if not good or not all(isinstance(text, str) and 1 <= len(text) <= MAX_STOP_CHARS for text in stops):
        raise BadRequest(f"stop: not a string, or up to {MAX_STOPS} of them, each of 1 to {MAX_STOP_CHARS} characters")
    return tuple(stops)


class ResponseBuilder:
    """Builds the answers to one request: all share its id, time and model."""

    def __init__(self, request_id: str, model: str, truncated_turns: int) -> None:
        self._base: dict[str, Any] = {"id": request_id, "created": int(time.time()), "model": model}
        self._extra = {"truncated_turns": truncated_turns} if truncated_turns else {}

    def whole(
        self, text: str, finish: str, prompt_tokens: int, new_tokens: int, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        message = {"role": "assistant", "content": text}
        choices = [{"index": 0, "message": message, "finish_reason": finish, "logprobs": logprobs}]
        usage = usage_of(prompt_tokens, new_tokens)
        return {**self._base, "object": "chat.completion", "choices": choices, "usage": usage, **self._extra}

    def chunk(
        self, delta: dict[str, str], finish: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """One event of a stream."""
        choices = [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}]
        return {**self._base, "object": "chat.completion.chunk", "choices": choices, **self._extra}

    def usage(self, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
        """The last event of a stream whose request asked for usage."""
        usage = usage_of(prompt_tokens, new_tokens)
        return {**self._base, "object": "chat.completion.chunk", "choices": [], "usage": usage}


def logprobs_of(tokens: Sequence[ScoredToken], spell: Callable[[int], bytes]) -> dict[str, Any]:
    """The log-probabilities of generated tokens; `spell` gives the bytes of an id.

    They are of the model's own distribution, before temperature and every other option. The end of turn is not among
    the tokens, but may be among the alternatives.
    """

    def entry(token: int, logprob: float) -> dict[str, Any]:
        spelled = spell(token)
        text = spelled.decode(errors="backslashreplace")  # a part of a character is written as \xe4\xbd
        return {"token": text, "logprob": max(logprob, _MIN_LOGPROB), "bytes": list(spelled)}

    content = [
        {**entry(token, token.logprob), "top_logprobs": [entry(other, logprob) for other, logprob in token.likeliest]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def usage_of(prompt_tokens: int, new_tokens: int) -> dict[str, int]:
    """The token counts of a request."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new_tokens,
        "total_tokens": prompt_tokens + new_tokens,
    }


def error_body(error: ServeError) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return error_shape(str(error), error.kind, error.code)


def error_shape(message: str, kind: str, code: str) -> dict[str, Any]:
    """The shape of an error."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def as_json(value: Any) -> bytes:
    """Compact JSON in UTF-8, on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
