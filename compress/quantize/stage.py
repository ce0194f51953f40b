"""`compress quantize`: checkpoint to quantized checkpoint, and what that did to held-out conversations.

Where how many bits go stands in `compress.quantize.schemes`, how the integers are decided in
`compress.quantize.methods`. Calibration reads the data set's training part, the figures its held-out part.

Weight bytes are those of weight matrices and tables, counted as float32: LayerNorms and biases, which stay float32, are
not among them (in a tiny model they are more than 5 % of everything, in a model of 100 M parameters 0.1 %).
"""

import copy
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel

from chitchat.architectures.registry import architecture_of, geometry_of
from chitchat.checkpoint import load_model
from chitchat.data.dataset import ChatData, open_dataset
from chitchat.errors import BadInput, WorkFailed
from chitchat.lineage import Stage, identity
from chitchat.system.folder import check_output, staged_folder
from chitchat.system.notices import log
from chitchat.tokenizer import tokenizer_of
from chitchat.training.distributed import Distributed
from chitchat.training.stopwatch import Stopwatch
from compress.calibrate.batches import CALIBRATION_TOKENS, calibration_batches, calibration_sequences
from compress.calibrate.measure import KL_TOKENS, divergence, final_states, measure
from compress.calibrate.ranges import input_ranges
from compress.quantize.allocation import Allocation, Sensitivity, allocate
from compress.quantize.blockwise import BlockTensor
from compress.quantize.checkpoint import WEIGHTS, QuantizedCheckpoint, QuantizedTensor, save_quantized
from compress.quantize.finetune import finetune
from compress.quantize.methods import CALIBRATED, quantize_matrix
from compress.quantize.model import QuantizedModel, calibrate_model, checkpoint_of, load_dequantized_, round_model
from compress.quantize.options import AUTO, QuantizeOptions
from compress.quantize.schemes import Grid, grids, mixed_grids

MIN_SHARE = 0.95
MIN_CONVERSATIONS, MIN_TOKENS = 16, 1024  # of the training part, for a method that calibrates
SENSITIVITY_TOKENS = 2_048  # training tokens that the loss of one tensor is measured on


def quantize(
    checkpoint: str,
    data: Path,
    out: Path,
    options: QuantizeOptions | None = None,
    *,
    resume: bool = False,
    stopwatch: Stopwatch | None = None,
) -> dict[str, Any]:
    """Write the quantized checkpoint `out`, log the bytes that were quantized, and return its figures.

    `resume` goes on with a fine-tune (method kd) that was stopped. Its minutes are those on the `stopwatch` (default:
    one that begins now): models are read and fine-tuned in them, the integers it begins with are decided beside them.
    Raises `BadInput` for a checkpoint that is quantized already or holds NaN or Inf, a data set of another tokenizer or
    with too few conversations to calibrate on, and a loss that cannot be had; `WorkFailed` when less than 95 % of the
    weight bytes could be quantized. Under a launcher every process calls this; the first one writes.
    """
    started, options, stopwatch = time.monotonic(), options or QuantizeOptions(), stopwatch or Stopwatch()
    out = Path(out)
    check_output(out, "checkpoint")
    model, opened = load_model(checkpoint), open_dataset(data)
    tokenizer = tokenizer_of(checkpoint, options.tokenizer, opened.tokenizer)
    opened.check_tokenizer(tokenizer, options.tokenizer or checkpoint)
    run = _QuantizeRun(model, opened, options, out.parent / f".{out.name}.quantizing", resume)
    with stopwatch.paused():
        chosen, notes = run.choose()
        rounded = run.round(chosen)
    if options.method == "kd":
        notes |= run.finetune(rounded, stopwatch)
    done, total = count_weight_bytes(model, rounded.matrices)
    if run.distributed.is_main:
        log.info(f"{done:,} of {total:,} weight bytes quantized")
    if done < MIN_SHARE * total:
        raise WorkFailed(f"{checkpoint}: only {done / total:.1%} of the weight bytes could be quantized, not 95 %")
    quantized = checkpoint_of(rounded, tokenizer, chosen, options.scheme, options.method)
    metrics = {
        "before": measure(model, model, opened),
        "after": measure(quantized.dequantized_model(), model, opened),
        "weight_bytes_quantized": done,
        "weight_bytes": total,
        **notes,
    }
    run.store(out, checkpoint, quantized, metrics)
    block_size = quantized.config["quantization_config"]["block_size"]
    minutes = (time.monotonic() - started) / 60
    figures = {"scheme": options.scheme, "method": options.method, "block_size": block_size}
    return {**figures, **_figures(metrics), "file_mb": (out / WEIGHTS).stat().st_size / 1e6, "minutes": minutes}


