"""Quality through the runtime that ships: the same tokens for all forms, and another tokenizer refused."""

import math
from pathlib import Path

import pytest
from families import tiny_family

from bench.quality import evaluate
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
    part = evaluate(str(family["bundle-fp32"]), tiny_data, max_tokens=100, context=16)
    assert whole["context"] == 64
    assert part["context"] == 16
    assert 100 <= part["tokens"] < 116 < whole["tokens"]
    assert evaluate(str(family["bundle-fp32"]), tiny_data, max_tokens=50, context=999)["context"] == 64


def test_a_data_set_of_another_tokenizer_is_refused(family: dict[str, Path], tiny_corpus: Path, tmp_path: Path) -> None:
    """Ids of one tokenizer were scored by the model of another, and the perplexity was nonsense."""
    from chitchat.data.dataset import build_dataset

    build_dataset([str(tiny_corpus)], tmp_path / "other", vocab_size=290, validation=0.2)
    for path in (family["checkpoint"], family["bundle-fp32"]):
        with pytest.raises(BadInput, match=r"another tokenizer .* --tokenizer"):
            evaluate(str(path), tmp_path / "other")


def test_a_folder_that_is_no_data_set_is_refused(family: dict[str, Path], tmp_path: Path) -> None:
    """A traceback from datasets."""
    with pytest.raises(BadInput, match="no such data set folder"):
        evaluate(str(family["checkpoint"]), tmp_path / "none")
