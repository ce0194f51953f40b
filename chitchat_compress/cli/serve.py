"""`compress serve`: a bundle over HTTP."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from chitchat_compress import api
from chitchat_compress.cli.verb import verb
from chitchat_compress.options import ServeOptions


@verb
def serve(
    bundle: Annotated[Path, Parameter(help="Bundle made by `compress export`.")],
    /,
    *,
    options: ServeOptions | None = None,
    as_json: Annotated[
        bool, Parameter(name="--json", help="Print one JSON object, url and model, once it serves.", show_default=False)
    ] = False,
) -> None:
    """OpenAI-compatible HTTP server over a bundle; needs no torch."""
    api.serve(bundle, options=options, as_json=as_json)
