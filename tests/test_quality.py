"""Quality through the runtime that ships: the same tokens for all forms, and another tokenizer refused."""

import json
import math
from pathlib import Path

import pytest
from support.families import tiny_family

from bench.evaluate.measure import EvalTask, Quality, evaluate, measure_quality, open_held_out
from bench.evaluate.options import EvalOptions
from chitchat.errors import BadInput


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_data: Path) -> dict[str, Path]:
    return tiny_family(tmp_path_factory, tiny_checkpoint, tiny_data)


def test_all_forms_are_scored_on_the_same_tokens_by_their_own_runtime(family: dict[str, Path], tiny_data: Path) -> None:
    """The bundle was given the checkpoint's figures, and a wrong graph had good quality."""
    scores = {name: evaluate(str(path), tiny_data) for name, path in family.items()}
    assert len({score["tokens"] for score in scores.values()}) == 1
    assert scores["bundle-fp32"]["perplexity"] == pytest.approx(scores["checkpoint"]["perplexity"], rel=1e-4)
    assert scores["bundle-w8"]["perplexity"] == pytest.approx(scores["quantized"]["perplexity"], rel=1e-2)
    assert scores["quantized"]["perplexity"] != scores["checkpoint"]["perplexity"], "the integers are scored"
    one = scores["checkpoint"]
    assert set(one) >= {"perplexity", "bits_per_byte", "token_accuracy", "tokens", "parameters", "weight_bytes"}
    assert one["perplexity"] == pytest.approx(300, rel=0.5), "a random model guesses among 300 tokens"
    assert one["perplexity"] == pytest.approx(math.exp(one["nll_per_token"]))


def test_fewer_tokens_and_a_smaller_window_are_kept_to(family: dict[str, Path], tiny_data: Path) -> None:
    """A model of a longer context was scored with more context than the others."""
    whole = evaluate(str(family["bundle-fp32"]), tiny_data)
    part = evaluate(str(family["bundle-fp32"]), tiny_data, EvalOptions(max_tokens=100), context=16)
    assert whole["context"] == 64
    assert part["context"] == 16
    assert 100 <= part["tokens"] < 116 < whole["tokens"]
    assert evaluate(str(family["bundle-fp32"]), tiny_data, EvalOptions(max_tokens=50), context=999)["context"] == 64


def test_a_data_set_of_another_tokenizer_is_refused(family: dict[str, Path], tiny_corpus: Path, tmp_path: Path) -> None:
    """Ids of one tokenizer were scored by the model of another, and the perplexity was nonsense."""
    from chitchat.data.dataset import build_dataset
    from chitchat.data.options import DataOptions

    build_dataset([str(tiny_corpus)], tmp_path / "other", DataOptions(vocab_size=290, validation=0.2))
    for path in (family["checkpoint"], family["bundle-fp32"]):
        with pytest.raises(BadInput, match=r"another tokenizer .* --tokenizer"):
            evaluate(str(path), tmp_path / "other")


def test_a_folder_that_is_no_data_set_is_refused(family: dict[str, Path], tmp_path: Path) -> None:
    """A traceback from datasets."""
    with pytest.raises(BadInput, match="no such data set folder"):
        evaluate(str(family["checkpoint"]), tmp_path / "none")


def test_a_model_is_no_worse_than_itself_and_a_bundle_nearly_so(family: dict[str, Path], tiny_data: Path) -> None:
    """The teacher was scored on other tokens, or answered other prompts: a model differed from itself."""
    teacher = str(family["checkpoint"])
    itself = evaluate(teacher, tiny_data, EvalOptions(teacher=teacher, samples=12))
    assert (itself["kl"], itself["kl_p99"], itself["top1"], itself["perplexity_ratio"]) == (0, 0, 1, 1)
    assert (itself["distinct_2_ratio"], itself["repetition_4_difference"], itself["replies"]) == (1, 0, 12)
    replies = ("distinct_1", "distinct_2", "entropy_4", "repetition_4", "reply_tokens")
    for name in ("perplexity", "bits_per_byte", *replies):
        assert itself[f"teacher_{name}"] == itself[name], name
    shipped = evaluate(str(family["bundle-w8"]), tiny_data, EvalOptions(teacher=teacher, samples=12))
    assert 0 < shipped["kl"] < shipped["kl_p99"] < 1e-3
    low, high = shipped["perplexity_ratio_interval"]
    assert 0.99 < low <= shipped["perplexity_ratio"] <= high < 1.01
    wide = shipped["perplexity_interval"]
    assert wide[1] / wide[0] > high / low, "pairs vary less than conversations do"
    assert shipped["teacher"] == teacher
    json.dumps(shipped, allow_nan=False)


