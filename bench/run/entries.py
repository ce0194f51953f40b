"""Who is measured: the rows of a bench, models and peers, each ready to be loaded in its process, or why it is not."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.evaluate.measure import open_held_out
from bench.evaluate.other_tokenizer import retokenized
from bench.models.handle import ModelHandle
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
    """What is measured, and the model whose facts its row tells: with a `peer` the first one, in the peer's hands."""

    entry: BenchEntry
    model: ModelHandle
    peer: PeerRequest | None = None

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
        return sum(path.stat().st_size for path in Path(self.entry.spec).rglob("*") if path.is_file())


def model_rows(models: Sequence[ModelHandle], devices: Sequence[str]) -> list[PlannedRow]:
    """A row a model and device; those of a GPU that is not there say so."""
    missing = why_no_cuda() if "cuda" in devices else None
    rows = []
    for name, model in zip(unique_names(models), models, strict=True):
        entry = BenchEntry(name, model.spec, model.runtime_kind, model.dialogue.end_of_turn_id)
        for device in devices:
            if device == "cuda":
                error = f"skipped: {missing}" if missing else None
                entry = replace(entry, name=f"{name} on {device}", device=device, error=error)
            rows.append(PlannedRow(entry, model))
    return rows


def peer_rows(
    requests: Sequence[PeerRequest],
    checkpoint: CheckpointHandle,
    folder: Path,
    options: BenchOptions,
    data: Path | None,
) -> list[PlannedRow]:
    """A row a peer and weight format, converted and ready, or with why it is not."""
    builder = PeerBuilder(checkpoint, folder / "peers", options.threads or 1, data, options.portable_python)
    end, rows = checkpoint.dialogue.end_of_turn_id, []
    for request in requests:
        entry = BenchEntry(request.name, str(checkpoint.folder), request.peer, end, device=request.peer.device)
        try:
            entry = _prepared(entry, request, builder, options)
        except CannotPrepare as error:
            entry = replace(entry, error=str(error))
        rows.append(PlannedRow(entry, checkpoint, request))
    return rows


def _prepared(entry: BenchEntry, request: PeerRequest, builder: PeerBuilder, options: BenchOptions) -> BenchEntry:
    """The entry with what the peer loads, and in which interpreter. Raises `CannotPrepare` with why it cannot run."""
    peer = request.peer
    if peer.device == "cuda" and (why := why_no_cuda()):
        raise CannotPrepare(f"skipped: {why}")
    python = find_python(peer, options.peers_python, options.portable_python)
    if python is None:
        raise CannotPrepare(peer.missing)
    print(f"preparing {request.name}", file=sys.stderr, flush=True)
    precise = peer.full_precision
    full_precision = None if precise is None else str(builder.prepare(PeerRequest(peer, precise), python))
    return replace(entry, spec=str(builder.prepare(request, python)), python=python, full_precision=full_precision)


def build_entries(
    rows: Sequence[PlannedRow], held_out: "ChatData | None", scratch: Path, options: BenchOptions
) -> list[BenchEntry]:
    """What the controller is given, row by row; `scratch` takes the files that workers read."""
    first, entries = rows[0].model, []
    for number, row in enumerate(rows):
        entry, model = row.entry, row.model
        if entry.error is None:
            alike = model.reads_like(first)
            if not alike:
                entry = _in_own_ids(entry, model, held_out, options, scratch / f"data-{number}")
            tokenizer = scratch / f"tokenizer-{number}.json"
            tokenizer.write_text(model.tokenizer_json(), encoding="utf-8")
            pipeline = {"tokenizer": str(tokenizer), "dialogue": model.dialogue.as_json()}
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


def unique_names(models: Sequence[ModelHandle]) -> list[str]:
    """Folder names; where two are the same, as much of the path before them as tells them apart."""
    names = [model.name for model in models]
    parts = [Path(os.path.abspath(model.folder)).parts for model in models]
    depth = 1
    while len(set(names)) < len(names):
        depth += 1
        if depth > max(map(len, parts)):
            again = next(index for index, name in enumerate(names) if name in names[:index])
            raise BadInput(f"MODEL {models[again].spec}: given twice; give each model once")
        names = [
            "/".join(part[-depth:]) if names.count(name) > 1 else name for name, part in zip(names, parts, strict=True)
        ]
    return names


def why_no_cuda() -> str | None:
    """Why nothing can run on a GPU here; None where it can."""
    import torch

    return None if torch.cuda.is_available() else "torch finds no CUDA GPU on this machine"