class _QuantizeRun:
    """One quantization: what is quantized, how, and on which conversations."""

    def __init__(
        self, model: PreTrainedModel, data: ChatData, options: QuantizeOptions, work: Path, resume: bool
    ) -> None:
        self.model, self.data, self.options, self.work, self.resume = model, data, options, work, resume
        self.architecture, self.geometry, self.distributed = architecture_of(model), geometry_of(model), Distributed()
        self.windows = data.windows("train", model.config.max_position_embeddings)
        if options.calibrates:
            _check_enough(data, self.windows.lengths, options)

    def choose(self) -> tuple[dict[str, Grid], dict[str, Any]]:
        """The grid of every matrix, and what is to be noted of the choice."""
        options = self.options
        if options.scheme != AUTO:
            return grids(self.geometry, options.scheme, options.block_size), {}
        found = self._sensitivities()
        assert options.max_kl is not None
        allocation = allocate(found, self._lost, options.max_kl)
        if self.distributed.is_main:
            log.info(f"{len(allocation.low)} of {len(found)} matrices at 4 bits, KL {allocation.kl:.2g}")
        return mixed_grids(self.geometry, allocation.low, options.block_size), _noted(allocation, found)

    def round(self, chosen: Mapping[str, Grid]) -> QuantizedModel:
        """The model on those grids, by the method (kd: by the one that it begins with)."""
        tokens, seed = CALIBRATION_TOKENS, self.options.seed
        static = any(grid.static_inputs for grid in chosen.values())
        sequences = calibration_sequences(self.windows, tokens, seed) if static else []
        if self.options.method not in CALIBRATED:
            return round_model(
                self.model, chosen, self.options.method, input_ranges(self.model, sequences) if static else None
            )
        batches = calibration_batches(self.windows, self.data.dialogue.pad_id, tokens, seed)
        return calibrate_model(self.model, chosen, self.options.method, batches, sequences)

    def finetune(self, rounded: QuantizedModel, stopwatch: Stopwatch) -> dict[str, Any]:
        """Fine-tune the linear layers through their rounding, in place; gives what is to be noted."""
        tables = {matrix.module for matrix in self.architecture.matrices(self.geometry) if matrix.table}
        linears = {name: tensor for name, tensor in rounded.matrices.items() if name not in tables}
        blocks = {name: tensor for name, tensor in linears.items() if isinstance(tensor, BlockTensor)}
        tuned = finetune(
            rounded.model, self.model, blocks, rounded.before, self.data, self.work, self.options,
            resume=self.resume, stopwatch=stopwatch,
        )  # fmt: skip
        rounded.matrices |= tuned.matrices
        load_dequantized_(rounded.model, tuned.matrices)
        result = tuned.result
        return {
            "kd": {
                "steps": result.steps,
                "best_step": result.best_step,
                "tokens": result.tokens,
                "minutes": stopwatch.seconds / 60,
                "kl_before": result.before["kl"],
                "kl_after": min(result.before["kl"], result.after["kl"]),
            }
        }

    def store(self, out: Path, checkpoint: str, quantized: QuantizedCheckpoint, metrics: dict[str, Any]) -> None:
        """Write the checkpoint `out` with its record; the work folder goes."""
        parent = identity(Path(checkpoint)) if Path(checkpoint).is_dir() else None
        block_size = quantized.config["quantization_config"]["block_size"]
        recorded = {**asdict(self.options), "block_size": block_size}
        stage = Stage("quantize", recorded, self.options.seed, parent, self.data.identity, metrics)
        if self.distributed.is_main:
            with staged_folder(out, "checkpoint") as staging:
                self.model.generation_config.save_pretrained(staging)
                save_quantized(staging, quantized, stage, parent=checkpoint)
            shutil.rmtree(self.work, ignore_errors=True)
        self.distributed.barrier()

    def _sensitivities(self) -> list[Sensitivity]:
        """What 4 bits in every single matrix cost, on training conversations."""
        batches = calibration_batches(self.windows, self.data.dialogue.pad_id, SENSITIVITY_TOKENS, self.options.seed)
        every = [matrix.module for matrix in self.architecture.matrices(self.geometry)]
        low = mixed_grids(self.geometry, every, self.options.block_size)
        high = grids(self.geometry, "w8", self.options.block_size)
        trial, found, states = copy.deepcopy(self.model), [], final_states(self.model, batches)
        for name in tqdm(every, desc="trying 4 bits", unit="matrix", disable=None):
            weight = self.model.get_submodule(name).weight.detach()
            matrix = (weight.T if self.architecture.is_transposed(name) else weight).float().contiguous().numpy()
            four, eight = (quantize_matrix(matrix, grid[name], "mse") for grid in (low, high))
            load_dequantized_(trial, {name: four})
            lost = divergence(self.model, trial, batches, states).kl
            found.append(Sensitivity(name, lost, eight.nbytes - four.nbytes))
            trial.get_submodule(name).weight.data.copy_(weight)
        return found

    def _lost(self, low: Sequence[str]) -> float:
        """The held-out KL with the matrices `low` at 4 bits."""
        rounded = self.round(mixed_grids(self.geometry, low, self.options.block_size))
        windows = self.data.windows("validation", self.model.config.max_position_embeddings)
        return divergence(
            self.model, rounded.model, calibration_batches(windows, self.data.dialogue.pad_id, KL_TOKENS)
        ).kl


