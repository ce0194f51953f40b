"""Conversations that a model writes itself, as windows to heal on.

The teacher continues first turns of the training split until a window is full; the student answers prompts of the
training split. Both are drawn by nucleus sampling, many rows at once.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, Subset
from torch.utils.data import Dataset as TorchDataset
from transformers import PreTrainedModel, TopPLogitsWarper

from chitchat.data.dataset import ChatData
from chitchat.data.windows import IGNORED, RaggedColumn, counted_turns
from chitchat.padded import PaddedRows
from chitchat.training.batches import TrainingWindows
from chitchat.training.objective import fused_gelu

TOP_P = 0.95  # of the nucleus: text from the whole tail leads a small model where no conversation goes
# Of the student's own replies, less where the context is short: a reply of 20 ids behind 200 would pay for 200.
PROMPT_TOKENS, REPLY_TOKENS = 64, 64
BATCH_ROWS = 64  # conversations that are written at once


class SampledWindows(TorchDataset[dict[str, Any]]):
    """Windows of token ids in memory: `ids` is a list of windows, `labelled_from[i]` where the labels of one begin.

    `lengths` int64 [windows]. A window reads as one of `chitchat.data.windows.Windows` does.
    """

    def __init__(self, ids: Sequence[Sequence[int]], labelled_from: Sequence[int]) -> None:
        self.ids = [list(row) for row in ids]
        self.labelled_from = list(labelled_from)
        self.lengths: NDArray[np.int64] = np.array([len(row) for row in self.ids], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`input_ids` and `labels` (not shifted), lists of `length` ints."""
        ids, begin = self.ids[index], self.labelled_from[index]
        return {"input_ids": ids, "labels": [IGNORED] * begin + ids[begin:], "length": len(ids)}

    def save(self, file: Path) -> None:
        """Write the windows so that the file is there whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".partial.npz")
        flat = np.array([token for row in self.ids for token in row], dtype=np.int32)
        np.savez(temporary, ids=flat, lengths=self.lengths, labelled_from=np.array(self.labelled_from, dtype=np.int64))
        os.replace(temporary, file)

    @classmethod
    def load(cls, file: Path) -> "SampledWindows":
        """The windows that `save` wrote."""
        with np.load(file, allow_pickle=False) as stored:
            rows = np.split(stored["ids"], np.cumsum(stored["lengths"])[:-1])
            return cls([row.tolist() for row in rows], stored["labelled_from"].tolist())


class Joined(ConcatDataset[dict[str, Any]]):
    """The windows of several sets, one after the other; `lengths` int64 [windows]."""

    def __init__(self, *parts: TrainingWindows) -> None:
        super().__init__(parts)
        self.lengths: NDArray[np.int64] = np.concatenate([part.lengths for part in parts])


class Chosen(Subset[dict[str, Any]]):
    """Some windows of a set, by their numbers; `lengths` int64 [windows]."""

    def __init__(self, windows: TrainingWindows, numbers: NDArray[np.int64]) -> None:
        super().__init__(windows, numbers.tolist())
        self.lengths: NDArray[np.int64] = windows.lengths[numbers]


def teacher_conversations(
    teacher: PreTrainedModel,
    data: ChatData,
    context: int,
    tokens: int,
    *,
    seed: int,
    replies_only: bool = False,
    enough: Callable[[], bool] = lambda: False,
) -> SampledWindows:
    """Conversations of `context` ids that the teacher writes after first turns of the training split, `tokens` ids in
    all at least; fewer and shorter ones where it is `enough` before, which is asked after every token.

    Every id has a label, but for those of a first turn that does not count; with `replies_only` those alone that the
    teacher wrote.
    """
    random = np.random.default_rng([seed, 3])
    turns = RaggedColumn(data.train, "turn_lengths")
    start = len(data.dialogue.start_ids)
    ids = RaggedColumn(data.train, "input_ids")
    counted = counted_turns(data.train)[np.cumsum(turns.lengths) - turns.lengths]  # of the first turns
    prompts: list[list[int]] = []
    labelled_from: list[int] = []
    for row in random.integers(len(turns.lengths), size=max(1, -(-tokens // context))):
        first = start + int(turns.slice(int(row), 0, 1)[0])
        prompts.append(ids.slice(int(row), 0, min(first, max(start + 1, context // 2))).tolist())
        labelled_from.append(0 if counted[row] and not replies_only else len(prompts[-1]))
    order = np.array(sorted(range(len(prompts)), key=lambda number: len(prompts[number])))
    prompts, labelled_from = [prompts[number] for number in order], [labelled_from[number] for number in order]
    sampler = Sampler(teacher, data.banned_ids(teacher.config.vocab_size), int(random.integers(2**31)), enough)
    return _written(sampler, prompts, labelled_from, random, context)


def student_replies(
    student: PreTrainedModel,
    data: ChatData,
    context: int,
    count: int,
    *,
    seed: int,
    enough: Callable[[], bool] = lambda: False,
) -> SampledWindows:
    """`count` prompts of the training split with the student's replies; only these have labels, their end included.

    Fewer, of all lengths, where it is `enough` before; replies that are being written then end early.
    """
    random = np.random.default_rng([seed, 4])
    max_new_tokens = min(REPLY_TOKENS, context // 2)
    prompts = sorted(draw_prompts(data, count, min(PROMPT_TOKENS, context - max_new_tokens), random), key=len)
    sampler = Sampler(student, data.banned_ids(student.config.vocab_size), int(random.integers(2**31)), enough)
    lengths = [len(prompt) for prompt in prompts]
    return _written(sampler, prompts, lengths, random, context, data.dialogue.end_of_turn_id, max_new_tokens)


def _written(
    sampler: "Sampler",
    prompts: Sequence[Sequence[int]],
    labelled_from: Sequence[int],
    random: np.random.Generator,
    context: int,
    end_id: int | None = None,
    max_new_tokens: int | None = None,
) -> SampledWindows:
    """The prompts, in order of their lengths, with what follows, until it is enough.

    Batches of like lengths are written in any order: a limit of time must not leave the long ones out.
    """
    ids: list[list[int]] = []
    labels: list[int] = []
    for start in random.permutation(np.arange(0, len(prompts), BATCH_ROWS)):
        batch = slice(start, start + BATCH_ROWS)
        ids += sampler.continue_all(prompts[batch], context, end_id=end_id, max_new_tokens=max_new_tokens)
        labels += labelled_from[batch]
        if sampler.enough():
            break
    return SampledWindows(ids, labels)


def draw_prompts(data: ChatData, count: int, max_tokens: int, random: np.random.Generator) -> Iterator[list[int]]:
    """`count` prompts from random conversations of the training split, each ending with a random whole turn.

    Older turns that do not fit into `max_tokens` ids are left out whole; of a longer last turn the end stays.
    """
    turns, ids = RaggedColumn(data.train, "turn_lengths"), RaggedColumn(data.train, "input_ids")
    start = list(data.dialogue.start_ids)
    for row in random.integers(len(turns.lengths), size=count):
        lengths = turns.slice(int(row), 0, int(turns.lengths[row])).astype(np.int64)
        lengths = lengths[: int(random.integers(len(lengths))) + 1]
        fits = np.cumsum(lengths[::-1]) + len(start) <= max_tokens
        end = len(start) + int(lengths.sum())
        size = int(lengths[::-1][fits].sum()) or max_tokens - len(start)
        yield start + ids.slice(int(row), end - size, end).tolist()


@dataclass
class Sampler:
    """Draws text of `model` by nucleus sampling, many rows at once; the same calls after one `seed` give the same ids.

    `banned_ids` are never drawn, and nothing more once it is `enough`. The model is left in eval mode.
    """

    model: PreTrainedModel
    banned_ids: Sequence[int]
    seed: int
    enough: Callable[[], bool] = lambda: False
    top_p: float = TOP_P

    def __post_init__(self) -> None:
        self.model.eval()
        self._generator = torch.Generator(self.model.device).manual_seed(self.seed)
        self._nucleus = TopPLogitsWarper(self.top_p)

    @torch.inference_mode()
    def continue_all(
        self,
        prompts: Sequence[Sequence[int]],
        context: int,
        *,
        end_id: int | None = None,
        max_new_tokens: int | None = None,
    ) -> list[list[int]]:
        """Each prompt with what follows, at most `context` ids together, and at most `max_new_tokens` new ones.

        With `end_id` a row ends with that id; without, it goes on until it is full.
        """
        limits = [min(context - len(prompt), max_new_tokens or context) for prompt in prompts]
        with fused_gelu(self.model):
            drawn = self._draw(prompts, max(limits), end_id)
        return [[*prompt, *ids[:limit]] for prompt, ids, limit in zip(prompts, drawn, limits, strict=True)]

    def _draw(self, prompts: Sequence[Sequence[int]], count: int, end_id: int | None) -> list[list[int]]:
        """The next `count` ids of each prompt, or those up to its `end_id`."""
        rows = PaddedRows(self.model)
        drawn: list[list[int]] = [[] for _ in prompts]
        numbers = list(range(len(prompts)))  # the prompt of each row
        ended = [False] * len(numbers)
        logits = rows.start(prompts)
        for step in range(1, count + 1):
            ids = self._choose(logits)
            for row, id in enumerate(ids):
                if not ended[row]:
                    drawn[numbers[row]].append(id)
                    ended[row] = id == end_id
            if step == count or all(ended) or self.enough():
                break
            if 2 * sum(ended) >= len(ended):  # a finished row costs as much as another
                left = [row for row, done in enumerate(ended) if not done]
                rows.keep(left)
                ids, numbers, ended = [ids[row] for row in left], [numbers[row] for row in left], [False] * len(left)
            logits = rows.step(ids)  # full rows are drawn on beside those that are not, and cut afterwards
        return drawn

    def _choose(self, logits: torch.Tensor) -> list[int]:
        """An id of the nucleus of each row; logits float [rows, vocab]."""
        logits = logits.float()
        logits[:, list(self.banned_ids)] = -torch.inf
        probabilities = self._nucleus(None, logits).softmax(-1)
        return torch.multinomial(probabilities, 1, generator=self._generator)[:, 0].tolist()
