"""The pipeline: what is run again and what is not, and what a killed run leaves. A fake command line does the work."""

import contextlib
import fcntl
import io
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import fake_compress

from chitchat.errors import BadInput
from chitchat.lineage import hash_files
from chitchat_compress.api import run_recipe
from chitchat_compress.pipeline.run import StageFailed, run
from serve.digest import sha256

FAKE = Path(fake_compress.__file__)
RECIPE = """
data:      {run: data, corpora: [CORPUS], vocab-size: 300}
teacher:   {run: train, from: data, layers: 2, epochs: 1}
pruned:    {run: prune, from: teacher, data: data, keep: 0.5, tokenizer: plain}
quantized: {run: quantize, from: pruned, data: data, scheme: w8}
bundle:    {run: export, from: quantized, data: data}
report:    {run: bench, models: [teacher, bundle], data: data}
"""
NAMES = ["data", "teacher", "pruned", "quantized", "bundle", "report"]


def run_here(argv: list[str], echo: Any) -> tuple[int, dict[str, Any]]:
    """In place of `run_child`: the fake command line as a call, whose output and exit code are a process's."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = fake_compress.main(*argv[2:])
    lines = said.getvalue().splitlines()
    for line in lines[:-1]:
        echo("  " + line)
    return code, json.loads(lines[-1])


class Bench:
    """A folder with a corpus, a recipe, an output, and a log of what was run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.out = folder, folder / "log", folder / "out"
        (folder / "talk.txt").write_text("hello\nhi\n")
        self.recipe = folder / "recipe.yaml"
        self.write()

    def write(self, *changes: tuple[str, str]) -> None:
        text = RECIPE.replace("CORPUS", str(self.folder / "talk.txt"))
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        self.recipe.write_text(text)

    def command(self) -> list[str]:
        return [sys.executable, str(FAKE), str(self.log)]

    def run(self, echo: Any = lambda line: None, *, apart: bool = False) -> dict[str, Any]:
        """A run of the recipe; its stages run in this process, or `apart` from it as they do for users."""
        with pytest.MonkeyPatch.context() as patch:
            if not apart:
                patch.setattr("chitchat_compress.pipeline.run.run_child", run_here)
            return run(self.recipe, self.out, command=self.command(), echo=echo)

    def ran(self) -> list[str]:
        """The verbs that were run since the last call."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line.split()[0] for line in lines]

    def start(self) -> "subprocess.Popen[str]":
        """A run in a process and a group of its own, as a shell starts it."""
        code = (
            "import sys; from pathlib import Path; from chitchat_compress.pipeline.run import run\n"
            "try: run(Path(sys.argv[1]), Path(sys.argv[2]), command=sys.argv[3:])\n"
            "except KeyboardInterrupt: sys.exit(130)"
        )
        argv = [sys.executable, "-c", code, str(self.recipe), str(self.out), *self.command()]
        environment = {**os.environ, "PYTHONPATH": str(FAKE.parents[2])}
        return subprocess.Popen(argv, start_new_session=True, stdout=subprocess.DEVNULL, text=True, env=environment)

    def wait_for(self, word: str) -> None:
        while word not in (self.log.read_text() if self.log.exists() else ""):
            time.sleep(0.02)

    def state(self) -> dict[str, str]:
        """Every file of the output but the records with their times."""
        files = hash_files(self.out)
        return {name: entry["sha256"] for name, entry in files.items() if not name.startswith(".stages/")}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("PYTHONPATH", str(FAKE.parents[2]))
    return Bench(tmp_path)


def test_every_stage_runs_once_in_order_and_the_reports_files_stand_in_the_output(bench: Bench) -> None:
    """A stage that was given another stage's name instead of its folder read nothing."""
    lines: list[str] = []
    result = bench.run(lines.append, apart=True)
    assert bench.ran() == ["data", "train", "prune", "quantize", "export", "bench"]
    command = f"compress prune {bench.out}/teacher --out {bench.out}/pruned --data {bench.out}/data --keep 0.5"
    assert any(command in line for line in lines), "the command is shown as the user could type it"
    assert sorted(path.name for path in bench.out.iterdir() if not path.name.startswith(".")) == sorted(
        ["bundle", "data", "pruned", "quantized", "report.json", "report.md", "report.png", "teacher"]
    )
    assert result["talk"] == f"compress chat {bench.out}/bundle"
    assert list(result["stages"]) == NAMES
    assert result["stages"]["data"]["figures"] == {"verb": "data"}


