"""A data set in the ids of a trimmed tokenizer, so that a model whose vocabulary was cut can be trained on it.

The text of a data set is not stored, and need not be: a turn all of whose tokens stay has them again under new ids
(`compress.prune.vocabulary` says why). The others are spelled anew: byte-level BPE by decoding and encoding the turn,
which is exact for text; WordPiece word by word, since its decoder loses spaces, and an unknown word stays unknown.
Split, order, turns, replies, the loss mask and bytes of text stay as they are, so bits per byte can be compared, as
long as no more words are unknown than before, since an unknown token is easy to predict: a share of them that grew past
1 % is told.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray
from tokenizers.models import WordPiece
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from chitchat.data.builder import FEATURES, SPLITS, save_split, split_writer
from chitchat.data.dataset import ChatData, open_dataset
from chitchat.data.figures import Counter, split_figures
from chitchat.dialogue import Dialogue, encode_text
from chitchat.formats.tokenizer_files import save_tokenizer
from chitchat.lineage import Stage, write_lineage
from chitchat.system.folder import OUR_FILES, staged_folder

_ROWS_AT_ONCE = 1000
_UNKNOWN_LIMIT = 0.01


def retokenize(data: ChatData, tokenizer: PreTrainedTokenizerFast, folder: Path) -> ChatData:
    """Write the conversations of `data` in the ids of `tokenizer` into the data set `folder`, and open it.

    `tokenizer` is that of `data` with tokens left out (`trim_tokenizer`). The same input gives the same bytes, and with
    them the same identity, which is not that of `data`. An earlier data set at `folder` is replaced. Raises
    `ValueError` for a tokenizer that lacks a special token of the dialogue format or has a token that `data` has not.
    """
    speller = TokenRemapper(data.tokenizer, tokenizer)
    dialogue = speller.dialogue(data.dialogue)
    with staged_folder(folder, "data") as staging:
        scratch = staging / "scratch"
        scratch.mkdir()
        counters = {}
        with tqdm(total=data.report["conversations"], desc="spelling", unit=" conversations", disable=None) as progress:
            for split in SPLITS:
                counters[split] = Counter()
                with split_writer(scratch / f"{split}.arrow") as writer:
                    for rows in _spelled(getattr(data, split), speller, data.dialogue, dialogue):
                        writer.write_table(rows)
                        counters[split].add(rows, dialogue)
                        progress.update(rows.num_rows)
                save_split(scratch / f"{split}.arrow", staging / split)
        shutil.rmtree(scratch)
        save_tokenizer(tokenizer, staging)
        report = _report(data, dialogue, len(tokenizer), speller, counters)
        text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
        (staging / OUR_FILES["data"]).write_text(text, encoding="utf-8")
        stage = Stage("retokenize", {"vocab_size": len(tokenizer)}, data.report["seed"], parent_sha256=data.identity)
        write_lineage(staging, stage, parent=data.path)
    if report["unknown_share"] > max(_UNKNOWN_LIMIT, data.report["unknown_share"]):
        print(
            f"warning: --vocab {len(tokenizer)}: {report['unknown_share']:.1%} of the tokens are unknown now "
            f"({data.report['unknown_share']:.1%} before); keep more of the vocabulary",
            file=sys.stderr,
        )
    return open_dataset(folder)


class TokenRemapper:
    """Turns from the ids of one tokenizer to those of the same one with tokens left out.

    `respelled` counts the turns that lost a token.
    """

    def __init__(self, old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast) -> None:
        self._old, self._new = old, new
        before, after = old.get_vocab(), new.get_vocab()
        if not after.keys() <= before.keys():
            raise ValueError(f"the tokenizer has tokens that are new: {sorted(after.keys() - before.keys())[:3]}")
        self._new_id = np.full(max(before.values()) + 1, -1, dtype=np.int64)
        for token, index in before.items():
            self._new_id[index] = after.get(token, -1)
        self._piece = {index: token for token, index in before.items()}
        self._model = new.backend_tokenizer.model
        self._word = lru_cache(1 << 16)(self._spell_word)
        self.respelled = 0

    def dialogue(self, old: Dialogue) -> Dialogue:
        """The dialogue format in new ids. Raises `ValueError` when one of its special tokens is gone."""

        def renumbered(value: Any) -> Any:
            if isinstance(value, list):
                return [renumbered(index) for index in value]
            if isinstance(value, int) and self._new_id[value] < 0:
                raise ValueError(f"the tokenizer lacks the special token {self._piece[value]!r}")
            return int(self._new_id[value]) if isinstance(value, int) else value

        return Dialogue.from_json({name: renumbered(value) for name, value in old.as_json().items()})

    def remap(self, turns: Sequence[NDArray[np.integer]]) -> list[list[int]]:
        """The ids of each turn, given as the old ids without the end of turn."""
        mapped = [self._new_id[turn] for turn in turns]
        lost = [index for index, ids in enumerate(mapped) if (ids < 0).any()]
        spelled = [ids.tolist() for ids in mapped]
        if isinstance(self._model, WordPiece):
            anew = [self._spell_words(turns[index]) for index in lost]
        else:
            decode = self._old.backend_tokenizer.decode
            texts = [decode(turns[index].tolist(), skip_special_tokens=False) for index in lost]
            anew = encode_text(self._new, texts) if texts else []
        for index, ids in zip(lost, anew, strict=True):
            spelled[index] = ids
        self.respelled += len(lost)
        return spelled

    def _spell_words(self, turn: NDArray[np.integer]) -> list[int]:
        """A WordPiece turn, the words that lost a piece spelled with the pieces that are left."""
        prefix = self._model.continuing_subword_prefix
        continues = [self._piece[index].startswith(prefix) for index in turn.tolist()]
        begins = [index for index, inside in enumerate(continues) if index and not inside]
        ids: list[int] = []
        for word in np.split(turn, begins):
            mapped = self._new_id[word]
            ids.extend(mapped.tolist() if (mapped >= 0).all() else self._word(tuple(word.tolist())))
        return ids

    def _spell_word(self, word: tuple[int, ...]) -> list[int]:
        prefix = self._model.continuing_subword_prefix
        first, *rest = (self._piece[index] for index in word)
        text = first + "".join(piece.removeprefix(prefix) for piece in rest)
        return [token.id for token in self._model.tokenize(text)]


def _spelled(rows: Dataset, speller: TokenRemapper, old: Dialogue, new: Dialogue) -> Iterator[pa.Table]:
    """The rows in new ids, some at a time; the columns that hold no ids are passed on."""
    counted = "counts" in rows.column_names  # an older data set has no mask: all turns count
    for batch in rows.with_format("arrow").iter(_ROWS_AT_ONCE):
        lengths = batch.column("turn_lengths").to_pylist()
        turns = []
        for ids, of_row in zip(batch.column("input_ids"), lengths, strict=True):
            turns += old.turn_texts(ids.values.to_numpy(), of_row)
        spelled = iter(speller.remap(turns))
        by_row = [[next(spelled) for _ in of_row] for of_row in lengths]
        columns = {
            "input_ids": [new.encode(of_row) for of_row in by_row],
            "turn_lengths": [new.turn_lengths(of_row) for of_row in by_row],
            "replies": batch.column("replies"),
            "counts": batch.column("counts") if counted else [[True] * len(of_row) for of_row in lengths],
            "turn_bytes": batch.column("turn_bytes"),
        }
        yield pa.Table.from_pydict(columns, schema=FEATURES.arrow_schema)


def _report(
    data: ChatData, dialogue: Dialogue, vocab_size: int, speller: TokenRemapper, counters: Mapping[str, Counter]
) -> dict[str, Any]:
    """The report of `data` with the figures that hang on ids counted anew."""
    return {
        **data.report,
        **split_figures(**counters),
        "vocab_size": vocab_size,
        "dialogue": dialogue.as_json(),
        "respelled": {"turns": speller.respelled, "tokens_before": data.report["tokens"]},
    }
