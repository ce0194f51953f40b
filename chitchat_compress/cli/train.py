"""`compress train`: a data set to a teacher."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from chitchat.training.options import TrainOptions
from chitchat_compress import api
from chitchat_compress.cli.console import show
from chitchat_compress.cli.parameters import Json, Resume, out
from chitchat_compress.cli.verb import verb


@verb
def train(
    data: Annotated[Path, Parameter(help="Data set made by `compress data`.")],
    /,
    *,
    out: Annotated[Path, out("the checkpoint")],
    options: TrainOptions | None = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Data set → fine-tuned GPT-2 (the teacher)."""
    show(api.train(data, out, options=options, resume=resume).figures, as_json)
