"""The command line's manners: exit codes, one line on stderr, JSON last on stdout."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from support.command_line import type_in

from chitchat_compress.cli.app import COMMANDS, make_app
from chitchat_compress.cli.console import show, show_table

ROOT = Path(__file__).parents[1]


def run(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line, or a snippet that uses it, in a process of its own."""
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "chitchat_compress", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def ending_with(error: str) -> subprocess.CompletedProcess[str]:
    """A command that raises `error`."""
    return run(code=f"from chitchat_compress.cli.console import call\ndef work():\n    raise {error}\ncall(work)")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        ("__import__('chitchat.errors').errors.BadInput('--keep 2: above 1')", 2, "compress: --keep 2: above 1"),
        ("__import__('chitchat.errors').errors.WorkFailed('parity')", 1, "compress: parity"),
        ("__import__('serve.errors').errors.BadBundle('b: altered')", 2, "compress: b: altered"),
        ("ValueError('two\\nlines')", 1, "compress: ValueError: two lines (COMPRESS_DEBUG=1 shows where)"),
        (
            "ModuleNotFoundError('x', name='datasets')",
            2,
            "compress: the package datasets is not installed; "
            "this verb needs `pip install 'chitchat-compress[cpu]'` (or [gpu])",
        ),
        ("KeyboardInterrupt()", 130, "compress: interrupted"),
        ("SystemExit(143)", 143, ""),
    ],
)
def test_every_end_is_one_line_and_an_exit_code(error: str, code: int, line: str) -> None:
    """Scripts tell a wrong option (2) from failed work (1) by the code, people by the line."""
    ran = ending_with(error)
    assert (ran.returncode, ran.stderr.strip(), ran.stdout) == (code, line, "")


def test_an_interrupted_command_may_say_how_to_go_on() -> None:
    """The library swallowed the line that told of --resume."""
    code = (
        "from chitchat_compress import api\n"
        "from chitchat_compress.cli import app\n"
        "import sys\n"
        "def interrupted(*_, **__):\n"
        "    raise KeyboardInterrupt('go on with --resume')\n"
        "api.train = interrupted\n"
        "sys.argv = ['compress', 'train', 'data', '--out', 'x', '--epochs', '1']\n"
        "app.main()"
    )
    ran = run(code=code)
    assert ran.returncode == 130
    assert ran.stderr.strip() == "compress: go on with --resume"


def test_a_traceback_shows_only_when_asked_for() -> None:
    """A bug must still be findable."""
    code = "from chitchat_compress.cli.console import call\ndef work():\n    raise ValueError('x')\ncall(work)"
    asked = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"COMPRESS_DEBUG": "1"}
    )
    assert asked.returncode == 1
    assert "Traceback" in asked.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nonsense"], "compress: No such command 'nonsense'; see `python -m chitchat_compress --help`"),
        (["data", "a.txt"], "Missing option '--out'"),
        (["data", "a.txt", "--out", "x", "--validation", "half"], "--validation"),
        (["serve", "x", "--port", "99999"], "--port 99999: give a whole number from 0 to 65535"),
        (["serve", "x", "--port", "many"], "--port many: give a whole number; see"),
        (["quantize", "x", "--data", "d", "--out", "o", "--scheme", "w3"], "--scheme w3: give w8, w8a8, w4 or auto"),
        (["prune", "x", "--data", "d", "--kep", "1"], "No such option: --kep; did you mean --keep"),
        (["prune", "x", "--data", "d", "--keep"], "Option '--keep' requires a value"),
        (["prune", "x", "y", "--data", "d"], "Got unexpected arguments: y"),
        (["info"], "Missing argument 'MODEL'"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], line: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The library's boxes are three lines; ours names the option and the way to the help."""
    assert type_in(*arguments, program="__main__.py") == 2
    said = capfd.readouterr()
    assert line in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_the_module_is_the_command_line() -> None:
    """`python -m chitchat_compress` that ends otherwise than `compress`, or calls itself by another name."""
    ran = run("nonsense")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "compress: No such command 'nonsense'; see `python -m chitchat_compress --help`\n"


