"""A peer that exists nowhere: it always says the next id. One descriptor is all that the bench is told of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.models.loaded import Floats
from bench.models.stepping import SteppingModel
from bench.peers.descriptor import Peer


def convert(source: Path, out: Path, weight_format: str, threads: int) -> None:
    """Write the size of the vocabulary."""
    import json

    out.mkdir()
    size = json.loads((source / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    (out / f"{weight_format}.txt").write_text(str(size), encoding="utf-8")


class NextIdModel(SteppingModel):
    """The likeliest id is the one after the last."""

    context = 64

    def __init__(self, spec: str, threads: int, device: str, slots: int = 1) -> None:
        (file,) = Path(spec).iterdir()
        self._size = int(file.read_text(encoding="utf-8"))

    def run(self, ids: Sequence[int], *, fresh: bool) -> Floats:
        logits = np.zeros((len(ids), self._size), dtype=np.float32)
        logits[np.arange(len(ids)), (np.asarray(ids) + 1) % self._size] = 5.0
        return logits


KINDS = (
    Peer(
        name="next-id",
        model=NextIdModel,
        modules=("numpy",),
        weight_formats=("big", "small"),
        full_precision="big",
        convert=convert,
    ),
)
