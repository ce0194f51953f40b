"""The stage `train`: shapes, checkpoints to start from, bad options, what is written."""

import json

import pytest

from chitchat.checkpoint import load_model, load_tokenizer, read_config
from chitchat.data.dataset import build_dataset, open_dataset
from chitchat.data.options import DataOptions
from chitchat.errors import BadInput
from chitchat.lineage import identity, read_lineage, verify_lineage
from chitchat.score import score, torch_scorer
from chitchat.training.options import TrainOptions
from chitchat.training.train import _fit_options, scratch_rate, train
from serve.digest import sha256

TINY = {"layers": 2, "width": 32, "heads": 4, "context": 32, "batch_size": 8, "epochs": 1}
OTHERS = ("linear", "cosine", "constant")


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    """A checkpoint from scratch and its figures."""
    out = tmp_path_factory.mktemp("train") / "teacher"
    return out, train(tiny_data, out, TrainOptions(**TINY, ffn=64))


def test_from_scratch_gives_an_ordinary_checkpoint_with_its_figures(trained, tiny_data):
    """Stops: a checkpoint that others cannot read, figures of other weights, a lineage that does not verify."""
    out, figures = trained
    verify_lineage(out)
    config = read_config(out)
    assert [config[name] for name in ("n_layer", "n_embd", "n_head", "n_inner", "n_positions")] == [2, 32, 4, 64, 32]
    assert json.loads((out / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]
    data = open_dataset(tiny_data)
    assert config["eos_token_id"] == data.dialogue.end_of_turn_id
    assert load_tokenizer(out).get_vocab() == data.tokenizer.get_vocab()
    found = score(torch_scorer(load_model(out)), data.windows("validation", 32))
    assert figures["validation_loss"] == pytest.approx(found.nll_per_token, rel=1e-5)
    assert figures["token_accuracy"] == pytest.approx(found.token_accuracy, abs=0.01)
    (record,) = read_lineage(out)
    assert record["data_sha256"] == data.identity
    assert record["metrics"]["before"]["loss"] > record["metrics"]["after"]["loss"]
    log = json.loads((out / "training-log.json").read_text())
    assert log[-1]["step"] == figures["steps"]
    assert (out / "training-curve.png").stat().st_size > 1000


def test_the_same_options_give_the_same_folder_and_another_seed_does_not(trained, tiny_data, tmp_path):
    """Stops: a run that cannot be repeated, or a seed without effect."""
    for name, seed in (("again", 0), ("other", 1)):
        train(tiny_data, tmp_path / name, TrainOptions(**TINY, ffn=64, seed=seed))
    assert identity(tmp_path / "again") == identity(trained[0]) != identity(tmp_path / "other")


def test_each_option_of_the_optimizer_reaches_it_and_the_defaults_are_those_of_before(trained, tiny_data, tmp_path):
    """Stops: an option that is read and forgotten; other weights from the same seed once the options came."""
    before = {"schedule": "wsd", "warmup_ratio": 0.05, "max_grad_norm": 1.0, "weight_decay": 0.1, "adam_epsilon": 1e-8}
    changes = {"warmup_ratio": 0.0, "max_grad_norm": 0.01, "weight_decay": 0.0, "adam_epsilon": 1e-2}
    each = [{}, *({name: value} for name, value in changes.items()), *({"schedule": kind} for kind in OTHERS)]
    weights = []
    for number, change in enumerate(each):
        out = tmp_path / str(number)
        train(tiny_data, out, TrainOptions(**TINY, ffn=64, **{**before, **change}))
        weights.append(sha256(out / "model.safetensors"))
    assert weights[0] == sha256(trained[0] / "model.safetensors")
    assert len(set(weights)) == len(weights)


def test_patience_0_is_off_and_reaches_the_run_so(tiny_model):
    """Stops: a run that ends at its first evaluation because patience 0 is spent at once."""
    assert _fit_options(TrainOptions(**TINY, patience=0), tiny_model).patience is None
    assert _fit_options(TrainOptions(**TINY), tiny_model).patience == 4


def test_init_goes_on_from_a_checkpoint_and_keeps_its_history(trained, tiny_data, tmp_path):
    """Stops: fine-tuning that begins at random weights, loses the lineage, or ignores `loss` and `dropout`."""
    out, before = trained
    options = TrainOptions(init=str(out), context=24, epochs=0.5, batch_size=8, loss="replies", dropout=0.2)
    train(tiny_data, tmp_path / "tuned", options)
    first, second = read_lineage(tmp_path / "tuned")
    assert second["parent_sha256"] == identity(out)
    assert second["metrics"]["before"]["tokens"] < first["metrics"]["after"]["tokens"]
    assert second["metrics"]["before"]["loss"] == pytest.approx(before["validation_loss"], rel=0.1)
    config = read_config(tmp_path / "tuned")
    assert (config["n_positions"], config["n_inner"], config["resid_pdrop"]) == (32, 64, 0.2)


def test_a_training_from_python_draws_no_bars_of_the_library(tiny_data, tmp_path, capfd):
    """Stops: "Writing model shards" once a checkpoint in every notebook and log file."""
    train(tiny_data, tmp_path / "out", TrainOptions(**TINY, ffn=64))
    assert "it/s" not in capfd.readouterr().err


def test_a_data_set_of_another_vocabulary_is_refused(trained, tiny_corpus, tmp_path):
    """Stops: a model that is trained on ids which mean other words."""
    build_dataset([str(tiny_corpus)], tmp_path / "data", DataOptions(vocab_size=280, validation=0.2))
    with pytest.raises(BadInput, match=r"another tokenizer .*another vocabulary.*--tokenizer"):
        train(tmp_path / "data", tmp_path / "out", TrainOptions(init=str(trained[0]), epochs=1))
    assert not (tmp_path / "out").exists()


def test_a_context_longer_than_the_models_is_refused(trained, tiny_data, tmp_path):
    """Stops: an index error in the position table after the first batch."""
    with pytest.raises(BadInput, match=r"--context 512.*has 32 positions.*at most 32"):
        train(tiny_data, tmp_path / "out", TrainOptions(init=str(trained[0]), context=512, epochs=1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 30}, r"--width 30: is not a multiple of the 4 heads"),
        ({"patience": -1}, r"--patience -1: give a whole number from 0 up"),
        ({"warmup_ratio": 1.0}, r"--warmup-ratio 1"),
        ({"max_grad_norm": -1.0}, r"--max-grad-norm -1"),
        ({"weight_decay": -0.1}, r"--weight-decay -0.1"),
        ({"adam_epsilon": 0.0}, r"--adam-epsilon 0"),
        ({"schedule": "step"}, r"--schedule step: give wsd, linear, cosine or constant"),
        ({"epochs": None}, r"--epochs, --max-minutes: neither is given"),
        ({"max_minutes": 1.0}, r"--epochs, --max-minutes: both are given"),
        ({"epochs": 0.0}, r"--epochs 0: give a number above 0"),
        ({"epochs": None, "max_minutes": float("nan")}, r"--max-minutes nan"),
        ({"batch_size": 0}, r"--batch-size 0"),
        ({"dropout": -0.1}, r"--dropout -0.1"),
        ({"loss": "some"}, r"--loss some: give all or replies"),
        ({"learning_rate": float("inf")}, r"--learning-rate inf"),
        ({"init": "somewhere"}, r"--layers 2: --init somewhere brings its own shape"),
    ],
)
def test_options_that_cannot_be_used_are_named(changes, message):
    """Stops: a traceback, or a run that ignores what was asked."""
    with pytest.raises(BadInput, match=message):
        TrainOptions(**{**TINY, **changes})


def test_a_folder_that_is_not_ours_is_not_touched(tiny_data, tmp_path):
    """Stops: minutes of training before the output turns out to be somebody's folder."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="not a checkpoint that compress wrote"):
        train(tiny_data, tmp_path, TrainOptions(**TINY))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_narrow_models_learn_faster_within_bounds():
    """Stops: a default rate at which GPT-2's own width diverges."""
    assert scratch_rate(192) == 2e-3
    assert scratch_rate(768) == pytest.approx(5.2e-4, rel=0.01)
