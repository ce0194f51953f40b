"""What fine-tuning and healing share: transformers' Trainer, made exact.

`fit` trains a model on windows and leaves the best weights in it. A run that is killed at any moment and resumed ends
with the same bits on a CPU as one that was left alone: the number of steps is planned once, the windows of a step are a
function of its number, checkpoints are complete or ignored, and the Trainer restores optimizer, schedule and random
state. Where a run by minutes has to end earlier or later than it was planned to, that decision is written down before
it is followed, and a resumed run follows it again. Under torchrun or `accelerate launch` every process calls `fit`; the
first one decides and writes.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerControl, TrainingArguments
from transformers.trainer_callback import TrainerState

from chitchat.data.windows import collate
from chitchat.errors import BadInput, WorkFailed
from chitchat.system.folder import is_disk_full
from chitchat.training.batches import GlobalBatches, ProcessBatches, TrainingWindows, share_out
from chitchat.training.callbacks import Progress, Schedule
from chitchat.training.objective import Objective, Trainable, fused_gelu
from chitchat.training.options import FitOptions, FitResult
from chitchat.training.pacer import Pacer
from chitchat.training.planning import make_plan, time_step
from chitchat.training.processes import Distributed, no_leftovers
from chitchat.training.rate import Decision, RateSchedule
from chitchat.training.stopwatch import CLOCK, Stopwatch
from chitchat.training.workfolder import TrainingPlan, WorkFolder

RATE = "warm-up, stable, decay"  # a run of an earlier version had another schedule, and does not go on with this one
# Steps that a run by minutes never has: the clock ends it.
NO_END = 2**31


def fit(
    model: PreTrainedModel,
    windows: TrainingWindows,
    objective: Objective,
    options: FitOptions,
    work: WorkFolder,
    inputs: Mapping[str, Any],
    *,
    resume: bool = False,
    stopwatch: Stopwatch | None = None,
    ends: float | None = None,
    closing_seconds: float = 0.0,
) -> FitResult:
    """Train `model` in place; afterwards it holds the weights of the best evaluation, in eval mode, on the CPU.

    `inputs` names what the run depends on beside `options` (hashes of data and weights). Without `resume` an earlier
    work folder is removed; with it the run goes on where the folder says, or begins where there is none. The caller
    removes the folder once the result is stored. A run by minutes ends at `ends`, seconds on the `stopwatch` (default:
    `options.max_minutes`, on a stopwatch that begins now), `closing_seconds` of which the caller needs afterwards.
    Raises `BadInput` for a resume with other values, `WorkFailed` when the loss is not finite. Ctrl-C leaves the folder
    only if there is something to go on from.
    """
    stopwatch = stopwatch or Stopwatch()
    processes = Distributed()
    check_shares(options, processes.count)
    if not len(windows):
        raise BadInput("the data set has no training windows; build it from more conversations")
    if processes.first:
        work.sweep() if resume else work.remove()
        stopwatch.keep_in(work.path / CLOCK, resume)
    processes.wait()
    if options.max_minutes is not None and ends is None:
        ends = 60 * options.max_minutes
    try:
        with no_leftovers(), fused_gelu(model):
            trainer = _trainer(
                model, windows, objective, options, work, inputs, processes, stopwatch, ends, closing_seconds
            )
            _run(trainer)
            return _result(trainer)
    except BaseException as error:
        if processes.first:
            _tidy(work, error)
        raise
    finally:
        model.to("cpu").eval()


def check_shares(options: FitOptions, processes: int) -> None:
    """Raise `BadInput` unless the batch can be shared out evenly."""
    parts = processes * options.grad_accumulation
    if options.batch_size % parts:
        raise BadInput(
            f"--batch-size {options.batch_size}: cannot be shared out among {processes} processes times "
            f"{options.grad_accumulation} accumulation steps; give a multiple of {parts}"
        )


def weights_sha256(model: torch.nn.Module) -> str:
    """A sha256 over names and values of all weights: the identity of a model that need not be on a disk."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


