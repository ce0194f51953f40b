"""How the first model of a bench gets into a peer's hands: its interpreter, and the files that it loads.

A peer's heavy packages live in an environment of their own (`make peers`; optimum's is that of the portable export,
`make portable`), whose interpreter converts the model (`bench.peers.convert`) and runs it.
"""

import importlib.util
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bench.models.handle import ModelHandle
from bench.models.open import CheckpointHandle
from bench.peers.descriptor import Peer, Source
from bench.peers.registry import PeerRequest
from chitchat.errors import ChitchatError
from chitchat.lineage import Stage, read_lineage
from chitchat.system.child import child_environment
from chitchat.system.folder import staged_folder
from chitchat.system.interpreters import PORTABLE, find_interpreter
from serve.geometry import Geometry

if TYPE_CHECKING:
    from serve.dialogue import Dialogue


class CannotPrepare(Exception):
    """A peer's files could not be made; the message is one line."""


def find_python(peer: Peer, peers_python: str | None, portable_python: str | None = None) -> str | None:
    """The interpreter that has a peer's package: this one, or that of the peer's environment; None where none has.

    `peers_python` and `portable_python` name the interpreters of the two environments. Raises `BadInput` for one that
    is needed and cannot be run.
    """
    if peer.environment is PORTABLE:  # even where this interpreter has optimum: it does not work with our transformers
        return find_interpreter(PORTABLE, portable_python, (peer.import_name,))
    if _is_installed_here(peer.import_name):
        return sys.executable
    return find_interpreter(peer.environment, peers_python, (peer.import_name,))


def _is_installed_here(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


class PeerHandle(ModelHandle):
    """The first model of a bench in a peer's hands. `folder` is what the peer loads; facts are the first model's."""

    def __init__(self, request: PeerRequest, base: ModelHandle, folder: Path) -> None:
        super().__init__(f"{request.peer.name}:{request.weight_format}", folder)
        self.peer = request.peer
        self.runtime_kind = request.peer
        self.name = request.name
        self._base = base

    @property
    def runtime(self) -> str:
        return self.peer.name

    @property
    def geometry(self) -> Geometry:
        return self._base.geometry

    @property
    def parameters(self) -> int:
        return self._base.parameters

    @property
    def weight_bytes(self) -> int:
        return self.file_bytes

    @property
    def file_bytes(self) -> int:
        if self.peer.source is Source.CHECKPOINT and self.peer.convert is None:
            return self._base.file_bytes
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    @property
    def dialogue(self) -> "Dialogue":
        return self._base.dialogue

    def tokenizer_json(self) -> str:
        return self._base.tokenizer_json()

    def load(self, threads: int | None = None) -> NoReturn:
        raise NotImplementedError("a peer is loaded in its own process")

    def generator(self, threads: int | None = None, device: str | None = None) -> NoReturn:
        raise NotImplementedError("a peer does not chat")


class PeerBuilder:
    """Makes what peers load out of one checkpoint, in a folder; each thing once, complete or absent."""

    def __init__(
        self,
        checkpoint: CheckpointHandle,
        folder: Path,
        threads: int,
        data: Path | None,
        portable_python: str | None = None,
    ) -> None:
        self._checkpoint, self._folder, self._threads, self._data = checkpoint, folder, threads, data
        self._portable_python = portable_python

    def model(self, request: PeerRequest, python: str) -> PeerHandle:
        """The model of a row. Raises `CannotPrepare` with what an export says, or the last words of the converter."""
        try:
            return PeerHandle(request, self._checkpoint, self._prepared(request, python))
        except ChitchatError as error:
            raise CannotPrepare(f"could not be prepared: {error}") from error

    def _prepared(self, request: PeerRequest, python: str) -> Path:
        source = self._source(request)
        if request.peer.convert is None:
            return source
        out = self._folder / request.name.replace(" ", "-")
        if not out.is_dir():
            command = [python, "-P", "-m", "bench.peers.convert", request.peer.address, request.weight_format]
            command += [str(source), str(out), str(self._threads)]
            done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, errors="replace")
            if done.returncode:
                lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
                raise CannotPrepare(f"could not be prepared: {lines[-1][-300:] if lines else 'no word why'}")
        return out

    def _source(self, request: PeerRequest) -> Path:
        match request.peer.source:
            case Source.CHECKPOINT:
                return self._plain
            case Source.PORTABLE:
                return self._bundle("portable", self._plain, target="portable", portable_python=self._portable_python)
            case Source.GENAI:
                full_precision = request.weight_format == request.peer.full_precision
                checkpoint = self._plain if full_precision else self._quantized(request.weight_format)
                return self._bundle(f"genai-{request.weight_format}", checkpoint, genai=True)

    @cached_property
    def _plain(self) -> Path:
        """The checkpoint as we write it: peers' converters know no other names, ages and layouts."""
        if read_lineage(self._checkpoint.folder):
            return self._checkpoint.folder
        from chitchat.checkpoint import save_checkpoint

        out = self._folder / "checkpoint"
        with staged_folder(out, "checkpoint") as staging:
            model = self._checkpoint
            save_checkpoint(staging, model.torch_model(), model.tokenizer, Stage("read", {}, seed=0))
        return out

    def _bundle(self, name: str, checkpoint: Path, **options: Any) -> Path:
        from export.options import ExportOptions
        from export.stage import export

        out = self._folder / name
        if not out.is_dir():
            export(str(checkpoint), out, self._data, ExportOptions(**options))
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
