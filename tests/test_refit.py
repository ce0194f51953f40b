"""The refit: ridge regression against numpy, exactness where nothing is lost, and what it wins back."""

import numpy as np
import pytest
import torch
from support.flows import flows, ridge
from support.small_gpt2 import VOCAB, batches, make_model
from transformers import GPT2LMHeadModel

from chitchat.architectures.registry import architecture_of, geometry_of
from compress.calibrate.measure import divergence
from compress.prune.importance import score_units
from compress.prune.layers import keep_layers
from compress.prune.refit import Sliced, refit
from compress.prune.slicing import Kept, slice_model
from serve.geometry import Geometry


def everything(model: GPT2LMHeadModel) -> Kept:
    config = model.config
    return Kept(
        channels=range(config.n_embd),
        heads=[range(config.n_head)] * config.n_layer,
        neurons=[range(config.n_inner)] * config.n_layer,
    )


def test_a_model_that_lost_nothing_stays_what_it_was() -> None:
    """Stops a fit towards the wrong target, or of the wrong layer: here the best change is none."""
    teacher = make_model()
    student = keep_layers(teacher, [0, 1, 2])
    refit([Sliced(student, [0, 1, 2], everything(teacher))], teacher, batches())
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, teacher.state_dict()[name], atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize(
    ("layers", "kept"),
    [
        ([0, 1, 2], Kept(range(32), [range(4)] * 3, [[3, 60, 17, 8], [1, 2, 3, 9], [63, 5, 6, 7]])),
        ([0, 1, 2], Kept([31, *range(0, 30, 2)], [[3, 1], [0, 2], [2, 3]], [range(64)] * 3)),
        ([0, 2], Kept(range(32), [range(4)] * 2, [range(64)] * 2)),
        ([0, 2], Kept([31, *range(0, 30, 2)], [[3, 1], [0, 2]], [range(9, 40), range(31)])),
    ],
    ids=["ffn", "width", "layers", "all"],
)
def test_every_projection_is_the_ridge_solution(layers: list[int], kept: Kept) -> None:
    """Stops an in-projection that is left as it was sliced, and targets of another layer, head, neuron or channel."""
    teacher, inputs, damping = make_model(), batches(12), 0.02
    kept = Kept(sorted(kept.channels), [sorted(one) for one in kept.heads], [sorted(one) for one in kept.neurons])
    sliced, student = (slice_model(keep_layers(teacher, layers), kept) for _ in range(2))
    refit([Sliced(student, layers, kept)], teacher, inputs, damping)
    in_projs_too = len(layers) < 3 or len(kept.channels) < 32
    known, theirs, ours = architecture_of(teacher), flows(teacher, inputs), flows(student, inputs)
    for index, (before, after) in enumerate(
        zip(known.all_sublayers(sliced), known.all_sublayers(student), strict=True)
    ):
        flow, target = ours[index], theirs[2 * layers[index // 2] + index % 2]
        units = (kept.neurons if index % 2 else kept.heads)[index // 2]
        if index % 2:
            columns = list(units)
        else:
            columns = [part * 32 + head * 8 + column for part in range(3) for head in units for column in range(8)]
        (sliced_in,), (fitted_in,) = before.in_projs, after.in_projs
        expected = sliced_in.weight.detach().double().numpy()
        if in_projs_too:
            expected = ridge(flow.read, target.targets[:, columns], expected, damping)
        np.testing.assert_allclose(fitted_in.weight.detach(), expected, atol=1e-3)
        wanted = target.after[:, kept.channels] - flow.before
        expected = ridge(flow.inputs, wanted, before.out_proj.weight.detach().double().numpy(), damping)
        np.testing.assert_allclose(after.out_proj.weight.detach(), expected, atol=1e-3)
        bias = wanted.mean(0) - flow.inputs.mean(0) @ expected
        np.testing.assert_allclose(after.out_proj.bias.detach(), bias, atol=2e-3)


def test_neurons_that_others_can_speak_for_are_replaced_exactly() -> None:
    """Stops a refit that does not reach what least squares can: here every other neuron is a copy of the one before."""
    teacher = make_model()
    with torch.no_grad():
        for block in teacher.transformer.h:
            block.mlp.c_fc.weight[:, 1::2] = block.mlp.c_fc.weight[:, ::2]
            block.mlp.c_fc.bias[1::2] = block.mlp.c_fc.bias[::2]
    kept = Kept(range(32), [range(4)] * 3, [range(0, 64, 2)] * 3)
    student = slice_model(teacher, kept)
    sliced = divergence(teacher, student, batches(4, seed=2)).kl
    refit([Sliced(student, [0, 1, 2], kept)], teacher, batches(), damping=1e-6)
    assert divergence(teacher, student, batches(4, seed=2)).kl < 1e-6 < 1e-3 * sliced


@pytest.mark.parametrize(
    "shape",
    [{"ffn": 16}, {"heads": 2, "ffn": 48}, {"layers": 2}, {"layers": 2, "heads": 3, "ffn": 24}],
    ids=["ffn", "width", "layers", "all"],
)
def test_every_kind_of_cut_is_repaired(shape: dict[str, int]) -> None:
    """Stops a repair that forgets an axis: on conversations that it has not seen the student must come nearer."""
    teacher = make_model()
    full = geometry_of(teacher)
    wanted = Geometry(shape.get("layers", 3), shape.get("heads", 4), 8, shape.get("ffn", 64), VOCAB, full.context)
    layers = [0, 2] if wanted.layers == 2 else [0, 1, 2]
    part = keep_layers(teacher, layers)
    kept = score_units(part, batches(), "obs").keep(wanted)
    student = slice_model(part, kept)
    fresh = batches(6, seed=5)
    before = divergence(teacher, student, fresh).kl
    untouched = {name: value.clone() for name, value in teacher.state_dict().items()}
    refit([Sliced(student, layers, kept)], teacher, batches(48))
    assert divergence(teacher, student, fresh).kl < 0.8 * before
    assert all(torch.equal(value, untouched[name]) for name, value in teacher.state_dict().items())
    assert student.lm_head.weight is student.transformer.wte.weight


def test_several_students_are_fitted_as_each_alone() -> None:
    """Stops a student that is fitted to the teacher's stream before or behind the sublayer that it came of."""
    teacher = make_model()
    cuts = [
        ([0, 1, 2], Kept(range(32), [range(4)] * 3, [range(24)] * 3)),
        ([0, 2], Kept([31, *range(1, 24)], [range(3)] * 2, [range(9, 40)] * 2)),
        ([0, 1], Kept(range(32), [range(4)] * 2, [range(64)] * 2)),
    ]

    def sliced() -> list[Sliced]:
        return [Sliced(slice_model(keep_layers(teacher, layers), kept), layers, kept) for layers, kept in cuts]

    together, alone = sliced(), sliced()
    refit(together, teacher, batches())
    for one, other in zip(alone, together, strict=True):
        refit([one], teacher, batches())
        for name, value in one.student.state_dict().items():
            torch.testing.assert_close(value, other.student.state_dict()[name], rtol=0, atol=0)


def test_padding_is_not_fitted() -> None:
    """Stops a fit to what stands right of a conversation."""
    teacher = make_model()
    kept = Kept(range(32), [range(4)] * 3, [range(24)] * 3)
    students = []
    for pad in (0, 7):
        ours = batches(12)
        for batch in ours:
            batch["input_ids"][batch["attention_mask"] == 0] = pad
        students.append(slice_model(teacher, kept))
        refit([Sliced(students[-1], [0, 1, 2], kept)], teacher, ours)
    for name, value in students[0].state_dict().items():
        torch.testing.assert_close(value, students[1].state_dict()[name], atol=1e-5, rtol=1e-4)
