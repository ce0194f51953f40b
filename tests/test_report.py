"""The report and the stage that makes it: real tiny models side by side, and what is refused before any work."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.cuda import why_not_cuda
from support.families import tiny_family
from support.in_process import bench_in_process

from bench.models.torch import CHECKPOINT, CheckpointModel
from bench.peers.torch import HalfModel
from bench.report.document import as_markdown, print_table
from bench.report.notes import notes
from bench.report.rows import build_rows, pruning_candidates
from bench.run.controller import BenchEntry, Measurement
from bench.run.entries import PlannedRow, unique_names
from bench.run.options import BenchOptions
from bench.run.prompts import make_prompts
from bench.run.rounds import BenchResult
from bench.run.stage import bench
from chitchat.errors import BadInput, WorkFailed
from export.options import ExportOptions
from export.stage import export
from serve.geometry import Geometry

FIGURES = {
    *("name", "device", "ttft_ms_p50", "tpot_ms_p50", "tpot_ms_p95", "tokens_per_s", "peak_rss_mb", "file_mb"),
    *("load_s", "bits_per_byte", "perplexity", "token_accuracy", "parameters", "ratio"),
}

WORK = BenchOptions(prompt_tokens=20, new_tokens=10, repetitions=2, threads=1)
SMALL = {"prompt_tokens": 8, "new_tokens": 4, "repetitions": 2, "threads": 1}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_data: Path) -> dict[str, Path]:
    return tiny_family(tmp_path_factory, tiny_checkpoint, tiny_data)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, family: dict[str, Path], tiny_data: Path) -> tuple[Path, Any]:
    """A report of all forms of the tiny model, and its folder."""
    out = tmp_path_factory.mktemp("report") / "out"
    with pytest.MonkeyPatch.context() as patch:
        bench_in_process(patch)
        report = bench([str(path) for path in family.values()], out, tiny_data, WORK)
    return out, report


def of_vocabulary(rows: int) -> Geometry:
    return Geometry(layers=1, heads=1, head_dim=8, ffn=32, vocab=rows, context=64)


def model(name: str = "m", **changes: Any) -> Any:
    facts = {
        "name": name,
        "spec": name,
        "kind": "checkpoint",
        "runtime": "torch fp32",
        "runtime_kind": CHECKPOINT,
        "parameters": 1_500_000,
    }
    dialogue = SimpleNamespace(start_ids=(1,), end_of_turn_id=2, banned_ids=(0, 1))
    rest = {
        "weight_bytes": 6e6,
        "file_bytes": 6.1e6,
        "geometry": of_vocabulary(50),
        "dialogue": dialogue,
        "context": 64,
    }
    return SimpleNamespace(**{**facts, **rest, **changes})


def measurement(name: str, ms: float, error: str | None = None) -> Measurement:
    samples = [{"ttft_ms": ms, "token_ms": [ms, ms], "ids": [5, 5, 5]}] * (1 if error else 3)
    return Measurement(BenchEntry(name, name, CHECKPOINT, 2), 0.5, samples=samples, peak_rss_mb=80.0, error=error)


def test_a_row_holds_all_figures_and_all_forms_of_one_model_give_the_same_ids(made: tuple[Path, Any]) -> None:
    """A baseline that computed something else than what ships made every ratio worthless."""
    _, report = made
    assert [row["error"] for row in report["rows"]] == [None] * 4
    for row in report["rows"]:
        assert set(row) >= FIGURES
        assert all(row[name] is not None for name in FIGURES)
        assert row["peak_rss_mb"] > 10
    assert report["rows"][0]["ratio"] == 1.0
    assert report["rows"][0]["runtime"] == "torch fp32 (full-precision generator)"
    ids = {name: [sample["ids"] for sample in samples] for name, samples in report["samples"].items()}
    float_ids, integer_ids = ids[report["rows"][0]["name"]], ids["quantized"]
    assert float_ids == ids["bundle-fp32"]
    assert integer_ids == ids["bundle-w8"]
    assert all(len(sample) == 10 and 2 not in sample for sample in float_ids), "all do the same work, to its end"
    assert len({row["eval_tokens"] for row in report["rows"]}) == 1


@pytest.mark.slow
def test_in_a_process_of_its_own_each_form_says_the_same(
    made: tuple[Path, Any], family: dict[str, Path], tiny_data: Path, tmp_path: Path
) -> None:
    """A process that knows less than the bench's own, and the memory of one for all."""
    report = bench([str(path) for path in family.values()], tmp_path / "out", tiny_data, WORK)
    for row, expected in zip(report["rows"], made[1]["rows"], strict=True):
        assert row["error"] is None
        assert (row["name"], row["kl"], row["perplexity"]) == tuple(expected[n] for n in ("name", "kl", "perplexity"))
    ids = [
        {name: [each["ids"] for each in samples] for name, samples in one["samples"].items()}
        for one in (report, made[1])
    ]
    assert ids[0] == ids[1]
    assert report["rows"][3]["peak_rss_mb"] < report["rows"][0]["peak_rss_mb"], "the engine's process holds no torch"


