"""Training with transformers' Trainer that can be resumed exactly, for fine-tuning and healing.

`fit` trains a model on windows and leaves the best weights in it. A run that is killed at any time and resumed gives
the same bits on a CPU as an uninterrupted one: the number of steps is planned once, the windows of a step are a
function of its number, checkpoints are complete or ignored, and the Trainer restores optimizer, schedule and random
state. If a run by minutes must end earlier or later than planned, the decision is written before it takes effect, and a
resumed run repeats it. Under torchrun or `accelerate launch` every process calls `fit`; the first one decides and
writes.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerControl, TrainingArguments
from transformers.trainer_callback import TrainerState

from chitchat.checkpoint import no_progress_bar
from chitchat.errors import BadInput, WorkFailed
from chitchat.training.batches import ProcessBatches, TrainingWindows, training_batch
from chitchat.training.callbacks import Progress, Schedule
from chitchat.training.distributed import Distributed, no_leftovers
from chitchat.training.objective import LossModel, Objective, fused_gelu
from chitchat.training.options import FitOptions, FitResult
from chitchat.training.pacer import Pacer
from chitchat.training.planning import BETAS, make_plan, step_seconds
from chitchat.training.rate import Decision, RateSchedule
from chitchat.training.run import FitRun
from chitchat.training.stopwatch import Stopwatch
from chitchat.training.workfolder import PLAN, TrainingFolder, TrainingPlan

RATE = "warm-up, stable, decay"  # a run with another schedule, of an earlier version, cannot be resumed
NO_END = 2**31  # steps; a run by minutes is ended by the clock


def fit(
    model: PreTrainedModel,
    windows: TrainingWindows,
    objective: Objective,
    options: FitOptions,
    work: Path,
    inputs: Mapping[str, Any],
    *,
    resume: bool = False,
    stopwatch: Stopwatch | None = None,
    ends: float | None = None,
    closing_seconds: float = 0.0,
) -> FitResult:
    """Train `model` in place; afterwards it holds the weights of the best evaluation, in eval mode, on the CPU.

    `inputs` is what the run depends on beside `options` (hashes of data and weights). Without `resume` an earlier work
    folder is removed; with it the run continues from the folder, if there is one. The caller removes the folder once
    the result is stored. A run by minutes ends at `ends`, seconds on the `stopwatch` (default: `options.max_minutes`,
    on a stopwatch that begins now), `closing_seconds` of which the caller needs afterwards. Raises `BadInput` for a
    resume with other values, `WorkFailed` if the loss is not finite. Ctrl-C keeps the folder only if it has a
    checkpoint.
    """
    if options.max_minutes is not None and ends is None:
        ends = 60 * options.max_minutes
    run = FitRun(model, windows, objective, options, Distributed(), stopwatch or Stopwatch(), ends, closing_seconds)
    if not len(windows):
        raise BadInput("the data set has no training windows; build it from more conversations")
    folder = TrainingFolder(work, run.distributed)
    key = {"options": asdict(options), "inputs": dict(inputs), "processes": run.distributed.count, "rate": RATE}

    try:
        with no_leftovers(), fused_gelu(model), folder.resumable(PLAN, key, resume, run.stopwatch, folder.newest):
            trainer = _trainer(run, folder, key)
            _train(trainer)
            return _result(trainer)
    finally:
        model.to("cpu").eval()


def weights_sha256(model: torch.nn.Module) -> str:
    """A sha256 over names and values of all weights, for a model that need not be on disk."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


