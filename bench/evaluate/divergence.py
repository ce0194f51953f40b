"""How far a model's predictions are from a teacher's on held-out text, whatever runtime computes either of the two.

KL(teacher || model) and top-1 agreement at every position that is scored. Perplexity cannot see a model that is wrong
where its teacher was right and right where it was wrong; these do.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bench.evaluate.bootstrap import with_interval
from bench.models.loaded import Floats, LoadedModel
from chitchat.divergence import compare_logits

if TYPE_CHECKING:
    from chitchat.data.dataset import Windows

_LOGITS_AT_ONCE = 2**24  # of the teacher, 64 MB; between blocks the threads of one runtime stall the other

# A window: its number, its ids, bool [ids - 1] where there is a label, the teacher's logits float32 [labels, vocab].
_Scored = tuple[int, list[int], Any, Floats]


@dataclass(frozen=True)
class Divergence:
    """Sums per conversation, [conversations], and the 99th percentile over tokens.

    `conversation` int64 is the number in the split; `kl` float64 in nats; `same` int64 counts positions whose likeliest
    tokens are the same; `tokens` int64.
    """

    conversation: list[int]
    kl: list[float]
    same: list[int]
    tokens: list[int]
    kl_p99: float

    def figures(self) -> dict[str, Any]:
        """Means with their intervals: `kl` (nats per token), `kl_p99`, `top1` (share), `kl_tokens`."""
        kl, top1 = with_interval("kl", self.kl, self.tokens), with_interval("top1", self.same, self.tokens)
        return {**kl, "kl_p99": self.kl_p99, **top1, "kl_tokens": sum(self.tokens)}


def measure_divergence(
    teacher: LoadedModel, model: LoadedModel, windows: "Windows", max_tokens: int
) -> Divergence | None:
    """Compare two models of one vocabulary on the windows in order, whole windows until `max_tokens` labels.

    None where the windows have no label to score.
    """
    numbers: list[int] = []
    kl: list[Floats] = []
    same: list[npt.NDArray[np.bool_]] = []
    for block in _blocks(teacher, windows, max_tokens):
        for number, ids, labelled, teacher_logits in block:
            window_kl, window_same = compare_logits(teacher_logits, model.logits(ids)[:-1][labelled])
            numbers.append(int(windows.conversation[number]))
            kl.append(window_kl)
            same.append(window_same)
    if not sum(map(len, kl)):
        return None
    conversation, index = np.unique(numbers, return_inverse=True)
    columns = [[part.sum() for part in kl], [part.sum() for part in same], [len(part) for part in kl]]
    kl_sums, same_sums, tokens = (np.bincount(index, weights=np.asarray(column)) for column in columns)
    return Divergence(
        conversation.tolist(),
        kl_sums.tolist(),
        same_sums.astype(np.int64).tolist(),
        tokens.astype(np.int64).tolist(),
        float(np.percentile(np.concatenate(kl), 99)),
    )


def _blocks(teacher: LoadedModel, windows: "Windows", max_tokens: int) -> Iterator[list[_Scored]]:
    """Windows and the teacher's logits where there is a label, as many as are held at once."""
    block: list[_Scored] = []
    tokens = held = 0
    for number in range(len(windows)):
        if tokens >= max_tokens:
            break
        window = windows[number]
        labelled = np.asarray(window["labels"][1:]) != -100
        if not labelled.any():
            continue
        logits = teacher.logits(window["input_ids"])[:-1][labelled]
        block.append((number, window["input_ids"], labelled, logits))
        tokens += len(logits)
        held += logits.size
        if held >= _LOGITS_AT_ONCE:
            yield block
            block, held = [], 0
    yield block
