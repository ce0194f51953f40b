"""The stage `train`: a chat model from scratch or from a checkpoint, fine-tuned on a data set.

The loss counts every turn, as in both chit-chat families, or with `loss="replies"` the bot's turns only. How a run is
planned, killed and resumed is in `chitchat.training.trainer`.
"""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from chitchat.architectures.registry import DEFAULT, architecture_of
from chitchat.checkpoint import load_model, save_checkpoint
from chitchat.data.dataset import ChatData, open_dataset
from chitchat.errors import BadInput
from chitchat.lineage import Stage, identity
from chitchat.score import score, torch_scorer
from chitchat.system.folder import check_output, staged_folder
from chitchat.tokenizer import tokenizer_of
from chitchat.training.curve import save_curve
from chitchat.training.distributed import Distributed
from chitchat.training.objective import NextToken
from chitchat.training.options import SCRATCH_SHAPE, FitOptions, FitResult, TrainOptions
from chitchat.training.stopwatch import Stopwatch
from chitchat.training.trainer import fit, weights_sha256
from chitchat.training.workfolder import WorkFolder
from serve.geometry import Geometry

FINE_TUNING_RATE = 1e-4
SCRATCH_DECAY, FINE_TUNING_DECAY = 0.1, 0.01
CLOSING = 2.0  # times the time of a first curve: for the last one, the hashes and the checkpoint


def train(
    data: Path, out: Path, options: TrainOptions, resume: bool = False, stopwatch: Stopwatch | None = None
) -> dict[str, Any]:
    """Train on the data set `data` and write the checkpoint `out`; returns the figures.

    With `resume` an unfinished run with the same options continues, if there is one. `max_minutes` are measured on the
    `stopwatch` (default: one that begins now) and include all work here. Under a launcher every process calls this;
    the first one writes. Figures: `validation_loss`, `perplexity`, `bits_per_byte`,
    `token_accuracy` (of the best evaluation), `steps`, `tokens`, `parameters`, `minutes`, `stopped_early`.
    """
    out, stopwatch = Path(out), stopwatch or Stopwatch()
    check_output(out, "checkpoint")
    opened = open_dataset(data)
    model = _initial_model(options, opened)
    context = _context(options, model)
    replies = options.loss == "replies"
    windows = opened.windows("train", context, replies_only=replies)
    held_out = opened.windows("validation", context, replies_only=replies)
    if not len(held_out):
        raise BadInput(f"{data}: holds no validation conversations; build it with a larger --validation")
    if not len(windows):
        raise BadInput(f"{data}: no training turn counts in the loss; train on all turns, or give turns a weight of 1")

    def evaluate(model: PreTrainedModel, max_tokens: int) -> dict[str, float]:
        result = score(torch_scorer(model), held_out, max_tokens)
        return {"loss": result.nll_per_token, **{name: result.as_json()[name] for name in FIGURES}}

    work = out.parent / f".{out.name}.training"
    inputs = {"data": opened.identity, "weights": weights_sha256(model), "context": context, "loss": options.loss}
    result = fit(
        model, windows, NextToken(evaluate), _fit_options(options, model), work, inputs, resume=resume,
        stopwatch=stopwatch, closing_seconds=_closing_seconds(stopwatch) if options.max_minutes else 0.0,
    )  # fmt: skip
    figures = _figures(model, result, stopwatch)

    def store() -> None:
        with staged_folder(out, "checkpoint") as staging:
            save_curve(staging, result.log)
            save_checkpoint(staging, model, opened.tokenizer, _stage(options, opened, result, figures), options.init)
        WorkFolder(work).remove()

    Distributed().run_on_main(store)
    return figures


FIGURES = ("perplexity", "bits_per_byte", "token_accuracy", "tokens")


def scratch_rate(width: int) -> float:
    """The peak learning rate from scratch: higher for narrow models, at most 2e-3 (measured at width 192)."""
    return min(2e-3, 0.4 / width)