def test_every_row_is_compared_with_the_first_one(made: tuple[Path, Any]) -> None:
    """KL was taken against the row before, or the yardstick was compared with itself."""
    teacher, *others = made[1]["rows"]
    assert (teacher["kl"], teacher["perplexity_ratio"], teacher["distinct_2_ratio"]) == (None, None, None)
    assert all(row[name] is not None for row in made[1]["rows"] for name in ("distinct_2", "repetition_4", "replies"))
    by_name = {row["name"]: row for row in others}
    assert by_name["bundle-fp32"]["kl"] < 1e-9 < by_name["bundle-w8"]["kl"] < 1e-3
    assert 1e-9 < by_name["quantized"]["kl"] < 1e-3
    assert by_name["bundle-fp32"]["distinct_2"] == teacher["distinct_2"], "the same replies through another runtime"
    assert all(row["perplexity_interval"][0] < row["perplexity"] for row in made[1]["rows"])
    replies = {name: [reply["text"] for reply in kept["replies"]] for name, kept in made[1]["quality"].items()}
    assert replies["bundle-fp32"] == replies[teacher["name"]]
    page = as_markdown(made[1])
    assert "| top-1 | distinct-2 | repeated |" in page
    assert f"KL and top-1 against the predictions of {teacher['name']}" in page


def test_the_page_says_what_each_row_costs_against_the_first(made: tuple[Path, Any]) -> None:
    """Stops a ratio without its interval, and one to another row than the first."""
    folder, report = made
    page = (folder / "report.md").read_text(encoding="utf-8")
    first, *others = report["rows"]
    table = page.split(f"## Against {first['name']}")[1]
    for row in others:
        line = next(line for line in table.splitlines() if line.startswith(f"| {row['name']} |"))
        low, high = row["perplexity_ratio_interval"]
        assert f"x {row['perplexity_ratio']:.3f} ({low:.3f} to {high:.3f})" in line
        assert f"| {row['parameters'] / first['parameters']:.3f} |" in line


