"""Tables: the columns of the conversation, CSV dialects, and errors."""

import json
from pathlib import Path

import pytest

from chitchat.data.columns import parse_columns
from chitchat.data.conversation import ReadStats, Turn
from chitchat.data.corpora import open_corpora, open_corpus
from chitchat.errors import BadInput


def _read(path: Path, content: str | bytes, columns: str | None, stats: ReadStats | None = None) -> list[list[Turn]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    corpus = open_corpus(str(path)).read_by(parse_columns(columns) if columns else None, None)
    return list(corpus.conversations(stats or ReadStats()))


def _texts(path: Path, content: str | bytes, columns: str | None) -> list[list[str]]:
    return [[turn.text for turn in each] for each in _read(path, content, columns)]


def _refusal(path: Path, content: str, columns: str | None) -> str:
    with pytest.raises(BadInput) as error:
        _read(path, content, columns)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("t.csv", 'id,q,a\n1,hi,yo\n2,"a, b","c\nd"\n', "q,a"),
        ("t.csv", '1,hi,yo\n2,"a, b","c\nd"\n', "2,3"),
        ("t.csv", '\ufeffid;q;a\r\n1;hi;yo\r\n2;a, b;"c\nd"\r\n', "q,a"),
        ("t.csv", 'sep=;\nq;a\nhi;yo\na, b;"c\nd"\n', "q,a"),
        ("t.csv", 'hi;yo\na, b;"c\nd"\n', "1,2"),
        ("t.csv", '\n\na,q\nyo,hi\n"c\nd","a, b"\n\n', "q,a"),
        ("t.tsv", 'q\ta\nhi\tyo\na, b\t"c\nd"\n', "q,a"),
        ("t.csv", 'x,"long, name",a\n1,hi,yo\n2,"a, b","c\nd"\n', '"long, name",a'),
        ("t.csv", 'm\n"[""hi"", ""yo""]"\n"[""a, b"", ""c\\nd""]"\n', "m"),
    ],
)
def test_a_row_is_a_conversation_in_every_dialect(tmp_path: Path, name: str, content: str, columns: str) -> None:
    """Excel writes semicolons and a BOM in many countries; a comma in a text then made a third turn."""
    assert _texts(tmp_path / name, content, columns) == [["hi", "yo"], ["a, b", "c\nd"]]


def test_the_speaker_of_a_turn_is_that_of_its_column(tmp_path: Path) -> None:
    """An empty cell made the user's next turn a reply; a shorter conversation ends in empty cells."""
    read = _read(tmp_path / "t.csv", "u1,b1,u2,b2\nhi,yo,,\nhi,,there,yo\n", "u1,b1,u2,b2")
    assert [[(turn.text, turn.reply) for turn in each] for each in read] == [
        [("hi", False), ("yo", True)],
        [("hi there", False), ("yo", True)],
    ]


def test_rows_that_are_turns_are_grouped_by_their_conversation(tmp_path: Path) -> None:
    """A speaker is a role or a name; the weight column is the loss mask."""
    content = "c,s,t,w\n1,Ann,hi,1\n1,Bob,yo,0\n1,Bob,yes,1\n2,system,s,1\n2,assistant,a,\n2,user,b,1\n"
    stats = ReadStats()
    read = _read(tmp_path / "t.csv", content, "conversation=c,speaker=s,text=t,weight=w", stats)
    assert read == [[Turn("hi", False), Turn("yo yes", True, False)], [Turn("a", True), Turn("b", False)]]
    assert stats.system_messages == 1
    assert _texts(tmp_path / "t.csv", "c,t\n1,a\n1,b\n2,c\n2,d\n", "conversation=c,text=t") == [["a", "b"], ["c", "d"]]
    assert _texts(tmp_path / "t.csv", "1,a\n1,b\n2,c\n2,d\n", "conversation=1,text=2") == [["a", "b"], ["c", "d"]]


def test_rows_of_a_conversation_that_are_not_consecutive_are_refused(tmp_path: Path) -> None:
    """A table sorted by time would split every conversation into single turns."""
    message = _refusal(tmp_path / "t.csv", "c,t\n1,a\n1,b\n2,c\n2,d\n1,e\n1,f\n", "conversation=c,text=t")
    assert message == (
        f"{tmp_path / 't.csv'}, row 5: continues a conversation that other rows interrupt (as do 0 other rows); "
        "sort the table by column c"
    )


def test_quotes_in_a_tsv_are_read_as_such_only_if_all_rows_fit(tmp_path: Path) -> None:
    """A text in a .tsv that begins with a quote mark swallowed the rows up to the next one."""
    assert _texts(tmp_path / "t.tsv", 'q\ta\n"Hi" he said\tok\nx\ty\n', "q,a") == [['"Hi" he said', "ok"], ["x", "y"]]
    assert _texts(tmp_path / "t.tsv", 'q\ta\n"a\tb"\tok\nx\ty\n', "q,a") == [["a\tb", "ok"], ["x", "y"]]


