"""A peer: everything that the bench must know of another tool, in one value that is read without importing the tool."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bench.models.kind import RuntimeKind
from chitchat.system.interpreters import PEERS as PEERS_ENVIRONMENT
from chitchat.system.interpreters import Environment


class Source(StrEnum):
    """What a peer's files are made from, of the bench's first model."""

    CHECKPOINT = "checkpoint"
    PORTABLE = "portable"  # a bundle of standard ONNX operators
    GENAI = "genai"  # our own bundle, with what onnxruntime-genai reads beside it


# (source, out, weight format, threads): write what the peer loads into the folder `out`, which does not exist yet.
Convert = Callable[[Path, Path, str, int], None]


@dataclass(frozen=True, kw_only=True)
class Peer(RuntimeKind):
    """A tool that runs the first model of a bench, in its own formats and with its own quantizer.

    `weight_formats` are its rows. In `full_precision`, one of them, its greedy answers are held against torch's before
    any of its rows count; None where it has no such format. `import_name` (default: the first of `modules`) is looked
    for in this interpreter, then in that of `environment`; `install` are the names that pip knows (default: that name).
    `convert` makes its files out of `source`, None where the source is loaded as it is. It runs on `device`; one of a
    GPU belongs to `all` where a run asks for that device. Whether it runs several conversations at once, its class says
    (`LoadedModel.supports_concurrency`).
    """

    weight_formats: tuple[str, ...]
    full_precision: str | None = None
    source: Source = Source.CHECKPOINT
    install: str = ""
    import_name: str = ""
    convert: Convert | None = None
    environment: Environment = PEERS_ENVIRONMENT
    device: str = "cpu"

    @property
    def package(self) -> str:
        """The module that an interpreter must have to run it."""
        return self.import_name or self.modules[0]

    @property
    def missing(self) -> str:
        """What a row says of a tool that no interpreter has: the line to type."""
        if self.environment is PEERS_ENVIRONMENT:
            return f"not installed: pip install {self.install or self.package} (make peers installs all of them)"
        return f"not installed: {self.environment.remedy}"


@dataclass(frozen=True)
class PeerRequest:
    """A row that was asked for: a peer in one of its weight formats."""

    peer: Peer
    weight_format: str

    @property
    def name(self) -> str:
        """As tables show it."""
        name = self.peer.name if len(self.peer.weight_formats) == 1 else f"{self.peer.name} {self.weight_format}"
        return name if self.peer.device == "cpu" else f"{name} on {self.peer.device}"
