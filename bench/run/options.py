"""What is asked of every model of a bench."""

from dataclasses import dataclass
from typing import Literal

from chitchat.options import MAX_TOKENS, PORTABLE_PYTHON, SEED, THREADS, TOKENIZER, Options, option

_WORK, _PEERS = "Work", "Peers"


@dataclass(frozen=True, kw_only=True)
class BenchOptions(Options):
    """What is asked of every model: see `bench.run.stage.bench`.

    `peers` are tools that run the first model too, in the interpreter `peers_python`. `full` runs all of
    `bench.run.scenarios` beside the one conversation, `scenarios` some of them.
    """

    prompt_tokens: int = option(64, "Tokens of a prompt.", group=_WORK, unit="tokens", ge=1)
    new_tokens: int = option(64, "New tokens of a reply.", group=_WORK, unit="tokens", ge=2)
    repetitions: int = option(7, "Rounds; each runs every model once, in turn.", group=_WORK, unit="rounds", ge=1)
    device: Literal["cpu", "cuda", "cpu,cuda"] = option("cpu", "cpu,cuda: a row on each.", group=_WORK)
    threads: int | None = option(None, **THREADS, group=_WORK)
    max_tokens: int | None = option(None, **MAX_TOKENS, group=_WORK)
    full: bool = option(False, "Also whole replies, several turns, conversations at once, and sweeps.", group=_WORK)
    peers: str | None = option(
        None, "Tools that run the first model too: all, or some as llama.cpp:Q8_0,ctranslate2.", group=_PEERS
    )
    peers_python: str | None = option(
        None, "The interpreter that has them (default: PEERS_PYTHON, or .venv-peers).", group=_PEERS
    )
    portable_python: str | None = option(None, **PORTABLE_PYTHON, group=_PEERS)
    tokenizer: str | None = option(None, **TOKENIZER)
    seed: int = option(0, **SEED)
    scenarios: tuple[str, ...] = ()

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that each model runs on."""
        return tuple(self.device.split(","))