class ExactTrainer(Trainer):
    """transformers' Trainer with our batches, our objective and our evaluation. One epoch is the whole run."""

    control: TrainerControl

    def __init__(
        self, model: Trainable, windows: TrainingWindows, objective: Objective, batches: GlobalBatches,
        plan: TrainingPlan,
        decisions: list[Decision], options: FitOptions, work: WorkFolder, processes: Distributed, stopwatch: Stopwatch,
    ) -> None:  # fmt: skip
        arguments = _arguments(options, plan, work, processes.count)
        # The Trainer insists on an evaluation set; our `evaluate` never reads it.
        super().__init__(model, arguments, data_collator=_collate, train_dataset=windows, eval_dataset=windows)
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # the number of labels of a whole step is counted and passed to us
        self.objective, self.batches, self.plan = objective, batches, plan
        self.options, self.work, self.processes, self.stopwatch = options, work, processes, stopwatch
        self.schedule = RateSchedule(decisions, options.warmup)
        parts = processes.count * options.grad_accumulation
        self.pacer = Pacer(
            plan, self.schedule, lambda step: batches.padded_tokens(step, parts), lambda: stopwatch.seconds
        )
        self.add_callback(Schedule(plan, work, processes, self.pacer, stopwatch, options.patience))
        self.add_callback(Progress(self.schedule.end, processes.first))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """The rates of our schedule, which decisions may change on the way."""
        schedule = self.schedule
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: schedule.factor(step))
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process's batches, in the order of the plan."""
        order = ProcessBatches(
            self.batches,
            self.args.max_steps,
            self.options.grad_accumulation,
            self.processes.index,
            self.processes.count,
        )
        return DataLoader(self.train_dataset, batch_sampler=order, collate_fn=_collate)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The loss per label of the whole global batch; gradients are averaged over processes, hence the factor."""
        loss = model(input_ids=inputs["input_ids"], labels=inputs["labels"])
        # Turns of one id without a start before them can fill a batch: nothing predicts those.
        labels = self.options.labels_per_step or max(num_items_in_batch, 1)
        return loss * (self.processes.count / labels)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate in the first process and tell the others, so that all take the same decisions."""
        figures = self.objective.evaluate(self.model, self.plan.eval_tokens) if self.processes.first else None
        figures = self.processes.broadcast(figures)
        if not math.isfinite(figures["loss"]):
            raise WorkFailed(f"the validation loss is {figures['loss']} at step {self.state.global_step}; "
                             "the training diverged, give a smaller --learning-rate")  # fmt: skip
        metrics = {f"eval_{name}": value for name, value in figures.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _trainer(
    model: PreTrainedModel, windows: TrainingWindows, objective: Objective, options: FitOptions, work: WorkFolder,
    inputs: Mapping[str, Any], processes: Distributed, stopwatch: Stopwatch, ends: float | None, closing_seconds: float,
) -> ExactTrainer:  # fmt: skip
    """The trainer with its plan and decisions: those in the work folder, else new ones, the same in every process."""
    key = {"options": asdict(options), "inputs": dict(inputs), "processes": processes.count, "rate": RATE}
    batches = GlobalBatches(windows.lengths, options.batch_size, options.seed)
    view = Trainable.around(model, objective)
    found = processes.broadcast(_try(lambda: (work.read_plan(key), work.read_decisions())) if processes.first else None)
    if isinstance(found, BaseException):
        raise found
    plan, decisions = found
    if plan is None:
        begins = stopwatch.seconds
        seconds = step_seconds(model, windows, objective, options, processes, stopwatch)
        view.to(processes.device)
        if processes.first:
            plan = make_plan(
                key, view, objective, batches, seconds, stopwatch, epochs=options.epochs, steps=options.steps,
                begins=begins, ends=ends, closing_seconds=closing_seconds, eval_tokens=options.eval_tokens,
            )  # fmt: skip
            work.write_plan(plan)
        plan, decisions = processes.broadcast(plan), []
    assert plan is not None
    decisions = decisions or [Decision(0, plan.total_steps, "plan")]
    return ExactTrainer(view, windows, objective, batches, plan, decisions, options, work, processes, stopwatch)


def step_seconds(
    model: PreTrainedModel, windows: TrainingWindows, objective: Objective, options: FitOptions, processes: Distributed,
    stopwatch: Stopwatch,
) -> float:  # fmt: skip
    """Seconds of an optimizer step, on a copy of `model`, timed in all processes at once, as they will run."""
    batches = GlobalBatches(windows.lengths, options.batch_size, options.seed)
    view = Trainable.around(model, objective).to(processes.device)

    def load(step: int) -> dict[str, torch.Tensor]:
        mine = share_out(batches[step], processes.count)[processes.index]
        batch = _collate([windows[int(number)] for number in mine])
        return {name: tensor.to(processes.device) for name, tensor in batch.items()}

    make_optimizer = partial(_trial_optimizer, options=options)
    limit = 3.0 if options.max_minutes is None else 0.03 * 60 * options.max_minutes
    return time_step(
        view, batches, load, make_optimizer, processes.count, options.grad_accumulation, limit, stopwatch.clock,
        processes.broadcast,
    )  # fmt: skip


def _run(trainer: ExactTrainer) -> None:
    """Train to the end, from the newest complete checkpoint where there is one."""
    found = trainer.work.checkpoints()
    if found:
        state = TrainerState.load_from_json(str(found[-1] / "trainer_state.json"))
        if state.global_step >= trainer.schedule.end(state.global_step):
            trainer.state = state  # what came after this run was killed, or the run before it could say that it ended
            trainer._load_best_model()
            return
    trainer.train(resume_from_checkpoint=str(found[-1]) if found else None)


def _result(trainer: ExactTrainer) -> FitResult:
    state = trainer.state
    noted = [entry for entry in state.log_history if "loss" in entry or "eval_loss" in entry]
    # `epoch` is the share of the run here; sorted, since a log that was read from a checkpoint is.
    log = [{name: entry[name] for name in sorted(entry) if name != "epoch"} for entry in noted]
    best = next(entry for entry in log if entry["step"] == state.best_global_step and "eval_loss" in entry)
    after = {name.removeprefix("eval_"): value for name, value in best.items() if name.startswith("eval_")}
    return FitResult(
        before=trainer.plan.before,
        after=after,
        steps=state.global_step,
        best_step=state.best_global_step,
        tokens=trainer.batches.tokens(state.global_step),
        minutes=(trainer.stopwatch.seconds - trainer.plan.begins) / 60,
        stopped_early=any(each.cause == "patience" for each in trainer.schedule.decisions),
        eval_tokens=trainer.plan.eval_tokens,
        eval_seconds=trainer.pacer.evaluation_seconds,
        log=log,
    )


def _tidy(work: WorkFolder, error: BaseException) -> None:
    """Leave nothing half-written; say how to go on where that is possible."""
    work.sweep()
    found = work.checkpoints()
    if not found:
        if not isinstance(error, BadInput):  # the folder of another run is not ours to remove
            work.remove()
    elif isinstance(error, KeyboardInterrupt):
        step = found[-1].name.rpartition("-")[2]
        raise KeyboardInterrupt(f"stopped; the same command with --resume goes on from step {step}") from error
    if is_disk_full(error) or "failed writing file" in str(error):
        raise BadInput(f"--out: the disk is full ({work.path}); free some space or choose another disk") from error


def _arguments(options: FitOptions, plan: TrainingPlan, work: WorkFolder, processes: int) -> TrainingArguments:
    gpu = torch.cuda.is_available()
    bf16 = gpu and torch.cuda.is_bf16_supported()
    arguments = TrainingArguments(
        output_dir=str(work.path), max_steps=plan.total_steps if plan.ends is None else NO_END,
        seed=options.seed, report_to="none", disable_tqdm=True,
        per_device_train_batch_size=options.batch_size // (processes * options.grad_accumulation),
        gradient_accumulation_steps=options.grad_accumulation, average_tokens_across_devices=True,
        learning_rate=options.learning_rate, max_grad_norm=options.clip, weight_decay=options.weight_decay,
        optim="adamw_torch_fused", adam_beta1=0.9, adam_beta2=0.95,
        logging_strategy="steps", logging_steps=plan.log_every, logging_nan_inf_filter=False,
        eval_strategy="steps", eval_steps=plan.eval_every, save_strategy="steps", save_steps=plan.eval_every,
        load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=False,
        use_cpu=not gpu, bf16=bf16, fp16=gpu and not bf16,
        ddp_find_unused_parameters=False, remove_unused_columns=False, dataloader_pin_memory=gpu,
    )  # fmt: skip
    if gpu and processes == 1:
        arguments._n_gpu = 1  # many GPUs are used through a launcher; DataParallel would split our batches again
    return arguments


def _collate(rows: Any) -> dict[str, torch.Tensor]:
    """A right-padded batch. Padding is never attended nor scored, so any id will do."""
    batch = collate(rows, pad_id=0)
    batch["labels"][:, 0] = -100  # nothing predicts the first id, and the Trainer counts labels
    return {"input_ids": batch["input_ids"], "labels": batch["labels"]}


def _trial_optimizer(model: Trainable, options: FitOptions) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=options.learning_rate, betas=(0.9, 0.95), fused=True)


def _try(read: Any) -> Any:
    """The result or the error, so that an error of the first process reaches all of them."""
    try:
        return read()
    except BadInput as error:
        return error
