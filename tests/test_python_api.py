"""The Python API: the whole way on a tiny model, what it costs to import, and what it says of wrong calls."""

import dataclasses
import inspect
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import chitchat_compress as cc
from chitchat.options import option_fields

ROOT = Path(__file__).parents[1]
SHAPE = {"layers": 2, "width": 32, "heads": 4, "context": 64, "epochs": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path) -> dict[str, Any]:
    """The whole way, each result handed to the next stage; `out` is left out where it can be."""
    folder = tmp_path_factory.mktemp("api")
    corpus = folder / "talks.txt"
    corpus.write_bytes(tiny_corpus.read_bytes())
    data = cc.build_dataset(str(corpus), vocab_size=300, validation=0.2)
    teacher = cc.train(data, folder / "teacher", **SHAPE)
    small = cc.prune(str(teacher.path), data, keep=0.7, candidates=1, heal_epochs=0)
    integers = cc.quantize(small, str(data.path), scheme="w8", method="rtn")
    bundle = cc.export(integers, data=data)
    return {"data": data, "teacher": teacher, "small": small, "integers": integers, "bundle": bundle}


def test_results_are_paths_with_figures_beside_their_source(made: dict[str, Any]) -> None:
    """Twelve imports from eleven modules, and paths as strings from one stage to the next."""
    folder = made["data"].path.parent
    names = ["talks-data", "teacher", "teacher-pruned", "teacher-pruned-w8", "teacher-pruned-w8-bundle"]
    assert [result.path for result in made.values()] == [folder / name for name in names]
    for result in made.values():
        assert os.fspath(result) == str(result.path)
        assert Path(result).is_dir()
    stages = ["data"], ["train"], ["train", "prune"], ["train", "prune", "quantize"]
    for result, expected in zip(made.values(), (*stages, [*stages[-1], "export"]), strict=True):
        assert [record["stage"] for record in result.lineage] == expected
    assert made["small"].figures["kept"] <= 0.7
    assert made["integers"].figures["decode_vs_fp32"] > 0
    assert made["bundle"].figures["perplexity"] == pytest.approx(made["small"].figures["perplexity"], rel=0.05)


def test_a_record_of_the_lineage_has_every_option_of_its_stage(made: dict[str, Any]) -> None:
    """Data sets and bundles did not say the tokenizer and the seed that they were asked for."""
    kinds = {
        "data": cc.DataOptions,
        "teacher": cc.TrainOptions,
        "small": cc.PruneOptions,
        "integers": cc.QuantizeOptions,
        "bundle": cc.ExportOptions,
    }
    for name, kind in kinds.items():
        record = made[name].lineage[-1]
        assert {field.name for field in option_fields(kind)} <= record["options"].keys(), name
        assert record["seed"] == record["options"]["seed"] == 0
    data = made["data"].lineage[-1]["options"]
    assert (data["corpora"], data["vocab_size"], data["validation"]) == (
        [str(made["data"].path.parent / "talks.txt")],
        300,
        0.2,
    )
    assert made["bundle"].lineage[-1]["options"] == dataclasses.asdict(cc.ExportOptions())


@pytest.mark.parametrize("name", ["bundle", "integers", "teacher"])
def test_a_loaded_model_replies_streams_and_remembers(made: dict[str, Any], name: str) -> None:
    """A bundle could be asked from the terminal alone."""
    bot = cc.load(made[name], seed=3, length=8, threads=1)
    assert bot.reply("hello") == "".join(bot.stream("hello")) == bot.reply("hello")
    talk = bot.chat()
    first = talk.reply("how are you")
    second = "".join(talk.stream("what about rain"))
    assert talk.turns == ["how are you", first, "what about rain", second]
    assert cc.load(made[name], temperature=0, max_new_tokens=8).chat().reply("hello") == cc.load(
        made[name], options=cc.ChatOptions(temperature=0, max_new_tokens=8)
    ).reply("hello")


def test_old_turns_are_forgotten_and_counted(made: dict[str, Any]) -> None:
    """A conversation that grew past the context raised."""
    talk = cc.load(made["bundle"], temperature=0, length=4, threads=1).chat()
    for _ in range(20):
        talk.reply("tea music rain sun")
    assert talk.forgotten > 0
    with pytest.raises(cc.BadInput, match="shorten it"):
        talk.reply("tea " * 200)


