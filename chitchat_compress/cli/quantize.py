"""`compress quantize`: a checkpoint to one of integers."""

from pathlib import Path
from typing import Annotated

from chitchat_compress import api
from chitchat_compress.cli.console import show
from chitchat_compress.cli.parameters import Checkpoint, Data, Json, Resume, out
from chitchat_compress.cli.verb import verb
from compress.quantize.options import QuantizeOptions


@verb
def quantize(
    checkpoint: Checkpoint,
    /,
    *,
    data: Data,
    out: Annotated[Path, out("the quantized checkpoint")],
    options: QuantizeOptions | None = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Checkpoint → checkpoint of blockwise integers, checked on held-out conversations."""
    show(api.quantize(checkpoint, data, out, options=options, resume=resume).figures, as_json)
