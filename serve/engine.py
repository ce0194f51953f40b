"""The engine: runs a bundle's graph on onnxruntime, one conversation at a time. It speaks token ids only.

Everything that a decode step needs is allocated once and bound once (`_Run`), so that a step is: write four numbers,
run, read the logits where they stand. Prompts are computed in chunks, which bounds memory. Ids, positions and lengths
are checked here, since onnxruntime takes an id of -1 silently. Text, roles and history live elsewhere.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from serve.bundle import Bundle
from serve.cache import KVCache
from serve.errors import BadBundle, BadRequest, ContextExceeded, ServeError
from serve.processors import physical_cores
from serve.sampler import SamplingOptions, build_sampler
from serve.variant import Choice, choose, find_providers

PREFILL_CHUNK = 256  # tokens of a prompt in one run
SCORE_CHUNK = 64  # tokens of one run that gives logits for all of them: 64 * 50,257 floats are 13 MB

Logits = npt.NDArray[np.float32]
Scorer = Callable[[Sequence[Sequence[int]]], list[tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]]]


class Engine:
    """One model in memory and one conversation in its cache. Not for use by two threads at once."""

    def __init__(self, bundle: Bundle, threads: int | None = None, *, device: str | None = None) -> None:
        """Load the graph for `device`. `threads` None takes the physical cores that this process may use."""
        choice = choose(bundle, device, find_providers())
        if threads is not None and threads < 1:
            raise BadRequest(f"threads {threads}: give a number of at least 1")
        self.bundle = bundle
        self.geometry = bundle.geometry
        self.context = bundle.geometry.context
        self.dialogue = bundle.dialogue
        self.threads = threads or physical_cores()
        self._session = _open_session(choice, self.threads)
        self._cache = KVCache(self.geometry)
        self._decode = _Run(self._session, self._cache, self.geometry.vocab, tokens=1, rows=1)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV cache."""
        return self._cache.nbytes

    def reset(self) -> None:
        """Forget the conversation."""
        self._cache.reset()

    def prefill(self, ids: Sequence[int]) -> Logits:
        """Start a conversation with `ids`; give the logits [vocab] that follow the last one.

        The array is overwritten by the next call. Raises BadRequest for ids that the model does not have, and
        ContextExceeded for more of them than the context holds.
        """
        self._check(ids)
        self.reset()
        for start in range(0, len(ids), PREFILL_CHUNK):
            logits = self._feed(ids[start : start + PREFILL_CHUNK], rows=1)
        return logits[0]

    def step(self, token: int) -> Logits:
        """Add one token to the conversation; give the logits [vocab] that follow it (overwritten by the next call)."""
        if not 0 <= token < self.geometry.vocab:
            raise BadRequest(f"token id {token}: the vocabulary has 0 to {self.geometry.vocab - 1}")
        if not self._cache.room():
            raise ContextExceeded(
                f"the conversation has reached the context of {self.context} tokens; start a new one",
                prompt_tokens=self.context + 1,
                limit=self.context,
            )
        return self._feed([token], rows=1)[0]

    def stream(self, prompt_ids: Sequence[int], options: SamplingOptions) -> Iterator[int]:
        """Yield the ids of a reply: until its end of turn (not given), `max_new_tokens`, or a full context.

        Everything is checked when it is called, before the first id is asked for. Raises BadRequest (ContextExceeded)
        for a prompt that leaves no room in the context.
        """
        self._check(prompt_ids, room=1)
        return self._generate(list(prompt_ids), options)

    def logits(self, ids: Sequence[int]) -> Logits:
        """Logits after every one of `ids`, [n, vocab], a copy. The conversation in the cache is forgotten."""
        self._check(ids)
        chunks = [chunk.copy() for chunk in self._score_chunks(ids)]
        return np.concatenate(chunks)

    def scorer(self) -> Scorer:
        """Give the function that scores held-out text through this runtime.

        For each sequence of n ids: the nats of ids[1:] (float64 [n - 1]), and whether each was the likeliest (bool
        [n - 1]).
        """

        def score(
            sequences: Sequence[Sequence[int]],
        ) -> list[tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]]:
            return [self._score(sequence) for sequence in sequences]

        return score

    def _generate(self, prompt_ids: list[int], options: SamplingOptions) -> Iterator[int]:
        end = self.dialogue.end_of_turn_id
        sample = build_sampler(options, self.dialogue.banned_ids, end)
        reply: list[int] = []
        logits = self.prefill(prompt_ids)
        while True:
            token = sample(logits, reply)
            if token == end:
                return
            reply.append(token)
            yield token
            if len(reply) == options.max_new_tokens or len(prompt_ids) + len(reply) == self.context:
                return
            logits = self.step(token)

    def _score(self, ids: Sequence[int]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        self._check(ids)
        nats, hits, done = [], [], 1
        for logits in self._score_chunks(ids[:-1]):
            targets = np.asarray(ids[done : done + len(logits)])
            best = logits.max(axis=1, keepdims=True)
            norm = np.log(np.exp(logits - best).sum(axis=1, dtype=np.float64)) + best[:, 0]
            nats.append(norm - logits[np.arange(len(targets)), targets])
            hits.append(logits.argmax(axis=1) == targets)
            done += len(logits)
        if not nats:
            return np.zeros(0), np.zeros(0, dtype=bool)
        return np.concatenate(nats), np.concatenate(hits)

    def _score_chunks(self, ids: Sequence[int]) -> Iterator[Logits]:
        """Yield the logits of all positions, chunk by chunk; each is overwritten by the next."""
        self.reset()
        for start in range(0, len(ids), SCORE_CHUNK):
            chunk = ids[start : start + SCORE_CHUNK]
            yield self._feed(chunk, rows=len(chunk))

    def _feed(self, ids: Sequence[int], rows: int) -> Logits:
        """Append ids to the conversation; give the logits of the last `rows` of them, [rows, vocab]."""
        run = self._decode
        if len(ids) > 1:
            run = _Run(self._session, self._cache, self.geometry.vocab, tokens=len(ids), rows=rows)
        logits = run(ids, self._cache.length())
        self._cache.advance(len(ids))
        return logits

    def _check(self, ids: Sequence[int], room: int = 0) -> None:
        if not len(ids):
            raise BadRequest("the prompt has no tokens; give at least one")
        if len(ids) + room > self.context:
            raise ContextExceeded(
                f"the prompt has {len(ids)} tokens, the context holds {self.context - room}; shorten it",
                prompt_tokens=len(ids),
                limit=self.context - room,
            )
        low, high = min(ids), max(ids)
        if low < 0 or high >= self.geometry.vocab:
            bad = low if low < 0 else high
            raise BadRequest(f"token id {bad}: the vocabulary has 0 to {self.geometry.vocab - 1}")


class _Run:
    """Inputs, outputs and their binding for runs of one shape: `tokens` new ids, logits for the last `rows` of them."""

    def __init__(self, session: ort.InferenceSession, cache: KVCache, vocab: int, tokens: int, rows: int) -> None:
        self._session = session
        self._ids = np.zeros((1, tokens), dtype=np.int64)
        self._positions = np.zeros((1, tokens), dtype=np.int64)
        self._last = np.zeros(1, dtype=np.int32)
        self._total = np.zeros((), dtype=np.int32)
        self._wanted = np.arange(tokens - rows, tokens, dtype=np.int64)[None]
        self._logits = np.zeros((1, rows, vocab), dtype=np.float32)
        self._steps = np.arange(tokens, dtype=np.int64)
        inputs = {
            "input_ids": self._ids,
            "position_ids": self._positions,
            "logits_positions": self._wanted,
            "seqlens_k": self._last,
            "total_sequence_length": self._total,
        }
        self._binding = session.io_binding()
        # The OrtValues look into the arrays above and do not own them.
        self._values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)
        self._values["logits"] = ort.OrtValue.ortvalue_from_numpy(self._logits)
        self._binding.bind_ortvalue_output("logits", self._values["logits"])
        cache.bind(self._binding)

    def __call__(self, ids: Sequence[int], past: int) -> Logits:
        """Run on `ids` after `past` tokens of the cache: logits [rows, vocab], overwritten by the next call."""
        self._ids[0] = ids
        np.add(self._steps, past, out=self._positions[0])
        self._last[0] = past + len(ids) - 1
        self._total[...] = past + len(ids)
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime raises classes of its own and RuntimeError
            raise ServeError(f"onnxruntime failed: {_first_line(error)}") from error
        return self._logits[0]


def _open_session(choice: Choice, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors come as exceptions; a second report on stderr helps nobody
    # Threads spin between the operators of a step: without, decode loses a quarter of its speed on an idle machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    try:
        session = ort.InferenceSession(str(choice.path), options, providers=[choice.provider])
    except Exception as error:
        raise BadBundle(f"{choice.path}: onnxruntime cannot load it ({_first_line(error)})") from error
    inputs = tuple(item.name for item in session.get_inputs())
    outputs = tuple(item.name for item in session.get_outputs())
    if (inputs, outputs) != (choice.graph.inputs, choice.graph.outputs):
        raise BadBundle(f"{choice.path}: its inputs and outputs are not those of bundle.json; export it again")
    return session


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
