"""A row of a report as a type: every figure with its title, unit, meaning, and how it is written.

The columns of report.md, report.html and the terminal and the explanations of report.html and of the documentation all
come from the fields of `ReportRow`. Rates are of new tokens; MB are 10^6 bytes; intervals are [low, high], 95 %.
"""
# ruff: noqa: RUF009 - the calls make the fields of a dataclass

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal, Self

Better = Literal["lower", "higher", ""]


@dataclass(frozen=True)
class Figure:
    """What a field of a row means, and how a table shows it.

    `title` is the head of its column, "" where it has none; a value is written as `form` of the value over `scale`.
    `better` says which end is the better one, "" where neither is.
    """

    meaning: str
    title: str = ""
    form: str = "{}"
    unit: str = ""
    better: Better = ""
    scale: float = 1.0

    def write(self, value: Any) -> str:
        """The value as tables show it; "-" for None."""
        if value is None:
            return "-"
        return self.form.format(value if self.scale == 1.0 else value / self.scale)


def _figure(*about: Any, default: Any = None, **named: Any) -> Any:
    """A field of a row; the rest is what `Figure` takes."""
    return field(default=default, metadata={"figure": Figure(*about, **named)})


def _lower(unit: str, meaning: str, title: str = "", decimals: int = 2, scale: float = 1.0) -> Any:
    return _figure(meaning, title, f"{{:.{decimals}f}}", unit, "lower", scale)


def _higher(meaning: str, title: str, form: str) -> Any:
    return _figure(meaning, title, form, "", "higher")


def _rate(meaning: str, title: str) -> Any:
    return _figure(meaning, title, "{:.0f}", "tokens/s", "higher")


def _interval(meaning: str = "95 % interval of the figure, [low, high], over conversations") -> Any:
    return _figure(meaning)


def _concurrent_rate(count: int) -> Any:
    meaning = f"new tokens of {count} conversations over the time until the last; median"
    return _rate(meaning, f"{count} at once tokens/s")


def _concurrent_tail(count: str, title: str = "") -> Any:
    return _lower("ms", f"with {count}, the 99th percentile of the time between two tokens of one of them", title, 1)


# The values that a field may have; all figures are None where nothing was measured.
Number = float | None
Interval = list[float] | None
_FIRST, _NEXT = "from the prompt's ids in to the first new id out", "from a new token to the next"
_PAIRED = "against the first row, paired by conversation"


