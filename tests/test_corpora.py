"""Corpora and file forms: what is read, in which turns, and what is refused in one line."""

import gzip
import importlib.util
import itertools
import json
import os
import random
import re
from pathlib import Path

import pytest

from chitchat.data.columns import parse_columns
from chitchat.data.conversation import Conversation, ReadStats
from chitchat.data.corpora import open_corpora, open_corpus
from chitchat.data.json_stream import stream_items
from chitchat.errors import BadInput


def _write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def _read(spec: str) -> list[list[tuple[str, bool]]]:
    return [_plain(conversation) for conversation in open_corpus(spec).conversations(ReadStats())]


def _plain(conversation: Conversation) -> list[tuple[str, bool]]:
    return [(turn.text, turn.reply) for turn in conversation]


def _refusal(spec: str) -> str:
    with pytest.raises(BadInput) as error:
        list(open_corpus(spec).conversations(ReadStats()))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_a_text_file_reads_the_same_with_either_line_end_and_with_a_bom(tmp_path: Path, end: str, bom: str) -> None:
    """Windows files gave turns with a carriage return or a BOM in them, and no blank line was ever seen."""
    spec = _write(tmp_path / "c.txt", bom + end.join(["你好", "hello there", "", "  ", "a", " b ", "c"]))
    assert _read(spec) == [[("你好", False), ("hello there", True)], [("a", False), ("b", True), ("c", False)]]


def test_a_rare_unicode_line_end_stays_inside_its_turn(tmp_path: Path) -> None:
    """`str.splitlines` splits at U+2028 and U+0085, which chat logs contain, and so changes the speakers."""
    spec = _write(tmp_path / "c.txt", "one\u2028more\x85here\ntwo\n")
    assert _read(spec) == [[("one\u2028more\x85here", False), ("two", True)]]


_FORMS = [
    ["hi", "hello", "bye"],
    {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": "bye"},
        ]
    },
]


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_json_forms_give_the_turns_of_both_sides(tmp_path: Path, ending: str) -> None:
    """System messages became turns of the user, or a form was read in .json only."""
    text = json.dumps(_FORMS, indent=1) if ending == "json" else "\n\n".join(map(json.dumps, _FORMS)) + "\n"
    spec = _write(tmp_path / f"c.{ending}", "\ufeff" + text)
    expected = [("hi", False), ("hello", True), ("bye", False)]
    assert _read(spec) == [expected, expected]
    stats = ReadStats()
    list(open_corpus(spec).conversations(stats))
    assert stats == ReadStats(conversations=2, system_messages=1)


def test_consecutive_messages_of_one_role_are_one_turn_and_empty_ones_are_none(tmp_path: Path) -> None:
    """Two user messages in a row made the second one look like a reply."""
    messages = [("user", "one"), ("user", "two"), ("assistant", " "), ("assistant", "three")]
    spec = _write(
        tmp_path / "c.jsonl", json.dumps({"messages": [{"role": role, "content": text} for role, text in messages]})
    )
    assert _read(spec) == [[("one two", False), ("three", True)]]


def test_a_lone_surrogate_does_not_reach_the_tokenizer(tmp_path: Path) -> None:
    """JSON can contain a lone surrogate; encoding it to UTF-8 later is a traceback."""
    spec = _write(tmp_path / "c.jsonl", r'["a \ud83d b", "\ud83d\ude00"]')
    assert _read(spec) == [[("a \ufffd b", False), ("😀", True)]]


def test_a_json_list_is_decoded_across_the_pieces_that_it_is_read_in(tmp_path: Path) -> None:
    """A conversation, a character or an escape that lies across two pieces was taken for damage."""
    conversations = [[f"turn {number} “你好” \\ \n" + "long " * (number % 7 * 900), "x" * 5] for number in range(1500)]
    path = tmp_path / "c.json"
    path.write_text(json.dumps(conversations, ensure_ascii=False, indent=1), encoding="utf-8")
    assert path.stat().st_size > 3 << 20
    assert [value for _, value in stream_items(path)] == conversations
    path.write_text(json.dumps(conversations), encoding="utf-8")
    assert [value for _, value in stream_items(path)] == conversations


def test_line_numbers_of_json_items_count_lines_within_items(tmp_path: Path) -> None:
    """The line of an error was that of the piece, not of the file."""
    path = tmp_path / "c.json"
    path.write_text('[\n["a",\n "b"],\n\n["c", "d"]\n]\n', encoding="utf-8")
    assert [line for line, _ in stream_items(path)] == [2, 5]


def test_a_corpus_can_be_iterated_twice(tmp_path: Path) -> None:
    """Two passes are needed; a generator that is used up would give an empty data set."""
    corpus = open_corpus(_write(tmp_path / "c.txt", "a\nb\n\nc\nd\n"))
    assert list(corpus.conversations(ReadStats())) == list(corpus.conversations(ReadStats())) != []


