"""GPT2-chitchat's `train.pkl`: a pickled list of conversations, each a list of token ids (its `preprocess.py`).

A conversation is `[CLS] turn [SEP] turn [SEP]`, in the ids of the vocabulary that the file was made with. The ids are
kept; their text is decoded only to find duplicates and to count bytes, with U+FFFD for an unknown token. The file is
never unpickled: its opcodes are read one by one (`pickletools.genops`), and any that lists of whole numbers do not need
is refused. So nothing in the file can name a function, and memory does not grow with the file.
"""

import pickletools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from chitchat.data.conversation import Conversation, ReadStats, Turn
from chitchat.dialogue import dialogue_of
from chitchat.errors import BadInput, one_line
from chitchat.text.archive import open_bytes
from chitchat.text.cleaning import Cleaned, clean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_NUMBERS = frozenset({"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"})
_IGNORED = frozenset({"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
# What is wrong with an opcode that is not allowed, by a part of its name.
_REFUSED = {
    ("GLOBAL", "INST", "OBJ", "REDUCE", "BUILD", "EXT"): "loads Python objects, which may run code",
    ("TUPLE",): "holds a tuple",
    ("DICT", "SETITEM"): "holds a dict",
    ("TRUE", "FALSE"): "holds true or false where a token id belongs",
    ("PERSID",): "is not a pickle of lists (a zip archive, as torch.save writes?)",
    ("STRING", "UNICODE", "BYTE"): "holds text, or an object such as numpy's, where token ids belong",
    ("",): "holds something else than lists of token ids",
}
_REMEDY = "write it as plain lists: pickle.dump([[int(i) for i in ids] for ids in data], file)"
_BATCH = 256  # conversations whose text is decoded at once
_MAX_IDS = 1 << 23  # in one conversation, and in one batch of the pickler
_MAX_BYTES = 1 << 16  # of one argument of an opcode: a list of ids needs no longer one


def read_pickle(
    path: Path, stats: ReadStats, tokenizer: "PreTrainedTokenizerFast | None" = None
) -> Iterator[Conversation]:
    """Conversations of token ids of `tokenizer`.

    Raises `BadInput` without a tokenizer, for anything but lists of ids, and for ids of another vocabulary.
    """
    if tokenizer is None:
        raise BadInput(f"{path}: holds token ids; give --tokenizer, the vocab.txt or checkpoint that they belong to")
    splitter = _TurnSplitter(tokenizer)
    batch: list[list[tuple[int, ...]]] = []
    for number, ids in enumerate(id_lists(path), 1):
        if ids is None:
            stats.repeated_lists += 1
            continue
        batch.append(splitter.split(ids, f"{path}, conversation {number}", stats))
        if len(batch) == _BATCH:
            yield from splitter.decode(batch)
            batch = []
    yield from splitter.decode(batch)


def id_lists(path: Path) -> Iterator[list[int] | None]:
    """The lists of whole numbers in a pickled list, in order; None for a list object that occurred before.

    Raises `BadInput` for anything else, before it is loaded.
    """
    with open_bytes(path) as file:
        machine = _ListMachine()
        try:
            for opcode, argument, _ in pickletools.genops(cast(IO[bytes], _BoundedReader(file))):
                if opcode.name in _NUMBERS:
                    machine.push_number(argument)
                else:
                    yield from machine.step(opcode.name)
        except _NotLists as error:
            raise BadInput(f"{path}, conversation {machine.finished + 1}: {error}; {_REMEDY}") from error
        except (ValueError, AttributeError, OverflowError) as error:
            raise BadInput(f"{path}: is not a pickle, or is truncated ({one_line(error, 80)}); get it again") from error


class _NotLists(Exception):
    """The file holds something else than lists of token ids; the message says what."""


class _ListMachine:
    """The part of the pickle machine that lists of lists of whole numbers need.

    The outer list is at the bottom of the stack and stays empty: what is appended to it is yielded instead.
    """

    def __init__(self) -> None:
        self.finished = 0  # conversations
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._held = 0  # ids in lists on the stack

    def step(self, opcode: str) -> Iterator[list[int] | None]:
        """Execute one opcode that is not a number; yield the conversations that it completes."""
        if opcode in ("APPEND", "APPENDS"):
            yield from self._append(self._pop(1 if opcode == "APPEND" else None))
        elif opcode == "MARK":
            self._marks.append(len(self._stack))
        elif opcode in ("EMPTY_LIST", "LIST") or opcode in _GETS:
            self._stack.append(None if opcode in _GETS else [] if opcode == "EMPTY_LIST" else self._pop(None))
            if len(self._stack) + self._held > _MAX_IDS or len(self._marks) > 3:
                raise _NotLists("is nested too deeply, or holds too much at once")
        elif opcode == "STOP":
            if len(self._stack) != 1 or self._stack[0] != [] or self._marks:
                raise _NotLists("is not a list of conversations")
        elif opcode not in _IGNORED:
            raise _NotLists(next(what for parts, what in _REFUSED.items() if any(part in opcode for part in parts)))

    def push_number(self, number: Any) -> None:
        """Push a number."""
        if isinstance(number, bool):
            raise _NotLists("holds true or false where a token id belongs")
        if not 0 <= number < 1 << 31:
            raise _NotLists(f"holds {number if abs(number) < 1 << 64 else 'a huge number'}, which is not a token id")
        self._stack.append(number)
        self._check_size(len(self._stack))

    def _check_size(self, ids: int) -> None:
        if ids > _MAX_IDS:
            raise _NotLists(f"has more than {_MAX_IDS} ids in one conversation")

    def _pop(self, count: int | None) -> list[Any]:
        """The last `count` items of the stack; None: those above the last mark."""
        if (count is None and not self._marks) or (count and len(self._stack) < 2):
            raise _NotLists("is damaged")
        begin = len(self._stack) - count if count else self._marks.pop()
        items = self._stack[begin:]
        del self._stack[begin:]
        return items

    def _append(self, items: list[Any]) -> Iterator[list[int] | None]:
        if not self._stack or not isinstance(self._stack[-1], list):
            raise _NotLists("is damaged")
        if len(self._stack) > 1:
            if not all(isinstance(item, int) for item in items):
                raise _NotLists("holds lists within a conversation")
            self._stack[-1].extend(items)
            self._held += len(items)
            return self._check_size(self._held)
        for item in items:
            if isinstance(item, int):
                raise _NotLists("is a list of ids, not a list of conversations")
            self.finished += 1
            self._held -= len(item or ())
            yield item


class _TurnSplitter:
    """Splits the ids of one vocabulary into turns."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        self._tokenizer, self._dialogue, self._size = tokenizer, dialogue_of(tokenizer), len(tokenizer)
        kept = {self._dialogue.unk_id, self._dialogue.end_of_turn_id}
        self._special = frozenset({*self._dialogue.banned_ids, *self._dialogue.start_ids} - kept)
        unknown = self._dialogue.unk_id
        self._unknown = None if unknown is None else tokenizer.convert_ids_to_tokens(unknown)

    def split(self, ids: Sequence[int], where: str, stats: ReadStats) -> list[tuple[int, ...]]:
        """The turns of one conversation. Raises `BadInput` for ids that are not of this vocabulary."""
        start, end = list(self._dialogue.start_ids), self._dialogue.end_of_turn_id
        remedy = "give the --tokenizer that the file was made with"
        if (unknown := next((id for id in ids if id >= self._size), None)) is not None:
            raise BadInput(f"{where}: id {unknown} is beyond the vocabulary of {self._size} tokens; {remedy}")
        if list(ids[: len(start)]) != start:
            token = self._tokenizer.convert_ids_to_tokens(start[0])
            raise BadInput(f"{where}: begins with {list(ids[:1])}, not with {token} (id {start[0]}); {remedy}")
        found: list[tuple[int, ...]] = []
        turn: list[int] = []
        for id in ids[len(start) :]:
            if id == end:
                found.append(tuple(turn))
                turn = []
            elif id in self._special:
                stats.special_ids += 1
            else:
                turn.append(id)
        stats.cut_turns += bool(turn)  # without an end of turn: the model would learn to end where it was cut
        stats.empty_turns += sum(not turn for turn in found)
        return [turn for turn in found if turn]

    def decode(self, conversations: Sequence[list[tuple[int, ...]]]) -> Iterator[Conversation]:
        """Conversations of ids with their text."""
        turns = [list(turn) for conversation in conversations for turn in conversation]
        decode = self._tokenizer.backend_tokenizer.decode_batch
        decoded = decode(turns, skip_special_tokens=False) if turns else []
        unknown = self._unknown or "\ufffd"
        texts = (clean(text.replace(unknown, "\ufffd"), Cleaned()) for text in decoded)
        for conversation in conversations:
            yield [Turn(next(texts), index % 2 == 1, ids=ids) for index, ids in enumerate(conversation)]


class _BoundedReader:
    """A file whose single reads are short: an opcode can ask for an argument of any length."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end of the file."""
        if not 0 <= size <= _MAX_BYTES:
            raise _NotLists("holds more than lists of token ids")
        return self._file.read(size)

    def readline(self) -> bytes:
        """The rest of the line, its end included."""
        line = self._file.readline(_MAX_BYTES + 1)
        return line if len(line) <= _MAX_BYTES else self.read(len(line))
