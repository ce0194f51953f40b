"""Walking the residual streams of models over calibration windows, one sublayer after another.

A stream is moved through a sublayer once, and what flows through its projections on the way is handed to the caller:
that is all that ranking, smoothing, refitting and quantizing read of a model. Where a model is fitted to another one,
the streams of both are walked side by side (`FittedStreams`), so that what is wrong so far is made good by what comes.

Memory: the streams, 4 bytes x width for each position and model; `FittedStreams` holds the inputs of one
out-projection beside them, 4 bytes x FFN for each position.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from chitchat.architectures.registry import architecture_of
from chitchat.architectures.sublayers import Projection, Sublayer
from compress.calibrate.batches import Batch
from compress.calibrate.moments import Moments


class Streams:
    """The residual stream of `model`, in eval mode, on each of the right-padded calibration windows `batches`.

    `states` are float [batch, tokens, width], `masks` bool [batch, tokens], on the model's device.
    """

    def __init__(self, model: Any, batches: Sequence[Batch]) -> None:
        model.eval()
        self._architecture = architecture_of(model)
        self._model = model
        self.masks = [batch["attention_mask"].to(model.device).bool() for batch in batches]
        self.states = [self._architecture.embed(model, batch["input_ids"].to(model.device)) for batch in batches]

    def sublayers(self) -> Iterator[Sublayer]:
        """All sublayers, in the order in which they run."""
        yield from self._architecture.all_sublayers(self._model)

    def head_inputs(self) -> Iterator[Tensor]:
        """What the head reads of streams that are past the last sublayer, [rows, width] a batch."""
        norm = self._architecture.final_norm(self._model)[1]
        return map(norm, self.rows())

    def copy(self) -> "Streams":
        """Streams that move on by themselves from here."""
        other = copy.copy(self)
        other.states = list(self.states)
        return other

    def rows(self) -> Iterator[Tensor]:
        """The states without padding, [rows, width] a batch."""
        return map(_packed, self.states, self.masks)

    def read(self, sublayer: Sublayer) -> Iterator[Tensor]:
        """What the in-projections read, [rows, width] a batch."""
        for state, mask in zip(self.states, self.masks, strict=True):
            yield _packed(sublayer.norm(state), mask)

    def through(self, sublayer: Sublayer) -> Iterator[Tensor]:
        """Move on over the sublayer, batch after batch, and give what its out-projection read, [rows, in] a batch."""
        for index, mask in enumerate(self.masks):
            with _recorded(sublayer) as inputs:
                self.states[index] = self.states[index] + sublayer(self.states[index])
            yield _packed(inputs[0], mask)

    def advance(self, sublayer: Sublayer) -> None:
        """Move on over the sublayer."""
        self.states = [state + sublayer(state) for state in self.states]

    def out_inputs(self, sublayer: Sublayer) -> list[Tensor]:
        """What its out-projection will read, [batch, tokens, in] a batch; the stream stays, nothing is projected."""
        found = []
        for state in self.states:
            with _recorded(sublayer, stop=True) as inputs:
                sublayer(state)
            found += inputs
        return found

    def add(self, sublayer: Sublayer, inputs: Sequence[Tensor]) -> None:
        """Move on over the sublayer, whose out-projection reads `inputs` as `out_inputs` gave them."""
        self.states = [state + sublayer.out_proj(each) for state, each in zip(self.states, inputs, strict=True)]


class FittedStreams:
    """The streams of a model that is fitted to a reference, on the same windows as the reference's.

    A sublayer is fitted in two halves, and between them the caller moves the reference's streams over its own sublayer:
    several models may be fitted to one reference, which is run once. The model's stream has the `channels` of the
    reference's (all of them by default).
    """

    def __init__(
        self, model: Any, reference: Streams, batches: Sequence[Batch], channels: Sequence[int] | None = None
    ) -> None:
        self.model, self._reference = Streams(model, batches), reference
        width = self.model.states[0].shape[-1]
        self._channels = torch.tensor(range(width) if channels is None else channels)

    def fit_in(
        self,
        sublayer: Sublayer,
        reference: Sublayer,
        store: Callable[[Projection, Moments], None],
        columns: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Have the in-projections fitted to what the reference's read out of their own stream.

        `store` is called for each with the moments of its inputs and targets, and puts weights into it. The targets are
        the output `columns` of each of the reference's (default: all). They are linear in what those read, and so are
        their moments.
        """
        moments = Moments(*(one.in_projs[0].weight.shape[0] for one in (sublayer, reference)))
        for rows, theirs in zip(self.model.read(sublayer), self._reference.read(reference), strict=True):
            moments.add(rows, theirs)
        for index, (ours, their) in enumerate(zip(sublayer.in_projs, reference.in_projs, strict=True)):
            kept = slice(None) if columns is None else columns[index]
            store(ours, moments.with_targets(their.weight[:, kept], None if their.bias is None else their.bias[kept]))

    def fit_out(self, sublayer: Sublayer, store: Callable[[Projection, Moments], None]) -> None:
        """Have the out-projection fitted so that the stream behind it is the reference's, and move on over it."""
        inputs = self.model.out_inputs(sublayer)
        moments = Moments(*sublayer.out_proj.weight.shape)
        rows = zip(inputs, self.model.rows(), self._reference.rows(), self.model.masks, strict=True)
        for read, ours, theirs, mask in rows:
            moments.add(_packed(read, mask), theirs[:, self._channels] - ours)
        store(sublayer.out_proj, moments)
        self.model.add(sublayer, inputs)

    def final_rows(self) -> list[tuple[Tensor, Tensor]]:
        """Both streams without padding, [rows, width] of each a batch."""
        return list(zip(self.model.rows(), self._reference.rows(), strict=True))


class _Stopped(Exception):
    """The out-projection was reached."""


@contextmanager
def _recorded(sublayer: Sublayer, stop: bool = False) -> Iterator[list[Tensor]]:
    """Record what the out-projection reads inside the block, once; with `stop`, leave the sublayer there."""
    inputs: list[Tensor] = []

    def keep(_module: Any, read: tuple[Tensor, ...]) -> None:
        inputs.append(read[0])
        if stop:
            raise _Stopped

    hook = sublayer.out_proj.module.register_forward_pre_hook(keep)
    try:
        yield inputs
    except _Stopped:
        pass
    finally:
        hook.remove()


def _packed(tensor: Tensor, mask: Tensor) -> Tensor:
    """The positions of a batch that are not padding: [batch, tokens, n] to [rows, n], all of them without a copy."""
    return tensor.flatten(0, 1) if mask.all() else tensor.flatten(0, 1)[mask.flatten().nonzero()[:, 0]]
