"""The tools that ours is measured beside: their names, how they are installed, and how a checkpoint gets there.

A peer runs the first model of the bench, in its own format and with its own quantizer. Its heavy packages live in an
environment of their own (`make peers`; optimum's is that of the portable export, `make portable`), whose interpreter
converts the model (`bench.peers.convert`) and runs it. The first form of a peer is the full precision in which its
greedy answers are held against torch's before any of its rows count.
"""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.models.handle import ModelHandle
from chitchat.errors import BadInput, ChitchatError
from chitchat.lineage import Stage, read_lineage
from chitchat.system.child import child_environment
from chitchat.system.folder import staged_folder
from chitchat.system.interpreters import PEERS as PEERS_ENVIRONMENT
from chitchat.system.interpreters import PORTABLE, Environment, find_interpreter


@dataclass(frozen=True)
class Peer:
    """A tool: its forms, what its files are made from (`checkpoint`, `portable` or `genai` bundle), and its package.

    It runs on `device`; one of a GPU belongs to `all` where a run asks for that device.
    """

    name: str
    weight_formats: tuple[str, ...]
    source: str
    module: str
    install: str
    converts: bool = True
    environment: Environment = PEERS_ENVIRONMENT
    device: str = "cpu"

    @property
    def missing(self) -> str:
        """What a row says of a tool that no interpreter has: the line to type."""
        if self.environment is PEERS_ENVIRONMENT:
            return f"not installed: pip install {self.install} (make peers installs all of them)"
        return f"not installed: {self.environment.remedy}"


PEERS = {
    peer.name: peer
    for peer in (
        Peer("torch-no-cache", ("fp32",), "checkpoint", "torch", "torch", converts=False),
        Peer("torch-int8", ("int8",), "checkpoint", "torch", "torch", converts=False),
        Peer("torch-fp16", ("fp16",), "checkpoint", "torch", "torch", converts=False, device="cuda"),
        Peer("optimum", ("fp32",), "portable", "optimum.onnxruntime", "optimum-onnx", False, PORTABLE),
        Peer("llama.cpp", ("F32", "Q8_0", "Q4_0", "Q4_K"), "checkpoint", "llama_cpp", "llama-cpp-python gguf"),
        Peer("ctranslate2", ("float32", "int8"), "checkpoint", "ctranslate2", "ctranslate2"),
        Peer("openvino", ("fp32", "int8", "int4"), "portable", "openvino", "openvino nncf"),
        Peer("onnxruntime-genai", ("fp32", "w8", "w4"), "genai", "onnxruntime_genai", "onnxruntime-genai", False),
    )
}


@dataclass(frozen=True)
class PeerRequest:
    """A row that was asked for: a peer in one of its forms."""

    peer: Peer
    weight_format: str

    @property
    def name(self) -> str:
        """As tables show it."""
        name = self.peer.name if len(self.peer.weight_formats) == 1 else f"{self.peer.name} {self.weight_format}"
        return name if self.peer.device == "cpu" else f"{name} on {self.peer.device}"

    @property
    def checked(self) -> bool:
        """Whether the peer has a full precision that its answers can be held against torch's in."""
        return self.peer.weight_formats[0] not in ("int8", "fp16")

    def whole(self) -> "PeerRequest":
        """The same peer at full precision."""
        return PeerRequest(self.peer, self.peer.weight_formats[0])


def read_peers(value: str | None, devices: Sequence[str] = ("cpu",)) -> list[PeerRequest]:
    """What `--peers` names: peers (all their forms) or `peer:weight_format`, separated by commas; `all` those of the
    `devices`.

    Raises `BadInput`.
    """
    if not value:
        return []
    asked: list[PeerRequest] = []
    every = [name for name, peer in PEERS.items() if peer.device in ("cpu", *devices)]
    for word in every if value == "all" else [word.strip() for word in value.split(",")]:
        name, _, weight_format = word.partition(":")
        if name not in PEERS:
            raise BadInput(f"--peers {word}: there is no such peer; give all, or some of {', '.join(PEERS)}")
        peer = PEERS[name]
        if weight_format and weight_format not in peer.weight_formats:
            raise BadInput(
                f"--peers {word}: {name} has no form {weight_format}; give one of {', '.join(peer.weight_formats)}"
            )
        asked += [PeerRequest(peer, each) for each in ([weight_format] if weight_format else peer.weight_formats)]
    return list(dict.fromkeys(asked))


def find_python(peer: Peer, peers_python: str | None, portable_python: str | None = None) -> str | None:
    """The interpreter that has a peer's package: this one, or that of the peer's environment; None where none has.

    `peers_python` and `portable_python` name the interpreters of the two environments. Raises `BadInput` for one that
    is needed and cannot be run.
    """
    if peer.environment is PORTABLE:  # even where this interpreter has optimum: it does not work with our transformers
        return find_interpreter(PORTABLE, portable_python, (peer.module,))
    if _here(peer.module):
        return sys.executable
    return find_interpreter(peer.environment, peers_python, (peer.module,))