def test_encodings_and_line_ends_are_those_of_every_text_file(tmp_path: Path) -> None:
    """Excel's "Unicode text" is UTF-16 with tabs."""
    assert _texts(tmp_path / "t.tsv", "q\ta\n你\t好\n".encode("utf-16"), "q,a") == [["你", "好"]]
    assert _texts(tmp_path / "t.csv", "q,a\rhi,yo\r", "q,a") == [["hi", "yo"]]


@pytest.mark.parametrize(
    ("content", "columns", "what"),
    [
        ("q,a\nhi,yo\n", None, "say which columns are the turns, by name or number, for example --columns 1,2; its"),
        ("q,a\nhi,yo,ho\n", "q,a", ", line 2: has 3 columns, the first row has 2"),
        ("q,a\nhi,yo\nhi\n", "q,a", ", line 3: has 1 columns, the first row has 2"),
        ("q,a\nhi,yo\n", "q,b", "--columns b: "),
        ("q,a\nhi,yo\n", "1,3", "it has numbers 1 to 2"),
        ("q,q,a\nhi,yo,x\n", "q,a", "several columns of that name"),
        ('q,a\nx,y\n"hi,yo\nx,y\n', "q,a", ", line 3: is not a row of a table"),
        ('q,a\n"hi"you,yo\n', "q,a", ", line 2: is not a row of a table"),
        ("q,a\n" + "x" * 200_000 + ",y\n", "q,a", "field larger than field limit"),
        ("q,m\n1,hello\n", "m", "column m is not a conversation in JSON"),
        ("c,t,w\n1,a,2\n1,b,1\n", "conversation=c,text=t,weight=w", "weight '2' is neither 0"),
    ],
)
def test_a_bad_table_names_line_column_and_remedy(tmp_path: Path, content: str, columns: str | None, what: str) -> None:
    """A row with too many columns lost its last words, others were a KeyError."""
    message = _refusal(tmp_path / "t.csv", content, columns)
    assert what in message
    assert str(tmp_path / "t.csv") in message


@pytest.mark.parametrize(
    "spec", ["", ",", "a,,b", "a,a", '"a', "conversation=x", "text=t", "conversation=c,q", "conversation=,text=t",
             "text=t,conversation=c,text=u"]
)  # fmt: skip
def test_columns_that_cannot_be_understood_are_refused(spec: str) -> None:
    """Half of the columns were taken, and the table was read by them."""
    with pytest.raises(BadInput, match="--columns"):
        parse_columns(spec)


def test_columns_for_corpora_without_any_are_refused(tmp_path: Path) -> None:
    """A misplaced option was ignored, and the user believed it had worked."""
    from chitchat.data.builder import build_dataset
    from chitchat.data.options import DataOptions

    (tmp_path / "c.jsonl").write_text(json.dumps(["a", "b"]) + "\n" + json.dumps(["c", "d"]))
    with pytest.raises(BadInput, match="--columns: no corpus has columns"):
        build_dataset([str(tmp_path / "c.jsonl")], tmp_path / "data", DataOptions(columns="q,a"))
    assert open_corpora([str(tmp_path / "c.jsonl")])[0].tabular is False


# --- DialoGPT's .tsv -------------------------------------------------------------------------------------------------


def test_dialogpts_weights_are_the_mask_of_the_loss(tmp_path: Path) -> None:
    """The weights became words of the turns, and masked turns were trained on."""
    content = "0.0 hello  there EOS 1.0 hi EOS 0.0 you ?\t1.0 fine .\n1.0 a\t0.0 b\n"
    assert _read(tmp_path / "t.tsv", content, None) == [
        [Turn("hello there", False, False), Turn("hi", True), Turn("you ?", False, False), Turn("fine .", True)],
        [Turn("a", False), Turn("b", True, False)],
    ]


def test_dialogpts_form_without_weights_keeps_numbers_as_words(tmp_path: Path) -> None:
    """Its own example data has no weights; `5 apples` lost its number there."""
    content = "what is 1 ?\ti see .\n5 apples EOS so ?\t1.0 is a number\n"
    assert _texts(tmp_path / "t.tsv", content, None) == [
        ["what is 1 ?", "i see ."],
        ["5 apples", "so ?", "1.0 is a number"],
    ]
    assert [turn.reply for turn in _read(tmp_path / "t.tsv", content, None)[1]] == [True, False, True]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("0.0 a\t1.0 b\nc\td\n", ", line 2: turn 1 has no weight"),
        ("a\tb\n0.0 a\t1.0 b\n", ", line 2: has weights, and the lines before have none"),
        ("0.0 a\t1.0 b\n0.0 a\t0.5 b\n", ", line 2, turn 2: weight '0.5' is neither 0"),
        ("a b c\n", ", line 1: has 1 columns; DialoGPT's form is"),
        ("a\tb\tc\n", "say with --columns which columns are the turns"),
    ],
)
def test_a_tsv_that_is_not_dialogpts_names_the_line(tmp_path: Path, content: str, what: str) -> None:
    """A table of three columns was read as a conversation of two."""
    assert what in _refusal(tmp_path / "t.tsv", content, None)
