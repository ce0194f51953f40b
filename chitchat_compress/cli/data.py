"""`compress data`: conversations to a data set."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from chitchat.data.options import DataOptions
from chitchat_compress import api
from chitchat_compress.cli.console import show
from chitchat_compress.cli.parameters import Json, out
from chitchat_compress.cli.verb import verb


@verb
def data(
    corpora: Annotated[
        list[str],
        Parameter(
            help="Files (.txt .json .jsonl .csv .tsv .pkl, each also .gz or .zst), installed corpora (byu, "
            "chatterbot:<language>) or data sets (hf:NAME[:split])."
        ),
    ],
    /,
    *,
    out: Annotated[Path, out("the data set")],
    options: DataOptions | None = None,
    as_json: Json = False,
) -> None:
    """Conversations → tokenised data set, split by conversation."""
    show(api.build_dataset(corpora, out, options=options).figures, as_json)