def test_evaluating_and_telling_give_figures(made: dict[str, Any]) -> None:
    """They printed, and gave nothing back."""
    figures = cc.evaluate(made["bundle"], made["data"], samples=2, teacher=made["small"], threads=1)
    assert {"perplexity", "bits_per_byte", "token_accuracy", "kl", "top1", "parameters"} <= set(figures)
    assert cc.info(made["bundle"])["parameters"] == cc.info(made["small"])["parameters"] == figures["parameters"]


def test_a_plan_measures_what_a_budget_buys(made: dict[str, Any]) -> None:
    """Only the command line built what measures milliseconds."""
    found = cc.plan_pruning(made["teacher"], made["data"], max_ms_per_token=50, candidates=1)
    assert found["candidates"][0]["ms_per_token"] > 0
    assert found["candidates"][0]["file_mb"] > 0


def test_the_stages_take_texts_for_folders(made: dict[str, Any], tmp_path: Path) -> None:
    """`out.parent` of a text is an AttributeError, after the model was read."""
    from compress.prune.stage import prune
    from compress.quantize.stage import quantize
    from export.stage import export

    teacher, data = str(made["teacher"]), str(made["data"])
    prune(teacher, data, str(tmp_path / "p"), cc.PruneOptions(layers=1, heal_epochs=0))
    quantize(teacher, data, str(tmp_path / "q"), cc.QuantizeOptions(method="rtn"))
    export(teacher, str(tmp_path / "b"), data=data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "p", "q"]


@pytest.mark.slow
def test_a_bench_gives_a_table(made: dict[str, Any]) -> None:
    """The report was a dict in a dict."""
    options = cc.BenchOptions(prompt_tokens=8, new_tokens=4, repetitions=2, threads=1)
    report = cc.bench([made["small"], made["bundle"]], data=made["data"], options=options)
    assert report.path == made["small"].path.parent / "teacher-pruned-bench"
    table = report.to_pandas()
    assert list(table["name"]) == ["teacher-pruned", "teacher-pruned-w8-bundle"]
    assert (table["tokens_per_s"] > 0).all()


def test_without_pandas_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`No module named 'pandas'`, from somewhere inside."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r"to_pandas: pandas is not installed; `pip install pandas`"):
        cc.Report(tmp_path, {"rows": []}).to_pandas()


class TestPruneModel:
    """`prune_model`: a transformers model in, a transformers model out."""

    def test_the_model_has_the_shape_and_the_one_that_came_is_untouched(self, tiny_model, tiny_data: Path) -> None:
        """A checkpoint had to be written to be pruned; a knife that cuts the user's own model."""
        import torch

        from chitchat.checkpoint import load_tokenizer

        before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
        small = cc.prune_model(tiny_model, load_tokenizer(tiny_data), tiny_data, shape={"layers": 1, "ffn": 64})
        assert type(small) is type(tiny_model)
        assert (small.config.n_layer, small.config.n_inner, small.config.n_embd) == (1, 64, 32)
        assert small(torch.tensor([[1, 5, 9]])).logits.isfinite().all()
        for name, tensor in tiny_model.state_dict().items():
            assert torch.equal(tensor, before[name]), name

    def test_it_is_what_the_stage_writes(self, tiny_model, tiny_checkpoint: Path, tiny_data: Path, tmp_path) -> None:
        """Two ways to prune that give two models."""
        import torch

        from chitchat.checkpoint import load_model, load_tokenizer

        written = cc.prune(tiny_checkpoint, tiny_data, tmp_path / "small", keep=0.7, candidates=1, heal_epochs=1)
        small = cc.prune_model(tiny_model, load_tokenizer(tiny_data), tiny_data, keep=0.7, candidates=1, heal_epochs=1)
        stored = load_model(written.path).state_dict()
        for name, tensor in small.state_dict().items():
            assert torch.equal(tensor, stored[name]), name

    @pytest.mark.parametrize("option", [{"vocab": 200}, {"max_mb": 0.1}, {"teacher": "gpt2", "layers": 1}])
    def test_what_needs_folders_is_refused(self, tiny_model, tiny_data: Path, option: dict[str, Any]) -> None:
        """A tokenizer that no longer fits, or a budget that nothing measures."""
        from chitchat.checkpoint import load_tokenizer

        with pytest.raises(cc.BadInput, match="goes with prune, on checkpoints in folders"):
            cc.prune_model(tiny_model, load_tokenizer(tiny_data), tiny_data, **option)


