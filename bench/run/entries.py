"""Who is measured: the rows of a bench, models and peers, each ready to be loaded in its process, or why it is not."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.evaluate.measure import open_held_out
from bench.evaluate.other_tokenizer import retokenized
from bench.models.handle import ModelHandle
from bench.models.kind import RuntimeKind
from bench.models.open import CheckpointHandle
from bench.peers.builder import CannotPrepare, PeerBuilder, find_python
from bench.peers.descriptor import PeerRequest, Source
from bench.run.controller import BenchEntry
from bench.run.options import BenchOptions
from bench.run.prompts import WARMUPS, make_prompts
from chitchat.errors import BadInput

if TYPE_CHECKING:
    from chitchat.data.dataset import ChatData


@dataclass(frozen=True)
class PlannedRow:
    """A row to be: the model, where it runs, and why it cannot be measured.

    With a `peer` the model is the first one in the peer's hands: `loads` is what the peer loads in place of it,
    `full_precision` the same at full precision.
    """

    name: str
    model: ModelHandle
    device: str = "cpu"
    python: str = sys.executable
    peer: PeerRequest | None = None
    loads: Path | None = None
    full_precision: Path | None = None
    error: str | None = None

    @property
    def kind(self) -> RuntimeKind:
        """What runs it."""
        return self.model.runtime_kind if self.peer is None else self.peer.peer

    @property
    def spec(self) -> str:
        """What was named: the model, or the peer and its weight format."""
        return self.model.spec if self.peer is None else f"{self.peer.peer.name}:{self.peer.weight_format}"

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as they are stored; of a peer those of all its files."""
        return self.model.weight_bytes if self.peer is None else self.file_bytes

    @property
    def file_bytes(self) -> int:
        """Bytes of all files that must be copied to run it elsewhere; those of the model where it is loaded itself."""
        if self.peer is None or (self.peer.peer.source is Source.CHECKPOINT and self.peer.peer.convert is None):
            return self.model.file_bytes
        folder = self.loads or self.model.folder
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def model_rows(models: Sequence[ModelHandle], devices: Sequence[str]) -> list[PlannedRow]:
    """A row a model and device; those of a GPU that is not there say so."""
    missing = None if "cuda" not in devices else why_no_cuda()
    names = unique_names(models)
    return [
        PlannedRow(
            name if device == "cpu" else f"{name} on {device}",
            model,
            device,
            error=f"skipped: {missing}" if device == "cuda" and missing else None,
        )
        for name, model in zip(names, models, strict=True)
        for device in devices
    ]


def peer_rows(
    requests: Sequence[PeerRequest],
    checkpoint: CheckpointHandle,
    folder: Path,
    options: BenchOptions,
    data: Path | None,
) -> list[PlannedRow]:
    """A row a peer and weight format, converted and ready; a peer that is not installed says how it would be."""
    builder = PeerBuilder(checkpoint, folder / "peers", options.threads or 1, data, options.portable_python)
    rows = []
    for request in requests:
        row = PlannedRow(request.name, checkpoint, request.peer.device, peer=request)
        if row.device == "cuda" and (why := why_no_cuda()):
            rows.append(replace(row, error=f"skipped: {why}"))
            continue
        interpreter = find_python(request.peer, options.peers_python, options.portable_python)
        if interpreter is None:
            rows.append(replace(row, error=request.peer.missing))
            continue
        print(f"preparing {request.name}", file=sys.stderr, flush=True)
        try:
            precise = request.peer.full_precision
            whole = None if precise is None else builder.prepare(PeerRequest(request.peer, precise), interpreter)
            loads = builder.prepare(request, interpreter)
            rows.append(replace(row, python=interpreter, loads=loads, full_precision=whole))
        except CannotPrepare as error:
            rows.append(replace(row, error=str(error)))
    return rows


def build_entries(
    rows: Sequence[PlannedRow], held_out: "ChatData | None", scratch: Path, options: BenchOptions
) -> list[BenchEntry]:
    """What the controller is given, row by row; `scratch` takes the files that workers read."""
    first = rows[0].model
    entries = []
    for number, row in enumerate(rows):
        model = row.model
        entry = BenchEntry(
            row.name,
            str(row.loads or model.spec),
            row.kind,
            model.dialogue.end_of_turn_id,
            device=row.device,
            python=row.python,
            full_precision=None if row.full_precision is None else str(row.full_precision),
            error=row.error,
        )
        if row.error is None:
            alike = model.reads_like(first)
            if not alike:
                entry = _in_own_ids(entry, model, held_out, options, scratch / f"data-{number}")
            pipeline = _text_pipeline(model, scratch / f"tokenizer-{number}.json")
            entry = replace(entry, compared=alike and number > 0, text_pipeline=pipeline)
        entries.append(entry)
    return entries


def _in_own_ids(
    entry: BenchEntry, model: ModelHandle, held_out: "ChatData | None", options: BenchOptions, folder: Path
) -> BenchEntry:
    """The entry with prompts, and data, in the ids of a model that has another vocabulary than the first."""
    data = retokenized(held_out, model, folder) if held_out is not None else None
    own = open_held_out(data) if data is not None else None
    prompts = make_prompts([model], own, options.prompt_tokens, WARMUPS + options.repetitions, options.seed)
    return replace(entry, prompts=prompts, data=data)


def _text_pipeline(model: ModelHandle, path: Path) -> dict[str, Any]:
    path.write_text(model.tokenizer_json(), encoding="utf-8")
    return {"tokenizer": str(path), "dialogue": model.dialogue.as_json()}


def unique_names(models: Sequence[ModelHandle]) -> list[str]:
    """Folder names; where two are the same, as much of the path before them as tells them apart."""
    names = [model.name for model in models]
    parts = [Path(os.path.abspath(model.folder)).parts for model in models]
    depth = 1
    while len(set(names)) < len(names):
        depth += 1
        if depth > max(len(part) for part in parts):
            raise BadInput(f"MODEL {models[_first_repeated(names)].spec}: given twice; give each model once")
        names = [
            "/".join(part[-depth:]) if names.count(name) > 1 else name for name, part in zip(names, parts, strict=True)
        ]
    return names


def _first_repeated(names: Sequence[str]) -> int:
    return next(index for index, name in enumerate(names) if name in names[:index])


def why_no_cuda() -> str | None:
    """Why nothing can run on a GPU here; None where it can."""
    import torch

    return None if torch.cuda.is_available() else "torch finds no CUDA GPU on this machine"
