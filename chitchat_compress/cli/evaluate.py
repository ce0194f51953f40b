"""`compress eval`: quality on held-out conversations."""

from bench.evaluate.options import EvalOptions
from chitchat_compress import api
from chitchat_compress.cli.console import show
from chitchat_compress.cli.parameters import Data, Json, Model
from chitchat_compress.cli.verb import verb


@verb
def evaluate(model: Model, /, *, data: Data, options: EvalOptions | None = None, as_json: Json = False) -> None:
    """Quality on held-out conversations and the health of its replies, through the runtime that ships."""
    show(api.evaluate(model, data, options=options), as_json)
