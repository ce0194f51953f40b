"""Healing: a pruned student learns the next-token distribution of its teacher.

First it reads the corpus, and conversations of the teacher where the corpus is small; the last part of the budget goes
to its own replies, written anew every round (`compress.distill.on_policy`). What is minimised stands in
`compress.distill.objective`, how a run is planned, killed and resumed in `chitchat.training.trainer`. The work folder:

    heal.json           what the budget is spent on, decided once, and when it has to end
    clock.json          the seconds that it has taken so far
    teacher.npz         the teacher's conversations
    main/               the first part, as `chitchat.training.workfolder` keeps it
    round-1/ …          each round of the last part, round-1.npz its replies
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from chitchat.data.dataset import ChatData
from chitchat.errors import BadInput
from chitchat.training.batches import TrainingWindows
from chitchat.training.options import FitResult
from chitchat.training.planning import step_seconds
from chitchat.training.run import FitRun
from chitchat.training.stopwatch import Stopwatch
from chitchat.training.trainer import weights_sha256
from chitchat.training.workfolder import MARKER, WorkFolder
from compress.distill.budget import Budget, share_budget
from compress.distill.on_policy import OnPolicyResult, heal_on_policy
from compress.distill.options import HealOptions
from compress.distill.run import HealRun, dropout
from compress.distill.samples import Joined, SampledWindows, teacher_conversations

BUDGET = "heal.json"
_SAMPLING_SHARE = 0.25  # of the minutes that the teacher may write, at most
_USED_SHARE = 0.8  # of the minutes that are steps


@dataclass(frozen=True)
class HealResult:
    """Held-out figures before and after: `kl` in nats per token, `perplexity` of the student; and what the run did.

    `best_step` 0: nothing was better than the start, and the student holds that. `main_kl` is that of the first part,
    `own_steps` the steps on the student's own replies, and `own_rounds` how many rounds of them lowered the held-out KL
    (only they count in the weights). `teacher_tokens` are ids that the teacher wrote. `steps`, `best_step`, `tokens`
    and `log` run over both parts.
    """

    before_kl: float
    after_kl: float
    before_perplexity: float
    after_perplexity: float
    teacher_perplexity: float
    steps: int
    best_step: int
    tokens: int
    minutes: float
    stopped_early: bool
    main_kl: float
    teacher_tokens: int
    own_steps: int
    own_rounds: int
    log: list[dict[str, float]]


def heal(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    data: ChatData,
    work: Path,
    options: HealOptions,
    *,
    resume: bool = False,
    inputs: Mapping[str, Any] | None = None,
    stopwatch: Stopwatch | None = None,
    ends: float | None = None,
) -> HealResult:
    """Train `student` in place towards `teacher`; afterwards it holds the weights with the best held-out loss.

    `work` is the work folder of the run: with `resume` it goes on where the folder says, and the caller removes it once
    the student is stored (`WorkFolder(work).remove()`). `inputs` are more values that a resumed run must share. Under
    a launcher every process calls this; the first one writes conversations and files, which all must see. A healing by
    minutes ends at `ends`, seconds on the `stopwatch` (default: its minutes, on one that begins now). Raises `BadInput`
    for models that do not fit together.
    """
    stopwatch, folder = stopwatch or Stopwatch(), WorkFolder(work)
    context = _context(student, teacher, options.context)
    windows, held_out = (data.windows(split, context, options.loss == "replies") for split in ("train", "validation"))
    if not len(windows):
        raise BadInput(f"{data.path}: no training turn counts in the loss; give turns a weight of 1")
    key = {
        "options": asdict(options),
        "data": data.identity,
        "student": weights_sha256(student),
        "teacher": weights_sha256(teacher),
        "context": context,
        **(inputs or {}),
    }
    if options.heal_minutes is not None and ends is None:
        ends = 60 * options.heal_minutes
    run = HealRun(student, teacher, data, windows, held_out, context, options, folder, key, resume, stopwatch)

    def resume_point(error: BaseException) -> str | None:
        return "here" if any(folder.path.rglob(MARKER)) or any(folder.path.glob("*.npz")) else None

    try:
        with folder.resumable(BUDGET, key, resume, stopwatch, resume_point), dropout(student, options.dropout):
            budget, run = _decide(run, ends)
            sampled = _teacher_windows(run, budget) if budget.teacher_tokens else None
            joined = windows if sampled is None else Joined(windows, sampled)
            start = copy.deepcopy(student.state_dict())
            main = _main_part(run, budget, joined)
            if main.before["loss"] <= main.after["loss"]:  # a refitted student can be good without a step
                student.load_state_dict(start)
            best = min(main.before["loss"], main.after["loss"])
            own = heal_on_policy(run, budget, joined, best, main)
    finally:
        student.to("cpu")
        teacher.to("cpu")
    return _result(main, own, run.minutes, 0 if sampled is None else int(sampled.lengths.sum()))


def _context(student: PreTrainedModel, teacher: PreTrainedModel, context: int | None) -> int:
    """The window length. Raises `BadInput` where the models do not fit together."""
    if student.config.vocab_size != teacher.config.vocab_size:
        raise BadInput(
            f"--teacher: has a vocabulary of {teacher.config.vocab_size}, the student one of "
            f"{student.config.vocab_size}; distillation needs the same one"
        )
    longest = min(student.config.max_position_embeddings, teacher.config.max_position_embeddings)
    if context is not None and context > longest:
        raise BadInput(
            f"--context {context}: teacher and student have {longest} positions in common; give at most {longest}"
        )
    return context or longest


def _decide(run: HealRun, ends: float | None) -> tuple[Budget, HealRun]:
    """The budget in the work folder, else a new one, the same in every process; and the run with its time."""

    def make() -> dict[str, Any]:
        begins = run.stopwatch.seconds
        steps = _steps(run)
        if steps is None:
            begins, until = run.distributed.broadcast((begins, ends))
            assert until is not None
            options = run.fit_options(max_minutes=(until - begins) / 60)
            timed = FitRun(run.student, run.windows, run.objective(), options, run.distributed, run.stopwatch)
            steps = int(_USED_SHARE * (until - begins) / step_seconds(timed))
        budget = share_budget(steps, int(run.windows.lengths.sum()), len(run.windows), run.options)
        return {"budget": asdict(budget), "begins": begins, "ends": ends}

    decided = run.folder.decide(BUDGET, run.key, make)
    return Budget(**decided["budget"]), replace(run, begins=decided["begins"], ends=decided["ends"])


def _steps(run: HealRun) -> int | None:
    """The optimizer steps of the whole budget; None where it is given in minutes."""
    options = run.options
    if options.heal_epochs is None:
        return options.heal_steps
    return math.ceil(options.heal_epochs * len(run.windows) / options.batch_size)


def _teacher_windows(run: HealRun, budget: Budget) -> SampledWindows:
    """The teacher's conversations of an earlier run, else new ones."""

    def write() -> SampledWindows:
        run.teacher.to(run.distributed.device)
        replies_only, enough = run.options.loss == "replies", run.time_limit(_SAMPLING_SHARE)
        return teacher_conversations(
            run.teacher, run.data, run.context, budget.teacher_tokens, seed=run.options.seed,
            replies_only=replies_only, enough=enough,
        )  # fmt: skip

    return run.stored_windows("teacher.npz", write)