def test_integers_that_are_slower_are_a_warning_of_the_logger(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The command line said so; a script shipped the slower bundle."""
    from bench.cost import speedup

    slow = speedup.Speedup("w8", 64, 2.0, 2.0, 0.5, 0.5)
    monkeypatch.setattr(speedup, "measure_speedup", lambda checkpoint: slow)
    with caplog.at_level(logging.WARNING, logger="chitchat_compress"):
        result = cc.export(made["integers"], tmp_path / "bundle")
    (record,) = (record for record in caplog.records if record.name == "chitchat_compress")
    assert record.getMessage().startswith("on this machine w8 decodes at 0.50 x the speed of float32")
    assert result.figures["decode_vs_fp32"] == 0.5


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cc.prune("t", "d", kepp=0.5), TypeError, r"prune\(\) has no option 'kepp'; it has heal_epochs"),
        (lambda: cc.load("t", temprature=1), TypeError, r"load\(\) has no option 'temprature'"),
        (lambda: cc.prune("t", "d", keep=2), cc.BadInput, "--keep 2: give a number between 0 and 1"),
        (lambda: cc.quantize("t", "d", scheme="w3"), cc.BadInput, "--scheme w3: give w8, w8a8, w4 or auto"),
        (lambda: cc.train("d"), cc.BadInput, "--epochs, --max-minutes: neither is given"),
        (lambda: cc.train("d", options=cc.ChatOptions()), TypeError, "takes TrainOptions as options"),
        (lambda: cc.load("./gone"), cc.BadInput, "no such checkpoint folder"),
        (lambda: cc.bench([]), cc.BadInput, "MODEL: none given"),
        (lambda: cc.build_dataset([]), cc.BadInput, "CORPUS"),
    ],
)
def test_a_wrong_call_is_refused_at_once(
    call: Any, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option that was misspelt was ignored, and an hour later the model had another shape."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        call()
    assert os.listdir(tmp_path) == []


def test_where_results_go_when_nobody_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result in the working folder, wherever that was."""
    from chitchat_compress.results import out_folder

    (tmp_path / "talks.jsonl.gz").touch()
    (tmp_path / "teacher").mkdir()
    monkeypatch.chdir(tmp_path / "teacher")
    assert out_folder(None, tmp_path / "talks.jsonl.gz", "data") == tmp_path / "talks-data"
    assert out_folder(None, tmp_path / "teacher", "pruned") == tmp_path / "teacher-pruned"
    assert out_folder(None, ".", "pruned").resolve() == tmp_path / "teacher-pruned"
    assert out_folder(None, "someone/model-v1.5", "w4") == Path("model-v1.5-w4")
    assert out_folder(None, "chatterbot:english", "data") == Path("chatterbot-english-data")
    assert out_folder("here", tmp_path / "teacher", "pruned") == Path("here")


def test_help_lists_the_options_with_their_limits() -> None:
    """`**options` told nobody what there is."""
    signature = inspect.signature(cc.prune)
    assert list(signature.parameters)[:3] == ["checkpoint", "data", "out"]
    assert signature.parameters["own_replies"].default == 0.1
    assert "- `keep`: Share of the parameters that stays (0.5 keeps half). [share, between 0 and 1]" in cc.prune.__doc__


def test_every_public_name_is_there_typed_and_documented() -> None:
    """A name in `__all__` that nothing stands behind, or that type checkers do not see."""
    text = Path(cc.__file__).read_text(encoding="utf-8")
    for name in cc.__all__:
        assert inspect.getdoc(getattr(cc, name)), name
        assert f" as {name}\n" in text, f"{name} is not imported for type checkers"
    assert set(cc.__all__) <= set(dir(cc))
    with pytest.raises(AttributeError, match="no attribute 'prone'"):
        cc.prone  # noqa: B018


def test_importing_and_loading_a_bundle_need_no_torch(made: dict[str, Any]) -> None:
    """`import` took four seconds; on an edge box it failed."""
    heavy = ("torch", "transformers", "datasets")
    code = (
        "import sys; import chitchat_compress as cc\n"
        "assert not {'torch', 'numpy', 'msgspec', 'cyclopts'} & set(sys.modules), 'import'\n"
        "cc.prune, cc.load, cc.BadInput\n"
        "assert not {'torch', 'numpy', 'cyclopts'} & set(sys.modules), 'names'\n"
        f"for name in {heavy}: sys.modules[name] = None\n"
        "print(len(cc.load(sys.argv[1], temperature=0, length=8, threads=1).reply('hello')))"
    )
    command = [sys.executable, "-c", code, str(made["bundle"])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
