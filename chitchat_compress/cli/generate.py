"""`compress generate`: texts drawn from a model, to read or as JSON lines."""

import json
import sys
from dataclasses import asdict
from typing import Annotated, Literal

from cyclopts import Parameter

from chitchat_compress import api
from chitchat_compress.cli.console import show
from chitchat_compress.cli.parameters import Json, Model
from chitchat_compress.cli.verb import verb
from chitchat_compress.options import GenerateOptions


@verb
def generate(
    model: Model,
    /,
    *,
    options: GenerateOptions | None = None,
    output: Annotated[
        Literal["text", "jsonl"],
        Parameter(
            name="--format", help="Texts to read, or a JSON object a line: prompt, reply, tokens, seed, logprobs."
        ),
    ] = "text",
    as_json: Json = False,
) -> None:
    """Replies to a turn, or a text that goes on; without a prompt, conversations out of nothing.

    With jsonl, logprobs are those of the reply's tokens in nats: of the model's own distribution, before temperature,
    penalties and filters. A seed that was not given is told on stderr, or in each JSON object.
    """
    from chitchat.errors import BadInput

    options = options or GenerateOptions()
    if as_json and output == "jsonl":
        raise BadInput("--json, --format jsonl: both are given; give one of them")
    if as_json and not options.samples:
        raise BadInput("--samples 0: has no end to print figures at; give --format jsonl in place of --json")
    drawn, texts = api.generate(model, options=options), []
    if output == "text" and options.seed is None:
        print(f"seed {drawn.seed}", file=sys.stderr, flush=True)
    for one in drawn:
        line = one.reply if output == "text" else json.dumps(asdict(one), ensure_ascii=False)
        sys.stdout.write(line + "\n")  # in one piece: Ctrl-C leaves complete lines
        sys.stdout.flush()
        if as_json:
            texts.append(one.reply)
    if as_json:
        show({"texts": texts}, as_json)
