"""Talking to a model from Python: any checkpoint, or a bundle, which needs no torch."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from chitchat.errors import BadInput
from chitchat.options import make_options
from chitchat_compress.keywords import takes
from chitchat_compress.options import ChatOptions


@takes(ChatOptions)
def load(
    model: str | os.PathLike[str], *, options: ChatOptions | None = None, announce: bool = False, **given: Any
) -> "Bot":
    """A bundle, a checkpoint or a hub id, loaded and ready to talk; with `announce` stderr says what runs it.

    Raises `BadInput` for a system turn where the model's dialogue format has none.
    """
    options = make_options(ChatOptions, options, given, "load")
    from bench.models.open import open_model

    opened = open_model(os.fspath(model), options.dialogue, options.tokenizer)
    if options.system is not None:
        family = opened.dialogue.family
        raise BadInput(f"--system: the dialogue format of {model} ({family}) has no system turn; leave it out")
    bot = Bot(opened.generator(options.threads, options.device), opened.codec(), options, os.fspath(model))
    if announce:
        opened.announce(options.device)
    return bot


def file_to_save(save: str | os.PathLike[str]) -> Path:
    """The file that a conversation is appended to. Raises `BadInput` for one that cannot be; makes nothing."""
    from serve.errors import BadRequest
    from serve.transcript import check_file

    try:
        check_file(Path(save))
    except BadRequest as error:
        raise BadInput(f"--save {error}") from error
    return Path(save)


class Bot:
    """A loaded model. `generator` speaks ids, `codec` turns them into text, `options` draw replies; `name` is told."""

    def __init__(self, generator: Any, codec: Any, options: ChatOptions, name: str = "") -> None:
        self.generator, self.codec, self.options = generator, codec, options
        self.name = name
        self.history: int = options.resolved("history")

    def reply(self, text: str) -> str:
        """The reply to one turn, with no turns before it."""
        return self.chat().reply(text)

    def stream(self, text: str) -> Iterator[str]:
        """The reply to one turn, in pieces as they are made."""
        return self.chat().stream(text)

    def chat(self) -> "Conversation":
        """A conversation that remembers its turns."""
        return Conversation(self)

    def talk(self, save: str | os.PathLike[str] | None = None, quiet: bool = False) -> int:
        """Hold a conversation in the terminal, until /quit or Ctrl-D; give the number of replies.

        Each exchange is appended to the file `save`; on a terminal a line tells its speed, unless `quiet`. Raises
        `BadInput` for a file that cannot be appended to.
        """
        from serve.terminal import run_terminal

        return run_terminal(
            self.generator,
            self.codec,
            self._sampling(),
            history=self.history,
            save=None if save is None else file_to_save(save),
            quiet=quiet,
            model=self.name,
        )

    def sample(self, prompt: str | None = None, number: int = 0) -> str:
        """A text drawn with seed + `number`: a reply to `prompt`, or a whole conversation out of nothing."""
        from serve.terminal import sample_text

        return sample_text(self.generator, self.codec, self._sampling(number), prompt)

    def _sampling(self, number: int = 0) -> Any:
        from serve.options import SamplingOptions

        options = SamplingOptions(**self.options.sampling())
        return options if options.seed is None else replace(options, seed=(options.seed + number) % 2**63)


class Conversation:
    """The turns so far. Whole old turns that no longer fit the model's context are forgotten: `forgotten` counts them.

    With a seed the n-th reply is drawn with seed + n.
    """

    def __init__(self, bot: Bot) -> None:
        from serve.history import ChatHistory

        self._bot = bot
        self._history = ChatHistory(bot.generator.dialogue, bot.generator.context, bot.history)
        self._replies = 0
        self.forgotten = 0

    @property
    def turns(self) -> list[str]:
        """What was said, in turn, as far as it is remembered."""
        return [self._bot.codec.decode(turn) for turn in self._history.turns]

    def reply(self, text: str) -> str:
        """Say something, and have the whole reply."""
        return "".join(self.stream(text))

    def stream(self, text: str) -> Iterator[str]:
        """Say something, and have the reply in pieces; what came of it is remembered, also if nobody reads to its end.

        Raises `BadInput` for a text that the model cannot read, or that is too long for it.
        """
        from serve.errors import BadRequest

        bot = self._bot
        options = bot._sampling(self._replies)
        try:
            turn = bot.codec.encode(text)
            if not turn:
                raise BadRequest("the model's vocabulary has nothing for this text; write something else")
            prompt = self._history.ask(turn, options.max_new_tokens)
        except BadRequest as error:
            raise BadInput(str(error)) from error
        self.forgotten += prompt.dropped
        self._replies += 1
        return self._pieces(prompt, options)

    def _pieces(self, prompt: Any, options: Any) -> Iterator[str]:
        generator, decoder, ids = self._bot.generator, self._bot.codec.stream(), []
        try:
            for token in generator.stream(prompt.ids, options.for_reply(prompt.max_new_tokens, prompt.bot_ids)):
                ids.append(token)
                if piece := decoder.feed(token):
                    yield piece
            if rest := decoder.flush():
                yield rest
        finally:
            self._history.answer(ids)
