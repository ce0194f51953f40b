"""A row of a report as a type: every figure with its title, unit, meaning, and how it is written.

The columns of report.md, report.html and the terminal, the explanations of report.html and the JSON schema of a row all
come from the fields of `ReportRow`. Rates are of new tokens; MB are 10^6 bytes; intervals are [low, high], 95 %.
"""

import types
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal, Self, get_args, get_origin, get_type_hints

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
    scale: float = 1.0
    unit: str = ""
    better: Better = ""

    def write(self, value: Any) -> str:
        """The value as tables show it; "-" for None."""
        if value is None:
            return "-"
        return self.form.format(value if self.scale == 1.0 else value / self.scale)


def _lower(unit: str, meaning: str, title: str = "", decimals: int = 2, scale: float = 1.0) -> Figure:
    return Figure(meaning, title, f"{{:.{decimals}f}}", scale, unit, "lower")


def _higher(unit: str, meaning: str, title: str, form: str) -> Figure:
    return Figure(meaning, title, form, unit=unit, better="higher")


def _rate(meaning: str, title: str) -> Figure:
    return _higher("tokens/s", meaning, title, "{:.0f}")


def _concurrent_rate(count: int) -> Figure:
    return _rate(
        f"new tokens of {count} conversations over the time until the last; median", f"{count} at once tokens/s"
    )


def _concurrent_tail(count: int, title: str = "") -> Figure:
    number = {1: "one conversation", 2: "two conversations", 4: "four conversations", 8: "eight conversations"}[count]
    return _lower("ms", f"with {number}, the 99th percentile of the time between two tokens of one of them", title, 1)


# The values that a field may have; all figures are None where nothing was measured.
Number = float | None
Interval = Annotated[list[float] | None, Figure("95 % interval of the figure, [low, high], over conversations")]
_FIRST, _NEXT = "from the prompt's ids in to the first new id out", "from a new token to the next"
_PAIRED = "against the first row, paired by conversation"


