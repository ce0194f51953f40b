"""What a data set is asked for."""

from dataclasses import dataclass

from chitchat.options import DIALOGUE, SEED, Dialogues, Options, option


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """How conversations become a data set: see `chitchat.data.builder.build_dataset`."""

    tokenizer: str | None = option(
        None,
        "Checkpoint, hub id or BERT vocab.txt (default: train one).",
        group="Tokenizer",
        takes=("checkpoint", "quantized", "data"),
    )
    vocab_size: int = option(
        4096, "Tokens of a tokenizer trained here (byte-level BPE).", group="Tokenizer", unit="tokens", ge=1
    )
    dialogue: Dialogues | None = option(None, **DIALOGUE, group="Tokenizer")
    validation: str | float = option(
        0.05, "Share of conversations held out, or a corpus held out whole.", unit="share of the conversations"
    )
    columns: str | None = option(
        None,
        "Columns of .csv, .tsv and hf: by name or number; the turns in order (question,answer), or "
        "conversation=id,speaker=who,text=said.",
    )
    seed: int = option(0, **SEED)
