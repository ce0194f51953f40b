"""The walk over sublayers: the forward pass itself, for GPT-2 and for an architecture that has nothing of it."""

import numpy as np
import pytest
import torch
from support.flows import flows
from support.small_gpt2 import batches, make_model

from chitchat.architectures.registry import ARCHITECTURES, architecture_of
from compress.calibrate.batches import thin
from compress.calibrate.walk import FittedStreams, Streams
from tests.support.llama import Llama, random_llama


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(ARCHITECTURES, "llama", Llama())
    return make_model() if request.param == "gpt2" else random_llama()


def windows(model, count: int = 3) -> list[dict[str, torch.Tensor]]:
    found = batches(count)
    for batch in found:
        batch["input_ids"] %= model.config.vocab_size
    return found


@torch.no_grad()
def test_what_flows_is_what_flows_in_a_forward_run(model) -> None:
    """Stops padding among the rows, outputs of the sublayer before, and a stream that is not moved on."""
    inputs = windows(model)
    streams = Streams(model, inputs)
    for sublayer, flow in zip(streams.sublayers(), flows(model, inputs), strict=True):
        np.testing.assert_allclose(torch.cat(list(streams.rows())), flow.before, atol=1e-5)
        np.testing.assert_allclose(torch.cat(list(streams.read(sublayer))), flow.read, atol=1e-5)
        np.testing.assert_allclose(torch.cat(list(streams.through(sublayer))), flow.inputs, atol=1e-5)
        np.testing.assert_allclose(torch.cat(list(streams.rows())), flow.after, atol=1e-5)


@torch.no_grad()
def test_the_two_ways_over_a_sublayer_lead_to_the_same_place(model) -> None:
    """Stops a run that is left before the out-projection and leaves hooks, or the stream, behind."""
    one, other, plain = (Streams(model, windows(model)) for _ in range(3))
    for sublayer in one.sublayers():
        inputs = other.out_inputs(sublayer)
        for before, rows, mask, read in zip(one.masks, one.through(sublayer), other.masks, inputs, strict=True):
            assert torch.equal(before, mask)
            torch.testing.assert_close(rows, read[mask])
        other.add(sublayer, inputs)
        plain.advance(sublayer)
        for state, same, third in zip(one.states, other.states, plain.states, strict=True):
            torch.testing.assert_close(same, state)
            torch.testing.assert_close(third, state)
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


@torch.no_grad()
def test_each_projection_is_fitted_on_what_the_fitted_ones_before_it_give(model) -> None:
    """Stops moments of the unfitted model, targets of another projection, and a stream that the fit does not move."""
    inputs, reference = windows(model), flows(model, windows(model))
    changed = {name: value.clone() for name, value in model.state_dict().items()}
    student = architecture_of(model).build(model.config, changed)
    given: dict[str, tuple[np.ndarray, ...]] = {}

    def store(projection, moments) -> None:
        given[projection.name] = tuple(part.numpy().copy() for part in (moments.xx, moments.xy, moments.x, moments.y))
        projection.store(projection.weight * 1.1)

    known = Streams(model, inputs)
    streams = FittedStreams(student, known, inputs)
    for ours, theirs in zip(streams.model.sublayers(), known.sublayers(), strict=True):
        streams.fit_in(ours, theirs, store)
        known.advance(theirs)
        streams.fit_out(ours, store)
    for sublayer, ours, theirs in zip(streams.model.sublayers(), flows(student, inputs), reference, strict=True):
        begin = 0
        for projection in sublayer.in_projs:
            end = begin + projection.weight.shape[1]
            check(given[projection.name], ours.read, theirs.targets[:, begin:end])
            begin = end
        check(given[sublayer.out_proj.name], ours.inputs, theirs.after - ours.before)


def check(given: tuple[np.ndarray, ...], x: np.ndarray, y: np.ndarray) -> None:
    for found, wanted in zip(given, (x.T @ x, x.T @ y, x.sum(0), y.sum(0)), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-3, rtol=1e-3)


def test_thinned_batches_are_spread_over_all() -> None:
    """Stops calibration on the longest windows alone: batches come sorted by length."""
    found = batches(12)  # of 70 ids each
    picked = [next(i for i, one in enumerate(found) if one is chosen) for chosen in thin(found, 210)]
    assert picked == [0, 4, 8]
    assert len(thin(found, 10_000)) == 12
    assert len(thin(found, 1)) == 1
