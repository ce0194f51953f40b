"""Making a data set folder in two streaming passes over the corpora.

The first pass (`chitchat.data.index`) decides the split and samples text to train a tokenizer on; the second encodes in
batches and writes Arrow. The same input and seed give the same bytes: the folder holds no path, time or random
fingerprint.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, Value, disable_progress_bars, enable_progress_bars
from datasets import List as ListOf
from datasets.arrow_writer import ArrowWriter
from datasets.table import MemoryMappedTable
from datasets.utils import are_progress_bars_disabled
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from chitchat.data.columns import Columns, parse_columns
from chitchat.data.conversation import Conversation, ReadStats
from chitchat.data.corpora import Corpus, open_corpora
from chitchat.data.figures import Counter, announce, report_figures
from chitchat.data.index import SAMPLE_BYTES, CorpusIndex, conversation_key, index_corpora, open_validation
from chitchat.data.options import DataOptions
from chitchat.dialogue import Dialogue, dialogue_of, encode_text
from chitchat.errors import BadInput, WorkFailed
from chitchat.formats.tokenizer_files import save_tokenizer
from chitchat.lineage import Stage, write_lineage
from chitchat.system.folder import OUR_FILES, check_output, staged_folder
from chitchat.tokenizer import check_vocab_size, open_tokenizer, train_tokenizer
from serve.digest import sha256

SPLITS = ("train", "validation")
FEATURES = Features(
    {
        "input_ids": ListOf(Value("int32")),
        "turn_lengths": ListOf(Value("int32")),
        "replies": ListOf(Value("bool")),
        "counts": ListOf(Value("bool")),
        "turn_bytes": ListOf(Value("int32")),
    }
)
_BATCH_CONVERSATIONS = 1000
_BATCH_CHARACTERS = 1 << 20


def build_dataset(corpora: Sequence[str], out: Path, options: DataOptions | None = None) -> dict[str, Any]:
    """Make the data set folder `out` and return its report (the content of data.json).

    `corpora` are files or names; the options' `tokenizer` is a vocab.txt, a folder or a hub id; without one a
    byte-level BPE of `vocab_size` is trained. `validation` is the share of the distinct conversations to hold out, or a
    corpus to hold out. `columns` names the columns of tables and of `hf:` data sets (`chitchat.data.columns`). Raises
    `BadInput`.
    """
    out, options = Path(out), options or DataOptions()
    if options.tokenizer is None:
        check_vocab_size(options.vocab_size, options.dialogue or "chitchat")
    named = parse_columns(options.columns) if options.columns is not None else None
    held = open_validation(options.validation)
    check_output(out, "data")
    opened = open_corpora(corpora)
    fast = open_tokenizer(options.tokenizer, options.dialogue) if options.tokenizer is not None else None
    opened, held = _readable(opened, held, named, fast)
    found = index_corpora(opened, held, options.seed, sample_bytes=0 if fast else SAMPLE_BYTES)
    with staged_folder(out, "data") as staging:
        if fast is None:
            fast = train_tokenizer(found.sample, options.vocab_size, options.dialogue or "chitchat")
            found.sample.clear()
        format_ = dialogue_of(fast)
        # The held-out corpus is first, so that its duplicates in the other corpora are the ones that are dropped.
        ordered = [held, *opened] if isinstance(held, Corpus) else opened
        figures = _write_splits(ordered, found, fast, format_, staging, options.seed)
        save_tokenizer(fast, staging)
        report = {
            "format": 1,
            "corpora": [_named(corpus) for corpus in opened],
            **figures,
            "tokenizer": Path(options.tokenizer).name if options.tokenizer else "trained byte-level BPE",
            "vocab_size": len(fast),
            "dialogue": format_.as_json(),
            **({"validation_corpus": _named(held)} if isinstance(held, Corpus) else {"validation_share": held}),
            "seed": options.seed,
        }
        text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
        (staging / OUR_FILES["data"]).write_text(text, encoding="utf-8")
        # A share is recorded as the number that it is, also where it was given as a text.
        validation = options.validation if isinstance(held, Corpus) else held
        recorded = {"corpora": list(corpora), **asdict(options), "validation": validation}
        write_lineage(staging, Stage("data", recorded, options.seed))
    announce(report)
    return report


def _readable(
    opened: Sequence[Corpus], held: float | Corpus, columns: Columns | None, tokenizer: PreTrainedTokenizerFast | None
) -> tuple[list[Corpus], float | Corpus]:
    """The corpora with columns and tokenizer set; the first conversation of each has been read."""
    every = [corpus.read_by(columns, tokenizer) for corpus in opened]
    held = held.read_by(columns, tokenizer) if isinstance(held, Corpus) else held
    together = [*every, held] if isinstance(held, Corpus) else every
    if columns is not None and not any(corpus.tabular for corpus in together):
        raise BadInput("--columns: no corpus has columns; give a .csv, .tsv or hf:NAME, or leave the option out")
    for corpus in together:
        corpus.check()
    return every, held


def _named(corpus: Corpus) -> dict[str, str]:
    return {"name": corpus.name, "sha256": corpus.sha256()}


def _write_splits(
    corpora: Sequence[Corpus],
    found: CorpusIndex,
    tokenizer: PreTrainedTokenizerFast,
    dialogue: Dialogue,
    staging: Path,
    seed: int,
) -> dict[str, Any]:
    """The second pass: write both splits and return the figures of the report."""
    scratch = staging / "scratch"
    scratch.mkdir()
    counters = [Counter() for _ in SPLITS]
    with ExitStack() as opened:
        writers = [opened.enter_context(split_writer(scratch / f"{split}.arrow")) for split in SPLITS]
        for batch in _batches(_distinct(corpora, found, seed)):
            rows = encode_batch([conversation for _, conversation in batch], tokenizer, dialogue)
            held_out = np.array([held for held, _ in batch])
            for side, chosen in enumerate((~held_out, held_out)):
                part = rows.filter(pa.array(chosen))
                if part.num_rows:
                    writers[side].write_table(part)
                    counters[side].add(part, dialogue)
        _check_counted(dict(zip(SPLITS, counters, strict=True)))
    for split in SPLITS:
        save_split(scratch / f"{split}.arrow", staging / split)
    shutil.rmtree(scratch)
    return report_figures(found, *counters)


def _check_counted(counters: Mapping[str, Counter]) -> None:
    """Raise `BadInput` for a split in which no turn counts: there is nothing to learn, or nothing to measure."""
    for split, counter in counters.items():
        turns = counter.as_json()["turns"]
        if turns and counter.uncounted_turns == turns:
            raise BadInput(
                f"CORPUS: no turn of the {split} split counts in the loss, all {turns} have weight 0; give more "
                "conversations with turns of weight 1, or hold out others (--validation, --seed)"
            )


def _distinct(corpora: Sequence[Corpus], found: CorpusIndex, seed: int) -> Iterator[tuple[bool, Conversation]]:
    """`(held out, conversation)` of each distinct conversation."""
    seen = np.zeros(len(found.keys), dtype=bool)
    stats = ReadStats()
    with tqdm(total=found.stats.conversations, desc="encoding", unit=" conversations", disable=None) as progress:
        for corpus in corpora:
            for conversation in corpus.conversations(stats):
                progress.update()
                key = np.uint64(conversation_key(conversation, seed))
                rank = int(np.searchsorted(found.keys, key))
                if rank == len(found.keys) or found.keys[rank] != key:
                    raise WorkFailed(f"{corpus.name}: changed while it was read; run the command again")
                if not seen[rank]:
                    seen[rank] = True
                    yield bool(found.held_out[rank]), conversation
    if not seen.all():
        raise WorkFailed("a corpus changed while it was read; run the command again")


def _batches(conversations: Iterator[tuple[bool, Conversation]]) -> Iterator[list[tuple[bool, Conversation]]]:
    """Batches with a limit of conversations and of characters."""
    batch: list[tuple[bool, Conversation]] = []
    characters = 0
    for item in conversations:
        batch.append(item)
        characters += sum(len(turn.text) for turn in item[1])
        if len(batch) == _BATCH_CONVERSATIONS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def encode_batch(
    conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerFast, dialogue: Dialogue
) -> pa.Table:
    """The rows of some conversations, in the columns of `FEATURES`."""
    turns = [turn for conversation in conversations for turn in conversation]
    spelled = iter(encode_text(tokenizer, [turn.text for turn in turns if turn.ids is None]))
    encoded, turn_lengths = [], []
    for conversation in conversations:
        own = [next(spelled) if turn.ids is None else turn.ids for turn in conversation]
        encoded.append(dialogue.encode(own))
        turn_lengths.append(dialogue.turn_lengths(own))
    columns = {
        "input_ids": encoded,
        "turn_lengths": turn_lengths,
        "replies": [[turn.reply for turn in conversation] for conversation in conversations],
        "counts": [[turn.counts for turn in conversation] for conversation in conversations],
        "turn_bytes": [[len(turn.text.encode()) for turn in conversation] for conversation in conversations],
    }
    return pa.Table.from_pydict(columns, schema=FEATURES.arrow_schema)


@contextmanager
def split_writer(file: Path) -> Iterator[ArrowWriter]:
    """A writer of conversations (`FEATURES`) into an Arrow file, complete when the block ends without an error.

    After an error the file is closed here: the garbage collector would print a traceback for a full disk (Python 3.14).
    """
    writer = ArrowWriter(features=FEATURES, path=str(file))
    try:
        yield writer
        writer.finalize()
    except BaseException:
        with suppress(OSError):
            writer.close()
        raise


def save_split(scratch: Path, folder: Path) -> None:
    """Save an Arrow file of `FEATURES` in the format of `datasets`, with a fingerprint of its content."""
    rows = Dataset(
        MemoryMappedTable.from_file(str(scratch)), info=DatasetInfo(features=FEATURES), fingerprint=sha256(scratch)[:16]
    )
    shown = not are_progress_bars_disabled()
    disable_progress_bars()  # they are drawn even if stderr is not a terminal
    try:
        rows.save_to_disk(str(folder))
    finally:
        if shown:
            enable_progress_bars()
