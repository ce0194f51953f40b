"""Recipes: a pipeline as a YAML mapping of stage name to what is run, in order.

    teacher: {run: train, from: data, layers: 5, max-minutes: 4.5}

`run` is a verb of the command line, the other keys are its options without the dashes; `from` (for `data`: `corpora`,
for `bench`: `models`) is what it is given. A stage's name is its output folder. A value that names an earlier stage is
that stage's folder. `${NAME}` and `${NAME:-default}` in a value are environment variables. Everything that can be known
to be wrong is refused here, before hours of work: values are checked by the dataclasses of the options. Nothing is run.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from chitchat.errors import BadInput
from chitchat_compress.pipeline.schema import STAGE_NAME, VERBS, RecipeVerb
from chitchat_compress.pipeline.variables import Unset, expand

_NAME = re.compile(STAGE_NAME)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class StageRef:
    """A value that names an earlier stage."""

    name: str


Value = str | int | float | StageRef


@dataclass(frozen=True)
class RecipeStage:
    """One stage: `arguments` in the order of the command line, `options` by name without dashes."""

    name: str
    verb: str
    arguments: tuple[Value, ...]
    options: Mapping[str, Value]

    @property
    def makes(self) -> str:
        """The kind of its output folder."""
        return VERBS[self.verb].makes


def default_recipe() -> Path:
    """The recipe that ships with the package."""
    return Path(str(resources.files("chitchat_compress.recipes") / "demo.yaml"))


def read_recipe(path: Path) -> list[RecipeStage]:
    """The stages of a recipe, in order. Raises `BadInput` that names the file, the stage, and the remedy."""
    try:
        record = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError as error:
        raise BadInput(f"RECIPE {path}: no such file; leave it out to run the demo") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"RECIPE {path}: cannot be read ({error}); give a YAML file in UTF-8") from error
    except yaml.YAMLError as error:
        raise BadInput(f"RECIPE {path}: is not YAML ({' '.join(str(error).split())}); correct it") from error
    if not isinstance(record, dict) or not record:
        raise BadInput(f"RECIPE {path}: holds no stages; write `name: {{run: verb, …}}`, one a line, in order")
    return _Reader(path, [str(name) for name in record]).stages(record)


class _Reader:
    """Checks the stages of one recipe from the first to the last."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self._path = path
        self._names = names
        self._done: dict[str, RecipeStage] = {}

    def stages(self, record: Mapping[Any, Any]) -> list[RecipeStage]:
        for name, body in record.items():
            self._done[str(name)] = self._stage(str(name), body)
        return list(self._done.values())

    def _stage(self, name: str, body: Any) -> RecipeStage:
        if not _NAME.fullmatch(name):
            raise self._bad(name, "is no name for a folder; use letters, digits, - and _")
        if not isinstance(body, dict) or "run" not in body:
            raise self._bad(name, f"says nothing to run; write `run:` and one of {', '.join(VERBS)}")
        body = {str(key): self._expanded(name, str(key), value) for key, value in body.items()}
        verb = VERBS.get(str(body["run"]))
        if verb is None:
            raise self._bad(name, f"run: {body['run']} is no verb of a recipe; give one of {', '.join(VERBS)}")
        options: dict[str, Value] = {}
        for key, value in body.items():
            if key in ("run", verb.argument):
                continue
            if key not in verb.keys:
                raise self._bad(name, f"{key}: is no option of {body['run']}; it has {', '.join(verb.keys)}")
            options[key] = self._value(name, verb, key, value)
        stage = RecipeStage(name, str(body["run"]), self._arguments(name, verb, body), options)
        self._check(stage, verb)
        return stage

    def _check(self, stage: RecipeStage, verb: RecipeVerb) -> None:
        """Refuse options that do not go together, and a verb that lacks its data set."""
        if verb.data == "must" and "data" not in stage.options:
            raise self._bad(stage.name, f"lacks `data:`, the conversations that {stage.verb} reads; name a stage")
        values = {
            verb.fields[key].name: value.name if isinstance(value, StageRef) else value
            for key, value in stage.options.items()
            if key in verb.fields
        }
        try:
            verb.options(**values)
        except BadInput as error:
            raise self._bad(stage.name, str(error)) from error

    def _expanded(self, name: str, key: str, value: Any) -> Any:
        """The value with the environment's variables in place of their names."""
        if isinstance(value, list):
            return [self._expanded(name, key, item) for item in value]
        if not isinstance(value, str):
            return value
        try:
            return expand(value, os.environ)
        except Unset as error:
            raise self._bad(
                name,
                f"{key}: {error}; set it (`{error.name}=… compress run …`), or write ${{{error.name}:-default}}",
            ) from error
        except ValueError as error:
            raise self._bad(name, f"{key}: {error}") from error

    def _arguments(self, name: str, verb: RecipeVerb, body: Mapping[str, Any]) -> tuple[Value, ...]:
        given = body.get(verb.argument)
        values = given if isinstance(given, list) else [given]
        if given is None or not values:
            raise self._bad(
                name, f"lacks `{verb.argument}:`, what {body['run']} works on; name an earlier stage or a path"
            )
        if verb.argument == "from" and isinstance(given, list):
            raise self._bad(name, "from: takes one value, not a list")
        return tuple(self._value(name, verb, verb.argument, value) for value in values)

    def _value(self, name: str, verb: RecipeVerb, key: str, value: Any) -> Value:
        """A plain value, or a reference to an earlier stage where the key can take one."""
        field = verb.fields.get(key)
        if not (field.accepts(value) if field else isinstance(value, str)) or value is None:
            raise self._bad(name, f"{key}: {value!r} cannot be used; {field.remedy if field else 'give a text'}")
        kinds = verb.kinds(key)
        if not kinds or not isinstance(value, str):
            return value
        if value in self._done:
            made = self._done[value].makes
            if made not in kinds:
                raise self._bad(name, f"{key}: {value} is a {made}, and {key} takes a {' or '.join(kinds)}")
            return StageRef(value)
        if value in self._names:
            raise self._bad(
                name, f"{key}: {value} is made by a later stage or by itself; move that stage before this one"
            )
        self._check_outside(name, key, value)
        return value

    def _check_outside(self, name: str, key: str, value: str) -> None:
        """What is no stage must be a path that exists or, for a model, look like a hub id."""
        if Path(value).expanduser().exists():
            return
        # A bare word is a hub id only where one is usual (`init: gpt2`); elsewhere it is a slip of the pen.
        hub = key in ("init", "tokenizer") or (key in ("from", "teacher", "models") and value.count("/") == 1)
        if not hub or not _HUB_ID.fullmatch(value):
            known = ", ".join(self._done) or "none yet"
            raise self._bad(name, f"{key}: {value} is neither an earlier stage ({known}) nor a folder that exists")

    def _bad(self, name: str, what: str) -> BadInput:
        return BadInput(f"RECIPE {self._path}: stage {name}: {what}")


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice, where YAML would silently take the last one."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for index, key in enumerate(keys):
        if not isinstance(key, str):
            raise yaml.YAMLError(f"the key {key!r} in line {node.start_mark.line + 1} is not a text")
        if key in keys[:index]:
            raise yaml.YAMLError(f"{key} is given twice from line {node.start_mark.line + 1} on")
    return dict(loader.construct_mapping(node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
