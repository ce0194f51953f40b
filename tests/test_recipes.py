"""Recipes: the one that ships, and the ways in which a recipe can be wrong."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from chitchat.errors import BadInput
from chitchat_compress.pipeline.recipe import StageRef, default_recipe, read_recipe
from chitchat_compress.pipeline.schema import recipe_schema

GOOD = "data: {run: data, corpora: [byu]}\nteacher: {run: train, from: data, epochs: 1}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_demo_makes_what_the_readme_promises() -> None:
    """A stage renamed in the recipe broke the documented line to talk to the result."""
    stages = read_recipe(default_recipe())
    assert [stage.name for stage in stages] == [
        *("data", "teacher", "pruned", "quantized", "bundle-fp32", "bundle", "report")
    ]
    models = stages[-1].arguments
    assert models == tuple(map(StageRef, ("teacher", "pruned", "bundle-fp32", "bundle")))
    options = stages[-1].options
    context = stages[1].options["context"]
    assert options["prompt-tokens"] + options["new-tokens"] <= context, "the bench would refuse the demo's models"


@pytest.mark.parametrize("name", ["demo", "prune-study", "quantize-study", "peers-study"])
def test_the_recipes_that_ship_keep_to_the_schema(name: str) -> None:
    """An editor that underlines what is right teaches to ignore it."""
    recipe = yaml.safe_load((default_recipe().parent / f"{name}.yaml").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(recipe_schema())
    jsonschema.validate(recipe, recipe_schema())


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "a/b: {run: data, corpora: [byu]}",
        "d: {run: data}",
        "d: {run: tokenise, corpora: [byu]}",
        "d: {run: data, corpora: [byu], vocabulary: 5}",
        "d: {run: data, corpora: [byu], vocab-size: many}",
        "p: {run: prune, from: teacher, data: data, keep: 2}",
        "p: {run: prune, from: teacher, keep: 0.5}",
        "q: {run: quantize, from: teacher, data: data, scheme: w3}",
        "p: {run: prune, from: teacher, data: data, keep: 0.5, no-refit: 'yes'}",
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(tmp_path: Path, text: str) -> None:
    """A schema that lets everything through is no help; one that is stricter than the reader is wrong."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), recipe_schema())
    (tmp_path / "teacher").mkdir()
    (tmp_path / "data").mkdir()
    text = text.replace("from: teacher", f"from: {tmp_path / 'teacher'}").replace(": data,", f": {tmp_path / 'data'},")
    with pytest.raises(BadInput):
        read_recipe(write(tmp_path, text.replace(f"run: {tmp_path / 'data'}", "run: data")))