def _here(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


class PeerHandle(ModelHandle):
    """The first model of a bench in a peer's hands. `folder` is what the peer loads; facts are the first model's."""

    def __init__(self, asked: PeerRequest, base: ModelHandle, folder: Path) -> None:
        super().__init__(f"{asked.peer.name}:{asked.weight_format}", folder)
        self.asked = asked
        self.name = asked.name
        self._base = base

    @property
    def kind(self) -> str:  # type: ignore[override]
        """Each peer is a kind of its own (`bench.models.runtimes.KINDS`)."""
        return self.asked.peer.name

    @property
    def runtime(self) -> str:
        return self.asked.peer.name

    @property
    def geometry(self) -> dict[str, int]:
        return self._base.geometry

    @property
    def parameters(self) -> int:
        return self._base.parameters

    @property
    def weight_bytes(self) -> int:
        return self.file_bytes

    @property
    def file_bytes(self) -> int:
        if self.asked.peer.source == "checkpoint" and not self.asked.peer.converts:
            return self._base.file_bytes
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    @property
    def dialogue(self) -> Any:
        return self._base.dialogue

    def tokenizer_json(self) -> str:
        return self._base.tokenizer_json()

    def load(self, threads: int | None = None) -> Any:
        raise NotImplementedError("a peer is loaded in its own process")

    def generator(self, threads: int | None = None, device: str | None = None) -> Any:
        raise NotImplementedError("a peer does not chat")


class PeerBuilder:
    """Makes what peers load out of one checkpoint, in a folder; each thing once, complete or absent."""

    def __init__(
        self,
        checkpoint: ModelHandle,
        folder: Path,
        threads: int,
        data: Path | None,
        portable_python: str | None = None,
    ) -> None:
        self._checkpoint, self._folder, self._threads, self._data = checkpoint, folder, threads, data
        self._portable_python = portable_python

    def model(self, asked: PeerRequest, python: str) -> PeerHandle:
        """The model of a row. Raises `CannotPrepare` with what an export says, or the peer's converter at last."""
        try:
            return PeerHandle(asked, self._checkpoint, self._prepared(asked, python))
        except ChitchatError as error:
            raise CannotPrepare(f"could not be prepared: {error}") from error

    def _prepared(self, asked: PeerRequest, python: str) -> Path:
        source = self._source(asked)
        if not asked.peer.converts:
            return source
        out = self._folder / asked.name.replace(" ", "-")
        if not out.is_dir():
            command = [python, "-m", "bench.peers.convert", asked.peer.name, asked.weight_format, str(source), str(out)]
            command.append(str(self._threads))
            done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, errors="replace")
            if done.returncode:
                lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
                raise CannotPrepare(f"could not be prepared: {lines[-1][-300:] if lines else 'no word why'}")
        return out

    def _source(self, asked: PeerRequest) -> Path:
        if asked.peer.source == "checkpoint":
            return self._plain
        if asked.peer.source == "portable":
            return self._bundle("portable", self._plain, target="portable", portable_python=self._portable_python)
        checkpoint = self._plain if asked.weight_format == "fp32" else self._quantized(asked.weight_format)
        return self._bundle(f"genai-{asked.weight_format}", checkpoint, genai=True)

    @cached_property
    def _plain(self) -> Path:
        """The checkpoint as we write it: peers' converters know no other names, ages and layouts."""
        if read_lineage(self._checkpoint.folder):
            return self._checkpoint.folder
        from chitchat.checkpoint import save_checkpoint

        out = self._folder / "checkpoint"
        with staged_folder(out, "checkpoint") as staging:
            model: Any = self._checkpoint  # a checkpoint: `bench.run.stage` asked
            save_checkpoint(staging, model.torch_model(), model.tokenizer, Stage("read", {}, seed=0))
        return out

    def _bundle(self, name: str, checkpoint: Path, **options: Any) -> Path:
        from export.stage import export

        out = self._folder / name
        if not out.is_dir():
            export(str(checkpoint), out, data=self._data, **options)
        return out

    def _quantized(self, scheme: Any) -> Path:
        from compress.quantize.options import QuantizeOptions
        from compress.quantize.stage import quantize

        if self._data is None:
            raise CannotPrepare("its integers need conversations; give --data")
        out = self._folder / f"checkpoint-{scheme}"
        if not out.is_dir():
            quantize(str(self._plain), self._data, out, QuantizeOptions(scheme=scheme, method="rtn"))
        return out


class CannotPrepare(Exception):
    """A peer's files could not be made; the message is one line."""