def test_every_interval_holds_its_figure(family: dict[str, Path], tiny_data: Path) -> None:
    """Logarithm and figure were mixed up: an interval of perplexity in nats."""
    found = evaluate(str(family["bundle-w8"]), tiny_data, EvalOptions(teacher=str(family["checkpoint"])))
    intervals = {name: value for name, value in found.items() if name.endswith("_interval")}
    names = ("perplexity", "bits_per_byte", "token_accuracy", "kl", "top1", "distinct_1", "distinct_2", "repetition_4")
    names += ("entropy_4",)
    for name in (*names, "empty_replies", "reply_tokens", "perplexity_ratio", "distinct_2_ratio"):
        low, high = intervals.pop(f"{name}_interval")
        assert low <= found[name] <= high, name
    assert set(intervals) == {"repetition_4_difference_interval"}


def test_the_same_figures_come_each_time_and_through_json(family: dict[str, Path], tiny_data: Path) -> None:
    """A report could not be computed again from what it had kept; a clock or a global seed changed replies."""
    from bench.models.open import open_model

    data = open_held_out(tiny_data)
    first, second = (
        measure_quality(open_model(str(family["bundle-fp32"])).load(1), data, EvalTask(64, samples=6)) for _ in range(2)
    )
    assert first.figures() == second.figures()
    read = Quality.from_json(json.loads(json.dumps(first.as_json())))
    assert read.figures(second) == first.figures(first)
    assert len(read.replies) == 6
    assert any(reply.text for reply in read.replies)


def test_no_samples_are_no_replies_and_too_many_are_refused(family: dict[str, Path], tiny_data: Path) -> None:
    """Fewer replies than were asked for gave a distinct-2 that compares with nothing."""
    path = str(family["bundle-fp32"])
    assert "distinct_2" not in evaluate(path, tiny_data, EvalOptions(samples=0))
    all_there_are = evaluate(path, tiny_data)["replies"]
    assert 12 < all_there_are < 200
    with pytest.raises(BadInput, match=f"--samples 9999: .* has only {all_there_are} held-out turns"):
        evaluate(path, tiny_data, EvalOptions(samples=9999))


def test_a_teacher_of_another_vocabulary_is_refused(
    family: dict[str, Path], tiny_data: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    """KL between ids that mean other words was a number all the same."""
    from chitchat.checkpoint import load_model, load_tokenizer, save_checkpoint
    from chitchat.data.dataset import build_dataset
    from chitchat.data.options import DataOptions
    from chitchat.lineage import Stage
    from chitchat.system.folder import staged_folder

    build_dataset([str(tiny_corpus)], tmp_path / "data", DataOptions(vocab_size=290))
    with staged_folder(tmp_path / "other", "checkpoint") as staging:
        model = load_model(family["checkpoint"])
        model.resize_token_embeddings(290)
        save_checkpoint(staging, model, load_tokenizer(tmp_path / "data"), Stage("train", {}, seed=0))
    for path in (family["checkpoint"], family["bundle-fp32"]):
        with pytest.raises(BadInput, match=r"--teacher .*other: has another vocabulary \(290 ids\)") as refused:
            evaluate(str(path), tiny_data, EvalOptions(teacher=str(tmp_path / "other")))
        assert "\n" not in str(refused.value)


def test_a_teacher_of_a_shorter_context_sets_the_window(tiny_data: Path, family: dict[str, Path], tmp_path) -> None:
    """Teacher and student were scored in unlike windows, and their ratio was that of the contexts."""
    import torch
    from transformers import GPT2LMHeadModel

    from chitchat.checkpoint import load_model, load_tokenizer, save_checkpoint
    from chitchat.lineage import Stage
    from chitchat.system.folder import staged_folder

    full = load_model(family["checkpoint"])
    config = type(full.config)(**{**full.config.to_dict(), "n_positions": 24})
    short = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, value in short.state_dict().items():
            value.copy_(full.state_dict()[name][: len(value)])
    with staged_folder(tmp_path / "short", "checkpoint") as staging:
        save_checkpoint(staging, short, load_tokenizer(family["checkpoint"]), Stage("prune", {}, seed=0))
    found = evaluate(str(family["checkpoint"]), tiny_data, EvalOptions(teacher=str(tmp_path / "short"), samples=4))
    assert (found["context"], found["perplexity_ratio"]) == (24, pytest.approx(1))
    assert found["kl"] == pytest.approx(0, abs=1e-9)
