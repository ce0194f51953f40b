"""A loaded model as quality is measured on it: token scores, logits of whole texts, and replies step by step.

Torch and the engine that ships here, peers in `bench.models.stepping`, behind one protocol that speaks ids only. What
is done with the numbers (`bench.evaluate.divergence`, `bench.evaluate.replies`) is the same code for all. Nothing here
is timed; for that there are `bench.peers`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

    from serve.engine import Engine

Floats = npt.NDArray[np.floating[Any]]

_BATCH_TOKENS = 8192  # keys and values of so many tokens of GPT-2 small take 600 MB


class Runtime(Protocol):
    """A loaded model. `context` is how many ids it sees at most."""

    context: int

    def scorer(self) -> Any:
        """A `chitchat.score.TokenScorer`."""

    def logits(self, ids: Sequence[int]) -> Floats:
        """Logits after every one of `ids`, float32 [n, vocab]."""

    def rows(self, tokens: int) -> int:
        """How many conversations of at most `tokens` ids are continued at once."""

    def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
        """Forget all conversations and start one with each prompt; the logits after them, float32 [prompts, vocab]."""

    def step(self, going: Sequence[int], tokens: Sequence[int]) -> Floats:
        """Of the conversations of the call before, go on with those at the places `going`, each by one of `tokens`.

        The others are forgotten. The logits after the new ids, float32 [going, vocab], hold until the next call.
        """


class EngineRuntime:
    """Our torch-free engine, one conversation at a time, on slot 0."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self.context: int = engine.context

    def scorer(self) -> Any:
        """See `Runtime.scorer`."""
        return self._engine.scorer()

    def logits(self, ids: Sequence[int]) -> Floats:
        """See `Runtime.logits`."""
        return self._engine.logits(ids)

    def rows(self, tokens: int) -> int:
        """See `Runtime.rows`."""
        return 1

    def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
        """See `Runtime.start`."""
        (prompt,) = prompts
        return self._engine.prefill(prompt)[None]

    def step(self, going: Sequence[int], tokens: Sequence[int]) -> Floats:
        """See `Runtime.step`."""
        (token,) = tokens
        return self._engine.step(token)[None]


class TorchRuntime:
    """A torch GPT-2 on the device where it is, in its precision. Several conversations are padded on the left."""

    def __init__(self, model: "GPT2LMHeadModel") -> None:
        from chitchat.padded import PaddedRows

        self._model = model.eval()
        self.context: int = model.config.n_positions
        self._rows = PaddedRows(model)

    def scorer(self) -> Any:
        """See `Runtime.scorer`."""
        from chitchat.score import torch_scorer

        return torch_scorer(self._model)

    def logits(self, ids: Sequence[int]) -> Floats:
        """See `Runtime.logits`."""
        import torch

        with torch.inference_mode():
            found = self._model(torch.tensor([list(ids)], device=self._model.device), use_cache=False).logits[0]
        return self._numbers(found)

    def rows(self, tokens: int) -> int:
        """See `Runtime.rows`."""
        return max(1, _BATCH_TOKENS // tokens)

    def start(self, prompts: Sequence[Sequence[int]]) -> Floats:
        """See `Runtime.start`."""
        return self._numbers(self._rows.start(prompts))

    def step(self, going: Sequence[int], tokens: Sequence[int]) -> Floats:
        """See `Runtime.step`."""
        if len(going) < len(self._rows):
            self._rows.keep(going)
        return self._numbers(self._rows.step(tokens))

    def _numbers(self, found: Any) -> Floats:
        numbers: Floats = found.float().cpu().numpy()
        return numbers
