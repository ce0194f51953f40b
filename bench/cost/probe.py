"""How long a shape takes in the engine that ships, and what its bundle weighs, before anybody has trained it.

A shape's bundle has random weights (`bench.cost.random_bundle`). Several shapes are measured in turn, A B C A B C …, so
that a slow minute of the machine falls on all alike, and every token is timed as `compress bench` times it. Quality is
not its work.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bench.cost.random_bundle import END_OF_TURN_ID, bundle_bytes, random_weights, write_weights
from bench.models.engine import EngineModel
from bench.models.loaded import TimedReply
from chitchat.errors import BadInput
from compress.quantize.schemes import SCHEMES
from export.weights import GraphWeights
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
        self._threads = threads
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
        work = [prompt_and_length(shape, self._prompt_tokens, self._new_tokens) for shape in shapes]
        with tqdm(total=len(shapes) * (rounds + 2), desc="timing shapes", unit=" replies", disable=None) as progress:
            replies = []
            for shape, (prompt, length) in zip(shapes, work, strict=True):
                random = np.random.default_rng(0)
                engine = open_engine(shape, self.scheme, random_weights(shape, self.scheme, random), self._threads)
                replies.append(partial(engine.generate, prompt, length, END_OF_TURN_ID))
                progress.update()
            samples = take_turns(replies, rounds, progress.update)
        return [[step for sample in of for step in sample.token_ms] for of in samples]


def prompt_and_length(shape: Geometry, prompt_tokens: int, new_tokens: int) -> tuple[list[int], int]:
    """A prompt, and how many new tokens are timed after it: as much as the context has room for.

    Raises `BadInput` for a context without room for two new tokens.
    """
    length = min(new_tokens, shape.context // 2)
    if length < 2:
        raise BadInput(f"--context {shape.context}: too small to time a reply; give at least 4")
    return (np.arange(min(prompt_tokens, shape.context - length)) % shape.vocab).tolist(), length


def open_engine(shape: Geometry, scheme: str, weights: GraphWeights, threads: int | None = None) -> EngineModel:
    """The engine that ships over a bundle of `weights`; `threads` None takes the physical cores."""
    with tempfile.TemporaryDirectory() as folder:  # a mapped file lives on after its folder
        write_weights(shape, scheme, weights, Path(folder))
        return EngineModel.open(folder, threads or physical_cores(), "cpu")


def take_turns(
    replies: Sequence[Callable[[], TimedReply]], rounds: int, progress: Callable[[], object] = lambda: None
) -> list[list[TimedReply]]:
    """`rounds` of each of `replies`, A B A B …, after one of each that warms up: maps memory, starts threads."""
    samples: list[list[TimedReply]] = [[] for _ in replies]
    for number in range(rounds + 1):
        for of, reply in zip(samples, replies, strict=True):
            time.sleep(_SETTLE_S)
            sample = reply()
            progress()
            if number:
                of.append(sample)
    return samples
