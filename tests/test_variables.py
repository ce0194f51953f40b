"""Environment variables in a recipe's values."""

import pytest

from chitchat_compress.pipeline.variables import Unset, expand

HERE = {"NAME": "models", "SHARE": "0.5", "COUNT": "12", "FLAG": "true", "EMPTY": "", "ODD": "a: [", "RATE": "1e-4"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("$NAME and $5", "$NAME and $5"),
        ("${NAME}", "models"),
        ("${NAME}/a/${NAME}-${COUNT}", "models/a/models-12"),
        ("${GONE:-here}", "here"),
        ("${GONE:-}", ""),
        ("${EMPTY:-here}", "here"),
        ("${NAME:-here}", "models"),
        ("${ODD}", "a: ["),
    ],
)
def test_a_variable_stands_for_its_content(text: str, expected: str) -> None:
    """A variable beside other text, twice in a value, or empty was left as it stood."""
    assert expand(text, HERE) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("${SHARE}", 0.5), ("${COUNT}", 12), ("${FLAG}", True), ("${GONE:-false}", False), ("${GONE:-7}", 7)],
)
def test_a_value_that_is_one_variable_is_read_as_yaml_would(text: str, expected: float) -> None:
    """A flag that is the text "true" is refused, and "0.5" ran a finished stage again that had been given 0.5."""
    value = expand(text, HERE)
    assert value == expected
    assert type(value) is type(expected)


def test_a_number_with_text_beside_it_stays_text() -> None:
    """`model-${COUNT}` is a name."""
    assert expand("${COUNT}0", HERE) == "120"


@pytest.mark.parametrize("text", ["${GONE}", "${EMPTY}", "${NAME}/${GONE}"])
def test_a_variable_that_is_not_set_is_named(text: str) -> None:
    """An unset variable became an empty path, and a stage read the current folder."""
    with pytest.raises(Unset) as caught:
        expand(text, HERE)
    assert caught.value.name in text


@pytest.mark.parametrize("text", ["${", "${}", "${1}", "${NAME", "${NAME:=x}", "${NAME:-${COUNT}}", "${NA ME}"])
def test_what_begins_no_variable_is_refused(text: str) -> None:
    """A slip of the pen went to the command line as it stood, dollar and all."""
    with pytest.raises(ValueError, match="begins no variable"):
        expand(text, HERE)
