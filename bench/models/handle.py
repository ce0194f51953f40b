"""What the bench, the chat and `compress info` need to know of any model: cheap facts first, weights when asked for."""

import os
import sys
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chitchat.formats.same_tokenizer import tokenizer_identity
from chitchat.lineage import identity, read_lineage
from serve.geometry import Geometry

if TYPE_CHECKING:
    from bench.models.kind import RuntimeKind
    from bench.models.loaded import LoadedModel
    from serve.dialogue import Dialogue
    from serve.terminal import Generator
    from serve.text import TextCodec

GEOMETRY_FIGURES = ("layers", "width", "heads", "ffn", "vocab", "context")  # of `figures`


class ModelHandle(ABC):
    """What the bench, the chat and `compress info` need to know of a model.

    `spec` is what the user typed, `runtime_kind` what runs it in the bench.
    """

    runtime_kind: "RuntimeKind"

    def __init__(self, spec: str, folder: Path) -> None:
        self.spec = spec
        self.folder = folder
        local = Path(spec).expanduser().exists()
        self.name = Path(os.path.abspath(folder)).name if local else spec.rpartition("/")[2]

    @property
    def kind(self) -> str:
        """The name of its runtime's kind, as reports give it."""
        return self.runtime_kind.name

    @property
    @abstractmethod
    def runtime(self) -> str:
        """What computes it, and on which numbers: `torch fp32 …`, `onnx w8`."""

    @property
    @abstractmethod
    def geometry(self) -> Geometry:
        """Layers, heads, sizes, and how far it reads."""

    @property
    @abstractmethod
    def parameters(self) -> int:
        """Numbers in the model, before any quantization; a tied table counts once."""

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """Bytes of the weights as they are stored, names and graph not counted."""

    @property
    @abstractmethod
    def file_bytes(self) -> int:
        """Bytes of all files that must be copied to run it elsewhere."""

    @property
    @abstractmethod
    def dialogue(self) -> "Dialogue":
        """The dialogue format; `end_of_turn_id`, `start_ids` and `banned_ids` are what is used here."""

    @abstractmethod
    def tokenizer_json(self) -> str:
        """The tokenizer as the tokenizers package writes it."""

    @abstractmethod
    def load(self, threads: int | None = None) -> "LoadedModel":
        """Load the weights, on the CPU: what quality is measured on. `threads` None: the runtime's own choice."""

    @abstractmethod
    def generator(self, threads: int | None = None, device: str | None = None) -> "Generator":
        """Load the weights and give what a conversation in the terminal needs.

        `device` None: torch takes the CPU, a bundle what `serve.graph_selection.choose` finds.
        """

    def announce(self, device: str | None = None) -> None:
        """Say on stderr what runs it here."""
        print(f"Runs in {self.runtime}.", file=sys.stderr, flush=True)

    @property
    def context(self) -> int:
        """Tokens that it can see at most."""
        return self.geometry.context

    @cached_property
    def vocabulary(self) -> str:
        """A sha256 that two models share when their tokenizers give the same ids for every text."""
        return tokenizer_identity(self.tokenizer_json())

    def reads_like(self, other: "ModelHandle") -> bool:
        """Whether every id means the same to both, so that prompts are shared and predictions compare."""
        return self.vocabulary == other.vocabulary and self.geometry.vocab == other.geometry.vocab

    def codec(self) -> "TextCodec":
        """Text to ids and back, as the edge runtime does it."""
        from tokenizers import Tokenizer

        from serve.text import TextCodec

        return TextCodec(Tokenizer.from_str(self.tokenizer_json()))

    def figures(self) -> dict[str, Any]:
        """What `compress info` prints."""
        return {
            "model": self.spec,
            "kind": self.kind,
            "runtime": self.runtime,
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
            "file_bytes": self.file_bytes,
            **{name: getattr(self.geometry, name) for name in GEOMETRY_FIGURES},
            "dialogue_family": self.dialogue.family,
            "vocabulary_sha256": self.vocabulary,
            "sha256": identity(self.folder),
            "stages": " > ".join(record["stage"] for record in self.lineage()) or "none known",
            "lineage": self.lineage(),
        }

    def lineage(self) -> list[dict[str, Any]]:
        """The records of the stages that led here, oldest first."""
        return read_lineage(self.folder)