@dataclass(frozen=True, kw_only=True)
class ReportRow:
    """One model of a bench, as a row of report.json. The first row is the yardstick of `ratio` and `kl`."""

    name: Annotated[str, Figure("folder name of the model, or the peer and its weight format", "model")]
    spec: Annotated[str, Figure("what was measured, as it was named")] = ""
    kind: Annotated[str, Figure("checkpoint, quantized, bundle, or the name of a peer")] = ""
    runtime: Annotated[str, Figure("what computes it, and on which numbers", "runtime")] = ""
    device: Annotated[str, Figure("cpu or cuda")] = "cpu"
    parameters: Annotated[int | None, Figure("numbers in the model", "parameters", "{:.2f} M", 1e6)] = None
    weight_mb: Annotated[Number, Figure("weights as they are stored", unit="MB", better="lower")] = None
    file_mb: Annotated[
        Number, _lower("MB", "all files that must be copied to run it elsewhere, 10^6 bytes", "file MB", 1)
    ] = None
    runtime_version: Annotated[str | None, Figure("version of the runtime's package")] = None
    load_s: Annotated[Number, _lower("s", "opening the model, imports not included", "load s")] = None
    ttft_ms_p50: Annotated[Number, _lower("ms", f"{_FIRST}, sampling included; median", "TTFT ms", 1)] = None
    ttft_ms_p95: Annotated[Number, _lower("ms", f"{_FIRST}, 95th percentile")] = None
    ttft_ms_p99: Annotated[Number, _lower("ms", f"{_FIRST}, 99th percentile")] = None
    tpot_ms_p50: Annotated[Number, _lower("ms", f"{_NEXT}; median over all tokens of all rounds", "ms/token")] = None
    tpot_ms_p95: Annotated[Number, _lower("ms", f"{_NEXT}, 95th percentile", "p95")] = None
    tpot_ms_p99: Annotated[Number, _lower("ms", f"{_NEXT}, 99th percentile")] = None
    tokens_per_s: Annotated[
        Number, _rate("new tokens over prompt and decode time of a reply; median over rounds", "tokens/s")
    ] = None
    spread: Annotated[
        Number, Figure("the middle half of the replies' times over their median: how steady the machine was")
    ] = None
    busy: Annotated[bool | None, Figure("whether other work on the machine shows in the times")] = None
    ratio: Annotated[
        Number,
        _higher("", "a reply's time of the first row over this row's, round by round; median", "speed", "{:.2f} x"),
    ] = None
    ratio_interval: Annotated[list[float] | None, Figure("95 % interval of the speed, [low, high], over rounds")] = None
    cpu_s_per_token: Annotated[
        Number, _lower("s", "CPU time of all threads over new tokens, prompt included", "CPU ms/token", 2, 1e-3)
    ] = None
    ceiling: Annotated[
        Number,
        _higher(
            "",
            "share of the memory ceiling: reading every weight once a token, as fast as memory was in that round",
            "of ceiling",
            "{:.0%}",
        ),
    ] = None
    cold_start_s: Annotated[
        Number,
        _lower(
            "s",
            "from the start of a new process to its first token, imports included; file "
            "caches as they were; one start, with --full the median of three",
            "cold start s",
        ),
    ] = None
    peak_rss_mb: Annotated[
        Number,
        _lower(
            "MB",
            "the most memory that the model's own processes held, 10^6 bytes, before quality was measured",
            "peak MB",
            0,
        ),
    ] = None
    device_mb: Annotated[
        Number, _lower("MB", "GPU memory of the model's process by the driver's count", "GPU MB", 0)
    ] = None
    agreement: Annotated[
        dict[str, Any] | None,
        Figure(
            "{agrees, compared, ties, why}: greedy ids of the row's runtime at full "
            "precision against the first row's (bench.run.agreement); null where nobody was asked"
        ),
    ] = None
    perplexity: Annotated[
        Number,
        _lower(
            "",
            "e to the mean negative log-likelihood of held-out tokens, through the runtime of the row",
            "perplexity",
            1,
        ),
    ] = None
    bits_per_byte: Annotated[
        Number,
        _lower(
            "",
            "negative log-likelihood of held-out text in bits, per byte of it: compares across tokenizers",
            "bits/byte",
            3,
        ),
    ] = None
    token_accuracy: Annotated[
        Number, _higher("", "how often the likeliest next token is the one that came", "accuracy", "{:.1%}")
    ] = None
    kl: Annotated[
        Number,
        Figure(
            "mean divergence of its next-token distribution from the first row's, nats a token",
            "KL",
            "{:.2g}",
            unit="nats",
            better="lower",
        ),
    ] = None
    top1: Annotated[Number, _higher("", "how often its likeliest token is the first row's", "top-1", "{:.1%}")] = None
    distinct_1: Annotated[Number, Figure("different words over all words of those replies", better="higher")] = None
    distinct_2: Annotated[
        Number,
        _higher(
            "",
            "different word pairs over all word pairs of replies to the same held-out prompts",
            "distinct-2",
            "{:.3f}",
        ),
    ] = None
    repetition_4: Annotated[
        Number, Figure("share of 4-grams that a reply had said already", "repeated", "{:.1%}", better="lower")
    ] = None
    empty_replies: Annotated[Number, Figure("share of replies that say nothing", better="lower")] = None
    reply_tokens: Annotated[Number, Figure("mean tokens of a reply", unit="tokens")] = None
    perplexity_ratio: Annotated[Number, Figure(f"perplexity {_PAIRED}", better="lower")] = None
    distinct_2_ratio: Annotated[Number, Figure(f"distinct-2 {_PAIRED}", better="higher")] = None
    repetition_4_difference: Annotated[Number, Figure("repeated 4-grams less those of the first row, paired")] = None
    perplexity_interval: Interval = None
    bits_per_byte_interval: Interval = None
    token_accuracy_interval: Interval = None
    kl_interval: Interval = None
    top1_interval: Interval = None
    distinct_1_interval: Interval = None
    distinct_2_interval: Interval = None
    repetition_4_interval: Interval = None
    empty_replies_interval: Interval = None
    reply_tokens_interval: Interval = None
    perplexity_ratio_interval: Interval = None
    distinct_2_ratio_interval: Interval = None
    repetition_4_difference_interval: Interval = None
    kl_p99: Annotated[Number, Figure("99th percentile of KL over tokens", unit="nats", better="lower")] = None
    kl_tokens: Annotated[int | None, Figure("tokens that KL and top-1 were taken on")] = None
    unfinished_replies: Annotated[Number, Figure("share of replies that used up their length")] = None
    replies: Annotated[int | None, Figure("replies that were drawn")] = None
    eval_tokens: Annotated[int | None, Figure("held-out tokens that were scored")] = None
    error: Annotated[
        str | None, Figure("last words of a worker that was lost, or why nothing ran; its figures are null")
    ] = None
    # What the scenarios of a full run say (`bench.run.scenarios`); absent from report.json where they were not run.
    reply_first_ms_p50: Annotated[
        Number, _lower("ms", "from text in to the first token of a sampled reply; median")
    ] = None
    reply_ms_p50: Annotated[
        Number, _lower("ms", "a whole sampled reply, from text in to its last text; median", "reply ms", 0)
    ] = None
    reply_ms_p95: Annotated[Number, _lower("ms", "a whole sampled reply, 95th percentile", "reply p95", 0)] = None
    reply_tokens_per_s: Annotated[Number, _rate("tokens of all those replies over their time", "reply tokens/s")] = None
    turns_last_ttft_ms: Annotated[
        Number,
        _lower(
            "ms",
            "time to first token of its last turn, whose prompt is the whole conversation; median",
            "last TTFT ms",
            1,
        ),
    ] = None
    turns_ms: Annotated[
        Number, _lower("ms", "a conversation of four turns, all prompts and replies; median", "4 turns ms", 0)
    ] = None
    together_1_tokens_per_s: Annotated[Number, _concurrent_rate(1)] = None
    together_1_tpot_ms_p99: Annotated[Number, _concurrent_tail(1)] = None
    together_2_tokens_per_s: Annotated[Number, _concurrent_rate(2)] = None
    together_2_tpot_ms_p99: Annotated[Number, _concurrent_tail(2)] = None
    together_4_tokens_per_s: Annotated[Number, _concurrent_rate(4)] = None
    together_4_tpot_ms_p99: Annotated[Number, _concurrent_tail(4, "of 4, p99 ms")] = None
    together_8_tokens_per_s: Annotated[Number, _concurrent_rate(8)] = None
    together_8_tpot_ms_p99: Annotated[Number, _concurrent_tail(8)] = None

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


def _figures() -> dict[str, Figure]:
    hints = get_type_hints(ReportRow, include_extras=True)
    return {field.name: hints[field.name].__metadata__[0] for field in fields(ReportRow)}


FIGURES = _figures()
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


def row_schema() -> dict[str, Any]:
    """The JSON schema of a row of report.json."""
    properties = {}
    for name, hint in get_type_hints(ReportRow, include_extras=True).items():
        figure = FIGURES[name]
        notes = [figure.meaning, *([f"unit: {figure.unit}"] if figure.unit else [])]
        notes += [f"{figure.better} is better"] if figure.better else []
        properties[name] = {"type": _json_types(get_args(hint)[0]), "description": "; ".join(notes)}
    return {"type": "object", "title": "ReportRow", "properties": properties, "required": ["name"]}


def _json_types(hint: Any) -> list[str]:
    if isinstance(hint, types.UnionType):
        return [name for part in get_args(hint) for name in _json_types(part)]
    names = {str: "string", bool: "boolean", int: "integer", float: "number", types.NoneType: "null"}
    return [{list: "array", dict: "object"}.get(get_origin(hint)) or names[hint]]
