"""`compress chat` and `compress generate`: a conversation in the terminal, and texts drawn from a model."""

from chitchat_compress import chat as talking
from chitchat_compress.cli.console import show
from chitchat_compress.cli.parameters import Json, Model
from chitchat_compress.cli.verb import verb
from chitchat_compress.options import ChatOptions, GenerateOptions


@verb
def chat(model: Model, /, *, options: ChatOptions | None = None, as_json: Json = False) -> None:
    """A conversation in the terminal."""
    replies = talking.load(model, options=options, announce=True).talk()
    if as_json:
        show({"model": model, "replies": replies}, as_json)


@verb
def generate(model: Model, /, *, options: GenerateOptions | None = None, as_json: Json = False) -> None:
    """Replies to a prompt; without one, conversations out of nothing, as GPT-2's own sampler draws them."""
    options = options or GenerateOptions()
    bot, texts = talking.load(model, options=options), []
    for number in range(options.samples):
        texts.append(bot.sample(options.prompt, number))
        print(texts[-1], flush=True)
    if as_json:
        show({"texts": texts}, as_json)
