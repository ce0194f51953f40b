"""`compress prune`: an ordinary smaller checkpoint, resumable healing, and every refusal."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel

from chitchat.checkpoint import load_model, load_tokenizer, save_checkpoint
from chitchat.data.dataset import build_dataset, open_dataset
from chitchat.errors import BadInput
from chitchat.lineage import Stage, identity, read_lineage
from compress.prune import stage
from compress.prune.stage import PruneOptions, prune
from compress.quantize.stage import quantize


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder).state_dict()


def changed_checkpoint(folder: Path, source: Path, vocab: int | None = None, **config: Any) -> Path:
    """A checkpoint like `source` with other settings in its configuration."""
    model = load_model(source)
    if vocab:
        model.resize_token_embeddings(vocab)
    model.config.update(config)
    folder.mkdir()
    save_checkpoint(folder, model, load_tokenizer(source), Stage("train", {}, 0))
    return folder


def test_the_result_is_an_ordinary_checkpoint_within_the_budget(
    tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path
) -> None:
    """Stops a pruned model that nothing else loads, and figures that are not of the model that was written."""
    figures = prune(str(tiny_checkpoint), tiny_data, tmp_path / "small", PruneOptions(keep=0.6, heal_minutes=0))
    model, report = GPT2LMHeadModel.from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not report["unexpected_keys"]
    assert model.lm_head.weight is model.transformer.wte.weight
    full = load_model(tiny_checkpoint).num_parameters()
    assert figures["parameters_after"] == model.num_parameters() <= 0.6 * full
    assert (figures["parameters_before"], figures["kept"]) == (full, model.num_parameters() / full)
    assert model.config.n_inner == figures["ffn"]
    assert model.config.n_embd == figures["width"] == figures["heads"] * 8
    assert figures["perplexity"] == figures["perplexity_sliced"] > 1
    assert figures["kl"] > 0
    json.dumps(figures)
    before, after = read_lineage(tmp_path / "small")
    assert (before["stage"], after["stage"]) == ("train", "prune")
    assert after["parent_sha256"] == identity(tiny_checkpoint)
    assert after["data_sha256"] == identity(tiny_data)
    assert after["metrics"]["before"]["parameters"] == full
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_explicit_axes_are_kept(tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path) -> None:
    """Stops an axis that is ignored."""
    options = PruneOptions(layers=1, width=24, ffn=48, heal_epochs=0, importance="magnitude")
    prune(str(tiny_checkpoint), tiny_data, tmp_path / "small", options)
    config = load_model(tmp_path / "small").config
    assert (config.n_layer, config.n_embd, config.n_head, config.n_inner) == (1, 24, 3, 48)
    assert read_lineage(tmp_path / "small")[-1]["options"]["kept_layers"] == [0]


@pytest.mark.parametrize("importance", ["activation", "random"])
def test_the_same_seed_cuts_the_same_units(
    tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path, importance: str
) -> None:
    """Stops a cut that depends on anything but options and seed."""
    options = PruneOptions(width=16, ffn=32, heal_minutes=0, importance=importance)
    for name in ("a", "b"):
        prune(str(tiny_checkpoint), tiny_data, tmp_path / name, options)
    assert identity(tmp_path / "a") == identity(tmp_path / "b")


def test_healing_brings_the_student_nearer(tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path) -> None:
    """Stops a student that is stored as it was before healing."""
    options = PruneOptions(ffn=16, heal_epochs=2)
    figures = prune(str(tiny_checkpoint), tiny_data, tmp_path / "small", options)
    metrics = read_lineage(tmp_path / "small")[-1]["metrics"]
    assert metrics["after"]["kl"] == figures["kl"] < metrics["sliced"]["kl"]
    assert metrics["healing"]["steps"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


@pytest.mark.parametrize("moment", ["before healing", "after healing"])
def test_an_interrupted_run_goes_on_to_the_same_end(
    tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Stops a resumed run that cuts anew, heals anew, or ends elsewhere."""
    options = PruneOptions(layers=1, heal_epochs=1, seed=3)
    prune(str(tiny_checkpoint), tiny_data, tmp_path / "whole", options)
    heal, cuts = stage.heal, []

    def interrupt(*arguments: Any, **named: Any) -> None:
        if moment == "after healing":
            heal(*arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "heal", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prune(str(tiny_checkpoint), tiny_data, tmp_path / "small", options)
    assert not (tmp_path / "small").exists()
    monkeypatch.setattr(stage, "cut", lambda *_: cuts.append(1))
    prune(str(tiny_checkpoint), tiny_data, tmp_path / "small", options, resume=True)
    assert not cuts
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "small").items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "whole"]


