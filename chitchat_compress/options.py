"""What talking to a model, drawing texts from it and serving it are asked for."""

from dataclasses import dataclass
from typing import Any, Literal

from chitchat.errors import BadInput
from chitchat.options import DIALOGUE, THREADS, TOKENIZER, Dialogues, Options, option

_SAMPLING, _RUNTIME, _SERVER = "Sampling", "Runtime", "Server"
NEW_TOKENS = 64

# The names and limits are those of `serve.options.SamplingOptions`.
_TEMPERATURE: dict[str, Any] = {"help": "0 always takes the likeliest token.", "unit": "factor", "ge": 0, "le": 100}
_TOP_P: dict[str, Any] = {
    "help": "Draw from the likeliest tokens that hold this share.",
    "unit": "share of the probability",
    "gt": 0,
    "le": 1,
}
_REPETITION_PENALTY: dict[str, Any] = {
    "help": "Above 1: what the bot said becomes less likely.",
    "unit": "factor",
    "ge": 0.01,
    "le": 100,
}


@dataclass(frozen=True, kw_only=True)
class ChatOptions(Options):
    """How a conversation is held; without a `seed` every one is another."""

    temperature: float = option(0.8, **_TEMPERATURE, group=_SAMPLING)
    top_k: int = option(40, "Draw from the k likeliest tokens; 0: from all.", group=_SAMPLING, unit="tokens", ge=0)
    top_p: float = option(0.95, **_TOP_P, group=_SAMPLING)
    min_p: float = option(
        0.0,
        "Drop tokens below this share of the likeliest one; 0: none.",
        group=_SAMPLING,
        unit="share of the likeliest",
        ge=0,
        le=1,
    )
    repetition_penalty: float = option(1.1, **_REPETITION_PENALTY, group=_SAMPLING)
    no_repeat_ngram: int = option(
        0,
        "Never this many tokens in a row twice in a reply; 0: no ban.",
        group=_SAMPLING,
        unit="tokens",
        ge=0,
    )
    max_new_tokens: int = option(64, "Tokens of a reply at most.", group=_SAMPLING, unit="tokens", alias="length", ge=1)
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
        """The fields of `serve.options.SamplingOptions`."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram", "seed")
        return {name: getattr(self, name) for name in (*names, "max_new_tokens")}


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(ChatOptions):
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
    temperature: float = option(1.0, **_TEMPERATURE, group=_SAMPLING)
    top_p: float = option(1.0, **_TOP_P, group=_SAMPLING)
    repetition_penalty: float = option(1.0, **_REPETITION_PENALTY, group=_SAMPLING)
    max_new_tokens: int | None = option(  # type: ignore[assignment]
        None,
        f"Tokens of a reply at most (default: {NEW_TOKENS}, or what the context leaves; more than that is refused).",
        group=_SAMPLING,
        unit="tokens",
        alias="length",
        ge=1,
    )
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

    def sampling(self) -> dict[str, Any]:
        """The fields of `serve.options.SamplingOptions`."""
        return super().sampling() | {"max_new_tokens": self.max_new_tokens or NEW_TOKENS}


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