def test_conversations_of_one_turn_are_left_out_and_counted(tmp_path: Path) -> None:
    """A single turn has no reply, and leaving it out without a count hides a wrong file form."""
    stats = ReadStats()
    corpus = open_corpus(_write(tmp_path / "c.txt", "alone\n\na\nb\n"))
    assert len(list(corpus.conversations(stats))) == 1
    assert stats.short_conversations == 1


@pytest.mark.skipif(importlib.util.find_spec("chitchat_dataset") is None, reason="chitchat-dataset is not installed")
def test_byu_has_no_two_turns_of_one_sender_in_a_row() -> None:
    """The package groups some messages of one sender only; the rest came out as turns that answer themselves."""
    stats, utterances = ReadStats(), 0
    for conversation in open_corpus("byu").conversations(stats):
        assert all(one.reply != other.reply for one, other in itertools.pairwise(conversation))
        assert not conversation[0].reply
        utterances += len(conversation)
    assert stats.conversations + stats.short_conversations == 7168
    assert stats.conversations == 4017
    assert utterances > 130_000


@pytest.mark.skipif(importlib.util.find_spec("chatterbot_corpus") is None, reason="chatterbot-corpus is not installed")
def test_chatterbot_chinese_is_read_and_every_turn_is_text() -> None:
    """YAML reads `Yes` as a bool and a line with a colon as a mapping."""
    conversations = _read("chatterbot:chinese")
    assert [("你好", False), ("嗨", True)] in conversations
    english = [text for conversation in _read("chatterbot:english") for text, _ in conversation]
    assert "True" not in english
    assert not any(text.startswith("{") for text in english)


@pytest.mark.skipif(importlib.util.find_spec("chatterbot_corpus") is None, reason="chatterbot-corpus is not installed")
@pytest.mark.parametrize("spec", ["chatterbot:klingon", "chatterbot", "chatterbot:", "chatterbot:../data"])
def test_an_error_for_an_unknown_language_lists_the_known_ones(spec: str) -> None:
    """A KeyError did not list the languages; a name with a path in it left the package."""
    assert "english" in _refusal(spec)
    assert "chinese" in _refusal(spec)
    assert spec in _refusal(spec)


