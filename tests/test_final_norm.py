"""The fit of the last norm: against the least squares over every logit, written out."""

import copy

import numpy as np
import pytest
import torch
from support.small_gpt2 import make_model

from chitchat.architectures.registry import ARCHITECTURES, architecture_of
from compress.calibrate.final_norm import fit_final_norm
from tests.support.llama import Llama, random_llama

DAMPING = 0.1


@pytest.mark.parametrize("make", [make_model, random_llama], ids=["gpt2", "llama"])
def test_it_is_the_least_squares_over_all_logits(make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops normal equations that mix up the tables, forget the mean, or fit a bias that is not there."""
    monkeypatch.setitem(ARCHITECTURES, "llama", Llama())
    monkeypatch.setattr("compress.calibrate.final_norm._ROWS", 17)
    reference, model = make(), make()
    known = architecture_of(model)
    norm, table = known.final_norm(model)[1], known.head(model)[1].weight
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        table += 0.1 * torch.randn(table.shape, generator=draw)
    width = table.shape[1]
    streams = [tuple(torch.randn(rows, width, generator=draw) * 2 + 1 for _ in range(2)) for rows in (7, 20)]
    bias = getattr(norm, "bias", None)
    plain = copy.deepcopy(norm)
    torch.nn.init.ones_(plain.weight)
    if bias is not None:
        torch.nn.init.zeros_(plain.bias)
    with torch.no_grad():
        x = torch.cat([plain(ours) for ours, _ in streams]).double().numpy()
        wanted = torch.cat([known.final_norm(reference)[1](theirs) for _, theirs in streams]).double()
        logits = (wanted @ known.head(reference)[1].weight.double().T).numpy()
    e = table.detach().double().numpy()  # [vocab, width]
    design = (x[:, None, :] * e[None]).reshape(-1, width)
    before = norm.weight.detach().double().numpy()
    if bias is not None:
        design = np.hstack([design, np.tile(e, (len(x), 1))])
        before = np.concatenate([before, bias.detach().double().numpy()])
    square = design.T @ design
    penalty = DAMPING * np.diagonal(square).mean() * np.eye(len(square))
    expected = np.linalg.solve(square + penalty, design.T @ logits.ravel() + penalty @ before)
    fit_final_norm(model, reference, streams, DAMPING)
    np.testing.assert_allclose(norm.weight.detach(), expected[:width], rtol=1e-3, atol=1e-4)
    if bias is not None:
        np.testing.assert_allclose(bias.detach(), expected[width:], rtol=1e-3, atol=1e-4)
