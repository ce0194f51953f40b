"""Texts drawn from a checkpoint and from a bundle: prompts, continuations, formats, seeds, and what is refused."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.command_line import type_in
from support.tiny_codecs import word_piece

import chitchat_compress as cc
from chitchat_compress.texts import Texts
from serve.dialogue import Dialogue
from serve.scored import ScoredToken

ROOT = Path(__file__).parents[1]
GREEDY = {"temperature": 0.0, "max_new_tokens": 6, "threads": 1}


@pytest.fixture
def both(tiny_checkpoint: Path, tiny_bundle: Path) -> tuple[Path, Path]:
    return tiny_checkpoint, tiny_bundle


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("hello\n\nhow are you\r\n", encoding="utf-8")
    return file


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts bytes on stdin."""
    return lambda data: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize("given", [{"prompt": "hello"}, {"prompt": "hello how", "continue_prompt": True}, {}])
def test_a_checkpoint_and_its_bundle_draw_the_same_with_the_same_figures(
    both: tuple[Path, Path], given: dict[str, Any]
) -> None:
    """Log-probabilities were those of a bundle alone, and a continuation could mean two things."""
    torch, engine = ([*cc.generate(path, **GREEDY, seed=1, **given)] for path in both)
    for mine, theirs in zip(torch, engine, strict=True):
        assert (mine.prompt, mine.reply, mine.tokens, mine.seed, mine.finish_reason) == (
            *(theirs.prompt, theirs.reply, theirs.tokens, theirs.seed),
            theirs.finish_reason,
        )
        assert mine.prompt == given.get("prompt")
        assert 0 < mine.tokens == len(mine.logprobs) <= 6
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)
        assert all(nats < 0 for nats in mine.logprobs)