@pytest.mark.parametrize("spec", ["byu", "chatterbot:english"])
def test_a_corpus_package_that_is_not_installed_names_the_pip_line(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ImportError does not name the package to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'chitchat-compress[demo]'" in _refusal(spec)


def test_an_unknown_name_lists_the_corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelled name was reported as a missing file."""
    monkeypatch.chdir(tmp_path)
    assert "byu" in _refusal("buy")
    assert "chatterbot" in _refusal("buy")
    assert "'buy'" in _refusal("buy")


def test_missing_files_folders_and_unknown_endings_are_refused(tmp_path: Path) -> None:
    """Each of them was a traceback of `open`."""
    missing = str(tmp_path / "gone.txt")
    assert missing in _refusal(missing)
    assert "no such file" in _refusal(missing)
    assert "regular file" in _refusal(str(tmp_path))
    page = _write(tmp_path / "c.html", "a,b\n")
    assert "'.html'" in _refusal(page)
    assert ".jsonl" in _refusal(page)
    with pytest.raises(BadInput, match="CORPUS"):
        open_corpora([])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_read_permission_is_refused(tmp_path: Path) -> None:
    """A PermissionError became a traceback."""
    spec = _write(tmp_path / "c.txt", "a\nb\n")
    Path(spec).chmod(0)
    assert "permissions" in _refusal(spec)


@pytest.mark.parametrize(
    ("ending", "lines"),
    [("txt", ["a", "b", "{}"]), ("jsonl", ['["a", "b"]'] * 2 + ['["{}", "b"]']), ("json", ["[", "", '["{}", "b"]]'])],
)
def test_a_file_that_is_not_utf8_names_file_and_line(tmp_path: Path, ending: str, lines: list[str]) -> None:
    """A UnicodeDecodeError gives a byte position, which no editor shows."""
    content = "\n".join(lines).encode().replace(b"{}", "你好".encode("gb18030"))
    spec = _write(tmp_path / f"c.{ending}", content)
    assert f"{spec}, line 3: is not UTF-8" in _refusal(spec)


@pytest.mark.parametrize(
    ("name", "content", "line", "what"),
    [
        ("c.jsonl", '["a", "b"]\n["a", \n', 2, "not JSON"),
        ("c.jsonl", '["a", "b"]\n\n"a"\n', 3, "not a conversation"),
        ("c.jsonl", '{"messages": [{"role": "user"}]}', 1, "no text"),
        ("c.jsonl", '{"messages": [{"role": "pirate", "content": "arr"}]}', 1, "'pirate'"),
        ("c.json", '[["a", "b"],\n["a" "b"]]', 2, "Expecting"),
        ("c.json", '[["a", "b"],\n["a", "b', 2, "Unterminated"),
        ("c.json", '[["a", "b"],\n["a", "b"]', 2, "comma"),
        ("c.json", '[["a", "b"],\n]', 2, "comma"),
        ("c.json", '[["a", "b"]]\n["c", "d"]', 2, ".jsonl"),
        ("c.json", '["a",\n"b"]', 1, "not a conversation"),
        ("c.json", "", 1, "not a JSON list"),
        ("c.json", "[" * 200_000, 1, "nested"),
    ],
)
def test_malformed_json_names_file_and_line(tmp_path: Path, name: str, content: str, line: int, what: str) -> None:
    """A JSONDecodeError names neither the file nor, in a streamed one, the right line."""
    spec = _write(tmp_path / name, content)
    assert _refusal(spec).startswith(f"{spec}, line {line}: ")
    assert what in _refusal(spec)


def _documented() -> list[tuple[str, str | None, str]]:
    """`(file name, --columns, content)` of every example in docs/corpora.md that is a file."""
    text = (Path(__file__).parents[1] / "docs" / "corpora.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w+ (\S+)(?: columns=(\S+))?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(name, columns or None, content) for name, columns, content in blocks]


@pytest.mark.parametrize(("name", "columns", "content"), _documented())
def test_every_example_in_the_docs_is_read(tmp_path: Path, name: str, columns: str | None, content: str) -> None:
    """An example that does not work is worse than none."""
    (tmp_path / name).write_text(content, encoding="utf-8")
    corpus = open_corpus(str(tmp_path / name)).read_by(parse_columns(columns) if columns else None, None)
    conversations = list(corpus.conversations(ReadStats()))
    assert len(conversations) >= 1
    for conversation in conversations:
        assert len(conversation) >= 2
        assert not any(turn.text.startswith(("{", "[", "0.0")) for turn in conversation)
    assert {"talk.txt", "talk.jsonl", "pairs.csv", "rows.csv", "dialogpt.tsv"} == {each[0] for each in _documented()}


def test_a_folder_of_corpora_is_refused_with_its_files(tmp_path: Path) -> None:
    """The error for `compress data corpus/` did not name the files in it."""
    (tmp_path / "talk.jsonl.gz").touch()
    (tmp_path / "README.md").touch()
    assert f"(it contains {tmp_path / 'talk.jsonl.gz'})" in _refusal(str(tmp_path))


def test_unusual_names_and_special_files_are_one_line(tmp_path: Path) -> None:
    """A loop of links, a pipe that never ends and a name that is too long were tracebacks, or never ended."""
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    assert "is not a regular file" in _refusal(str(tmp_path / "pipe.txt"))
    assert "is a link to a missing file" in _refusal(str(tmp_path / "loop.txt"))
    assert "is not a regular file" in _refusal("/dev/zero")
    assert "cannot be opened" in _refusal("x" * 5000 + ".txt")
    assert "no such file" in _refusal("a\0b.txt")


def test_any_changed_bytes_give_turns_or_a_line(tmp_path: Path) -> None:
    """A fuzz over all text forms: nothing but `BadInput` may come out, and no turn without text."""
    chance = random.Random(0)
    originals = {
        "c.txt": [
            "你好吗\n我很好\n\nhi\nthere\n".encode(codec) for codec in ("utf-8", "utf-16", "gb18030", "utf-16-le")
        ],
        "c.jsonl": ["\n".join(map(json.dumps, _FORMS)).encode()],
        "c.json": [json.dumps(_FORMS, indent=1).encode()],
        "c.csv": [b'a,b\n1,"x,y"\n1,"q\n""r"\n2,b\n'],
        "c.tsv": [b"0.0 a EOS 1.0 b\t1.0 c\n0.0 d\t1.0 e\n"],
    }
    pieces = [b"\0", b"\xef\xbb\xbf", b"\r", b"\n", b'"', b"[" * 3000, b"{", b"\\ud800", b"null", b"1" * 5000, b"\t"]
    refused = lines = 0
    for number in range(3000):
        name = chance.choice(list(originals))
        content = bytearray(chance.choice(originals[name]))
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(content))
            content[place : place + chance.randint(0, 2)] = chance.choice([*pieces, chance.randbytes(2)])
        packed = number % 5 == 0
        path = tmp_path / (name + ".gz" * packed)
        path.write_bytes(gzip.compress(content)[: chance.randint(5, 400)] if packed else content)
        columns = parse_columns(chance.choice(["a,b", "conversation=a,text=b", "1,2"])) if name == "c.csv" else None
        try:
            for conversation in open_corpus(str(path)).read_by(columns, None).conversations(ReadStats()):
                assert all(turn.text.strip() and turn.text.encode() for turn in conversation)
        except BadInput as error:
            refused += str(error).count("\n") == 0
            lines += str(error).count("\n")
    assert 1000 < refused < 3000
    assert lines == 0