def _main_part(run: HealRun, budget: Budget, windows: TrainingWindows) -> FitResult:
    steps, minutes = _steps(run), run.options.heal_minutes
    options = run.fit_options(
        steps=None if steps is None else max(1, steps - budget.rounds * budget.round_steps),
        max_minutes=None if minutes is None else minutes * (1 - budget.own_share),
        patience=run.options.patience,
        eval_tokens=run.options.eval_tokens,
    )
    ends = None if run.ends is None else run.begins + (1 - budget.own_share) * (run.ends - run.begins)
    return run.fit(windows, run.objective(), options, "main", ends, {**run.key, "windows": len(windows)})


def _result(main: FitResult, own: OnPolicyResult, minutes: float, teacher_tokens: int) -> HealResult:
    parts, log, steps = [main, *own.rounds], [], 0
    after, best_step = (main.before, 0) if main.before["loss"] <= main.after["loss"] else (main.after, main.best_step)
    for number, part in enumerate(parts):
        log += [{**entry, "step": entry["step"] + steps} for entry in part.log]
        if 1 <= number <= own.kept:
            after, best_step = part.after, steps + part.best_step
        steps += part.steps
    return HealResult(
        before_kl=main.before["kl"],
        after_kl=after["kl"],
        before_perplexity=main.before["perplexity"],
        after_perplexity=after["perplexity"],
        teacher_perplexity=main.after["teacher_perplexity"],
        steps=steps,
        best_step=best_step,
        tokens=sum(part.tokens for part in parts),
        minutes=minutes,
        stopped_early=main.stopped_early,
        main_kl=main.after["kl"],
        teacher_tokens=teacher_tokens,
        own_steps=steps - main.steps,
        own_rounds=own.kept,
        log=log,
    )
