"""Callbacks of the Trainer: when to evaluate and save, when the decay begins and the run ends, and the progress bar."""

from collections.abc import Callable
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from chitchat.training.pacer import Pacer
from chitchat.training.rate import Decision
from chitchat.training.workfolder import TrainingFolder, TrainingPlan


class Schedule(TrainerCallback):
    """When to save, to evaluate, to begin the decay and to end; marks complete checkpoints.

    The main process decides by the clock, and all processes follow at the same step. A decision is written before it
    takes effect, so that a resumed run repeats it. `patience` is that of `FitOptions`.
    """

    def __init__(self, plan: TrainingPlan, folder: TrainingFolder, pacer: Pacer, patience: int | None = None) -> None:
        self.plan, self.folder, self.pacer, self.patience = plan, folder, pacer, patience
        self.distributed = folder.distributed

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock of the first step."""
        self.pacer.begin()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Take the decision of this step, and request saves and evaluations that are due."""
        step = state.global_step
        decision = self.pacer.stepped(step) if self.distributed.is_main else None
        if self.plan.ends is not None:
            decision = self.distributed.broadcast(decision)
        self._take(decision, kwargs.get("lr_scheduler"))
        if self.distributed.is_main:
            self.pacer.stopwatch.note()
        if step % self.plan.save_every == 0:
            control.should_save = True
        if step >= self.pacer.schedule.end(step):
            control.should_evaluate = control.should_log = control.should_save = True
            control.should_training_stop = True
        return control

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Begin the decay when patience is spent, by the log, which is part of every checkpoint."""
        self.pacer.evaluated()
        if patience_spent(state.log_history, self.patience):
            self._take(self.pacer.impatient(state.global_step), kwargs.get("lr_scheduler"))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark the new checkpoint once every process has written its part, and remove all others but the best one.

        The Trainer's own rotation is not used, since it runs before a checkpoint is known to be complete.
        """
        self.distributed.barrier()
        if self.distributed.is_main:
            self.folder.mark_complete(state.global_step)
            self.folder.keep_only({f"checkpoint-{state.global_step}", f"checkpoint-{state.best_global_step}"})
        self.pacer.saved()

    def _take(self, decision: Decision | None, rates: Any) -> None:
        if decision is None:
            return
        self.pacer.schedule.decisions.append(decision)
        if self.distributed.is_main:
            self.folder.write_decisions(self.pacer.schedule.decisions)
        rates.last_epoch -= 1  # the rate of the next step was set before the decision
        rates.step()


def patience_spent(log: list[dict[str, float]], patience: int | None) -> bool:
    """Whether the best logged evaluation was `patience` or more evaluations ago."""
    losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    return patience is not None and bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= patience


class Progress(TrainerCallback):
    """A progress bar on stderr, in the main process and only where stderr is a terminal."""

    def __init__(self, total: Callable[[int], int], shown: bool) -> None:
        """`total(step)` is the number of steps, as decided until after `step` of them."""
        self.total = total
        self.disable = None if shown else True
        self.bar: tqdm | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any) -> None:
        """Open the bar at the step where the run begins."""
        step, total = state.global_step, self.total(state.global_step)
        self.bar = tqdm(total=total, initial=step, unit="step", desc="training", disable=self.disable)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance the bar."""
        assert self.bar is not None
        self.bar.total = self.total(state.global_step)
        self.bar.update(1)

    def on_log(self, *args: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the newest losses."""
        names = {"loss": "loss", "eval_loss": "validation"}
        shown = {label: f"{logs[name]:.3f}" for name, label in names.items() if name in (logs or {})}
        if self.bar is not None and shown:
            self.bar.set_postfix(shown)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
