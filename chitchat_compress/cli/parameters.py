"""Arguments that several commands share, as cyclopts reads them."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

Json = Annotated[
    bool,
    Parameter(name="--json", help="Make the last line of stdout one JSON object with the figures.", show_default=False),
]
Model = Annotated[str, Parameter(help="Checkpoint, quantized checkpoint, bundle, or hub id.")]
Checkpoint = Annotated[str, Parameter(help="Checkpoint folder or hub id.")]
Data = Annotated[Path, Parameter(help="Data set made by `compress data`.")]
Resume = Annotated[bool, Parameter(help="Go on where a killed run of the same options stopped.", show_default=False)]


def out(what: str) -> Any:
    """The `--out` option of a command that writes `what`."""
    return Parameter(help=f"Folder for {what}; complete or absent.")
