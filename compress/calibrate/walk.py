"""Walking the residual streams of models over calibration windows, one sublayer after another.

A stream is moved through a sublayer once, and what flows through its projections on the way is handed to the caller:
that is all that ranking, smoothing, refitting and quantizing read of a model. Where a model is fitted to another one,
the streams of both are walked side by side (`PairedStreams`), so that what is wrong so far is made good by what comes.

Memory: the streams, 4 bytes x width for each position and model; `PairedStreams.fit` holds the inputs of one
out-projection beside them, 4 bytes x FFN for each position.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from chitchat.architectures.registry import architecture_of
from chitchat.architectures.sublayers import Projection, Sublayer
from compress.calibrate.batches import Batch
from compress.calibrate.moments import Moments


@dataclass
class Pass:
    """What flowed through a sublayer in one forward run: outputs of the in-projections, inputs of the out-projection.

    [rows, out] and [rows, in] without padding as `Streams.through` gives them.
    """

    outputs: list[Tensor] = field(default_factory=list)
    inputs: Tensor = field(default_factory=lambda: torch.zeros(0))


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

    def copy(self) -> "Streams":
        """Streams that move on by themselves from here."""
        other = copy.copy(self)
        other.states = list(self.states)
        return other

    def rows(self) -> list[Tensor]:
        """The states without padding, [rows, width] a batch."""
        return [state[mask] for state, mask in zip(self.states, self.masks, strict=True)]

    def read(self, sublayer: Sublayer) -> Iterator[Tensor]:
        """What the in-projections read, [rows, width] a batch."""
        for state, mask in zip(self.states, self.masks, strict=True):
            yield sublayer.norm(state)[mask]

    def through(self, sublayer: Sublayer) -> Iterator[Pass]:
        """Move on over the sublayer, batch after batch, and give what flowed through it."""
        for index, mask in enumerate(self.masks):
            with _recorded(sublayer) as passed:
                self.states[index] = self.states[index] + sublayer(self.states[index])
            yield Pass([output[mask] for output in passed.outputs], passed.inputs[mask])

    def advance(self, sublayer: Sublayer) -> None:
        """Move on over the sublayer."""
        self.states = [state + sublayer(state) for state in self.states]

    def out_inputs(self, sublayer: Sublayer) -> list[Tensor]:
        """What its out-projection will read, [batch, tokens, in] a batch; the stream stays, nothing is projected."""
        found = []
        for state in self.states:
            with _recorded(sublayer, stop=True) as passed:
                sublayer(state)
            found.append(passed.inputs)
        return found

    def add(self, sublayer: Sublayer, inputs: Sequence[Tensor]) -> None:
        """Move on over the sublayer, whose out-projection reads `inputs` as `out_inputs` gave them."""
        self.states = [state + sublayer.out_proj(each) for state, each in zip(self.states, inputs, strict=True)]


class PairedStreams:
    """The streams of a model that is fitted and of its reference, on the same windows.

    The model's stream has the `channels` of the reference's (all of them by default).
    """

    def __init__(self, model: Any, reference: Any, batches: Sequence[Batch], channels: Sequence[int] | None = None):
        self.model, self.reference = Streams(model, batches), Streams(reference, batches)
        width = self.model.states[0].shape[-1]
        self.channels = torch.tensor(range(width) if channels is None else channels)

    def fit(
        self,
        sublayer: Sublayer,
        reference: Sublayer,
        store: Callable[[Projection, Moments], None],
        columns: Sequence[Sequence[int]] | None = None,
        in_projs: bool = True,
    ) -> None:
        """Have the projections of `sublayer` fitted to the `reference`'s, and move both streams over them.

        `store` is called for each projection with the moments of its inputs and targets, and puts weights into it:
        first for the in-projections (unless `in_projs` is false), towards what the reference's read out of their own
        stream, at the output `columns` of each (default: all); then for the out-projection, so that the stream behind
        it is the reference's.
        """
        self._fit_in(sublayer, reference, store if in_projs else None, columns)
        inputs = self.model.out_inputs(sublayer)
        moments = Moments.zeros(*sublayer.out_proj.weight.shape)
        streams = zip(inputs, self.model.states, self.reference.states, self.model.masks, strict=True)
        for read, state, target, mask in streams:
            moments.add(read[mask], target[mask][:, self.channels] - state[mask])
        store(sublayer.out_proj, moments)
        self.model.add(sublayer, inputs)

    def _fit_in(
        self,
        sublayer: Sublayer,
        reference: Sublayer,
        store: Callable[[Projection, Moments], None] | None,
        columns: Sequence[Sequence[int]] | None,
    ) -> None:
        """Move the reference on, and fit the in-projections on the way."""
        if store is None:
            self.reference.advance(reference)
            return
        outputs = [projection.weight.shape[1] for projection in sublayer.in_projs]
        moments = Moments.zeros(sublayer.in_projs[0].weight.shape[0], sum(outputs))
        for rows, passed in zip(self.model.read(sublayer), self.reference.through(reference), strict=True):
            targets = passed.outputs
            if columns is not None:
                targets = [output[:, kept] for output, kept in zip(targets, columns, strict=True)]
            moments.add(rows, torch.cat(targets, dim=1))
        begin = 0
        for projection, size in zip(sublayer.in_projs, outputs, strict=True):
            store(projection, moments.of(slice(begin, begin + size)))
            begin += size

    def final_rows(self) -> list[tuple[Tensor, Tensor]]:
        """Both streams without padding, [rows, width] of each a batch."""
        return list(zip(self.model.rows(), self.reference.rows(), strict=True))


class _Stopped(Exception):
    """The out-projection was reached."""


@contextmanager
def _recorded(sublayer: Sublayer, stop: bool = False) -> Iterator[Pass]:
    """Record what flows through the sublayer inside the block; with `stop`, leave it before the out-projection."""
    passed = Pass()

    def keep(_module: Any, inputs: tuple[Tensor, ...]) -> None:
        passed.inputs = inputs[0]
        if stop:
            raise _Stopped

    hooks = [
        projection.module.register_forward_hook(lambda _module, _inputs, output: passed.outputs.append(output))
        for projection in sublayer.in_projs
    ]
    hooks.append(sublayer.out_proj.module.register_forward_pre_hook(keep))
    try:
        yield passed
    except _Stopped:
        pass
    finally:
        for hook in hooks:
            hook.remove()
