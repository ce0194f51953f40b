"""KL and top-1 against a teacher: the same figures as in torch, through any runtime, block by block."""

from pathlib import Path

import pytest
from support.families import tiny_family

from bench.evaluate import divergence as module
from bench.evaluate.divergence import measure_divergence
from bench.models.open import open_model
from bench.models.runtime import TorchRuntime
from chitchat.data.dataset import collate, open_dataset
from compress.calibrate.measure import divergence


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_data: Path) -> dict[str, Path]:
    return tiny_family(tmp_path_factory, tiny_checkpoint, tiny_data)


def test_the_figures_are_those_of_two_torch_models(tiny_model, tiny_data: Path, monkeypatch) -> None:
    """Positions without a label counted, or a block's windows lost their conversation."""
    other = type(tiny_model)(tiny_model.config).eval()
    windows = open_dataset(tiny_data).windows("validation", 32)
    want = divergence(tiny_model, other, [collate([windows[i] for i in range(len(windows))], 0)])
    teacher, model = TorchRuntime(tiny_model), TorchRuntime(other)
    found = measure_divergence(teacher, model, windows, 10**9)
    assert found is not None
    figures = found.figures()
    assert (figures["kl"], figures["top1"], figures["kl_tokens"]) == (
        *(pytest.approx(want.kl, rel=1e-4), pytest.approx(want.top1, abs=2 / want.tokens)),
        want.tokens,
    )
    assert figures["kl"] < figures["kl_p99"]
    low, high = figures["kl_interval"]
    assert low < figures["kl"] < high
    assert found.conversation == sorted(set(windows.conversation.tolist())), "windows of a conversation are one"
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 1)
    assert measure_divergence(teacher, model, windows, 10**9) == found
    part = measure_divergence(teacher, model, windows, 100)
    assert part is not None
    assert 100 <= sum(part.tokens) < 132
    assert part.kl[0] == found.kl[0]
    assert measure_divergence(teacher, model, windows, 0) is None


def test_a_bundle_is_compared_through_its_engine(family: dict[str, Path], tiny_data: Path) -> None:
    """The integers' cost was measured in torch, on weights that do not ship."""
    windows = open_dataset(tiny_data).windows("validation", 64)
    teacher = open_model(str(family["checkpoint"])).load(1)
    found = {
        name: measure_divergence(teacher, open_model(str(family[name])).load(1), windows, 500).figures()
        for name in ("bundle-fp32", "bundle-w8")
    }
    assert found["bundle-fp32"]["kl"] < 1e-9
    assert found["bundle-fp32"]["top1"] > 0.99
    assert 1e-9 < found["bundle-w8"]["kl"] < 1e-3
