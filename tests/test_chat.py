"""`compress chat`: a checkpoint and its bundle hold the same conversation, and a terminal is a terminal."""

import io
import json
import os
import pty
import select
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.command_line import type_in

import chitchat_compress as cc
from chitchat.errors import BadInput
from serve import line_input

ROOT = Path(__file__).parents[1]
SAID = [
    "how are you",
    "/retry",
    "tea music rain",
    "/undo",
    "/set max_new_tokens 5",
    "what about rain",
    "/show",
    "/quit",
]


def conversation(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What `compress chat ARGUMENTS` prints when SAID is piped into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO("\n".join(SAID) + "\n"))
        assert type_in("chat", *arguments) == 0
    return capsys.readouterr().out


def test_a_checkpoint_and_its_bundle_hold_the_same_conversation(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options, commands or a history that one of the two generators knows in another way."""
    given = ["--preset", "dialogpt", "--history", 3, "--threads", 1]
    printed, files = [], [tmp_path / "checkpoint.jsonl", tmp_path / "bundle.jsonl"]
    for model, file in zip((tiny_checkpoint, tiny_bundle), files, strict=True):
        printed.append(conversation(capsys, model, *given, "--save", file))
    assert printed[0] == printed[1]
    assert "max_new_tokens      5" in printed[0]
    assert "\x1b" not in printed[0]
    assert "tokens/s" not in printed[0]
    timed = {"conversation", "model", "started", "ttft_ms", "seconds"}
    values = [[json.loads(line) for line in file.read_text("utf-8").splitlines()] for file in files]
    plain = [[{name: one[name] for name in one if name not in timed} for one in value] for value in values]
    assert plain[0] == plain[1]
    assert [one["number"] for one in plain[0]] == [1, 1, 2, 2]
    assert plain[0][0]["options"] | {"temperature": 0.0, "top_k": 0, "history": 3} == plain[0][0]["options"]
    assert plain[0][3]["tokens"] <= 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--system", "be kind"], "has no system turn; leave it out"),
        (["--save", "."], "--save .: is a folder"),
        (["--save", "gone/talk.jsonl"], "--save gone/talk.jsonl: cannot be written"),
        (["--preset", "irc"], "--preset irc: give gpt2-chitchat or dialogpt"),
        (["--history", "few"], "--history few: give a whole number"),
    ],
)
def test_what_cannot_be_had_is_one_line_before_anything_is_loaded(
    given: list[str], message: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """A system turn that is ignored; a file that is found to be none after the first reply."""
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    assert type_in("chat", tiny_bundle, *given) == 2
    said = capfd.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert os.listdir(tmp_path) == []


def test_python_callers_have_presets_and_history(tiny_bundle: Path, tmp_path: Path) -> None:
    """A preset of the command line only."""
    bot = cc.load(tiny_bundle, preset="gpt2-chitchat", seed=1, length=4, threads=1)
    assert bot.history == 3
    talk = bot.chat()
    for _ in range(4):
        talk.reply("tea rain")
    assert len(talk.turns) == 8
    assert talk.forgotten == 0, "turns that are not shown are not forgotten"
    with pytest.raises(BadInput, match=r"--save .*: is a folder"):
        bot.talk(save=tmp_path)


class Keyboard:
    """A process at a terminal of its own."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.screen, inner = pty.openpty()
        self.process = subprocess.Popen(
            command, stdin=inner, stdout=inner, stderr=inner, cwd=ROOT, env=environment, start_new_session=True
        )
        os.close(inner)
        self.seen = ""

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.screen, keys.encode())

    def wait_for(self, text: str, seconds: float = 120) -> str:
        """Read until `text` is seen, give what was seen, and forget it."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} is not in {self.seen!r}"
            if select.select([self.screen], [], [], 1)[0]:
                try:
                    self.seen += os.read(self.screen, 4096).decode(errors="replace")
                except OSError:  # the process has ended
                    assert text in self.seen, f"{text!r} is not in {self.seen!r}"
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def end(self) -> int:
        """The exit code."""
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.screen)


TYPIST = """
from serve.line_input import edited_input, read_turn
with edited_input() as read:
    while True:
        try:
            print("got", ascii(read_turn(read)), flush=True)
        except EOFError:
            break