@dataclass(frozen=True, kw_only=True)
class ReportRow:
    """One model of a bench, as a row of report.json. The first row is the yardstick of `ratio` and `kl`."""

    name: str = _figure("folder name of the model, or the peer and its weight format", "model", default=MISSING)
    spec: str = _figure("what was measured, as it was named", default="")
    kind: str = _figure("checkpoint, quantized, bundle, or the name of a peer", default="")
    runtime: str = _figure("what computes it, and on which numbers", "runtime", default="")
    device: str = _figure("cpu or cuda", default="cpu")
    parameters: int | None = _figure("numbers in the model", "parameters", "{:.2f} M", scale=1e6)
    weight_mb: Number = _figure("weights as they are stored", unit="MB", better="lower")
    file_mb: Number = _lower("MB", "all files that must be copied to run it elsewhere, 10^6 bytes", "file MB", 1)
    runtime_version: str | None = _figure("version of the runtime's package")
    load_s: Number = _lower("s", "opening the model, imports not included", "load s")
    ttft_ms_p50: Number = _lower("ms", f"{_FIRST}, sampling included; median", "TTFT ms", 1)
    ttft_ms_p95: Number = _lower("ms", f"{_FIRST}, 95th percentile")
    ttft_ms_p99: Number = _lower("ms", f"{_FIRST}, 99th percentile")
    tpot_ms_p50: Number = _lower("ms", f"{_NEXT}; median over all tokens of all rounds", "ms/token")
    tpot_ms_p95: Number = _lower("ms", f"{_NEXT}, 95th percentile", "p95")
    tpot_ms_p99: Number = _lower("ms", f"{_NEXT}, 99th percentile")
    tokens_per_s: Number = _rate("new tokens over prompt and decode time of a reply; median over rounds", "tokens/s")
    spread: Number = _figure("the middle half of the replies' times over their median: how steady the machine was")
    busy: bool | None = _figure("whether other work on the machine shows in the times")
    ratio: Number = _higher(
        "a reply's time of the first row over this row's, round by round; median", "speed", "{:.2f} x"
    )
    ratio_interval: Interval = _interval("95 % interval of the speed, [low, high], over rounds")
    cpu_s_per_token: Number = _lower(
        "s", "CPU time of all threads over new tokens, prompt included", "CPU ms/token", 2, 1e-3
    )
    ceiling: Number = _higher(
        "share of the memory ceiling: reading every weight once a token, as fast as memory was in that round",
        "of ceiling",
        "{:.0%}",
    )
    cold_start_s: Number = _lower(
        "s",
        "from the start of a new process to its first token, imports included; file caches as they were; one start, "
        "with --full the median of three",
        "cold start s",
    )
    peak_rss_mb: Number = _lower(
        "MB",
        "the most memory that the model's own processes held, 10^6 bytes, before quality was measured",
        "peak MB",
        0,
    )
    device_mb: Number = _lower("MB", "GPU memory of the model's process by the driver's count", "GPU MB", 0)
    agreement: dict[str, Any] | None = _figure(
        "{agrees, compared, ties, why}: greedy ids of the row's runtime at full precision against the first row's "
        "(bench.run.agreement); null where nobody was asked"
    )
    perplexity: Number = _lower(
        "", "e to the mean negative log-likelihood of held-out tokens, through the runtime of the row", "perplexity", 1
    )
    bits_per_byte: Number = _lower(
        "",
        "negative log-likelihood of held-out text in bits, per byte of it: compares across tokenizers",
        "bits/byte",
        3,
    )
    token_accuracy: Number = _higher("how often the likeliest next token is the one that came", "accuracy", "{:.1%}")
    kl: Number = _figure(
        "mean divergence of its next-token distribution from the first row's, nats a token",
        "KL",
        "{:.2g}",
        "nats",
        "lower",
    )
    top1: Number = _higher("how often its likeliest token is the first row's", "top-1", "{:.1%}")
    distinct_1: Number = _figure("different words over all words of those replies", better="higher")
    distinct_2: Number = _higher(
        "different word pairs over all word pairs of replies to the same held-out prompts", "distinct-2", "{:.3f}"
    )
    entropy_4: Number = _figure("entropy of the 4-grams of those replies (Ent-4)", unit="nats", better="higher")
    repetition_4: Number = _figure("share of 4-grams that a reply had said already", "repeated", "{:.1%}", "", "lower")
    empty_replies: Number = _figure("share of replies that say nothing", better="lower")
    reply_tokens: Number = _figure("mean tokens of a reply", unit="tokens")
    perplexity_ratio: Number = _figure(f"perplexity {_PAIRED}", better="lower")
    distinct_2_ratio: Number = _figure(f"distinct-2 {_PAIRED}", better="higher")
    repetition_4_difference: Number = _figure("repeated 4-grams less those of the first row, paired")
    perplexity_interval: Interval = _interval()
    bits_per_byte_interval: Interval = _interval()
    token_accuracy_interval: Interval = _interval()
    kl_interval: Interval = _interval()
    top1_interval: Interval = _interval()
    distinct_1_interval: Interval = _interval()
    distinct_2_interval: Interval = _interval()
    entropy_4_interval: Interval = _interval()
    repetition_4_interval: Interval = _interval()
    empty_replies_interval: Interval = _interval()
    reply_tokens_interval: Interval = _interval()
    perplexity_ratio_interval: Interval = _interval()
    distinct_2_ratio_interval: Interval = _interval()
    repetition_4_difference_interval: Interval = _interval()
    kl_p99: Number = _figure("99th percentile of KL over tokens", unit="nats", better="lower")
    kl_tokens: int | None = _figure("tokens that KL and top-1 were taken on")
    unfinished_replies: Number = _figure("share of replies that used up their length")
    replies: int | None = _figure("replies that were drawn")
    eval_tokens: int | None = _figure("held-out tokens that were scored")
    error: str | None = _figure("last words of a worker that was lost, or why nothing ran; its figures are null")
    # What the scenarios of a full run say (`bench.run.scenarios`); absent from report.json where they were not run.
    reply_first_ms_p50: Number = _lower("ms", "from text in to the first token of a sampled reply; median")
    reply_ms_p50: Number = _lower("ms", "a whole sampled reply, from text in to its last text; median", "reply ms", 0)
    reply_ms_p95: Number = _lower("ms", "a whole sampled reply, 95th percentile", "reply p95", 0)
    reply_tokens_per_s: Number = _rate("tokens of all those replies over their time", "reply tokens/s")
    turns_last_ttft_ms: Number = _lower(
        "ms", "time to first token of its last turn, whose prompt is the whole conversation; median", "last TTFT ms", 1
    )
    turns_ms: Number = _lower("ms", "a conversation of four turns, all prompts and replies; median", "4 turns ms", 0)
    together_1_tokens_per_s: Number = _concurrent_rate(1)
    together_1_tpot_ms_p99: Number = _concurrent_tail("one conversation")
    together_2_tokens_per_s: Number = _concurrent_rate(2)
    together_2_tpot_ms_p99: Number = _concurrent_tail("two conversations")
    together_4_tokens_per_s: Number = _concurrent_rate(4)
    together_4_tpot_ms_p99: Number = _concurrent_tail("four conversations", "of 4, p99 ms")
    together_8_tokens_per_s: Number = _concurrent_rate(8)
    together_8_tpot_ms_p99: Number = _concurrent_tail("eight conversations")

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """A row of report.json; keys that are not known are left out."""
        return cls(**{name: row[name] for name in FIGURES if name in row})

    def as_json(self) -> dict[str, Any]:
        """The row as report.json holds it: figures of scenarios only where there are any."""
        return {
            name: value for name, value in asdict(self).items() if value is not None or name not in SCENARIO_FIGURES
        }

    @property
    def answers_wrong(self) -> bool:
        """Whether the row's runtime computes something else than the first one."""
        return (self.agreement or {}).get("agrees") is False

    @property
    def mark(self) -> str:
        """What stands behind the row's name: that its answers are wrong, or that the machine was busy."""
        if self.answers_wrong:
            return " (answers wrong)"
        return " (busy)" if self.busy else ""


FIGURES: dict[str, Figure] = {one.name: one.metadata["figure"] for one in fields(ReportRow)}
SCENARIO_FIGURES = list(FIGURES)[list(FIGURES).index("error") + 1 :]
# The columns of both tables, in order: what decides stands first.
MAIN_COLUMNS = (
    *("name", "file_mb", "perplexity", "kl", "ttft_ms_p50", "tpot_ms_p50", "tokens_per_s", "ratio", "ceiling"),
    *("bits_per_byte", "token_accuracy", "top1", "distinct_2", "repetition_4", "tpot_ms_p95", "cpu_s_per_token"),
    *("peak_rss_mb", "device_mb", "cold_start_s", "load_s", "parameters", "runtime"),
)
SCENARIO_COLUMNS = (
    *("name", "reply_ms_p50", "reply_ms_p95", "reply_tokens_per_s", "turns_ms", "turns_last_ttft_ms"),
    *(f"together_{count}_tokens_per_s" for count in (1, 2, 4, 8)),
    "together_4_tpot_ms_p99",
)


def read_rows(rows: Iterable[Mapping[str, Any]]) -> list[ReportRow]:
    """The rows of report.json."""
    return [ReportRow.from_json(row) for row in rows]
