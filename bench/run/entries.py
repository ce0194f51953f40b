"""Who is measured: the rows of a bench, models and peers, each ready to be loaded in its process, or why it is not."""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.evaluate.measure import open_held_out
from bench.evaluate.other_tokenizer import retokenized
from bench.models.handle import ModelHandle
from bench.models.text_pipeline import TextPipelineSpec
from bench.peers.builder import CannotPrepare, PeerBuilder, PeerHandle, PeerRequest, find_python
from bench.run.controller import BenchEntry
from bench.run.options import BenchOptions
from bench.run.prompts import WARMUPS, make_prompts
from chitchat.errors import BadInput


@dataclass(frozen=True)
class Row:
    """A row to be: the model, where it runs, and why it cannot."""

    name: str
    model: ModelHandle
    device: str = "cpu"
    python: str = sys.executable
    whole: Path | None = None
    error: str | None = None


def model_rows(models: Sequence[ModelHandle], devices: Sequence[str]) -> list[Row]:
    """A row a model and device; those of a GPU that is not there say so."""
    missing = None if "cuda" not in devices else why_no_cuda()
    names = unique_names(models)
    return [
        Row(
            name if device == "cpu" else f"{name} on {device}",
            model,
            device,
            error=f"skipped: {missing}" if device == "cuda" and missing else None,
        )
        for name, model in zip(names, models, strict=True)
        for device in devices
    ]


def peer_rows(
    asked: Sequence[PeerRequest],
    checkpoint: ModelHandle,
    folder: Path,
    work: BenchOptions,
    data: Path | None,
) -> list[Row]:
    """A row a peer and form, converted and ready; a peer that is not installed says how it would be."""
    kitchen = PeerBuilder(checkpoint, folder / "peers", work.threads or 1, data, work.portable_python)
    rows = []
    for each in asked:
        unprepared, device = PeerHandle(each, checkpoint, checkpoint.folder), each.peer.device
        if device == "cuda" and (why := why_no_cuda()):
            rows.append(Row(each.name, unprepared, device, error=f"skipped: {why}"))
            continue
        interpreter = find_python(each.peer, work.peers_python, work.portable_python)
        if interpreter is None:
            rows.append(Row(each.name, unprepared, device, error=each.peer.missing))
            continue
        print(f"preparing {each.name}", file=sys.stderr, flush=True)
        try:
            whole = kitchen.model(each.whole(), interpreter).folder if each.checked else None
            rows.append(Row(each.name, kitchen.model(each, interpreter), device, python=interpreter, whole=whole))
        except CannotPrepare as error:
            rows.append(Row(each.name, unprepared, device, error=str(error)))
    return rows


def jobs_of(rows: Sequence[Row], held_out: Any, scratch: Path, work: BenchOptions) -> list[BenchEntry]:
    """What the controller is given, row by row; `scratch` takes the files that workers read."""
    first = rows[0].model
    jobs = []
    for number, row in enumerate(rows):
        model = row.model
        spec = str(model.folder) if isinstance(model, PeerHandle) else model.spec
        job = BenchEntry(
            row.name, spec, model.kind, model.dialogue.end_of_turn_id, device=row.device, python=row.python
        )
        job = replace(job, error=row.error, whole=str(row.whole) if row.whole else None)
        if row.error is None:
            alike = model.reads_like(first)
            other = {} if alike else _own_work(model, held_out, work, scratch / f"data-{number}")
            job = replace(
                job, compared=alike and number > 0, speech=_speech(model, scratch / f"tokenizer-{number}.json"), **other
            )
        jobs.append(job)
    return jobs


def _own_work(model: ModelHandle, held_out: Any, work: BenchOptions, folder: Path) -> dict[str, Any]:
    """Prompts, and the data, in the ids of a model that has another vocabulary than the first."""
    data = retokenized(held_out, model, folder) if held_out is not None else None
    held = open_held_out(data) if data is not None else None
    prompts = make_prompts([model], held, work.prompt_tokens, WARMUPS + work.repetitions, work.seed)
    return {"prompts": prompts, "data": data}


def _speech(model: ModelHandle, path: Path) -> dict[str, Any]:
    path.write_text(model.tokenizer_json(), encoding="utf-8")
    return asdict(TextPipelineSpec(str(path), asdict(model.dialogue)))


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
    return next(place for place, name in enumerate(names) if name in names[:place])


def why_no_cuda() -> str | None:
    """Why nothing can run on a GPU here; None where it can."""
    import torch

    return None if torch.cuda.is_available() else "torch finds no CUDA GPU on this machine"