def _check_enough(data: ChatData, lengths: Sequence[int], options: QuantizeOptions) -> None:
    """Raise `BadInput` unless there is enough in the training part to calibrate on."""
    conversations, tokens = len(lengths), int(sum(lengths))
    if conversations < MIN_CONVERSATIONS or tokens < MIN_TOKENS:
        raise BadInput(
            f"--data {data.path}: its training part has {conversations} conversations of {tokens} tokens; --scheme "
            f"{options.scheme} --method {options.method} needs {MIN_CONVERSATIONS} of {MIN_TOKENS} tokens "
            "at least: add conversations, or take --scheme w8 --method rtn"
        )


def _noted(allocation: Allocation, found: Sequence[Sensitivity]) -> dict[str, Any]:
    """The choice of bits as the lineage has it."""
    rows = [{**asdict(row), "bits": 4 if row.module in allocation.low else 8} for row in found]
    return {
        "allocation": {
            "kl": allocation.kl,
            "tried": {str(n): kl for n, kl in allocation.tried.items()},
            "matrices": rows,
        }
    }


def count_weight_bytes(model: PreTrainedModel, matrices: Mapping[str, QuantizedTensor]) -> tuple[int, int]:
    """`(quantized, all)` float32 bytes of the model's matrices and tables; a tied table counts once.

    All is counted on the model itself, so that a matrix which the quantizer does not know shows.
    """
    total = sum(4 * parameter.numel() for parameter in model.parameters() if parameter.ndim >= 2)
    return sum(4 * math.prod(tensor.shape) for tensor in matrices.values()), total


def _figures(metrics: dict[str, Any]) -> dict[str, Any]:
    before, after = metrics["before"], metrics["after"]
    return {
        "weight_bytes_quantized": metrics["weight_bytes_quantized"],
        "weight_bytes": metrics["weight_bytes"],
        "perplexity_before": before["perplexity"],
        "perplexity": after["perplexity"],
        "bits_per_byte_before": before["bits_per_byte"],
        "bits_per_byte": after["bits_per_byte"],
        "kl": after["kl"],
        "top1": after["top1"],
    }
