"""`compress export`: a checkpoint to a bundle."""

from pathlib import Path
from typing import Annotated

from chitchat_compress import api
from chitchat_compress.cli.console import show
from chitchat_compress.cli.parameters import Checkpoint, Data, Json, out
from chitchat_compress.cli.verb import verb
from export.options import ExportOptions


@verb
def export(
    checkpoint: Checkpoint,
    /,
    *,
    out: Annotated[Path, out("the bundle")],
    data: Data | None = None,
    options: ExportOptions | None = None,
    as_json: Json = False,
) -> None:
    """Checkpoint → ONNX graph with an in-place KV cache → bundle, once it proved equal to torch."""
    show(api.export(checkpoint, out, data=data, options=options).figures, as_json)
