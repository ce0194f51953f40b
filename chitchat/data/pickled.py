"""GPT2-chitchat's `train.pkl`: a pickled list of conversations, each a list of token ids (its `preprocess.py`).

A conversation is `[CLS] turn [SEP] turn [SEP]`, in the ids of the vocabulary that the file was made with. The ids are
taken as they are; their text is decoded only to know repetitions and to count bytes, with U+FFFD for an unknown token.
No unpickler runs: the operations are read one by one (`pickletools`, "Tools for pickle developers" of Python's
library), only those that lists of whole numbers need are known, and conversations are given as they become whole. So
nothing in the file can name a function, and memory does not grow with it.
"""

import pickletools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from chitchat.data.conversation import Conversation, ReadStats, Turn
from chitchat.dialogue import Dialogue, dialogue_of
from chitchat.errors import BadInput
from chitchat.text.archive import open_bytes
from chitchat.text.cleaning import Cleaned, clean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_NUMBERS = frozenset({"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"})
_NOTHING = frozenset({"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_REMEDY = "write it as plain lists: pickle.dump([[int(i) for i in ids] for ids in data], file)"
_PIECE_BYTES = 1 << 20
_BATCH = 256  # conversations whose text is decoded at once
_MAX_IDS = 1 << 23  # of a conversation, and of those that the pickler writes in one batch
_MAX_BYTES = 1 << 16  # of one argument: nothing that a list of ids needs is longer


def read_pickle(
    path: Path, stats: ReadStats, tokenizer: "PreTrainedTokenizerFast | None" = None
) -> Iterator[Conversation]:
    """Conversations of token ids of `tokenizer`.

    Raises `BadInput` without a tokenizer, for anything but lists of ids, and for ids of another vocabulary.
    """
    if tokenizer is None:
        raise BadInput(f"{path}: holds token ids; give --tokenizer, the vocab.txt (or checkpoint) that they are of")
    turns = _Turns(tokenizer, dialogue_of(tokenizer))
    batch: list[list[tuple[int, ...]]] = []
    for number, ids in enumerate(id_lists(path), 1):
        if ids is None:  # the same list object again
            stats.repeated_lists += 1
            continue
        batch.append(turns.cut(ids, f"{path}, conversation {number}", stats))
        if len(batch) == _BATCH:
            yield from turns.spelled(batch)
            batch = []
    yield from turns.spelled(batch)


def id_lists(path: Path) -> Iterator[list[int] | None]:
    """The lists of whole numbers in a pickled list, one after the other; None where one comes a second time.

    Raises `BadInput` for anything else, before it is loaded.
    """
    with open_bytes(path) as file:
        machine = _Lists(str(path))
        try:
            for operation, argument, _ in pickletools.genops(cast(IO[bytes], _Bounded(file, str(path)))):
                if operation.name in _NUMBERS:
                    machine.push_number(argument)
                else:
                    yield from machine.step(operation.name, argument)
        except BadInput:
            raise
        except (ValueError, AttributeError, UnicodeDecodeError, OverflowError) as error:
            reason = " ".join(str(error).split())[:80]
            raise BadInput(f"{path}: is no pickle, or cut short ({reason}); get it again") from error


class _Lists:
    """The part of the pickle machine that lists of lists of whole numbers need.

    The outer list is at the bottom of the stack and stays empty: what is appended to it is yielded instead.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._given = 0
        self._held = 0  # ids on the stack

    def step(self, operation: str, argument: Any) -> Iterator[list[int] | None]:
        """Do one operation but a number; give the conversations that it makes whole."""
        if operation in ("APPEND", "APPENDS"):
            yield from self._append(1 if operation == "APPEND" else None)
        elif operation == "EMPTY_LIST":
            self._push([])
        elif operation == "MARK":
            self._marks.append(len(self._stack))
        elif operation == "LIST":
            items = self._popped(None)
            self._push(items)
        elif operation in _GETS:
            self._push(None)
        elif operation == "STOP":
            if len(self._stack) != 1 or self._stack[0] != [] or self._marks:
                raise self._bad("is not a list of conversations")
        elif operation not in _NOTHING:
            raise self._bad(_what(operation, argument))

    def _push(self, value: Any) -> None:
        self._stack.append(value)
        if len(self._stack) + self._held > _MAX_IDS or len(self._marks) > 3:
            raise self._bad("is nested too deeply, or holds too much at once")

    def push_number(self, number: Any) -> None:
        """Take a number."""
        if isinstance(number, bool):
            raise self._bad("holds true or false where a token id belongs")
        if not 0 <= number < 1 << 31:
            shown = number if abs(number) < 1 << 64 else "a huge number"
            raise self._bad(f"holds {shown}, which is no token id")
        self._stack.append(number)
        if len(self._stack) > _MAX_IDS:
            raise self._bad(f"has more than {_MAX_IDS} ids in one conversation")

    def _popped(self, count: int | None) -> list[Any]:
        """The last item of the stack, or those above the last mark."""
        if (count is None and not self._marks) or (count and len(self._stack) < 2):
            raise self._bad("is damaged")
        begin = len(self._stack) - count if count else self._marks.pop()
        items = self._stack[begin:]
        del self._stack[begin:]
        return items

    def _append(self, count: int | None) -> Iterator[list[int] | None]:
        items = self._popped(count)
        if not self._stack or not isinstance(self._stack[-1], list):
            raise self._bad("is damaged")
        if len(self._stack) > 1:
            if not all(isinstance(item, int) for item in items):
                raise self._bad("holds lists within a conversation")
            self._stack[-1].extend(items)
            self._held += len(items)
            if self._held > _MAX_IDS:
                raise self._bad(f"has more than {_MAX_IDS} ids in one conversation")
            return
        for item in items:
            if isinstance(item, int):
                raise self._bad("is a list of ids, not a list of conversations")
            self._given += 1
            self._held -= len(item or ())
            yield item

    def _bad(self, what: str) -> BadInput:
        return BadInput(f"{self._name}, conversation {self._given + 1}: {what}; {_REMEDY}")


class _Turns:
    """Turns out of the ids of one vocabulary."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", dialogue: Dialogue) -> None:
        self._tokenizer, self._dialogue, self._size = tokenizer, dialogue, len(tokenizer)
        special = {*dialogue.banned_ids, *dialogue.start_ids} - {dialogue.unk_id, dialogue.end_of_turn_id}
        self._special = frozenset(special)
        self._unknown = None if dialogue.unk_id is None else tokenizer.convert_ids_to_tokens(dialogue.unk_id)

    def cut(self, ids: Sequence[int], where: str, stats: ReadStats) -> list[tuple[int, ...]]:
        """The turns of one conversation. Raises `BadInput` for ids that are not of this vocabulary."""
        start, end = list(self._dialogue.start_ids), self._dialogue.end_of_turn_id
        beyond = next((id for id in ids if id >= self._size), None)
        remedy = "give the --tokenizer that the file was made with"
        if beyond is not None:
            raise BadInput(f"{where}: id {beyond} is beyond the vocabulary of {self._size} tokens; {remedy}")
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
        stats.cut_turns += bool(turn)  # no end of turn: it would be taught to end where it was cut
        stats.empty_turns += sum(not turn for turn in found)
        return [turn for turn in found if turn]

    def spelled(self, conversations: Sequence[list[tuple[int, ...]]]) -> Iterator[Conversation]:
        """Conversations of ids with their text."""
        decode = self._tokenizer.backend_tokenizer.decode_batch
        turns = [list(turn) for conversation in conversations for turn in conversation]
        texts = iter(decode(turns, skip_special_tokens=False) if turns else [])
        for conversation in conversations:
            yield [Turn(self._text(next(texts)), index % 2 == 1, ids=ids) for index, ids in enumerate(conversation)]

    def _text(self, text: str) -> str:
        text = text if self._unknown is None else text.replace(self._unknown, "\ufffd")
        return clean(text, Cleaned())


class _Bounded:
    """A buffered file whose single reads are short: a pickle can ask for a string of any length."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._name = file, name
        self._buffer, self._at = b"", 0

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end."""
        if not 0 <= size <= _MAX_BYTES:
            raise BadInput(f"{self._name}: holds more than lists of token ids; {_REMEDY}")
        if self._at + size > len(self._buffer):
            self._fill()
        data = self._buffer[self._at : self._at + size]
        self._at += len(data)
        return data

    def readline(self) -> bytes:
        """What is left of the line, its end included."""
        self._fill()
        end = self._buffer.find(b"\n", self._at, self._at + _MAX_BYTES) + 1
        if not end and len(self._buffer) - self._at >= _MAX_BYTES:
            raise BadInput(f"{self._name}: holds more than lists of token ids; {_REMEDY}")
        return self.read((end or len(self._buffer)) - self._at)

    def _fill(self) -> None:
        """Have at least `_MAX_BYTES` waiting, or all that is left."""
        while len(self._buffer) - self._at < _MAX_BYTES and (piece := self._file.read(_PIECE_BYTES)):
            self._buffer, self._at = self._buffer[self._at :] + piece, 0


def _what(operation: str, argument: Any) -> str:
    """What an operation that is not allowed would do, for people."""
    if operation in ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2"):
        named = f" ({' '.join(str(argument).split())[:60]})" if isinstance(argument, str) else ""
        return f"asks to load objects of a program{named}, which may run code"
    if "TUPLE" in operation:
        return "holds a tuple"
    if "DICT" in operation or "SETITEM" in operation:
        return "holds a dict"
    if "TRUE" in operation or "FALSE" in operation:
        return "holds true or false where a token id belongs"
    if operation == "PERSID":
        return "is no pickle of lists (a zip archive, as torch.save writes?)"
    if "STRING" in operation or "UNICODE" in operation or "BYTE" in operation:
        return "holds text, or an object of a program (such as numpy's), where token ids belong"
    return "holds something else than lists of token ids"
