"""What a healing spends its budget on: the corpus, conversations of the teacher, the student's own replies.

Decided once, before the first step, from the number of steps that the budget allows.
"""

import math
from dataclasses import dataclass

from compress.distill.options import HealOptions

# Text that is read up to four times teaches almost as much as new text, and little after that (arXiv 2305.16264).
PASSES = 4
MAX_SAMPLED = 3  # times the training split: more takes longer to write than it is worth
STEPS_PER_ROUND = 60  # on own replies, at least; where the share has fewer, the corpus gets them
MAX_ROUNDS = 3


@dataclass(frozen=True)
class Budget:
    """`teacher_tokens`: ids that the teacher writes. `own_share` of the budget is for own replies, in `rounds` of
    `round_steps` optimizer steps each; all three 0 for none."""

    teacher_tokens: int
    own_share: float
    rounds: int
    round_steps: int


def share_budget(steps: int, corpus_tokens: int, corpus_windows: int, options: HealOptions) -> Budget:
    """Share out about `steps` optimizer steps over a training split of `corpus_tokens` ids in `corpus_windows` windows.

    The teacher writes (with "auto") when the training split alone would be read more than `PASSES` times: so much that
    it is not, at most `MAX_SAMPLED` times the split. When it is told to write, that and no less than the smaller of
    the split and half of what is read.
    """
    if options.heal_loss == "ce":
        return Budget(0, 0.0, 0, 0)
    own = math.floor(options.own_replies * steps)
    rounds = min(MAX_ROUNDS, own // STEPS_PER_ROUND)
    if not rounds:
        own = 0
    passes = (steps - own) * options.batch_size / corpus_windows
    wanted = min(max(0.0, passes / PASSES - 1), MAX_SAMPLED)
    if options.teacher_samples is True:
        wanted = max(wanted, min(1.0, passes / 2))
    elif options.teacher_samples is False:
        wanted = 0.0
    share = options.own_replies if own else 0.0
    return Budget(math.ceil(wanted * corpus_tokens), share, rounds, own // rounds if rounds else 0)