def test_a_text_goes_on_within_its_turn(tiny_checkpoint: Path) -> None:
    """A text to continue was closed as a turn, and the reply to it taken for its end."""
    import torch

    from bench.models.open import open_model

    opened = open_model(str(tiny_checkpoint))
    given: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 1, "prompt": "hello how"}
    ids = [*opened.dialogue.start_ids, *opened.codec().encode("hello how")]
    for continued, prompt in ((True, ids), (False, [*ids, opened.dialogue.end_of_turn_id])):
        with torch.no_grad():
            nats = opened.torch_model()(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        (drawn,) = cc.generate(tiny_checkpoint, continue_prompt=continued, **given)
        banned = {*opened.dialogue.banned_ids, opened.dialogue.end_of_turn_id}  # one token comes at least
        allowed = [i for i in range(len(nats)) if i not in banned]
        assert drawn.logprobs[0] == pytest.approx(float(nats[allowed].max()), abs=1e-4)


class Spelled:
    """An opened model and its generator in one, whose every reply is the same ids."""

    context = 64

    def __init__(self, codec: Any, reply: list[int]) -> None:
        self.dialogue = Dialogue("chitchat", (2,), 3, 0, 1, (2,), (0, 1, 2))
        self._codec, self._reply = codec, reply
        self.prompts: list[list[int]] = []

    def codec(self) -> Any:
        """The tokenizer."""
        return self._codec

    def generator(self, *_: Any) -> Any:
        """Itself."""
        return self

    def stream(self, prompt_ids: list[int], _: Any) -> Iterator[int]:
        """The ids, each as likely as not."""
        self.prompts.append(prompt_ids)
        for token in self._reply:
            scored = ScoredToken(token)
            scored.logprob = -0.7
            yield scored


def test_a_word_and_a_sentence_go_on_where_they_were_cut() -> None:
    """The pieces of a word were put together with a space, or without the one between two words."""
    codec = word_piece()
    whole = codec.encode("thanks fine")
    opened: Any = Spelled(codec, whole[1:])
    begun = codec.decode(whole[:1])
    (drawn,) = Texts(opened, cc.GenerateOptions(prompt=begun, continue_prompt=True))
    assert codec.encode(begun) == whole[:1], "begins with the same token"
    assert begun + drawn.reply == "thanks fine"
    assert opened.prompts == [[2, *whole[:1]]]
    (replied,) = Texts(opened, cc.GenerateOptions(prompt=begun))
    assert opened.prompts[1:] == [[2, *whole[:1], 3]]
    assert (replied.tokens, replied.logprobs, replied.finish_reason) == (
        len(whole) - 1,
        (-0.7,) * (len(whole) - 1),
        "stop",
    )


def test_samples_of_each_line_have_successive_seeds_that_draw_them_again(
    both: tuple[Path, Path], prompts: Path
) -> None:
    """Every sample of a prompt was the same, or could not be drawn again alone."""
    for model in both:
        drawn = list(cc.generate(model, prompt_file=prompts, samples=2, seed=2**63 - 2, max_new_tokens=5))
        assert [one.prompt for one in drawn] == ["hello", "hello", "how are you", "how are you"]
        assert [one.seed for one in drawn] == [2**63 - 2, 2**63 - 1, 0, 1]
        assert len({one.reply for one in drawn}) > 1
        again = cc.generate(model, prompt=drawn[2].prompt, seed=drawn[2].seed, max_new_tokens=5)
        assert list(again) == [drawn[2]]


def test_without_a_seed_each_call_has_another_one_and_tells_it(
    tiny_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The default seed was 0: who asked twice got the same text twice."""
    assert cc.generate(tiny_bundle).seed != cc.generate(tiny_bundle).seed
    line = ["generate", tiny_bundle, "--prompt", "hello", "--length", "5"]
    assert type_in(*line) == 0
    first = capfd.readouterr()
    assert first.err.startswith("seed ")
    assert type_in(*line, "--seed", first.err.split()[1]) == 0
    assert capfd.readouterr() == (first.out, "")
    assert type_in(*line, "--format", "jsonl") == 0
    said = capfd.readouterr()
    assert json.loads(said.out)["seed"] >= 0
    assert said.err == ""


def test_jsonl_is_an_object_a_reply(both: tuple[Path, Path], stdin: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """What was drawn could be read by people alone."""
    for model in both:
        stdin("\ufeffhello\nwhat about rain".encode())
        assert type_in("generate", model, "--prompt-file", "-", "--format", "jsonl", "--seed", 3, "--length", 4) == 0
        lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        assert [line["prompt"] for line in lines] == ["hello", "what about rain"]
        assert [line["seed"] for line in lines] == [3, 4]
        for line in lines:
            assert set(line) == {"prompt", "reply", "tokens", "seed", "logprobs", "finish_reason"}
            assert line["tokens"] == len(line["logprobs"]) <= 4
            assert line["finish_reason"] == ("length" if line["tokens"] == 4 else "stop")


def test_zero_samples_go_round_the_prompts_without_end(tiny_bundle: Path, prompts: Path) -> None:
    """`--samples 0` drew nothing."""
    drawn = cc.generate(tiny_bundle, prompt_file=prompts, samples=0, max_new_tokens=2, seed=5)
    found = [next(drawn) for _ in range(5)]
    assert [one.prompt for one in found] == ["hello", "how are you"] * 2 + ["hello"]
    assert [one.seed for one in found] == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("form", ["text", "jsonl"])
def test_ctrl_c_ends_with_130_and_complete_lines(tiny_bundle: Path, form: str) -> None:
    """The last line of an endless run could be half an object."""
    line = [sys.executable, "-m", "chitchat_compress", "generate", str(tiny_bundle), "--samples", "0", "--format", form]
    process = subprocess.Popen(
        [*line, "--prompt", "hello", "--length", "5", "--threads", "1"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "compress: interrupted"
    assert (first + rest).endswith("\n")
    if form == "jsonl":
        assert all(json.loads(one)["prompt"] == "hello" for one in (first + rest).splitlines())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--prompt", "a", "--prompt-file", "b"], "--prompt, --prompt-file: both are given; give one of them"),
        (["--continue"], "--continue: there is no text to continue; give --prompt or --prompt-file"),
        (["--prompt", ""], "--prompt: the model's vocabulary has nothing for this text; write something else"),
        (["--prompt-file", "none.txt"],
         "--prompt-file none.txt: no such file; give a text file, a prompt a line, or - for stdin"),
        (["--prompt-file", "-"], "--prompt-file -: holds no prompt; give one a line"),
        (["--samples", "0", "--json"],
         "--samples 0: has no end to print figures at; give --format jsonl in place of --json"),
        (["--json", "--format", "jsonl"], "--json, --format jsonl: both are given; give one of them"),
        (["--length", "64"],
         "--max-new-tokens 64: the empty prompt takes 1 of the 64 tokens of the context; give at most 63"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_before_the_weights_are_loaded(
    both: tuple[Path, Path], words: list[str], line: str, stdin: Any, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """More new tokens than the context holds were cut without a word."""
    from bench.models.bundle import BundleHandle
    from bench.models.open import CheckpointHandle

    for kind in (BundleHandle, CheckpointHandle):
        monkeypatch.setattr(kind, "generator", lambda *_: pytest.fail("the weights are loaded"))
    for model in both:
        stdin(b"\n \n")
        assert type_in("generate", model, *words) == 2
        said = capfd.readouterr()
        assert (said.out, said.err) == ("", f"compress: {line}\n")


def test_a_prompt_that_leaves_no_room_is_refused_by_its_line(
    both: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A long line in the middle of a file ended the run there, or its reply was cut."""
    file = tmp_path / "long.txt"
    file.write_text("hello\n" + "hello " * 100 + "\n", encoding="utf-8")
    for model in both:
        assert type_in("generate", model, "--prompt-file", file) == 2
        said = capfd.readouterr()
        assert said.out == ""
        assert f"--prompt-file {file}, line 2: " in said.err
        assert "the context holds 64" in said.err
