"""Options, written once: what their fields say, which values they take, and that every place uses the same ones."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.evaluate.options import EvalOptions
from bench.run.options import BenchOptions
from chitchat.data.options import DataOptions
from chitchat.errors import BadInput
from chitchat.options import Options, make_options, option, option_fields
from chitchat.training.options import TrainOptions
from chitchat_compress.cli.app import COMMANDS, command_page, make_app
from chitchat_compress.options import ChatOptions, GenerateOptions, InfoOptions, RunOptions, ServeOptions
from chitchat_compress.pipeline.schema import VERBS
from compress.prune.options import PruneOptions
from compress.quantize.options import QuantizeOptions
from export.options import ExportOptions

# command: its options, and what it has beside them
KINDS: dict[str, tuple[type[Options], set[str]]] = {
    "data": (DataOptions, {"out"}),
    "train": (TrainOptions, {"out", "resume"}),
    "prune": (PruneOptions, {"data", "out", "plan", "resume"}),
    "quantize": (QuantizeOptions, {"data", "out", "resume"}),
    "export": (ExportOptions, {"data", "out"}),
    "eval": (EvalOptions, {"data"}),
    "bench": (BenchOptions, {"data", "out", "compare"}),
    "chat": (ChatOptions, {"save", "quiet"}),
    "generate": (GenerateOptions, {"format"}),
    "serve": (ServeOptions, set()),
    "info": (InfoOptions, set()),
    "run": (RunOptions, {"out", "schema"}),
}
FIELDS = [(kind, field) for kind, _ in KINDS.values() for field in option_fields(kind)]
NUMBERS = [(kind, field) for kind, field in FIELDS if field.kind in (int, float)]


def named(pair: Any) -> str:
    """The name of a case."""
    return f"{pair[0].__name__}.{pair[1].name}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(Options):
    """One option of each kind."""

    share: float | None = option(None, "A share.", unit="share", gt=0, lt=1)
    port: int = option(80, "A port.", unit="port", ge=0, le=65535)
    times: int = option(1, "How often.", unit="times", ge=1)
    flag: bool = option(False, "Whether.")
    text: str = option("a", "What.")


def option_names(command: str) -> set[str]:
    """What the command line takes for a command, without dashes and positional arguments."""
    app = make_app()
    with app.app_stack([command]):
        arguments = app[command].assemble_argument_collection(parse_docstring=False)
    names = {name for argument in arguments if argument.parse for name in argument.names}
    return {name.removeprefix("--") for name in names if name.startswith("--")}


def test_every_command_is_looked_at_here() -> None:
    """A command that is added without its options in this table is held by no test below."""
    assert set(KINDS) == set(COMMANDS)


@pytest.mark.parametrize("command", KINDS)
def test_the_command_lines_names_are_the_fields_names(command: str) -> None:
    """`--heal-minutes` was `minutes` to the healing and `max_minutes` to the trainer."""
    kind, more = KINDS[command]
    aliases = {field.alias for field in option_fields(kind) if field.alias}
    assert option_names(command) == {field.key for field in option_fields(kind)} | aliases | more | {"json"}


@pytest.mark.parametrize("verb", VERBS)
def test_a_recipe_has_the_options_of_the_command_line(verb: str) -> None:
    """An option that the recipe knew and the command did not failed after ten minutes of training."""
    assert VERBS[verb].options is KINDS[verb][0]
    assert bool(VERBS[verb].data) == ("data" in KINDS[verb][1])


@pytest.mark.parametrize("pair", FIELDS, ids=named)
def test_every_field_says_what_it_is(pair: Any) -> None:
    """An option without a word of help, a number without its unit, and a default that its own limits refuse."""
    kind, field = pair
    assert field.help.endswith(".")
    assert field.accepts(field.default)
    if field.kind in (int, float):
        assert field.unit, "a number of what?"
        assert field.limits, "any number at all?"
    assert kind.__doc__


@pytest.mark.parametrize("pair", NUMBERS, ids=named)
def test_limits_are_refused_in_one_line_with_exit_code_2(
    pair: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number out of bounds was found by torch an hour later, or by the user in the figures."""
    from chitchat_compress.cli import app

    kind, field = pair
    command = next(name for name, (other, _) in KINDS.items() if other is kind)
    beyond = min(field.bounds.get("gt", math.inf), field.bounds.get("ge", math.inf) - 1)
    value = f"{int(beyond) if field.kind is int else beyond:g}"
    words = [command, *(["model"] if command != "run" else []), f"{field.flag}={value}"]
    words += [f"--{name}=somewhere" for name in ("data", "out") if name in KINDS[command][1]]
    monkeypatch.setattr("sys.argv", ["compress", *words])
    with pytest.raises(SystemExit) as left:
        app.main()
    said = capsys.readouterr()
    assert left.value.code == 2
    assert said.err == f"compress: {field.flag} {value}: {field.remedy}\n"
    assert said.out == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 1}, "--share 1: give a number between 0 and 1"),
        ({"share": math.nan}, "--share nan: give a number between 0 and 1"),
        ({"share": "half"}, "--share half: give a number between 0 and 1"),
        ({"port": 70000}, "--port 70000: give a whole number from 0 to 65535"),
        ({"port": 80.0}, "--port 80: give a whole number from 0 to 65535"),
        ({"port": 80.5}, "--port 80.5: give a whole number from 0 to 65535"),
        ({"port": None}, "--port None: give a whole number from 0 to 65535"),
        ({"times": 0}, "--times 0: give a whole number from 1 up"),
        ({"times": True}, "--times True: give a whole number from 1 up"),
        ({"flag": 1}, "--flag 1: give true or false"),
        ({"text": 5}, "--text 5: give a text"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_a_remedy(given: dict[str, Any], message: str) -> None:
    """The three copies of an option refused different values in different words."""
    with pytest.raises(BadInput) as caught:
        Sample(**given)
    assert str(caught.value) == message


def test_options_come_as_an_object_as_keywords_or_as_both() -> None:
    """A mistyped keyword was ignored."""
    assert make_options(Sample, None, {"times": 3}, "work") == Sample(times=3)
    assert make_options(Sample, Sample(share=0.5, times=2), {"times": 3}, "work") == Sample(share=0.5, times=3)
    with pytest.raises(TypeError, match=r"work\(\) has no option 'tmes'; it has share, port, times"):
        make_options(Sample, None, {"tmes": 3}, "work")
    with pytest.raises(TypeError, match="takes Sample as options, not TrainOptions"):
        make_options(Sample, TrainOptions(epochs=1), {}, "work")  # type: ignore[type-var]
    with pytest.raises(BadInput, match="--times 0"):
        make_options(Sample, Sample(), {"times": 0}, "work")


def test_an_alias_is_another_name_for_the_same_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scripts say `--length`, and the samplers `max_new_tokens`."""
    from chitchat_compress.cli import app

    assert make_options(GenerateOptions, None, {"length": 3}, "load") == GenerateOptions(max_new_tokens=3)
    monkeypatch.setattr("sys.argv", ["compress", "generate", "model", "--length", "0"])
    with pytest.raises(SystemExit):
        app.main()
    assert capsys.readouterr().err == "compress: --max-new-tokens 0: give a whole number from 1 up\n"


def test_paths_and_numpys_numbers_become_plain_values() -> None:
    """The lineage could not be written: a Path and a float32 are no JSON."""
    made = Sample(text=Path("a/b"), share=np.float32(0.5), times=np.int64(3), flag=np.bool_(True))
    assert json.dumps(dataclasses.asdict(made)) == json.dumps(
        {"share": 0.5, "port": 80, "times": 3, "flag": True, "text": "a/b"}
    )


def test_what_is_listed_twice_is_the_same_in_both_places() -> None:
    """The options may not import what does the work, so the names stand in both."""
    from compress.prune.importance import IMPORTANCES
    from compress.quantize.blockwise import BLOCK_SIZES
    from compress.quantize.schemes import SCHEMES
    from serve.manifest import KV_DTYPES, TARGETS
    from serve.options import _LIMITS, PRESETS, SamplingOptions

    def choices(kind: type[Options], name: str) -> tuple[str, ...]:
        return next(field.choices for field in option_fields(kind) if field.name == name)

    assert choices(PruneOptions, "importance") == tuple(IMPORTANCES)
    assert choices(PruneOptions, "scheme") == ("fp32", *SCHEMES)
    assert choices(QuantizeOptions, "scheme") == (*SCHEMES, "auto")
    assert {one for choice in choices(ExportOptions, "target") for one in choice.split("+")} == set(TARGETS)
    assert set(choices(ExportOptions, "kv")) < set(KV_DTYPES)
    for size in (*BLOCK_SIZES, 8, 48, 512):
        if size in BLOCK_SIZES:
            QuantizeOptions(block_size=size)
        else:
            with pytest.raises(BadInput, match=f"--block-size {size}"):
                QuantizeOptions(block_size=size)
    assert SamplingOptions(**ChatOptions(seed=7).sampling()) == SamplingOptions(seed=7)
    assert choices(ChatOptions, "preset") == tuple(PRESETS)
    for field in option_fields(ChatOptions):
        if field.name in _LIMITS:
            low, high, _ = _LIMITS[field.name]
            assert field.bounds.get("ge", field.bounds.get("gt")) == low, field.name
            assert field.bounds.get("le", high) == high, field.name


def test_what_is_given_wins_over_the_preset_and_the_preset_over_the_default() -> None:
    """An option that was given with the value of our default lost to the preset."""
    assert ChatOptions().sampling()["temperature"] == 0.8
    preset = ChatOptions(preset="gpt2-chitchat")
    assert preset.sampling() == {
        **{"temperature": 1.0, "top_k": 8, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0},
        **{"no_repeat_ngram": 0, "max_new_tokens": 25, "seed": None},
    }
    assert (preset.resolved("history"), ChatOptions().resolved("history")) == (3, 0)
    given = ChatOptions(preset="gpt2-chitchat", temperature=0.8, top_k=0, history=0)
    assert given.sampling() == {**preset.sampling(), "temperature": 0.8, "top_k": 0}
    assert given.resolved("history") == 0
    greedy = ChatOptions(preset="dialogpt").sampling()
    assert (greedy["temperature"], greedy["top_k"], greedy["max_new_tokens"]) == (0.0, 0, 1000)
    assert GenerateOptions().sampling()["temperature"] == 1.0


def test_the_page_of_the_command_line_has_every_option_under_its_heading() -> None:
    """The docs told of options that were gone."""
    page = command_page()
    for command, (kind, _) in KINDS.items():
        assert f"compress {command}" in page
        for field in option_fields(kind):
            assert field.flag in page, field.flag
    assert "Healing" in page
    assert "python -m" not in page
