"""`compress prune`: an ordinary smaller checkpoint, resumable healing, and every refusal."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.timed_machine import Machine, Timed
from transformers import GPT2Config, GPT2LMHeadModel

from chitchat.checkpoint import load_model, load_tokenizer, save_checkpoint
from chitchat.data.dataset import build_dataset, open_dataset
from chitchat.data.options import DataOptions
from chitchat.errors import BadInput
from chitchat.lineage import Stage, identity, read_lineage
from chitchat.system.folder import staged_folder
from chitchat.training.stopwatch import Stopwatch
from compress.distill.run import HealRun
from compress.prune import rounds
from compress.prune.options import PruneOptions
from compress.prune.pruner import Pruner
from compress.prune.stage import plan, prune
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


@pytest.fixture(scope="session")
def deep_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A random GPT-2 of 4 layers, whose weights are large enough for a cut to hurt."""
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=300, n_layer=4, n_embd=32, n_head=4, n_positions=64, initializer_range=0.1,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    out = tmp_path_factory.mktemp("deep") / "teacher"
    with staged_folder(out, "checkpoint") as staging:
        save_checkpoint(staging, GPT2LMHeadModel(config).eval(), load_tokenizer(tiny_data), Stage("train", {}, 0))
    return out


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


@pytest.mark.parametrize("importance", ["obs", "taylor", "random"])
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
    assert [each["steps"] > 0 for each in metrics["rounds"]] == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


@pytest.mark.slow
@pytest.mark.parametrize("pace", [lambda now: 10.0, lambda now: 10.0 if now < 150.0 else 40.0])
def test_trials_and_rounds_together_take_the_minutes(
    tmp_path: Path, deep_checkpoint: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, pace: Any
) -> None:
    """Stops a healing whose trials and rounds each keep their minutes and together do not, on a machine that slows."""
    machine, real = Machine(pace), HealRun.objective
    monkeypatch.setattr(HealRun, "objective", lambda run, skew=0.0: Timed(real(run, skew), machine))
    options = PruneOptions(keep=0.4, candidates=3, heal_minutes=12.0)
    stopwatch = Stopwatch(machine.clock)
    figures = prune(str(deep_checkpoint), tiny_data, tmp_path / "small", options, stopwatch=stopwatch)
    assert 0.88 * 12 <= figures["healing_minutes"] <= 1.1 * 12  # a step of 40 s is a twentieth of it
    metrics = read_lineage(tmp_path / "small")[-1]["metrics"]
    assert len(metrics["rounds"]) == 2
    assert sum(each["steps"] > 0 for each in metrics["candidates"]) == 2


class Interrupted(Exception):
    """Stands for a power cut."""


