"""Quantized checkpoints in one line, for tests that are not about how integers are decided."""

from collections.abc import Mapping
from dataclasses import replace

from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from chitchat.architectures.registry import geometry_of
from compress.calibrate.ranges import Range
from compress.quantize.checkpoint import QuantizedCheckpoint
from compress.quantize.model import checkpoint_of, round_model
from compress.quantize.schemes import grids


def rounded_checkpoint(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    scheme: str,
    block_size: int | None = None,
    sizes: Mapping[str, int] | None = None,
    ranges: Mapping[str, Range] | None = None,
) -> QuantizedCheckpoint:
    """Everything to the nearest integer; `sizes` are the blocks of modules that differ."""
    chosen = grids(geometry_of(model), scheme, block_size)
    chosen |= {name: replace(chosen[name], block_size=size) for name, size in (sizes or {}).items()}
    return checkpoint_of(round_model(model, chosen, "rtn", ranges), tokenizer, chosen, scheme, "rtn")
