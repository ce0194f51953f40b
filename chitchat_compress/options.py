"""What talking to a model, drawing texts from it and serving it are asked for."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from chitchat.errors import BadInput
from chitchat.options import DIALOGUE, THREADS, TOKENIZER, Dialogues, Options, option

_SAMPLING, _RUNTIME, _SERVER = "Sampling", "Runtime", "Server"

# The names and limits are those of `serve.options.SamplingOptions`.
_TEMPERATURE: dict[str, Any] = {"help": "0 always takes the likeliest token", "unit": "factor", "ge": 0, "le": 100}
_TOP_P: dict[str, Any] = {
    "help": "Draw from the likeliest tokens that hold this share; 0 or 1: from all",
    "unit": "share of the probability",
    "ge": 0,
    "le": 1,
}
_REPETITION_PENALTY: dict[str, Any] = {
    "help": "Above 1: what the bot said becomes less likely",
    "unit": "factor",
    "ge": 0.01,
    "le": 100,
}
_TOP_K: dict[str, Any] = {"help": "Draw from the k likeliest tokens; 0: from all", "unit": "tokens", "ge": 0}
_MIN_P: dict[str, Any] = {
    "help": "Drop tokens below this share of the likeliest one; 0: none",
    "unit": "share of the likeliest",
    "ge": 0,
    "le": 1,
}
_NO_REPEAT_NGRAM: dict[str, Any] = {
    "help": "Never this many tokens in a row twice in a reply; 0: no ban",
    "unit": "tokens",
    "ge": 0,
}
_MAX_NEW_TOKENS: dict[str, Any] = {"help": "Tokens of a reply at most", "unit": "tokens", "alias": "length", "ge": 1}
_MOST_NEW_TOKENS = {**_MAX_NEW_TOKENS, "help": "Tokens of a reply at most; given, the context must have room for them"}
_HISTORY: dict[str, Any] = {
    "help": "Turns that the model is shown, the newest among them; 0: as many as its context takes",
    "unit": "turns",
    "ge": 0,
}


def _drawn(default: float, about: dict[str, Any]) -> Any:
    """An option that a preset may set: None is the preset's value or, without one, `default`."""
    said = {**about, "help": f"{about['help']} (default: {default:g})."}
    one = option(None, **said, group=_SAMPLING)
    return field(default=None, metadata={**one.metadata, "otherwise": default})


@dataclass(frozen=True, kw_only=True)
class DrawOptions(Options):
    """How replies are drawn, and by what; without a `seed` every one is another."""

    preset: Literal["gpt2-chitchat", "dialogpt"] | None = option(
        None, "What that project's own chat uses, for each option that is not given.", group=_SAMPLING
    )
    temperature: float | None = _drawn(0.8, _TEMPERATURE)
    top_k: int | None = _drawn(40, _TOP_K)
    top_p: float | None = _drawn(0.95, _TOP_P)
    min_p: float | None = _drawn(0.0, _MIN_P)
    repetition_penalty: float | None = _drawn(1.1, _REPETITION_PENALTY)
    no_repeat_ngram: int | None = _drawn(0, _NO_REPEAT_NGRAM)
    max_new_tokens: int | None = _drawn(64, _MAX_NEW_TOKENS)
    seed: int | None = option(
        None, "Seed of the sampling (default: another each time).", group=_SAMPLING, unit="seed", ge=0
    )
    tokenizer: str | None = option(None, **TOKENIZER, group=_RUNTIME)
    dialogue: Dialogues | None = option(None, **DIALOGUE, group=_RUNTIME)
    threads: int | None = option(None, **THREADS, group=_RUNTIME)
    device: Literal["cpu", "cuda"] | None = option(
        None, "Default: cuda where the bundle and the machine have it, else cpu.", group=_RUNTIME
    )

    def sampling(self) -> dict[str, Any]:
        """The fields of `serve.options.SamplingOptions`: what is given, else the preset's, else the default."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram", "max_new_tokens")
        return {**{name: self.resolved(name) for name in names}, "seed": self.seed}

    def resolved(self, name: str) -> Any:
        """The value of an option that a preset may set."""
        from serve.options import PRESETS

        value = getattr(self, name)
        if value is None and self.preset is not None:
            return PRESETS[self.preset][name]
        default = next(one.metadata["otherwise"] for one in fields(self) if one.name == name)
        return default if value is None else value


@dataclass(frozen=True, kw_only=True)
class ChatOptions(DrawOptions):
    """How a conversation is held; without a `seed` every one is another."""

    history: int | None = _drawn(0, _HISTORY)
    system: str | None = option(None, "A system turn, where the dialogue format of the model has one.")


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(DrawOptions):
    """How texts are drawn: as the model has them, but for the 40 likeliest tokens. Without a `seed` one is drawn."""

    prompt: str | None = option(None, "What was said (default: nothing; whole conversations are drawn freely).")
    prompt_file: str | None = option(
        None, "File of prompts, one a line; blank lines are left out. - reads stdin.", stdin=True
    )
    continue_prompt: bool = option(
        False,
        "Prompts are texts to continue, not turns to reply to; the reply begins where they end.",
        alias="continue",
    )
    samples: int = option(
        1, "Texts to draw, of each prompt; 0: go on, round after round, until Ctrl-C.", unit="texts", ge=0
    )
    temperature: float | None = _drawn(1.0, _TEMPERATURE)
    top_p: float | None = _drawn(1.0, _TOP_P)
    repetition_penalty: float | None = _drawn(1.0, _REPETITION_PENALTY)
    max_new_tokens: int | None = _drawn(64, _MOST_NEW_TOKENS)
    seed: int | None = option(
        None,
        "Seed of the first text, the next one has 1 more (default: another each time, which is told).",
        group=_SAMPLING,
        unit="seed",
        ge=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt is not None and self.prompt_file is not None:
            raise BadInput("--prompt, --prompt-file: both are given; give one of them")
        if self.continue_prompt and self.prompt is None and self.prompt_file is None:
            raise BadInput("--continue: there is no text to continue; give --prompt or --prompt-file")


@dataclass(frozen=True, kw_only=True)
class ServeOptions(Options):
    """How a bundle is served: see `serve.server.run_server`."""

    host: str = option("127.0.0.1", "Address to listen on.", group=_SERVER)
    port: int = option(8080, "Port to listen on; 0 takes a free one.", group=_SERVER, unit="port", ge=0, le=65535)
    queue: int = option(16, "Requests that may wait; one more is answered 429.", group=_SERVER, unit="requests", ge=1)
    slots: int = option(4, "Replies that are made at once.", group=_SERVER, unit="replies", ge=1, le=64)
    threads: int | None = option(None, **THREADS, group=_RUNTIME)
    device: Literal["cpu", "cuda"] | None = option(
        None, "Default: cuda where the bundle and the machine have it, else cpu.", group=_RUNTIME
    )
    seed: int | None = option(
        None, "Seed of requests that name none (default: another each time).", group=_RUNTIME, unit="seed", ge=0
    )


@dataclass(frozen=True, kw_only=True)
class InfoOptions(Options):
    """What is needed to tell what a model is."""

    tokenizer: str | None = option(None, **TOKENIZER)
    seed: int = option(0, "As every command; nothing is random here.", unit="seed", ge=0)


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """How a recipe is run."""

    seed: int = option(0, "Seed of every stage whose recipe names none.", unit="seed", ge=0)