"""


def typist(state: Path, **more: str) -> Keyboard:
    """A program that reads turns, with its state below a folder."""
    environment = {**os.environ, "XDG_STATE_HOME": str(state), "TERM": "xterm", "INPUTRC": "/dev/null", **more}
    return Keyboard([sys.executable, "-c", TYPIST], environment)


@pytest.mark.parametrize("locale", ["C.UTF-8", ""])
def test_lines_are_edited_remembered_and_may_go_on(tmp_path: Path, locale: str) -> None:
    """Half a wide character that stays behind a backspace, and a history that is gone with the session."""
    pytest.importorskip("readline")
    first = typist(tmp_path / "state", LC_ALL=locale, LANG=locale, LC_CTYPE=locale)
    first.wait_for("you: ")
    first.type("你好吗\x7f\x7f\r")
    first.wait_for(f"got {'你'!a}")
    first.wait_for("you: ")
    first.type("one\\\r")
    first.wait_for("...: ")
    first.type("two\r")
    first.wait_for(r"got 'one\ntwo'")
    first.wait_for("you: ")
    first.type("\x04")
    assert first.end() == 0
    file = tmp_path / "state" / "chitchat-compress" / "chat-history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    second = typist(tmp_path / "state", LC_ALL=locale, LANG=locale, LC_CTYPE=locale)
    second.wait_for("you: ")
    second.type("\x1b[A\x1b[A\x1b[A\r")
    second.wait_for(f"got {'你'!a}")
    second.wait_for("you: ")
    second.type("\x04")
    assert second.end() == 0


def test_a_history_that_cannot_be_written_breaks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only home folder, a file in the folder's place, no home at all; and a pipe, which has no history."""
    (tmp_path / "state").write_text("a file")
    keyboard = typist(tmp_path / "state")
    keyboard.wait_for("you: ")
    keyboard.type("hello\r")
    keyboard.wait_for("got 'hello'")
    keyboard.wait_for("you: ")
    keyboard.type("\x04")
    assert keyboard.end() == 0
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "other")}
    piped = subprocess.run(
        [sys.executable, "-c", TYPIST], input="hello\n", cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert "got 'hello'" in piped.stdout
    assert (piped.returncode, piped.stderr) == (0, "")
    assert not (tmp_path / "other").exists()
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert line_input.history_file() == Path("/home/somebody/.local/state/chitchat-compress/chat-history")


def test_a_python_without_readline_reads_lines_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows, and a Python that was built without it."""
    monkeypatch.setitem(sys.modules, "readline", None)
    with line_input.edited_input() as read:
        assert read is input


def test_ctrl_c_stops_the_reply_of_a_bundle_at_a_terminal_and_the_conversation_goes_on(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    """A conversation that is lost with the reply, and figures that a person at a terminal does not see."""
    code = (
        "import sys, time; from serve import engine; from serve.__main__ import main\n"
        "step = engine.Engine.step\n"
        "def slow(self, token):\n    time.sleep(0.3)\n    return step(self, token)\n"
        "engine.Engine.step = slow\n"
        "sys.exit(main([sys.argv[1], '--chat', '--threads', '1']))"
    )
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm", "NO_COLOR": "1"}
    keyboard = Keyboard([sys.executable, "-c", code, str(tiny_bundle)], environment)
    keyboard.wait_for("you: ")
    keyboard.type("/set min_new_tokens 20\r")
    keyboard.wait_for("(min_new_tokens 20)")
    keyboard.wait_for("you: ")
    keyboard.type("tea\r")
    keyboard.wait_for("bot: ")
    time.sleep(1.5)
    os.killpg(keyboard.process.pid, signal.SIGINT)
    keyboard.wait_for("(stopped)")
    assert "first after" in keyboard.wait_for(" ms")
    keyboard.wait_for("you: ")
    keyboard.type("/show\r")
    keyboard.wait_for("you: tea")
    keyboard.wait_for("you: ")
    keyboard.type("\x04")
    assert keyboard.end() == 0
