"""`compress chat`: a conversation in the terminal."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from chitchat_compress import chat as talking
from chitchat_compress.cli.console import show
from chitchat_compress.cli.parameters import Json, Model
from chitchat_compress.cli.verb import verb
from chitchat_compress.options import ChatOptions


@verb
def chat(
    model: Model,
    /,
    *,
    save: Annotated[Path | None, Parameter(help="File that each exchange is appended to, as a line of JSON.")] = None,
    quiet: Annotated[bool, Parameter(help="No line of figures after a reply.", show_default=False)] = False,
    options: ChatOptions | None = None,
    as_json: Json = False,
) -> None:
    """A conversation in the terminal."""
    if save is not None:
        talking.file_to_save(save)  # is looked at before the model is loaded
    replies = talking.load(model, options=options, announce=True).talk(save, quiet)
    if as_json:
        show({"model": model, "replies": replies}, as_json)
