"""Texts drawn from a model: replies to turns, continuations of texts, whole conversations out of nothing.

A checkpoint and a bundle are asked alike, token by token, with the log-probability of each. Prompts are checked before
the weights are loaded, those of stdin when they are read. Nothing is printed here.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path
from secrets import randbelow
from typing import TYPE_CHECKING, Any, Literal

from chitchat_compress.options import GenerateOptions

if TYPE_CHECKING:
    from bench.models.handle import ModelHandle
    from serve.options import SamplingOptions
    from serve.protocols import Generator
    from serve.scored import ScoredToken

STDIN = "-"


@dataclass(frozen=True)
class DrawnText:
    """One text. `prompt` is None where nothing was said before; `seed` draws this text again, alone.

    `logprobs` are natural logarithms (nats), one of each of the `tokens` ids of the reply (ends of turns are not among
    them): of the model's own distribution, the softmax of its logits before temperature, penalties, bans and filters.
    `finish_reason` is "stop" at an end of turn and "length" at the last token that was allowed.
    """

    prompt: str | None
    reply: str
    tokens: int
    seed: int
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]


class Texts:
    """An iterator of `DrawnText`, each drawn when it is asked for. The n-th one, from 0, has the seed `seed` + n."""

    def __init__(self, opened: "ModelHandle", options: GenerateOptions) -> None:
        """Check what can be checked, then load the model; see `chitchat_compress.generate`."""
        self.seed = randbelow(2**32) if options.seed is None else options.seed
        self._options, self._codec = options, opened.codec()
        self._dialogue, self._context = opened.dialogue, opened.context
        given = iter(self._prompts())
        streamed = options.prompt_file == STDIN and options.samples  # the others are all checked now
        prompts = chain([next(given)], given) if streamed else list(given)
        self._generator = opened.generator(options.threads, options.device)
        self._texts = self._draw_all(prompts)

    def __iter__(self) -> "Texts":
        return self

    def __next__(self) -> DrawnText:
        return next(self._texts)

    def _prompts(self) -> "Iterable[_Prompt]":
        options = self._options
        if options.prompt is not None:
            return [self._prompt(options.prompt, "--prompt")]
        if options.prompt_file is None:
            return [_Prompt(None, [], self._room(list(self._dialogue.unconditional_prompt_ids), "the empty prompt"))]
        return (self._prompt(text, where) for text, where in _lines(options.prompt_file))

    def _prompt(self, text: str, where: str) -> "_Prompt":
        """A prompt in ids. Raises `BadInput` for one that the model cannot read, or that leaves no room."""
        from chitchat.errors import BadInput
        from serve.errors import BadRequest

        try:
            turn = self._codec.encode(text)
        except BadRequest as error:
            raise BadInput(f"{where}: {error}") from error
        if not turn:
            raise BadInput(f"{where}: the model's vocabulary has nothing for this text; write something else")
        ids = self._dialogue.encode([turn])
        if self._options.continue_prompt:
            ids = ids[: len(ids) - self._dialogue.frame(0)[1]]
        return _Prompt(text, ids, self._room(ids, where), turn if self._options.continue_prompt else [])

    def _room(self, ids: list[int], where: str) -> int:
        """The tokens that a reply may have. Raises `BadInput` where there is no room for those that were asked for."""
        from chitchat.errors import BadInput

        room, asked = self._context - len(ids), self._options.max_new_tokens
        if room < 1:
            raise BadInput(
                f"{where}: {len(ids)} tokens, and the context holds {self._context} with the reply; shorten it"
            )
        if asked is not None and asked > room:
            taken = f"{where} takes {len(ids)} of the {self._context} tokens of the context"
            raise BadInput(f"--max-new-tokens {asked}: {taken}; give at most {room}")
        return min(room, self._options.sampling()["max_new_tokens"])

    def _draw_all(self, prompts: "Iterable[_Prompt]") -> Iterator[DrawnText]:
        number = count()
        for prompt in prompts if self._options.samples else chain.from_iterable(prompts for _ in count()):
            for n in islice(number, self._options.samples or 1):
                yield self._draw(prompt, (self.seed + n) % 2**63)

    def _draw(self, prompt: "_Prompt", seed: int) -> DrawnText:
        from serve.options import SamplingOptions
        from serve.terminal import sample_text

        values = self._options.sampling() | {"seed": seed, "max_new_tokens": prompt.room}
        recorder = _Recorder(self._generator)
        if prompt.text is None:
            reply, ended = sample_text(recorder, self._codec, SamplingOptions(**values), None), False
        else:
            decoder = self._codec.stream()
            for token in prompt.continued:  # a word that goes on needs no space before it
                decoder.feed(token)
            pieces = [decoder.feed(token) for token in recorder.stream(prompt.ids, SamplingOptions(**values))]
            reply, ended = "".join(pieces) + decoder.flush(), len(pieces) < prompt.room
        logprobs = tuple(token.logprob for token in recorder.tokens)
        return DrawnText(prompt.text, reply, len(logprobs), seed, logprobs, "stop" if ended else "length")


@dataclass(frozen=True)
class _Prompt:
    """A prompt in ids, the most tokens of its reply, and the ids of a text that goes on."""

    text: str | None
    ids: list[int]
    room: int
    continued: tuple[int, ...] | list[int] = ()


class _Recorder:
    """A generator whose tokens are scored and kept."""

    def __init__(self, generator: "Generator") -> None:
        self._generator = generator
        self.context, self.dialogue = generator.context, generator.dialogue
        self.tokens: list[ScoredToken] = []

    def stream(self, prompt_ids: list[int], options: "SamplingOptions") -> Iterator[int]:
        token: Any
        for token in self._generator.stream(prompt_ids, replace(options, logprobs=0)):
            self.tokens.append(token)
            yield token


def _lines(file: str) -> Iterator[tuple[str, str]]:
    """The prompts of a file or of stdin, one a line, blank ones left out, and where each stands. Raises `BadInput`."""
    from chitchat.errors import BadInput
    from chitchat.text.lines import text_lines

    found = False
    if file != STDIN and not Path(file).expanduser().is_file():
        raise BadInput(f"--prompt-file {file}: no such file; give a text file, a prompt a line, or - for stdin")
    lines = _stdin_lines() if file == STDIN else text_lines(Path(file).expanduser(), f"--prompt-file {file}")
    for number, line in lines:
        if text := line.rstrip("\r\n") if line.strip() else "":
            found = True
            yield text, f"--prompt-file {file}, line {number}"
    if not found:
        raise BadInput(f"--prompt-file {file}: holds no prompt; give one a line")


def _stdin_lines() -> Iterator[tuple[int, str]]:
    """`(number, text)` of each line of stdin, as it comes, in UTF-8."""
    from chitchat.errors import BadInput

    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise BadInput(f"--prompt-file -, line {number}: is not UTF-8; convert it") from error
