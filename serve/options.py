"""Sampling options: what they are called, which values they take, and the one line for a value that they do not."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from serve.errors import BadRequest

MAX_LOGPROBS = 5
# option: (lowest, highest, what the remedy says)
_LIMITS: dict[str, tuple[float, float, str]] = {
    "temperature": (0.0, 100.0, "give a number from 0 (greedy) to 100"),
    "top_k": (0, 2**31 - 1, "give a whole number, 0 for no limit"),
    "top_p": (0.0, 1.0, "give a number from 0 to 1, both of which are no limit"),
    "repetition_penalty": (0.01, 100.0, "give a number from 0.01 to 100, 1 for no penalty"),
    "max_new_tokens": (1, 2**31 - 1, "give a whole number of at least 1"),
    "min_new_tokens": (0, 2**31 - 1, "give a whole number of at least 0"),
    "seed": (0, 2**63 - 1, "give a whole number from 0 to 2^63 - 1"),
    "min_p": (0.0, 1.0, "give a number from 0 (no limit) to 1"),
    "no_repeat_ngram": (0, 2**31 - 1, "give a whole number, 0 for no ban"),
    "history": (0, 2**31 - 1, "give a whole number of turns, 0 for all that fit"),  # that of ChatHistory
    "logprobs": (0, MAX_LOGPROBS, f"give a whole number from 0 to {MAX_LOGPROBS}"),
}
_WHOLE = {"top_k", "max_new_tokens", "min_new_tokens", "seed", "no_repeat_ngram", "logprobs", "history"}
_OPTIONAL = {"seed", "logprobs"}
# Options that published chats use. `history` is that of `serve.history.ChatHistory`: turns shown, 0 for all that fit.
PRESETS: dict[str, dict[str, int | float]] = {
    # interact.py of GPT2-chitchat, whose top-p of 0 is off
    "gpt2-chitchat": {
        **{"temperature": 1.0, "top_k": 8, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0},
        **{"no_repeat_ngram": 0, "max_new_tokens": 25, "history": 3},
    },
    # the model card of DialoGPT: greedy, the whole conversation, 1,000 tokens of it with its reply
    "dialogpt": {
        **{"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0},
        **{"no_repeat_ngram": 0, "max_new_tokens": 1000, "history": 0},
    },
}


@dataclass(frozen=True)
class SamplingOptions:
    """How replies are drawn. `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 are off;
    `top_p` 0 is off too, as in GPT2-chitchat, and is kept as 1.

    `max_new_tokens` counts tokens of one reply, its end of turn not included; `min_new_tokens` tokens come before an
    end of turn may. No `seed` is a random one. `min_p` drops tokens less likely than this share of the likeliest
    (Nguyen et al. 2024, arXiv 2407.01082). `no_repeat_ngram` n forbids n tokens in a row that the reply has already.
    `logprobs` n asks for the log-probabilities of the drawn token and of the n likeliest ones; None for none.
    Raises BadRequest (a ValueError) that names the option, the value and the remedy.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    repetition_penalty: float = 1.1
    max_new_tokens: int = 64
    min_new_tokens: int = 1
    seed: int | None = None
    min_p: float = 0.0
    no_repeat_ngram: int = 0
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for field in fields(SamplingOptions):
            value = getattr(self, field.name)
            if not (field.name in _OPTIONAL and value is None):
                check_option(field.name, value)
        if self.top_p == 0:
            object.__setattr__(self, "top_p", 1.0)

    def for_reply(self, max_new_tokens: int, earlier_ids: Sequence[int]) -> "SamplingOptions":
        """The options of one reply: the room it has, and what the bot said earlier in the conversation."""
        if not earlier_ids:
            return replace(self, max_new_tokens=max_new_tokens)
        values = asdict(self) | {"max_new_tokens": max_new_tokens, "earlier_ids": tuple(earlier_ids)}
        return ReplyOptions(**values)


@dataclass(frozen=True)
class ReplyOptions(SamplingOptions):
    """Options of one reply in a conversation. The ids of the bot's earlier turns are penalised like the reply's own."""

    earlier_ids: tuple[int, ...] = ()


def check_option(name: str, value: Any, shown: str | None = None) -> None:
    """Raise BadRequest unless `value` is allowed for the option; `shown` is the name that the user knows it by."""
    lowest, highest, remedy = _LIMITS[name]
    good = isinstance(value, int if name in _WHOLE else int | float) and not isinstance(value, bool)
    if not good or not lowest <= value <= highest:  # NaN is in no range
        raise BadRequest(f"{shown or name} {_short(value)}: {remedy}")


def number_of(name: str, text: str) -> int | float | None:
    """The value of an option that was typed; "random" for no seed. Raises BadRequest that names it and the remedy."""
    if name in _OPTIONAL and text == "random":
        return None
    try:
        value = int(text) if name in _WHOLE else float(text)
    except ValueError as error:
        raise BadRequest(f"{name} {text[:40]}: {_LIMITS[name][2]}") from error
    check_option(name, value)
    return value


def _short(value: Any) -> str:
    """Show a value in an error: bounded, since it may come from the network and be of any size."""
    if isinstance(value, int) and value.bit_length() > 128:
        return "(a huge number)"  # str() of an int above 4,300 digits raises
    if isinstance(value, int | float | bool) or value is None:
        return str(value)
    return f"({type(value).__name__})"
