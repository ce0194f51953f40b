"""KL and top-1 against a teacher: the same figures as in torch, through any runtime, block by block."""

from pathlib import Path

import numpy as np
import pytest
from support.families import tiny_family

from bench.evaluate import divergence as module
from bench.evaluate.divergence import measure_divergence
from bench.models.open import open_model
from bench.models.stepping import SteppingModel
from bench.models.torch import CheckpointModel
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
    teacher, model = CheckpointModel(tiny_model), CheckpointModel(other)
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


class Scripted(SteppingModel):
    """Logits that are drawn for each text, with a mean that is far from zero."""

    context = 64

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def run(self, ids, *, fresh: bool):
        random = np.random.default_rng([self._seed, *ids])
        return (random.normal(0, 3, size=(len(ids), 300)) + random.normal(40, 5)).astype(np.float32)


@pytest.mark.parametrize("held", [1, 5_000, 2**24])
def test_sums_are_those_of_float64_arithmetic_position_by_position(tiny_data, monkeypatch, held: int) -> None:
    """A window was counted for the conversation before it, or positions without a label were; at every block size."""
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", held)
    teacher, model = Scripted(0), Scripted(1)
    windows = open_dataset(tiny_data).windows("validation", 32)
    found = measure_divergence(teacher, model, windows, max_tokens=600)
    kl, same, tokens = {}, {}, {}
    values = []
    for number in range(len(windows)):
        if len(values) >= 600:
            break
        window, conversation = windows[number], int(windows.conversation[number])
        rows = zip(teacher.logits(window["input_ids"]), model.logits(window["input_ids"]), strict=True)
        for position, (wanted, given_logits) in enumerate(rows):
            if position + 1 == len(window["input_ids"]) or window["labels"][position + 1] == -100:
                continue
            p, q = (np.exp(row - row.max()) for row in (wanted.astype(np.float64), given_logits.astype(np.float64)))
            p, q = p / p.sum(), q / q.sum()
            values.append(float((p * np.log(p / q)).sum()))
            kl[conversation] = kl.get(conversation, 0.0) + values[-1]
            same[conversation] = same.get(conversation, 0) + (p.argmax() == q.argmax())
            tokens[conversation] = tokens.get(conversation, 0) + 1
    assert found is not None
    assert found.conversation == sorted(kl)
    assert found.kl == pytest.approx([kl[number] for number in sorted(kl)], rel=1e-9)
    assert found.same == [same[number] for number in sorted(kl)]
    assert found.tokens == [tokens[number] for number in sorted(kl)]
    assert found.kl_p99 == pytest.approx(np.percentile(values, 99), rel=1e-9)
    assert found.figures()["kl"] == pytest.approx(np.mean(values))