def test_a_scripts_logger_is_told_and_its_stdout_is_its_own(
    bench: Bench, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stages of `run_recipe` were printed among the lines of the script that called it."""
    monkeypatch.setattr("chitchat_compress.pipeline.run.COMPRESS", bench.command())
    reports: list[dict[str, Any]] = []
    with caplog.at_level(logging.INFO, logger="chitchat_compress"):
        run_recipe(bench.recipe, bench.out, show_report=reports.append)
    assert "[1/6] data" in caplog.messages
    assert "  a figure  1" in caplog.messages
    assert capsys.readouterr().out == ""
    assert [list(report) for report in reports] == [["rows"]]


def test_a_second_run_repeats_nothing(bench: Bench) -> None:
    """Every `make demo` trained for five minutes again."""
    bench.run()
    before = bench.state()
    bench.ran()
    lines: list[str] = []
    bench.run(lines.append)
    assert bench.ran() == []
    assert bench.state() == before
    assert [line.strip() for line in lines].count("already done") == len(NAMES)


def test_a_held_out_corpus_whose_content_changes_makes_the_data_again(bench: Bench) -> None:
    """A model was measured on the held-out conversations of the day before."""
    talks = bench.folder / "talks.txt"
    talks.write_text("hello\nhi\n")
    bench.write(("vocab-size: 300", f"vocab-size: 300, validation: {talks}"))
    bench.run()
    bench.ran()
    talks.write_text("hello\nwho is there?\n")
    bench.run()
    assert bench.ran()[0] == "data"


def test_a_changed_option_reruns_its_stage_and_what_reads_it(bench: Bench) -> None:
    """A bundle of the old teacher stood beside the new teacher."""
    bench.run()
    bench.ran()
    bench.write(("keep: 0.5", "keep: 0.4"))
    bench.run()
    assert bench.ran() == ["prune", "quantize", "export", "bench"]


def test_a_stage_that_makes_the_same_again_does_not_rerun_what_reads_it(bench: Bench) -> None:
    """Keys over the options of all stages before reran everything for a change that changed nothing."""
    bench.write(("layers: 2", "tokenizer: same, width: 12"))
    bench.run()
    bench.ran()
    bench.write(("layers: 2", "tokenizer: same, width: 24"))
    bench.run()
    assert bench.ran() == ["train"]


def test_a_changed_corpus_file_reruns_everything(bench: Bench) -> None:
    """The corpus was known by its name alone."""
    bench.run()
    bench.ran()
    (bench.folder / "talk.txt").write_text("hello\nho\n")
    bench.run()
    assert bench.ran() == ["data", "train", "prune", "quantize", "export", "bench"]


@pytest.mark.parametrize(("file", "verbs"), [("pruned/data.json", ["prune"]), ("bundle/bundle.json", ["export"])])
def test_an_altered_output_is_made_again(bench: Bench, file: str, verbs: list[str]) -> None:
    """A damaged folder was taken for finished because its record said so."""
    bench.run()
    before = bench.state()
    bench.ran()
    (bench.out / file).write_text("altered")
    bench.run()
    assert bench.ran() == verbs
    assert bench.state() == before


def test_a_lost_report_file_comes_back_without_a_rerun(bench: Bench) -> None:
    """Deleting report.md in the output left it away for ever."""
    bench.run()
    bench.ran()
    (bench.out / "report.md").unlink()
    bench.run()
    assert bench.ran() == []
    assert (bench.out / "report.md").is_file()


def test_a_failing_stage_gives_its_exit_code_and_keeps_what_was_done(bench: Bench, capfd: Any) -> None:
    """Bad input of a stage became exit code 1 and a traceback."""
    bench.write(("tokenizer: plain", "tokenizer: fail"))
    with pytest.raises(StageFailed, match="stage pruned ended with exit code 2") as caught:
        bench.run(apart=True)
    assert caught.value.exit_code == 2
    assert "compress: --keep 7: too much" in capfd.readouterr().err, "the stage's own line passes through"
    assert bench.ran() == ["data", "train", "prune"]
    bench.write()
    bench.run()
    assert bench.ran() == ["prune", "quantize", "export", "bench"]


@pytest.mark.parametrize("whole_group", [True, False], ids=["group", "parent alone"])
def test_a_killed_run_goes_on_and_ends_as_an_unbroken_one(bench: Bench, tmp_path: Path, whole_group: bool) -> None:
    """A child that outlived its killed parent wrote into the folder of the next run."""
    bench.write(("tokenizer: plain", "tokenizer: slow"))
    process = bench.start()
    bench.wait_for("waiting")
    if whole_group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    bench.ran()
    (bench.folder / "go").touch()
    bench.run()
    calls = bench.log.read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["prune", "quantize", "export", "bench"]
    assert "--resume" in calls[0].split()
    assert not list(bench.out.glob(".*.partial-*")), "no staging folder is left"
    killed = bench.state()
    bench.out.rename(tmp_path / "killed")
    bench.run()
    assert bench.state() == killed


def test_a_stage_that_was_complete_but_not_noted_is_not_run_again(bench: Bench) -> None:
    """Killed in the moment between the folder and its record, a training of hours began anew."""
    bench.run()
    bench.ran()
    record = bench.out / ".stages/teacher.json"
    key = json.loads(record.read_text())["key"]
    record.unlink()
    (bench.out / ".stages/teacher.started").write_text(json.dumps({"key": key, "before": None}))
    bench.run()
    assert bench.ran() == []


def test_an_older_output_is_not_taken_for_that_of_a_killed_stage(bench: Bench) -> None:
    """Options changed, the run was killed before the stage ended, and the old checkpoint passed for the new one."""
    bench.run()
    bench.write(("keep: 0.5", "keep: 0.4"), ("tokenizer: plain", "tokenizer: slow"))
    bench.ran()
    process = bench.start()
    bench.wait_for("waiting")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    bench.ran()
    (bench.folder / "go").touch()
    bench.run()
    assert bench.ran() == ["prune", "quantize", "export", "bench"]


def test_a_changed_option_after_a_kill_does_not_resume_the_other_options_training(bench: Bench) -> None:
    """`--resume` on a work folder of other options is refused by the trainer, and the pipeline was stuck."""
    bench.write(("tokenizer: plain", "tokenizer: slow"))
    process = bench.start()
    bench.wait_for("waiting")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    bench.ran()
    bench.write()
    bench.run()
    assert "--resume" not in bench.log.read_text()


def test_ctrl_c_lets_the_stage_clean_up_and_ends_with_130(bench: Bench) -> None:
    """The child was killed at once and left its staging folder."""
    bench.write(("tokenizer: plain", "tokenizer: slow"))
    process = bench.start()
    bench.wait_for("waiting")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130
    assert "cleaned up" in bench.log.read_text()
    assert not (bench.out / "pruned").exists()


def test_two_runs_do_not_share_an_output(bench: Bench) -> None:
    """Two runs wrote each other's checkpoints."""
    (bench.out / ".stages").mkdir(parents=True)
    with (bench.out / ".stages/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BadInput, match="another `compress run`"):
            bench.run()
    assert bench.ran() == []


def test_an_output_that_is_not_ours_is_refused_and_not_touched(bench: Bench) -> None:
    """A typing error in --out mixed stages into somebody's home."""
    bench.out.mkdir()
    (bench.out / "diary.txt").write_text("dear diary")
    with pytest.raises(BadInput, match="not a folder that `compress run` made"):
        bench.run()
    assert [path.name for path in bench.out.iterdir()] == ["diary.txt"]


def test_a_refused_first_stage_leaves_nothing_behind(bench: Bench) -> None:
    """A missing corpus left an output folder that a second try then had to explain."""
    bench.write((str(bench.folder / "talk.txt"), str(bench.folder / "missing.txt")))
    with pytest.raises(BadInput, match=r"missing\.txt"):
        bench.run()
    assert not bench.out.exists()


@pytest.mark.slow
def test_the_real_pipeline_killed_in_its_training_ends_as_an_unbroken_one(tmp_path: Path, tiny_corpus: Path) -> None:
    """Each stage worked alone, and the recipe's options, folders and figures did not fit together."""
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    shape = "layers: 2, width: 32, heads: 2, context: 64, epochs: 20"
    recipe.write_text(f"""
data:      {{run: data, corpora: [{tiny_corpus}], vocab-size: 300, validation: 0.2}}
teacher:   {{run: train, from: data, {shape}}}
pruned:    {{run: prune, from: teacher, data: data, keep: 0.6, heal-epochs: 1}}
quantized: {{run: quantize, from: pruned, data: data, scheme: w8}}
bundle:    {{run: export, from: quantized, data: data}}
report:    {{run: bench, models: [teacher, bundle], data: data, prompt-tokens: 16, new-tokens: 8, repetitions: 2}}
""")
    argv = [sys.executable, "-m", "chitchat_compress", "run", str(recipe), "--out", str(out), "--json"]
    root = FAKE.parents[2]
    first = subprocess.Popen(argv, cwd=root, start_new_session=True, stdout=subprocess.DEVNULL)
    while not list(out.glob(".teacher.*/plan.json")) and first.poll() is None:
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (out / "teacher").exists(), "it was killed in the middle"
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert [row["error"] for row in result["rows"]] == [None, None]
    assert result["rows"][1]["file_mb"] < result["rows"][0]["file_mb"]
    again = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=True)
    assert again.stdout.count("already done") == len(NAMES)

    train = [*argv[:3], "train", str(out / "data"), "--out", str(tmp_path / "unbroken")]
    train += shlex.split("--layers 2 --width 32 --heads 2 --context 64 --epochs 20")
    subprocess.run(train, cwd=root, check=True, stdout=subprocess.DEVNULL)
    weights = [sha256(folder / "model.safetensors") for folder in (out / "teacher", tmp_path / "unbroken")]
    assert weights[0] == weights[1]
