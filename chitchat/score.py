"""Perplexity, bits per byte and token accuracy, of torch models and of the runtime's engine.

A scorer is any function that gives, for id sequences, the negative log-likelihood of each next id and whether it was
the most likely one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from chitchat.architectures.states import last_hidden
from chitchat.divergence import score_states
from chitchat.errors import WorkFailed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from chitchat.data.dataset import Windows

# For id sequences of length n: (nll float64 [n - 1] in nats of ids[1:], hit bool [n - 1]: the argmax was ids[1:]).
TokenScorer = Callable[[Sequence[Sequence[int]]], list[tuple[np.ndarray, np.ndarray]]]

_WINDOWS_AT_ONCE = 128


@dataclass(frozen=True)
class Score:
    """How well a model predicts text. `nll_per_token` is in nats; `bytes` are the UTF-8 bytes of the scored turns."""

    perplexity: float
    nll_per_token: float
    bits_per_byte: float
    token_accuracy: float
    tokens: int
    bytes: int

    def as_json(self) -> dict[str, Any]:
        """The fields as a dict."""
        return asdict(self)


@dataclass(frozen=True)
class Sums:
    """Sums per conversation, for a bootstrap over conversations. All arrays are [conversations].

    `conversation` int64 is the number in the split; `nll` float64 in nats; `tokens`, `hits`, `bytes` int64.
    """

    conversation: np.ndarray
    nll: np.ndarray
    tokens: np.ndarray
    hits: np.ndarray
    bytes: np.ndarray

    def score(self) -> Score:
        """The figures over all conversations. Raises `WorkFailed` if there was nothing to score."""
        tokens, size = int(self.tokens.sum()), int(self.bytes.sum())
        if not tokens or not size:
            raise WorkFailed("there is no token to score: the split has no text with labels")
        nll = float(self.nll.sum())
        return Score(
            perplexity=math.exp(min(nll / tokens, 700.0)),
            nll_per_token=nll / tokens,
            bits_per_byte=nll / math.log(2) / size,
            token_accuracy=int(self.hits.sum()) / tokens,
            tokens=tokens,
            bytes=size,
        )


def score(scorer: TokenScorer, windows: "Windows", max_tokens: int | None = None) -> Score:
    """Score the windows in order, whole windows until `max_tokens` labels are reached.

    Only positions with a label count. Bits per byte are all their nats (including those of end-of-turn ids, which have
    no bytes) over the UTF-8 bytes of the turns, and comparable between tokenizers. The first id of a conversation
    without a start id is not scored, though its bytes count.
    """
    return conversation_sums(scorer, windows, max_tokens).score()


def conversation_sums(scorer: TokenScorer, windows: "Windows", max_tokens: int | None = None) -> Sums:
    """The sums behind `score`, for each conversation."""
    rows: list[tuple[int, float, int, int, int]] = []
    tokens = 0
    for start in range(0, len(windows), _WINDOWS_AT_ONCE):
        numbers = range(start, min(start + _WINDOWS_AT_ONCE, len(windows)))
        part = [(number, windows[number]) for number in numbers]
        kept = []
        for number, window in part:
            if max_tokens is not None and tokens >= max_tokens:
                break
            wanted = np.asarray(window["labels"][1:]) != -100
            tokens += int(wanted.sum())
            kept.append((number, window["input_ids"], wanted))
        for (number, _, wanted), (nll, hit) in zip(kept, scorer([ids for _, ids, _ in kept]), strict=True):
            sums = float(nll[wanted].sum(dtype=np.float64)), int(wanted.sum()), int(hit[wanted].sum())
            rows.append((int(windows.conversation[number]), *sums, int(windows.text_bytes[number])))
        if len(kept) < len(part):
            break
    return _by_conversation(rows)


def _by_conversation(rows: list[tuple[int, float, int, int, int]]) -> Sums:
    columns = [np.asarray(column) for column in zip(*rows, strict=True)] or [np.zeros(0)] * 5
    conversation, index = np.unique(columns[0].astype(np.int64), return_inverse=True)
    nll, *counts = (np.bincount(index, weights=column, minlength=len(conversation)) for column in columns[1:])
    return Sums(conversation, nll, *(count.astype(np.int64) for count in counts))


def torch_scorer(model: "PreTrainedModel", batch_tokens: int = 4096) -> TokenScorer:
    """A scorer of a torch model, on the model's device, in its precision with float32 logits.

    Sequences of similar length form batches of about `batch_tokens` ids. The model is in eval mode during a call.
    """
    import torch

    def scorer(sequences: Sequence[Sequence[int]]) -> list[tuple[np.ndarray, np.ndarray]]:
        results = [(np.zeros(0), np.zeros(0, dtype=bool))] * len(sequences)
        order = sorted((i for i in range(len(sequences)) if len(sequences[i]) > 1), key=lambda i: len(sequences[i]))
        training = model.training
        model.eval()
        try:
            with torch.inference_mode():
                while order:
                    count = max(1, batch_tokens // len(sequences[order[-1]]))
                    batch, order = order[-count:], order[:-count]
                    for i, result in zip(batch, _score_batch(model, [sequences[i] for i in batch]), strict=True):
                        results[i] = result
        finally:
            model.train(training)
        return results

    return scorer


def _score_batch(model: "PreTrainedModel", batch: list[Sequence[int]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Score right-padded sequences in one forward pass; the head runs on real positions only."""
    import torch

    longest = max(map(len, batch))
    context = model.config.max_position_embeddings
    if longest > context:
        raise ValueError(f"a sequence of {longest} ids does not fit the context of {context}")
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    for row, sequence in enumerate(batch):
        ids[row, : len(sequence)] = torch.as_tensor(sequence)
    lengths = torch.tensor([len(sequence) for sequence in batch])
    wanted = (torch.arange(longest - 1)[None] < (lengths - 1)[:, None]).to(model.device)  # [batch, longest - 1]
    ids = ids.to(model.device)
    states, targets = last_hidden(model, ids)[:, :-1][wanted], ids[:, 1:][wanted]
    nll, hit = score_states(model.lm_head, states, targets)
    cuts = np.cumsum([len(sequence) - 1 for sequence in batch])[:-1]
    return list(zip(np.split(nll.numpy(), cuts), np.split(hit.numpy(), cuts), strict=True))