def test_shapes_that_were_tried_stand_in_the_report_once(made: tuple[Path, Any]) -> None:
    """The losers of a search vanished with the run, or stood again for every export of the winner."""
    tried = [
        {
            "shape": "2 x 32",
            "parameters": 20_000,
            "perplexity_ratio": 1.25,
            "kl": 0.25,
            "ms_per_token": None,
            "chosen": False,
        },
        {
            "shape": "1 x 32",
            "parameters": 30_000,
            "perplexity_ratio": 1.0625,
            "kl": 0.5,
            "ms_per_token": 0.5,
            "chosen": True,
        },
    ]
    tried = [{**candidate, "steps": 40} for candidate in tried]
    stages = [{"stage": "train", "metrics": {}}, {"stage": "prune", "metrics": {"candidates": tried}}]
    untried = {**tried[0], "kl": None, "perplexity_ratio": None}  # the only one of a search
    none = [{"stage": "prune", "metrics": {"before": {}}}, {"stage": "prune", "metrics": {"candidates": [untried]}}]
    models = {name: model(name, lineage=lambda stages=stages: stages) for name in ("pruned", "bundle")}
    found = pruning_candidates({"teacher": model("teacher", lineage=lambda: none)} | models)
    assert found == {"pruned": tried}
    page = as_markdown({**made[1], "candidates": found})
    assert "## Shapes that were tried for pruned" in page
    assert page.index("| 1 x 32 | 0.03 M | x 1.062 | 0.500 | 0.50 | 40 | chosen |") < page.index(
        "| 2 x 32 | 0.02 M | x 1.250 | 0.250 | - | 40 |  |"
    ), "the largest first"


def test_the_folder_holds_table_picture_and_raw_samples(made: tuple[Path, Any]) -> None:
    """Figures without their samples cannot be checked afterwards."""
    out, report = made
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json", "report.md", "report.png"]
    stored = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(report))
    assert [len(samples) for samples in stored["samples"].values()] == [2] * 4
    assert set(stored["environment"]) >= {"cpu", "cpu_flags", "cores", "threads", "versions", "load_average", "date"}
    assert re.search(r"\| bundle-w8 \| .* \| onnx w8 \|", (out / "report.md").read_text(encoding="utf-8"))