IN_TWO_ROUNDS = PruneOptions(keep=0.4, candidates=2, heal_epochs=2, seed=3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, deep_checkpoint: Path, tiny_data: Path) -> Path:
    """A run that was left alone."""
    out = tmp_path_factory.mktemp("whole") / "whole"
    prune(str(deep_checkpoint), tiny_data, out, IN_TWO_ROUNDS)
    return out


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        pytest.param(1, "before healing", marks=pytest.mark.slow),
        (1, "after healing"),
        (2, "before healing"),
        pytest.param(2, "after healing", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_end(
    tmp_path: Path,
    whole: Path,
    deep_checkpoint: Path,
    tiny_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    moment: str,
) -> None:
    """Stops a resumed run that searches anew, cuts anew, heals anew, or ends elsewhere."""
    options = IN_TWO_ROUNDS
    heal, calls, cuts = rounds.heal, [], []

    def interrupt(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) < number:
            return heal(*arguments, **named)
        if moment == "after healing":
            heal(*arguments, **named)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "heal", interrupt)
        with pytest.raises(Interrupted):
            prune(str(deep_checkpoint), tiny_data, tmp_path / "small", options)
    assert not (tmp_path / "small").exists()
    prune_model = Pruner.prune
    monkeypatch.setattr(Pruner, "prune", lambda *arguments: cuts.append(1) or prune_model(*arguments))
    prune(str(deep_checkpoint), tiny_data, tmp_path / "small", options, resume=True)
    assert len(cuts) == 2 - number
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "small").items())
    old, new = (read_lineage(folder)[-1]["metrics"] for folder in (whole, tmp_path / "small"))
    assert new["candidates"] == old["candidates"]
    assert len(new["rounds"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_resuming_with_other_options_is_refused(
    tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops a student of one shape that is finished under the name of another."""

    def interrupt(*_arguments: Any, **_named: Any) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "heal", interrupt)
        with pytest.raises(Interrupted):
            prune(str(tiny_checkpoint), tiny_data, tmp_path / "small", PruneOptions(layers=1, heal_epochs=1))
    with pytest.raises(BadInput, match=r"--resume: .*heal_epochs 1, now 2"):
        prune(str(tiny_checkpoint), tiny_data, tmp_path / "small", PruneOptions(layers=1, heal_epochs=2), resume=True)


@pytest.mark.slow
def test_two_processes_make_one_checkpoint(tmp_path: Path, deep_checkpoint: Path, tiny_data: Path) -> None:
    """Stops a launcher whose processes choose different shapes, wait for each other for ever, or write twice."""
    options = ["--keep", "0.4", "--candidates", "2", "--heal-epochs", "2", "--json"]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "chitchat_compress",
    ]
    arguments = ["prune", str(deep_checkpoint), "--data", str(tiny_data), "--out", str(tmp_path / "two"), *options]
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    ran = subprocess.run(
        [*command, *arguments], env=environment, check=True, timeout=300, capture_output=True, text=True
    )
    two = json.loads(ran.stdout.splitlines()[-1])
    one = prune(str(deep_checkpoint), tiny_data, tmp_path / "one", PruneOptions(keep=0.4, candidates=2, heal_epochs=2))
    assert two["shape"] == one["shape"]
    assert two["kl"] == pytest.approx(one["kl"], rel=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


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
        ({"max_mb": 0.0}, r"--max-mb 0: give a number above 0"),
        ({"max_ms_per_token": float("nan")}, r"--max-ms-per-token nan"),
        ({"max_mb": 3.0, "ffn": 8}, r"--max-mb 3: .*--ffn.*one of the two"),
        ({"keep": 0.5, "candidates": 0}, r"--candidates 0"),
        ({"keep": 0.5, "layers": 1}, r"--keep 0.5: .*--layers.*one of the two"),
        ({"layers": 1, "heal_epochs": 1, "heal_minutes": 1}, r"--heal-epochs and --heal-minutes"),
        ({"layers": 1, "heal_minutes": -1}, r"--heal-minutes -1"),
        ({"layers": 1, "heal_epochs": float("nan")}, r"--heal-epochs nan"),
        ({"layers": 1, "importance": "fisher"}, r"--importance fisher: .*obs, activation, magnitude, taylor or random"),
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
        ({"vocab": 301}, r"--vocab 301: the model has 300"),
        ({"context": 65}, r"--context 65: the model has 64"),
    ],
)
def test_shapes_that_cannot_be_are_refused_before_any_work(
    tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path, options: dict[str, Any], message: str
) -> None:
    """Stops a refusal that comes after the measuring, or leaves folders behind."""
    with pytest.raises(BadInput, match=message):
        prune(str(tiny_checkpoint), tiny_data, tmp_path / "small", PruneOptions(**options))
    assert not list(tmp_path.iterdir())


def test_no_refit_leaves_every_kept_weight_alone(tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path) -> None:
    """Stops a control that is repaired after all, and a refit that does nothing."""
    teacher = weights(tiny_checkpoint)["transformer.h.1.mlp.c_proj.weight"]
    for name, refit in (("sliced", False), ("refitted", True)):
        prune(
            str(tiny_checkpoint), tiny_data, tmp_path / name, PruneOptions(ffn=64, no_refit=not refit, heal_minutes=0)
        )
        rows = weights(tmp_path / name)["transformer.h.1.mlp.c_proj.weight"]
        nearest = (rows[:, None] - teacher[None]).abs().amax(-1).amin(-1)
        assert (nearest.max() == 0) != refit


def test_a_budget_tries_its_candidates_and_keeps_the_nearest(
    tmp_path: Path, deep_checkpoint: Path, tiny_data: Path
) -> None:
    """Stops a table of candidates that were not measured, and a choice that is not the best of it."""
    prune(str(deep_checkpoint), tiny_data, tmp_path / "small", PruneOptions(keep=0.7, candidates=3, heal_minutes=0))
    table = read_lineage(tmp_path / "small")[-1]["metrics"]["candidates"]
    assert len(table) == 3
    assert len({row["shape"] for row in table}) == 3
    assert [row["kl"] for row in table if row["chosen"]] == [min(row["kl"] for row in table)]
    full = load_model(deep_checkpoint).num_parameters()
    assert all(
        row["parameters"] <= 0.7 * full and row["perplexity"] > 1 and row["perplexity_ratio"] > 0 for row in table
    )
    chosen = next(row for row in table if row["chosen"])
    assert load_model(tmp_path / "small").num_parameters() == chosen["parameters"]


def test_finalists_are_healed_before_one_is_chosen(
    tmp_path: Path, deep_checkpoint: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops a choice by what the knife alone leaves, where there is time to heal a few."""
    monkeypatch.setattr("compress.prune.search.MIN_STEPS", 8)
    options = PruneOptions(keep=0.7, candidates=3, heal_epochs=10, own_replies=0.0)
    figures = prune(str(deep_checkpoint), tiny_data, tmp_path / "small", options)
    table = read_lineage(tmp_path / "small")[-1]["metrics"]["candidates"]
    assert sorted(row["steps"] > 0 for row in table) == [False, True, True]
    healed = [row for row in table if row["steps"]]
    assert [row["kl"] for row in table if row["chosen"]] == [min(row["kl"] for row in healed)]
    assert figures["kl"] < min(row["kl"] for row in healed)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_tokens_and_positions_go_exactly(tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path) -> None:
    """Stops a trimmed model that says something else about the tokens that it kept; and one that no data set fits."""
    options = PruneOptions(vocab=290, context=40, heal_minutes=0)
    figures = prune(str(tiny_checkpoint), tiny_data, tmp_path / "small", options)
    assert (figures["vocab"], figures["positions"]) == (290, 40)
    small, full = load_model(tmp_path / "small"), load_model(tiny_checkpoint)
    tokenizer, old = load_tokenizer(tmp_path / "small"), load_tokenizer(tiny_checkpoint).get_vocab()
    kept = [old[token] for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    assert torch.equal(small.transformer.wte.weight, full.transformer.wte.weight[kept])
    ids = torch.arange(40)[None] % 290
    with torch.no_grad():
        theirs = full(torch.tensor(kept)[ids]).logits[..., kept]
        torch.testing.assert_close(small(ids).logits, theirs, rtol=1e-5, atol=1e-5)


def test_a_smaller_vocabulary_heals_on_the_same_conversations(
    tmp_path: Path, deep_checkpoint: Path, tiny_data: Path
) -> None:
    """Stops healing on ids of the old vocabulary, which mean other words now."""
    prune(str(deep_checkpoint), tiny_data, tmp_path / "small", PruneOptions(vocab=280, layers=2, heal_epochs=2))
    metrics = read_lineage(tmp_path / "small")[-1]["metrics"]
    assert metrics["after"]["kl"] < metrics["sliced"]["kl"]
    assert load_model(tmp_path / "small").config.vocab_size == 280
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_plan_cuts_nothing_and_says_what_would_be_tried(
    tmp_path: Path, deep_checkpoint: Path, tiny_data: Path
) -> None:
    """Stops a plan that differs from the run."""
    options = PruneOptions(keep=0.6, candidates=3, heal_minutes=0)
    planned = plan(str(deep_checkpoint), tiny_data, options)
    assert not list(tmp_path.iterdir())
    prune(str(deep_checkpoint), tiny_data, tmp_path / "small", options)
    table = read_lineage(tmp_path / "small")[-1]["metrics"]["candidates"]
    assert [row["shape"] for row in planned["candidates"]] == [row["shape"] for row in table]
    assert 0 < planned["used_tokens"] <= planned["vocabulary"] == 300
    (shape,) = plan(str(deep_checkpoint), tiny_data, PruneOptions(layers=2, ffn=64))["candidates"]
    assert (shape["layers"], shape["ffn"]) == (2, 64)


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
    build_dataset([str(tiny_corpus)], tmp_path / "other", DataOptions(vocab_size=290, validation=0.2))
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