@pytest.mark.parametrize(
    "arguments",
    [("info", "{}"), ("export", "{}", "--out", "o"), ("serve", "{}"), ("eval", "{}", "--data", "o")],
)
def test_a_name_that_no_system_takes_is_bad_input(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`OSError: [Errno 36]` and exit code 1, as if the work had failed; Python 3.14 calls such a file absent."""
    monkeypatch.chdir(tmp_path)
    assert type_in(*(word.format("x" * 5000) for word in arguments)) == 2
    said = capfd.readouterr().err
    assert said.startswith("compress: ")
    assert said.count("\n") == 1
    assert "COMPRESS_DEBUG" not in said


def test_sigterm_unwinds_so_that_nothing_half_written_stays(tmp_path: Path) -> None:
    """`docker stop` and batch systems send SIGTERM; the default action skips every cleanup."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from chitchat_compress.cli.console import call; from chitchat.system.folder import staged_folder\n"
        "def work():\n"
        "    with staged_folder(Path(sys.argv[1]), 'data'):\n"
        "        print('ready', flush=True)\n"
        "        while True: time.sleep(0.1)\n"  # a signal just before a single long sleep waits until its end
        "call(work)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert os.listdir(tmp_path) != []
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143
    assert os.listdir(tmp_path) == []


def test_the_last_line_of_stdout_is_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts read `tail -1`."""
    figures = {"perplexity": 12.3456, "tokens": 12345, "rows": [{"name": "a"}], "说": "好"}
    show(figures, as_json=True)
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == figures
    assert lines[0].split() == ["perplexity", "12.35"]
    assert lines[1].split() == ["tokens", "12,345"]


def test_an_interval_stands_on_the_line_of_its_figure(capsys: pytest.CaptureFixture[str]) -> None:
    """The spread was left out for people, or was a line of its own without a figure."""
    figures = {"distinct_2": 0.63912, "distinct_2_interval": [0.61, 0.668], "kl": 0.1, "kl_interval": None}
    show(figures, as_json=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == ["distinct 2  0.6391  (0.61 to 0.668)", "kl          0.1"]
    assert json.loads(lines[-1]) == figures


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_of_a_group_speaks(rank: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Two ranks used to print the figures twice."""
    import torch.distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore  # a group of which the others need not be there

    torch.distributed.init_process_group("fake", rank=rank, world_size=2, store=FakeStore())
    try:
        show({"tokens": 1}, as_json=True)
        show_table([{"row": 2}])
    finally:
        torch.distributed.destroy_process_group()
    said = ["tokens", "1", '{"tokens":', "1}", "row", "2"]
    assert capsys.readouterr().out.split() == (said if rank == 0 else [])


@pytest.mark.slow
def test_one_process_of_a_distributed_run_speaks(tmp_path: Path) -> None:
    """Two ranks used to print the figures twice."""
    script = tmp_path / "run.py"
    script.write_text(
        "import torch.distributed\n"
        "from chitchat_compress.cli.console import show, show_table\n"
        "torch.distributed.init_process_group('gloo')\n"
        "show({'tokens': 1}, as_json=True); show_table([{'row': 2}])\n"
        "torch.distributed.destroy_process_group()\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["tokens", "1", '{"tokens":', "1}", "row", "2"]


@pytest.mark.parametrize("rank", ["1", "0", "", "one"])
def test_a_rank_that_was_left_behind_silences_nobody(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    """`RANK=1` of a shell or a cluster: no figures, exit 0."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.setenv(name, rank)
    show({"tokens": 1}, as_json=True)
    show_table([{"row": 2}])
    assert capsys.readouterr().out.split() == ["tokens", "1", '{"tokens":', "1}", "row", "2"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_json_and_seed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts pass them to whatever command they call."""
    make_app()([command, "--help"])
    words = capsys.readouterr().out.split()
    assert {"--json", "--seed"} <= set(words)


def test_the_log_of_the_python_api_is_a_line_each_warnings_on_stderr() -> None:
    """Library users got nothing, and the command line's own print stood in the figures."""
    code = (
        "import logging; from chitchat_compress.cli.console import show_log; show_log(); show_log()\n"
        "log = logging.getLogger('chitchat_compress')\n"
        "log.warning('w8 is slow here'); log.info('[1/2] 50 % done'); log.debug('nothing')"
    )
    done = run(code=code)
    assert (done.stdout, done.stderr) == ("[1/2] 50 % done\n", "warning: w8 is slow here\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_options_and_choices(shell: Literal["bash", "zsh", "fish"]) -> None:
    """Completion that knows the commands and not their options is of little help."""
    script = make_app().generate_completion(prog_name="compress", shell=shell)
    for word in ("quantize", "max-ms-per-token", "w8a8"):
        assert word in script, word


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_the_script_for_bash_completes_in_bash(tmp_path: Path) -> None:
    """A script that bash cannot read, or that offers nothing."""
    script = tmp_path / "compress"
    script.write_text(make_app().generate_completion(prog_name="compress", shell="bash"), encoding="utf-8")
    asked = (
        f"source {script}; COMP_WORDS=(compress pr); COMP_CWORD=1; COMP_LINE='compress pr'; COMP_POINT=11; "
        "_compress; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True)
    assert done.stdout.split() == ["prune"], done.stderr