def test_a_narrow_terminal_gets_a_model_a_column(made: tuple[Path, Any], capsys: Any, monkeypatch: Any) -> None:
    """In 80 columns the names of the models were cut away altogether."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((80, 24)))
    print_table(made[1])
    table = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)  # colours take no columns
    assert max(map(len, table.splitlines())) <= 80
    assert "…" not in table
    for row in made[1]["rows"]:
        assert row["name"] in table
    assert "tokens/s" in table


def test_the_table_is_not_broken_to_eighty_columns_in_a_pipe(made: tuple[Path, Any], capsys: Any) -> None:
    """`compress bench | tee log` gave cells of three letters."""
    print_table(made[1])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("bundle-w8") and "onnx w8" in line and " x" in line for line in lines)


def test_a_lost_row_has_its_last_words_and_no_figures() -> None:
    """The row of a crashed model vanished, or kept half of its figures."""
    measured = [measurement("a", 4.0), measurement("b", 1.0, error="was killed by SIGKILL"), measurement("c", 2.0)]
    rows = build_rows([PlannedRow(row.entry, model()) for row in measured], BenchResult(measured))
    assert (rows[1].tokens_per_s, rows[1].peak_rss_mb, rows[1].ratio) == (None, None, None)
    assert rows[1].error == "was killed by SIGKILL"
    assert rows[2].ratio == 2.0
    machine = {"cpu": "c", "cores": 2, "threads": 2, "versions": {}, "date": "d", "load_average_after": [9.0]}
    settings = {"prompt_tokens": 1, "new_tokens": 3, "repetitions": 3, "context": 8}
    report = {"rows": [row.as_json() for row in rows], "settings": settings, "environment": machine}
    assert notes(report)[0] == "b has no figures: was killed by SIGKILL"
    assert "other work ran on the machine" in notes(report)[-1]
    assert "| b | 6.1 | - |" in as_markdown(report)


def test_without_the_yardstick_there_is_no_ratio() -> None:
    """When the first model was lost the second one became the yardstick, unsaid."""
    measured = BenchResult([measurement("a", 1, error="x"), measurement("b", 1)])
    rows = build_rows([PlannedRow(row.entry, model()) for row in measured.rows], measured)
    assert rows[1].ratio is None
    assert rows[1].tokens_per_s == 1000


def test_prompts_without_data_are_ids_that_every_model_has_and_none_is_special() -> None:
    """Random ids above the smaller vocabulary crashed one of two models."""
    small, large = model(geometry=of_vocabulary(10)), model(geometry=of_vocabulary(50))
    prompts = make_prompts([large, small], None, tokens=12, count=30, seed=0)
    assert {len(prompt) for prompt in prompts} == {12}
    assert {prompt[0] for prompt in prompts} == {1}
    assert {token for prompt in prompts for token in prompt[1:]} == set(range(3, 10))
    assert prompts == make_prompts([large, small], None, tokens=12, count=30, seed=0)
    assert prompts != make_prompts([large, small], None, tokens=12, count=30, seed=1)


def test_prompts_with_data_are_held_out_text_of_the_exact_length(tiny_data: Path) -> None:
    """Prompts of unlike lengths made TTFT a mean of nothing in particular."""
    from chitchat.data.dataset import open_dataset

    data = open_dataset(tiny_data)
    prompts = make_prompts([model()], data, tokens=40, count=5, seed=0)
    assert [len(prompt) for prompt in prompts] == [40] * 5
    rows = [row["input_ids"] for row in data.validation]
    assert all(any(prompt[: len(ids)] == ids[:40] for ids in rows) for prompt in prompts)


def test_models_of_one_folder_name_get_as_much_path_as_tells_them_apart(tmp_path: Path) -> None:
    """Two rows were both called `bundle`, and the samples of one replaced those of the other."""
    paths = [tmp_path / "x" / "bundle", tmp_path / "y" / "bundle", tmp_path / "z"]
    models = [model(path.name, spec=str(path), folder=path) for path in paths]
    assert unique_names(models) == ["x/bundle", "y/bundle", "z"]
    with pytest.raises(BadInput, match="given twice"):
        unique_names([models[0], models[0]])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"models": []}, "MODEL: none given"),
        ({"repetitions": 0}, "--repetitions 0"),
        ({"new_tokens": 1}, "--new-tokens 1"),
        ({"prompt_tokens": 0}, "--prompt-tokens 0"),
        ({"threads": 0}, "--threads 0"),
        ({"device": "tpu"}, "--device tpu"),
        ({"peers": "llamacpp"}, "--peers llamacpp: there is no such peer"),
        ({"peers": "llama.cpp:Q3"}, "llama.cpp has no form Q3; give one of F32"),
        ({"peers": "all"}, "--peers: they run the first model, and .* is no checkpoint"),
        ({"prompt_tokens": 60, "new_tokens": 5}, "65 tokens do not fit the context of .*, 64"),
        ({"models": ["/nowhere/model"]}, "/nowhere/model: no such"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    family: dict[str, Path], tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    """Each of these failed after minutes, in a worker, as a lost row."""
    models = options.get("models", [str(family["bundle-fp32"])])
    with pytest.raises(BadInput, match=says):
        bench(models, tmp_path / "out", options=BenchOptions(**{n: v for n, v in options.items() if n != "models"}))
    assert not (tmp_path / "out").exists()


def test_cuda_without_a_gpu_is_refused(family: dict[str, Path], tmp_path: Path) -> None:
    """The run fell back to the CPU and the report said cuda."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA GPU here")
    with pytest.raises(BadInput, match="--device cuda: torch finds no CUDA GPU"):
        bench([str(family["checkpoint"])], tmp_path / "out", options=BenchOptions(device="cuda"))


def test_an_output_folder_that_is_not_ours_is_refused(family: dict[str, Path], tmp_path: Path) -> None:
    """A report replaced somebody's folder."""
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(BadInput, match="not a report that compress wrote"):
        bench([str(family["checkpoint"])], tmp_path)


