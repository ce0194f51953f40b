"""The interfaces of models and tokenizers for the terminal and the server; types only."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from serve.text import StreamDecoder


class Model(Protocol):
    """What prompts are made for."""

    @property
    def context(self) -> int:
        """The most tokens that a prompt and its reply may have together."""

    @property
    def dialogue(self) -> Any:
        """The dialogue format (serve.dialogue.Dialogue)."""


class Generator(Model, Protocol):
    """Ids in, ids out: serve's Engine and chitchat's TorchGenerator."""

    def stream(self, prompt_ids: list[int], options: Any) -> Iterator[int]:
        """Yield the ids of a reply, without its end of turn."""


class Codec(Protocol):
    """Text to ids and back: TextCodec."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""

    def decode(self, ids: list[int]) -> str:
        """The text of ids."""

    def stream(self) -> "StreamDecoder":
        """Begin to decode one reply."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one id."""
