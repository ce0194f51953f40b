"""The Trainer's callbacks: when to evaluate and save, when to stop early, and the progress bar."""

import time
from typing import Any, Protocol

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from chitchat.training.workfolder import Plan, WorkFolder


class Barrier(Protocol):
    """What the callbacks need to know of the processes."""

    first: bool

    def wait(self) -> None:
        """Wait until every process is here."""


class Schedule(TrainerCallback):
    """Saves between evaluations, an evaluation at the last step, and checkpoints that say when they are complete."""

    def __init__(self, plan: Plan, work: WorkFolder, processes: Barrier, started: float) -> None:
        self.plan, self.work, self.processes, self.started = plan, work, processes, started

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for what is due at this step."""
        last = state.global_step >= self.plan.total_steps
        if state.global_step % self.plan.save_every == 0:
            control.should_save = True
        if last:
            control.should_evaluate = control.should_log = control.should_save = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the new checkpoint once every process has written its part, then drop all but it and the best one.

        The Trainer's own rotation runs before a checkpoint is known to be whole, so it is not used.
        """
        self.processes.wait()
        if not self.processes.first:
            return
        self.work.mark_complete(state.global_step, time.monotonic() - self.started)
        self.work.keep_only({f"checkpoint-{state.global_step}", f"checkpoint-{state.best_global_step}"})


class Patience(TrainerCallback):
    """Stops when the last `patience` evaluations brought no better loss.

    It reads the log, which is part of every checkpoint, so it has no state of its own that a resume could lose.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop when it is time."""
        if patience_spent(state.log_history, self.patience):
            control.should_training_stop = True


def patience_spent(log: list[dict[str, float]], patience: int | None) -> bool:
    """Whether the best of the logged evaluations lies `patience` or more evaluations back."""
    losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    return patience is not None and bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= patience


class Progress(TrainerCallback):
    """A bar on stderr, in the first process and only where stderr is a terminal."""

    def __init__(self, total: int, shown: bool) -> None:
        self.total = total
        self.disable = None if shown else True
        self.bar: tqdm | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar where the run begins."""
        self.bar = tqdm(total=self.total, initial=state.global_step, unit="step", desc="training", disable=self.disable)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One step more."""
        assert self.bar is not None
        self.bar.update(1)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Show the newest losses."""
        names = {"loss": "loss", "eval_loss": "validation"}
        shown = {label: f"{logs[name]:.3f}" for name, label in names.items() if name in (logs or {})}
        if self.bar is not None and shown:
            self.bar.set_postfix(shown)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
