"""The exceptions that the edge runtime raises on purpose.

The command line maps them by `exit_code`, the HTTP server by `status` and `code`. They are separate from
`chitchat.errors`, since `serve` imports no other package. Errors of onnxruntime, tokenizers and sockets are converted
where they occur, with `from`.
"""

from typing import ClassVar


class ServeError(Exception):
    """Base of the tree: the work failed. The message is one line: what, which value, what to do."""

    exit_code: ClassVar[int] = 1
    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"  # the "type" of an OpenAI error body
    code: ClassVar[str] = "server_error"


class BadBundle(ServeError):
    """The bundle is not one, is incomplete, or was altered."""

    exit_code: ClassVar[int] = 2
    code: ClassVar[str] = "bad_bundle"


class BadRequest(ServeError, ValueError):
    """What was asked for cannot be done: an option, a message or a body is not usable."""

    exit_code: ClassVar[int] = 2
    status: ClassVar[int] = 400
    kind: ClassVar[str] = "invalid_request_error"
    code: ClassVar[str] = "invalid_request"


class ContextExceeded(BadRequest):
    """The prompt does not fit the model's context. Carries both numbers, in tokens."""

    code: ClassVar[str] = "context_length_exceeded"

    def __init__(self, message: str, *, prompt_tokens: int, limit: int) -> None:
        super().__init__(message)
        self.prompt_tokens = prompt_tokens
        self.limit = limit


class UnknownModel(BadRequest):
    """A model was asked for that is not the one served."""

    status: ClassVar[int] = 404
    code: ClassVar[str] = "model_not_found"


class BodyTooLarge(BadRequest):
    """The request body is above the limit; it was not read to its end."""

    status: ClassVar[int] = 413
    code: ClassVar[str] = "request_too_large"


class UnsupportedEncoding(BadRequest):
    """The request body is compressed; nothing is unpacked here, so that a small body is a small one."""

    status: ClassVar[int] = 415
    code: ClassVar[str] = "unsupported_encoding"


class Overloaded(ServeError):
    """The queue is full. The client may try again after `retry_after_s` seconds."""

    status: ClassVar[int] = 429
    kind: ClassVar[str] = "rate_limit_error"
    code: ClassVar[str] = "queue_full"
    retry_after_s: ClassVar[int] = 1


class Unavailable(ServeError):
    """The server is starting, stopping, or its engine has ended."""

    status: ClassVar[int] = 503
    kind: ClassVar[str] = "service_unavailable"
    code: ClassVar[str] = "unavailable"