def _initial_model(options: TrainOptions, data: ChatData) -> PreTrainedModel:
    if options.init is None:
        return _new_model(options, data)
    model = load_model(options.init)
    tokenizer = tokenizer_of(options.init, options.tokenizer, data.tokenizer)
    data.check_tokenizer(tokenizer, options.tokenizer or options.init)
    if options.dropout is not None:
        _set_dropout(model, options.dropout)
    return model


def _new_model(options: TrainOptions, data: ChatData) -> PreTrainedModel:
    """A model with random weights that depend only on seed and shape."""
    shape = {name: getattr(options, name) or default for name, default in SCRATCH_SHAPE.items()}
    geometry = Geometry(
        layers=shape["layers"],
        heads=shape["heads"],
        head_dim=shape["width"] // shape["heads"],
        ffn=options.ffn or 4 * shape["width"],
        vocab=data.vocab_size,
        context=shape["context"],
    )
    dialogue = data.dialogue
    config = DEFAULT.new_config(
        geometry,
        options.dropout or 0.0,
        bos_token_id=dialogue.unconditional_prompt_ids[0],
        eos_token_id=dialogue.end_of_turn_id,
        pad_token_id=dialogue.pad_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return DEFAULT.new_model(config)


def _set_dropout(model: PreTrainedModel, dropout: float) -> None:
    for name, share in architecture_of(model).dropout_fields(dropout).items():
        setattr(model.config, name, share)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout


def _context(options: TrainOptions, model: PreTrainedModel) -> int:
    longest = model.config.max_position_embeddings
    context = options.context or longest
    if context > longest:
        reason = f"the model of --init {options.init} has {longest} positions"
        raise BadInput(f"--context {context}: {reason}; give at most {longest}")
    return context


def _fit_options(options: TrainOptions, model: PreTrainedModel) -> FitOptions:
    scratch = options.init is None
    default = scratch_rate(model.config.hidden_size) if scratch else FINE_TUNING_RATE
    decay = SCRATCH_DECAY if scratch else FINE_TUNING_DECAY
    return FitOptions(
        learning_rate=options.learning_rate or default,
        batch_size=options.batch_size,
        grad_accumulation=options.grad_accumulation,
        epochs=options.epochs,
        max_minutes=options.max_minutes,
        patience=options.patience or None,
        schedule=options.schedule,
        warmup_ratio=options.warmup_ratio,
        max_grad_norm=options.max_grad_norm,
        weight_decay=decay if options.weight_decay is None else options.weight_decay,
        adam_epsilon=options.adam_epsilon,
        seed=options.seed,
    )


def _closing_seconds(stopwatch: Stopwatch) -> float:
    """Seconds of the work after the training, estimated by an empty curve, which also loads the libraries."""
    began = stopwatch.seconds
    with tempfile.TemporaryDirectory() as folder:
        save_curve(Path(folder), [{"step": 0, "loss": 0.0}])
    return CLOSING * (stopwatch.seconds - began)


def _figures(model: PreTrainedModel, result: FitResult, stopwatch: Stopwatch) -> dict[str, Any]:
    return {
        "validation_loss": result.after["loss"],
        **{name: result.after[name] for name in FIGURES if name != "tokens"},
        "steps": result.steps,
        "best_step": result.best_step,
        "tokens": result.tokens,
        "parameters": model.num_parameters(),
        "minutes": stopwatch.seconds / 60,
        "stopped_early": result.stopped_early,
    }


def _stage(options: TrainOptions, data: ChatData, result: FitResult, figures: dict[str, Any]) -> Stage:
    """The record for the lineage."""
    folder = Path(options.init) if options.init else None
    return Stage(
        "train",
        asdict(options),
        options.seed,
        parent_sha256=identity(folder) if folder and folder.is_dir() else None,
        data_sha256=data.identity,
        metrics={"before": dict(result.before), "after": dict(result.after), **figures},
    )
