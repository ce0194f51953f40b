"""What the terminal and the server need of a model and of a tokenizer. Types only."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from serve.text import StreamDecoder


class Generator(Protocol):
    """Ids in, ids out: serve's Engine and chitchat's TorchGenerator."""

    @property
    def context(self) -> int:
        """The most tokens that a prompt and its reply may have together."""
        ...

    @property
    def dialogue(self) -> Any:
        """The dialogue format (serve.dialogue.Dialogue)."""
        ...

    def stream(self, prompt_ids: list[int], options: Any) -> Iterator[int]:
        """Yield the ids of a reply, its end of turn not among them."""
        ...


class Codec(Protocol):
    """Text to ids and back: TextCodec."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of ids."""
        ...

    def stream(self) -> "StreamDecoder":
        """Begin to decode one reply."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one id stands for."""
        ...
