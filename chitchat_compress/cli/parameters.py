"""Options and arguments that several verbs of the front door share, as Typer reads them."""

from pathlib import Path
from typing import Annotated, Any

import typer

Seed = Annotated[int, typer.Option(help="Seed of everything random.", min=0)]
MaybeSeed = Annotated[
    int | None, typer.Option("--seed", help="Seed of the sampling (default: another each time).", min=0)
]
Unused = Annotated[int, typer.Option("--seed", help="As every verb; nothing is random here.", min=0)]
Json = Annotated[bool, typer.Option("--json", help="Make the last line of stdout one JSON object with the figures.")]
Model = Annotated[str, typer.Argument(help="Checkpoint, quantized checkpoint, bundle, or hub id.")]
Checkpoint = Annotated[str, typer.Argument(help="Checkpoint folder or hub id.")]
DataOption = Annotated[Path, typer.Option("--data", help="Data set made by `compress data`.")]
MaybeData = Annotated[Path | None, typer.Option("--data", help="Data set made by `compress data`.")]
Threads = Annotated[int | None, typer.Option(help="Threads of the runtime (default: the cores this process may use).")]
Device = Annotated[
    str | None, typer.Option(help="cpu or cuda (default: cuda where the bundle and the machine have it, else cpu).")
]
PortablePython = Annotated[
    str | None,
    typer.Option(help="The interpreter that has optimum (default: PORTABLE_PYTHON, or that of make portable)."),
]
DialogueFamily = Annotated[
    str | None, typer.Option("--dialogue", help="Format of a checkpoint that names none: chitchat or dialogpt.")
]
Tokenizer = Annotated[
    str | None,
    typer.Option("--tokenizer", help="Vocabulary of a checkpoint that holds none: a vocab.txt, a folder or a hub id."),
]
Temperature = Annotated[float, typer.Option(help="0 always takes the likeliest token.")]
TopK = Annotated[int, typer.Option(help="Draw from the k likeliest tokens; 0: from all.")]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest tokens that hold this share.")]
MinP = Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest one; 0: none.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1: what the bot said becomes less likely.")]
NoRepeatNgram = Annotated[int, typer.Option(help="Never this many tokens in a row twice in a reply; 0: no ban.")]
MaxTokens = Annotated[int | None, typer.Option(help="Score at most this many held-out tokens (default: all).", min=1)]


def Out(what: str) -> Any:  # noqa: N802 - stands where a type stands
    """The `--out` option of a verb that writes `what`."""
    return typer.Option("--out", help=f"Folder for {what}; complete or absent.")
