"""How long a shape takes in the engine that ships, and what its bundle weighs, before anybody has trained it.

A shape's bundle has random weights (`bench.cost.random_bundle`). Several shapes are measured in turn, A B C A B C …, so
that a slow minute of the machine falls on all alike, and every token is timed as `compress bench` times it. Quality is
not its work.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bench.cost.random_bundle import END_OF_TURN_ID, bundle_bytes, write_random_bundle
from bench.models.engine import EngineModel
from bench.models.loaded import TimedReply
from chitchat.errors import BadInput
from compress.quantize.schemes import SCHEMES
from serve.cpu import physical_cores
from serve.geometry import Geometry

PROMPT_TOKENS = 64
NEW_TOKENS = 32
ROUNDS = 5
# A byte-level BPE's tokenizer.json, per token, as measured (64 to 77; a WordPiece's takes 19).
TOKEN_BYTES = 72
# The threads of the engine before go on spinning for up to 70 ms, and would take time from the one that is measured.
_SETTLE_S = 0.1
# Engines that are in memory at once: a file's bytes are there twice while it loads, and its cache beside it.
_HELD_BYTES = 2_000_000_000


class CostProbe:
    """Times and sizes of shapes under one scheme: "fp32", or one of `compress quantize`."""

    def __init__(
        self,
        scheme: str = "w8",
        *,
        tokenizer_bytes: int | None = None,
        threads: int | None = None,
        prompt_tokens: int = PROMPT_TOKENS,
        new_tokens: int = NEW_TOKENS,
    ) -> None:
        """`tokenizer_bytes` is the size of tokenizer.json (default: that of a byte-level BPE of the shape's size).

        `threads` None takes the physical cores. Raises `BadInput` for a scheme that does not exist.
        """
        if scheme != "fp32" and scheme not in SCHEMES:
            raise BadInput(f"--scheme {scheme}: there is no such scheme; choose fp32, {', '.join(SCHEMES)}")
        self.scheme = scheme
        self._tokenizer_bytes = tokenizer_bytes
        self._threads = threads or physical_cores()
        self._prompt_tokens, self._new_tokens = prompt_tokens, new_tokens
        self._known: dict[Geometry, float] = {}

    @classmethod
    def of(cls, checkpoint: str, scheme: str, tokenizer: str | None = None) -> "CostProbe":
        """The costs of shapes that are cut out of `checkpoint`, whose tokenizer they ship with.

        `tokenizer` is --tokenizer; where there is none of either, a byte-level BPE is taken.
        """
        from chitchat.checkpoint import tokenizer_folder
        from chitchat.formats.tokenizer_files import has_tokenizer
        from chitchat.tokenizer import tokenizer_of

        if tokenizer is None and not has_tokenizer(tokenizer_folder(checkpoint)):
            return cls(scheme)
        text = tokenizer_of(checkpoint, tokenizer).backend_tokenizer.to_str(pretty=True)
        return cls(scheme, tokenizer_bytes=len(text.encode()))

    def ms_per_token(self, shape: Geometry) -> float:
        """Decode time in ms of a further token, as measured here; once measured it is remembered."""
        if shape not in self._known:
            self.measure([shape])
        return self._known[shape]

    def measure(self, shapes: Sequence[Geometry], rounds: int = ROUNDS) -> list[float]:
        """Decode time of each shape in ms per token: the median over all tokens of `rounds` replies, taken in turn.

        Shapes too large to be held in memory together are measured group by group.
        """
        for group in self._groups(list(dict.fromkeys(shapes))):
            samples = self._replies(group, rounds)
            for shape, times in zip(group, samples, strict=True):
                self._known[shape] = float(np.median(times))
        return [self._known[shape] for shape in shapes]

    def file_mb(self, shape: Geometry) -> float:
        """Size of the shape's bundle in 10^6 bytes: weights and graph as they will be, the other files estimated."""
        beside = TOKEN_BYTES * shape.vocab if self._tokenizer_bytes is None else self._tokenizer_bytes
        return bundle_bytes(shape, self.scheme, beside) / 1e6

    def _groups(self, shapes: Sequence[Geometry]) -> Iterator[list[Geometry]]:
        group: list[Geometry] = []
        held = 0.0
        for shape in shapes:
            size = 2e6 * self.file_mb(shape) + shape.kv_bytes_per_token * shape.context
            if group and held + size > _HELD_BYTES:
                yield group
                group, held = [], 0.0
            group.append(shape)
            held += size
        if group:
            yield group

    def _replies(self, shapes: Sequence[Geometry], rounds: int) -> list[list[float]]:
        """Times in ms between the tokens of all replies of each shape."""
        times: list[list[float]] = [[] for _ in shapes]
        backends: list[Any] = []
        with tqdm(total=len(shapes) * (rounds + 1), desc="timing shapes", unit=" replies", disable=None) as progress:
            for shape in shapes:
                backends.append(self._open(shape))
                self._reply(backends[-1], shape)  # warms up: memory is mapped, threads are started
                progress.update()
            for _ in range(rounds):
                for index, shape in enumerate(shapes):
                    times[index] += self._reply(backends[index], shape).token_ms
                    progress.update()
        return times

    def _open(self, shape: Geometry) -> EngineModel:
        with tempfile.TemporaryDirectory() as folder:
            write_random_bundle(shape, self.scheme, Path(folder))
            return EngineModel.open(folder, self._threads, "cpu")  # a mapped file lives on after its folder

    def _reply(self, backend: EngineModel, shape: Geometry) -> TimedReply:
        new_tokens = min(self._new_tokens, shape.context // 2)
        if new_tokens < 2:
            raise BadInput(f"--context {shape.context}: too small to time a reply; give at least 4")
        prompt = np.arange(min(self._prompt_tokens, shape.context - new_tokens)) % shape.vocab
        time.sleep(_SETTLE_S)
        return backend.generate(prompt.tolist(), new_tokens, END_OF_TURN_ID)
