"""The commands of the terminal chat: from a line and the conversation so far to what is to be done.

Nothing here reads, prints, draws or opens anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from serve.errors import BadRequest
from serve.options import SamplingOptions, number_of

HINT = "/help lists the commands, /quit (or Ctrl-D) leaves, Ctrl-C stops a reply."
HELP = """\
/retry             another reply to the last turn
/undo              take back the last exchange
/set NAME VALUE    change an option: /set temperature 0.7
/show              the options and the conversation so far
/save FILE         append the conversation to FILE, a line of JSON for each exchange
/reset             forget the conversation
/help              this list
/quit              leave, as Ctrl-D does
A line that ends with a backslash goes on in the next one. Ctrl-C stops a reply."""

_SETTABLE = [one.name for one in fields(SamplingOptions) if one.name != "logprobs"]


@dataclass(frozen=True)
class Exchange:
    """What was said and answered, with which options and when. `ttft_ms` is the time to the first token.

    `options` are those of the reply, its own seed among them; `history` is the number of turns shown at most. `started`
    is in ISO 8601, UTC; `seconds` are those from the turn to the last token.
    """

    user: str
    bot: str
    options: SamplingOptions
    history: int
    started: str
    ttft_ms: float
    seconds: float
    tokens: int
    stopped: bool = False

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second after the first one; None where there is only one."""
        after = self.seconds - self.ttft_ms / 1000
        return (self.tokens - 1) / after if self.tokens > 1 and after > 0 else None


@dataclass(frozen=True)
class Talk:
    """A conversation: its options, the turns shown at most (0: all that fit), and its exchanges."""

    options: SamplingOptions
    history: int = 0
    exchanges: tuple[Exchange, ...] = ()


@dataclass(frozen=True)
class Action:
    """What a line asks for. `say` is printed, `talk` is the conversation from then on.

    `text` is the turn to answer ("ask", "retry"), or the file ("save"). For "retry" and "undo" `talk` is without the
    last exchange, for "reset" without any.
    """

    do: Literal["nothing", "ask", "retry", "undo", "reset", "save", "quit"]
    talk: Talk
    text: str = ""
    say: Sequence[str] = field(default=())


def interpret(line: str, talk: Talk) -> Action:
    """What a line asks for in a conversation; a line that asks for nothing possible is answered with one line."""
    line = line.strip()
    if not line:
        return Action("nothing", talk)
    if not line.startswith("/"):
        return Action("ask", talk, line)
    command, rest = [*line.split(maxsplit=1), ""][:2]
    match command:
        case "/set":
            return _set(rest, talk)
        case "/save" if rest:
            return Action("save", talk, rest) if talk.exchanges else _say(talk, "(nothing was said yet)")
        case "/save":
            return _say(talk, "(/save: name a file, as in /save talk.jsonl)")
        case "/help" | "/show" | "/retry" | "/undo" | "/reset" | "/quit" if rest:
            return _say(talk, f"({command} takes nothing behind it)")
        case "/help":
            return _say(talk, *HELP.splitlines())
        case "/show":
            return _say(talk, *shown(talk))
        case "/reset":
            return Action("reset", replace(talk, exchanges=()), say=("(forgotten)",))
        case "/quit":
            return Action("quit", talk)
        case "/retry" | "/undo" if not talk.exchanges:
            return _say(talk, "(nothing was said yet)")
        case "/retry" | "/undo":
            return _take_back(command, talk)
    return _say(talk, f"(no command {command[:40]}. {HINT})")


def _take_back(command: str, talk: Talk) -> Action:
    shorter, last = replace(talk, exchanges=talk.exchanges[:-1]), talk.exchanges[-1]
    if command == "/undo":
        return Action("undo", shorter, say=(f"(taken back: {' '.join(last.user.split())[:60]})",))
    if talk.options.temperature == 0 and last.options.temperature == 0:
        return Action(
            "retry", shorter, last.user, ("(temperature 0 always takes the likeliest: /set temperature 0.7)",)
        )
    return Action("retry", shorter, last.user)


def _set(rest: str, talk: Talk) -> Action:
    words = rest.replace("=", " ", 1).split()
    if len(words) != 2:
        return _say(talk, "(/set: give a name and a value, as in /set temperature 0.7)")
    name, value = words[0].lstrip("-").replace("-", "_").lower(), words[1]
    try:
        if name == "history":
            changed = replace(talk, history=int(number_of(name, value) or 0))
        elif name in _SETTABLE:
            changed = replace(talk, options=replace(talk.options, **{name: number_of(name, value)}))  # type: ignore[arg-type]
        else:
            return _say(talk, f"(no option {words[0][:40]}; there are {', '.join([*_SETTABLE, 'history'])})")
    except BadRequest as error:
        return _say(talk, f"({error})")
    return Action("nothing", changed, say=(f"({name} {settings(changed)[name]})",))


def _say(talk: Talk, *lines: str) -> Action:
    return Action("nothing", talk, say=lines)


def settings(talk: Talk) -> dict[str, Any]:
    """The options of a conversation by name; a seed that is not set is "random"."""
    values = {name: getattr(talk.options, name) for name in _SETTABLE}
    return {name: "random" if value is None else value for name, value in values.items()} | {"history": talk.history}


def shown(talk: Talk) -> list[str]:
    """The options and the conversation so far, in lines."""
    values = settings(talk)
    width = max(map(len, values))
    lines = [f"{name:<{width}}  {value}" for name, value in values.items()]
    for exchange in talk.exchanges:
        for speaker, text in (("you", exchange.user), ("bot", exchange.bot)):
            lines += f"{speaker}: {text}".replace("\n", "\n     ").split("\n")
    return lines
