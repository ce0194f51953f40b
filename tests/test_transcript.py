"""A conversation as a file: complete lines, whatever happens, and nothing that was there is lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from serve.commands import Exchange
from serve.errors import BadRequest
from serve.options import SamplingOptions
from serve.transcript import append, check_file, line_of

ROOT = Path(__file__).parents[1]
EXCHANGE = Exchange("hi 😀\nyou", "你好", SamplingOptions(seed=4), 3, "2026-01-01T00:00:00.000Z", 12.3456, 0.5, 7, True)


def test_a_line_is_an_exchange_with_its_options_and_times() -> None:
    """A transcript that cannot be drawn again."""
    line = line_of(EXCHANGE, "2026-01-01T00:00:00.000Z", 2, "out/bundle")
    assert line.count(b"\n") == 1
    value = json.loads(line)
    assert list(value) == [
        *("conversation", "number", "user", "bot", "model", "options", "started", "ttft_ms", "seconds", "tokens"),
        "stopped",
    ]
    assert (value["user"], value["bot"], value["number"], value["stopped"]) == ("hi 😀\nyou", "你好", 2, True)
    options = dict(value["options"])
    assert options.pop("history") == 3
    assert SamplingOptions(**options) == EXCHANGE.options


def test_lines_are_appended(tmp_path: Path) -> None:
    """A second conversation that overwrites the first."""
    path = tmp_path / "talk.jsonl"
    check_file(path)
    assert not path.exists(), "a file was made before anything was said"
    append(path, b"1\n")
    append(path, b"2\n3\n")
    assert path.read_bytes() == b"1\n2\n3\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "is a folder"), ("gone/talk.jsonl", "folder that is there"), ("cut.jsonl", "not complete")],
)
def test_a_file_that_cannot_be_appended_to_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    """A conversation of an hour, and then no file; or a line that is glued to half of another one."""
    (tmp_path / "cut.jsonl").write_bytes(b'{"number": 1}\n{"numb')
    for use in (check_file, lambda path: append(path, b"1\n")):
        with pytest.raises(BadRequest, match=message):
            use(tmp_path / name)
    assert (tmp_path / "cut.jsonl").read_bytes() == b'{"number": 1}\n{"numb'


def test_a_line_that_the_disk_has_no_room_for_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """Half a line at the end of the file."""
    path = tmp_path / "talk.jsonl"
    code = (
        "import resource, signal, sys; from pathlib import Path; from serve.transcript import append\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "path = Path(sys.argv[1]); append(path, b'x' * 900 + b'\\n')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    append(path, b'y' * 500 + b'\\n')\nexcept Exception as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert "cannot be written" in done.stdout, done.stderr
    assert path.read_bytes() == b"x" * 900 + b"\n"