def test_the_schema_is_printed() -> None:
    """Editors read it from a file that the command makes."""
    command = [sys.executable, "-m", "chitchat_compress", "run", "--schema"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == recipe_schema()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no stages"),
        ("- data", "holds no stages"),
        ("data: [", "is not YAML"),
        (GOOD + "teacher: {run: train, from: data}", "teacher is given twice"),
        ("a/b: {run: data, corpora: [byu]}", "is no name for a folder"),
        ("data: byu", "says nothing to run"),
        ("data: {run: tokenise, corpora: [byu]}", "run: tokenise is no verb"),
        ("data: {run: data, corpora: [byu], vocabulary: 5}", "vocabulary: is no option of data"),
        ("data: {run: data}", "lacks `corpora:`"),
        ("data: {run: data, corpora: []}", "lacks `corpora:`"),
        (
            "data: {run: data, corpora: [byu], vocab-size: true}",
            "vocab-size: True cannot be used; give a whole",
        ),
        ("data: {run: data, corpora: [byu], vocab-size: [1]}", r"vocab-size: \[1\] cannot be used"),
        (GOOD + "b: {run: export, from: teacher, genai: 1}", "genai: 1 cannot be used; give true or false"),
        (GOOD + "p: {run: prune, from: [teacher], data: data}", "takes one value"),
        (GOOD + "p: {run: prune, from: teachr, data: data}", r"teachr is neither an earlier stage \(data, teacher\)"),
        (GOOD + "p: {run: prune, from: data, data: data}", "data is a data, and from takes a checkpoint"),
        (
            GOOD + "p: {run: prune, from: q, data: data}\nq: {run: train, from: data, epochs: 1}",
            "made by a later stage",
        ),
        (GOOD + "p: {run: prune, from: p, data: data}", "by a later stage or by itself"),
        (GOOD + "p: {run: prune, from: teacher, data: data, keep: 2}", "keep: 2 cannot be used; give a number between"),
        (GOOD + "p: {run: prune, from: teacher, data: data}", "stage p: --keep: say how much is to stay"),
        (GOOD + "p: {run: prune, from: teacher, keep: 0.5}", "stage p: lacks `data:`"),
        (
            GOOD + "q: {run: quantize, from: teacher, data: data, scheme: w3}",
            "'w3' cannot be used; give w8, w8a8",
        ),
        ("1: {run: data, corpora: [byu]}", "the key 1 in line 1 is not a text"),
        (
            GOOD + "p: {run: prune, from: teacher, data: data, no-refit: 'yes'}",
            "'yes' cannot be used; give true or false",
        ),
        (
            "d: {run: data, corpora: ['${NOWHERE_SET}']}",
            r"stage d: corpora: \$\{NOWHERE_SET\} is not set .*NOWHERE_SET=…",
        ),
        (
            "d: {run: data, corpora: [byu], validation: '${1}'}",
            r"validation: '\$\{1\}' has a \$\{ that begins no variable",
        ),
    ],
)
def test_a_bad_recipe_is_refused_by_file_and_stage(tmp_path: Path, text: str, says: str) -> None:
    """Each of these was found only when its stage came, or never."""
    path = write(tmp_path, text)
    with pytest.raises(BadInput, match=says) as caught:
        read_recipe(path)
    assert str(caught.value).startswith(f"RECIPE {path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_and_one_in_another_encoding_are_refused(tmp_path: Path) -> None:
    """A traceback of open()."""
    with pytest.raises(BadInput, match="no such file"):
        read_recipe(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"caf\xe9: 1")
    with pytest.raises(BadInput, match="UTF-8"):
        read_recipe(tmp_path / "latin.yaml")


def test_models_from_elsewhere_may_stand_where_a_stage_would(tmp_path: Path) -> None:
    """A recipe could not start from a hub model or from a folder."""
    (tmp_path / "mine").mkdir()
    text = f"""
data: {{run: data, corpora: [byu], tokenizer: gpt2}}
teacher: {{run: train, from: data, init: gpt2, epochs: 1}}
pruned: {{run: prune, from: someone/model, data: data, keep: 0.5}}
other: {{run: export, from: {tmp_path / "mine"}}}
"""
    stages = read_recipe(write(tmp_path, text))
    assert [stage.arguments[0] for stage in stages[2:]] == ["someone/model", str(tmp_path / "mine")]
    assert stages[1].options["init"] == "gpt2"


def test_a_flag_is_true_or_false(tmp_path: Path) -> None:
    """`--genai False` is a usage error, after the hours of the stages before."""
    from chitchat_compress.pipeline.run import _argv

    text = (
        GOOD + "a: {run: export, from: teacher, genai: true, kv: int8}\nb: {run: export, from: teacher, genai: false}"
    )
    *_, yes, no = read_recipe(write(tmp_path, text))
    folders = {"teacher": Path("teacher")}
    assert _argv(yes, folders, Path("a")) == ["export", "teacher", "--out", "a", "--genai", "--kv", "int8"]
    assert _argv(no, folders, Path("b")) == ["export", "teacher", "--out", "b"]


def test_the_environments_variables_stand_in_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study over a model that lies elsewhere on every machine had that one machine's path in it."""
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("MODELS", str(tmp_path))
    monkeypatch.setenv("KEEP", "0.25")
    monkeypatch.delenv("MINUTES", raising=False)
    monkeypatch.setenv("EMPTY", "")
    text = """
data: {run: data, corpora: ["${MODELS}/train.txt", "${MODELS}/more.txt"], validation: "${MODELS}/held.txt"}
pruned: {run: prune, from: "${MODELS}/mine", data: "${DATA_STAGE:-data}", keep: "${KEEP}",
         heal-minutes: "${MINUTES:-1.5}", importance: "${EMPTY:-taylor}", no-refit: "${PLAIN:-true}"}
"""
    data, pruned = read_recipe(write(tmp_path, text))
    assert data.arguments == (f"{tmp_path}/train.txt", f"{tmp_path}/more.txt")
    assert data.options == {"validation": f"{tmp_path}/held.txt"}
    assert pruned.arguments == (f"{tmp_path}/mine",)
    assert pruned.options == {
        "data": StageRef("data"),
        "keep": 0.25,
        "heal-minutes": 1.5,
        "importance": "taylor",
        "no-refit": True,
    }
