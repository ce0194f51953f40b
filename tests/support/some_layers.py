"""A GPT-2 run with some of its layers, to check the order in which layers are removed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from transformers import GPT2LMHeadModel


@contextmanager
def only_layers(model: GPT2LMHeadModel, kept: Sequence[int]) -> Iterator[None]:
    """Run `model` with these layers; all are back after the block."""
    layers = model.transformer.h
    model.transformer.h = type(layers)([layers[index] for index in kept])
    try:
        yield
    finally:
        model.transformer.h = layers