def test_resuming_with_other_options_is_refused(
    tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops a student of one shape that is finished under the name of another."""

    def interrupt(*_arguments: Any, **_named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "heal", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prune(str(tiny_checkpoint), tiny_data, tmp_path / "small", PruneOptions(layers=1, heal_epochs=1))
    with pytest.raises(BadInput, match=r"--resume: .*heal_epochs 1, now 2"):
        prune(str(tiny_checkpoint), tiny_data, tmp_path / "small", PruneOptions(layers=1, heal_epochs=2), resume=True)


def test_resuming_nothing_starts_anew(tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path) -> None:
    """Stops a pipeline that has to know whether its stage had begun when it was killed."""
    prune(str(tiny_checkpoint), tiny_data, tmp_path / "small", PruneOptions(ffn=64, heal_minutes=0), resume=True)
    assert load_model(tmp_path / "small").config.n_inner == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"--keep: say how much"),
        ({"keep": 0.0}, r"--keep 0: .*between 0 and 1"),
        ({"keep": 1.0}, r"--keep 1: .*between 0 and 1"),
        ({"keep": 0.5, "layers": 1}, r"--keep 0.5: .*--layers.*one of the two"),
        ({"layers": 1, "heal_epochs": 1, "heal_minutes": 1}, r"--heal-epochs and --heal-minutes"),
        ({"layers": 1, "heal_minutes": -1}, r"--heal-minutes -1"),
        ({"layers": 1, "heal_epochs": float("nan")}, r"--heal-epochs nan"),
        ({"layers": 1, "importance": "taylor"}, r"--importance taylor: .*activation, magnitude, random"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    """Stops hours of work on a misread wish; the line names the option, the value and the remedy."""
    with pytest.raises(BadInput, match=message):
        PruneOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.01}, r"--keep 0.01: .*smallest"),
        ({"layers": 3}, r"--layers 3: the model has 2"),
        ({"width": 20}, r"--width 20: .*16 and 24"),
        ({"ffn": 129}, r"--ffn 129: the model has 128"),
        ({"layers": 2}, r"own shape"),
    ],
)
def test_shapes_that_cannot_be_are_refused_before_any_work(
    tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path, options: dict[str, Any], message: str
) -> None:
    """Stops a refusal that comes after the measuring, or leaves folders behind."""
    with pytest.raises(BadInput, match=message):
        prune(str(tiny_checkpoint), tiny_data, tmp_path / "small", PruneOptions(**options))
    assert not list(tmp_path.iterdir())


def test_attention_scaled_by_the_layers_number_keeps_its_layers(
    tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path
) -> None:
    """Stops layers behind a cut from attending with another scale than they learnt."""
    scaled = changed_checkpoint(tmp_path / "scaled", tiny_checkpoint, scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(BadInput, match="layer's number"):
        prune(str(scaled), tiny_data, tmp_path / "small", PruneOptions(layers=1))
    prune(str(scaled), tiny_data, tmp_path / "small", PruneOptions(ffn=64, heal_minutes=0))
    assert load_model(tmp_path / "small").config.scale_attn_by_inverse_layer_idx


def test_cross_attention_is_refused(tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path) -> None:
    """Stops a decoder whose second attention would be lost without a word."""
    crossed = tmp_path / "crossed"
    changed_checkpoint(crossed, tiny_checkpoint)
    config = json.loads((crossed / "config.json").read_text()) | {"add_cross_attention": True}
    (crossed / "config.json").write_text(json.dumps(config))
    (crossed / "lineage.json").unlink()
    with pytest.raises(BadInput, match="cross-attention"):
        prune(str(crossed), tiny_data, tmp_path / "small", PruneOptions(layers=1))


def test_a_quantized_checkpoint_is_refused(tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path) -> None:
    """Stops integers from being cut in the middle of a block."""
    quantize(str(tiny_checkpoint), tiny_data, tmp_path / "q")
    with pytest.raises(BadInput, match="already quantized"):
        prune(str(tmp_path / "q"), tiny_data, tmp_path / "small", PruneOptions(layers=1))


def test_a_teacher_of_another_vocabulary_is_refused(tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path) -> None:
    """Stops a divergence between distributions over different tokens."""
    other = changed_checkpoint(tmp_path / "other", tiny_checkpoint, vocab=320)
    options = PruneOptions(layers=1, heal_epochs=1, teacher=str(other))
    with pytest.raises(BadInput, match=r"--teacher .*320.*300"):
        prune(str(tiny_checkpoint), tiny_data, tmp_path / "small", options)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_data_of_another_tokenizer_is_refused(tmp_path: Path, tiny_checkpoint: Path, tiny_corpus: Path) -> None:
    """Stops calibration on ids that mean other words."""
    build_dataset([str(tiny_corpus)], tmp_path / "other", vocab_size=290, validation=0.2)
    assert open_dataset(tmp_path / "other").vocab_size != 300
    with pytest.raises(BadInput, match=r"--data .*another tokenizer"):
        prune(str(tiny_checkpoint), tmp_path / "other", tmp_path / "small", PruneOptions(layers=1))


def test_a_folder_that_is_not_ours_stays(tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path) -> None:
    """Stops the user's own files from being replaced."""
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="--out"):
        prune(str(tiny_checkpoint), tiny_data, tmp_path / "small", PruneOptions(layers=1))
    assert (tmp_path / "small" / "notes.txt").read_text() == "mine"