def test_when_no_model_can_be_measured_the_work_failed_and_no_folder_is_left(
    family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty report was written and the exit code was 0."""
    lost = BenchResult([measurement("a", 1.0, error="was killed by SIGKILL")])
    monkeypatch.setattr("bench.run.stage.measure", lambda jobs, plan: lost)
    with pytest.raises(WorkFailed, match="was killed by SIGKILL"):
        bench([str(family["bundle-fp32"])], tmp_path / "out", options=BenchOptions(prompt_tokens=8, new_tokens=4))
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_a_report_of_what_is_done(family: dict[str, Path], tmp_path: Path) -> None:
    """An hour of samples was lost to an impatient key, or passed for a whole run."""
    code = (
        "import os, signal\n"
        "from bench.run import controller, rounds\n"
        "from chitchat_compress.cli.app import main\n"
        "turns = iter(range(100))\n"
        "settle = lambda: os.kill(os.getpid(), signal.SIGINT) if next(turns) == 10 else None\n"
        "controller.wait_for_idle_threads = rounds.wait_for_idle_threads = settle\n"
        "main()"
    )
    models = [str(family["bundle-fp32"]), str(family["bundle-w8"])]
    options = ["--prompt-tokens", "8", "--new-tokens", "4", "--threads", "1", "--repetitions", "50"]
    command = [sys.executable, "-c", code, "bench", *models, "--out", str(tmp_path / "out"), *options]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300)
    assert done.returncode == 130, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["partial"]
    assert [len(samples) for samples in report["samples"].values()] == [2, 2]
    assert "- partial: the run was stopped before its end" in (tmp_path / "out" / "report.md").read_text()


def test_a_gpu_that_is_not_there_is_a_row_beside_the_cpus(family: dict[str, Path], tmp_path: Path) -> None:
    """The row was missing, and nobody knew whether it had been asked for; one memory for all processes."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA GPU here")
    work = BenchOptions(**SMALL, device="cpu,cuda", peers="torch-fp16")
    report = bench([str(family["checkpoint"]), str(family["bundle-fp32"])], tmp_path / "out", options=work)
    on_cpu, on_gpu, bundle, _, peer = report["rows"]
    assert (on_cpu["device"], on_cpu["error"]) == ("cpu", None)
    assert bundle["peak_rss_mb"] < on_cpu["peak_rss_mb"], "the engine's process holds no torch"
    assert on_gpu["name"] == "teacher on cuda"
    assert on_gpu["device"] == "cuda"
    assert on_gpu["error"] == "skipped: torch finds no CUDA GPU on this machine"
    assert (peer["name"], peer["device"], peer["error"]) == ("torch-fp16 on cuda", "cuda", on_gpu["error"])


@pytest.mark.cuda
def test_on_a_gpu_checkpoint_float16_and_bundle_have_their_rows(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A bundle that runs on the CPU beside torch on the GPU, or a float16 that computes something else."""
    if cause := why_not_cuda():
        pytest.skip(cause)
    export(str(tiny_checkpoint), tmp_path / "both", options=ExportOptions(target="cpu+cuda"))
    work = BenchOptions(**SMALL, device="cpu,cuda", peers="torch-fp16")
    report = bench([str(tiny_checkpoint), str(tmp_path / "both")], tmp_path / "out", options=work)
    assert [row["error"] for row in report["rows"]] == [None] * 5
    assert [row["device"] for row in report["rows"]] == ["cpu", "cuda", "cpu", "cuda", "cuda"]
    assert all(row["ceiling"] is None for row in report["rows"] if row["device"] == "cuda")


def test_float16_is_float16_and_says_what_float32_says(tiny_checkpoint: Path) -> None:
    """A row of float16 that computed in float32 looked slow; its work here is the same on the CPU."""
    import torch

    half, full = (model.open(str(tiny_checkpoint), 1, "cpu") for model in (HalfModel, CheckpointModel))
    assert {parameter.dtype for parameter in half._model.parameters()} == {torch.float16}
    logits = [model.logits([5, 6, 7, 8]) for model in (half, full)]
    assert logits[0].dtype == np.float32
    assert 0 < np.abs(logits[0] - logits[1]).max() < 0.01 * np.abs(logits[1]).max()
