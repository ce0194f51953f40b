"""`compress info`: what a model is."""

from chitchat_compress import api
from chitchat_compress.cli.console import show
from chitchat_compress.cli.parameters import Json, Model
from chitchat_compress.cli.verb import verb
from chitchat_compress.options import InfoOptions


@verb
def info(model: Model, /, *, options: InfoOptions | None = None, as_json: Json = False) -> None:
    """What a model is: shape, parameters, bytes, dialogue format, lineage."""
    show(api.info(model, options=options, announce=True), as_json)