class ExactTrainer(Trainer):
    """transformers' Trainer with other batches, objective and evaluation. One epoch is the whole run."""

    control: TrainerControl

    def __init__(
        self, run: FitRun, view: LossModel, folder: TrainingFolder, plan: TrainingPlan, decisions: list[Decision]
    ) -> None:
        arguments = _arguments(run, plan, folder.path)
        windows = run.windows
        # The Trainer requires an evaluation set, which `evaluate` never reads.
        super().__init__(view, arguments, data_collator=training_batch, train_dataset=windows, eval_dataset=windows)
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # the Trainer then passes the number of labels of a step
        self.run, self.folder, self.plan = run, folder, plan
        self.schedule = RateSchedule(decisions, run.options.warmup_ratio, run.options.schedule)
        self.pacer = Pacer(plan, self.schedule, run.padded_tokens, run.stopwatch)
        self.add_callback(Schedule(plan, folder, self.pacer, run.options.patience))
        self.add_callback(Progress(self.schedule.end, run.distributed.is_main))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """The rates of our schedule, which decisions may change on the way."""
        schedule = self.schedule
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: schedule.factor(step))
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process's batches, in the order of the plan."""
        accumulation, distributed = self.run.options.grad_accumulation, self.run.distributed
        order = ProcessBatches(
            self.run.batches, self.args.max_steps, accumulation, distributed.index, distributed.count
        )
        return DataLoader(self.train_dataset, batch_sampler=order, collate_fn=training_batch)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The loss per label of the global batch; the factor is there because gradients are averaged over processes."""
        loss = model(input_ids=inputs["input_ids"], labels=inputs["labels"])
        # A batch may have turns of one id without a start id only: nothing predicts those.
        labels = self.run.options.labels_per_step or max(num_items_in_batch, 1)
        return loss * (self.run.distributed.count / labels)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate in the main process and broadcast the figures, so that all processes decide alike."""
        figures = self.run.distributed.run_on_main(
            lambda: self.run.objective.evaluate(self.model, self.plan.eval_tokens)
        )
        if not math.isfinite(figures["loss"]):
            raise WorkFailed(f"the validation loss is {figures['loss']} at step {self.state.global_step}; "
                             "the training diverged, give a smaller --learning-rate")  # fmt: skip
        metrics = {f"eval_{name}": value for name, value in figures.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _trainer(run: FitRun, folder: TrainingFolder, key: Mapping[str, Any]) -> ExactTrainer:
    """The trainer with the plan and decisions in the work folder, else new ones, the same in every process."""
    view = LossModel.wrap(run.model, run.objective)

    def make() -> dict[str, Any]:
        begins = run.stopwatch.seconds
        seconds = step_seconds(run)
        view.to(run.distributed.device)
        return asdict(make_plan(run, view, seconds, begins)) if run.distributed.is_main else {}

    plan = TrainingPlan(**folder.decide(PLAN, key, make))
    decisions = run.distributed.run_on_main(folder.read_decisions) or [Decision(0, plan.total_steps, "plan")]
    return ExactTrainer(run, view, folder, plan, decisions)


def _train(trainer: ExactTrainer) -> None:
    """Train to the end, from the newest complete checkpoint where there is one."""
    found = trainer.folder.checkpoints()
    if found:
        state = TrainerState.load_from_json(str(found[-1] / "trainer_state.json"))
        if state.global_step >= trainer.schedule.end(state.global_step):
            trainer.state = state  # the process was killed after the last step
            trainer._load_best_model()
            return
    with no_progress_bar():  # of saving checkpoints; the run's own bar is a callback
        trainer.train(resume_from_checkpoint=str(found[-1]) if found else None)


def _result(trainer: ExactTrainer) -> FitResult:
    state = trainer.state
    noted = [entry for entry in state.log_history if "loss" in entry or "eval_loss" in entry]
    # Without `epoch`, which is the share of the run; sorted, as in a log that was read from a checkpoint.
    log = [{name: entry[name] for name in sorted(entry) if name != "epoch"} for entry in noted]
    best = next(entry for entry in log if entry["step"] == state.best_global_step and "eval_loss" in entry)
    after = {name.removeprefix("eval_"): value for name, value in best.items() if name.startswith("eval_")}
    return FitResult(
        before=trainer.plan.before,
        after=after,
        steps=state.global_step,
        best_step=state.best_global_step,
        tokens=trainer.run.batches.tokens(state.global_step),
        minutes=(trainer.run.stopwatch.seconds - trainer.plan.begins) / 60,
        stopped_early=any(decision.cause == "patience" for decision in trainer.schedule.decisions),
        eval_tokens=trainer.plan.eval_tokens,
        eval_seconds=trainer.pacer.evaluation_seconds,
        log=log,
    )


def _arguments(run: FitRun, plan: TrainingPlan, work: Path) -> TrainingArguments:
    options = run.options
    gpu = torch.cuda.is_available()
    bf16 = gpu and torch.cuda.is_bf16_supported()
    arguments = TrainingArguments(
        output_dir=str(work), max_steps=plan.total_steps if plan.ends is None else NO_END,
        seed=options.seed, report_to="none", disable_tqdm=True,
        per_device_train_batch_size=options.batch_size // run.parts,
        gradient_accumulation_steps=options.grad_accumulation, average_tokens_across_devices=True,
        learning_rate=options.learning_rate, max_grad_norm=options.max_grad_norm, weight_decay=options.weight_decay,
        optim="adamw_torch_fused", adam_beta1=BETAS[0], adam_beta2=BETAS[1], adam_epsilon=options.adam_epsilon,
        logging_strategy="steps", logging_steps=plan.log_every, logging_nan_inf_filter=False,
        eval_strategy="steps", eval_steps=plan.eval_every, save_strategy="steps", save_steps=plan.eval_every,
        load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=False,
        use_cpu=not gpu, bf16=bf16, fp16=gpu and not bf16,
        ddp_find_unused_parameters=False, remove_unused_columns=False, dataloader_pin_memory=gpu,
    )  # fmt: skip
    if gpu and run.distributed.count == 1:
        arguments._n_gpu = 1  # no DataParallel, which would split the batches; a launcher uses several GPUs
    return arguments
