"""The command line `compress`: a table of its commands, each in a module of its own that is imported when it is named.

A command reads its options from the dataclasses of the packages, calls one function of the Python API, and prints its
figures. Nothing imports this module.
"""

import sys
from pathlib import Path

from cyclopts import App, Parameter

from chitchat_compress.cli.console import call, quiet_libraries, show_log
from chitchat_compress.cli.verb import OPTIONS

# name: module and function below chitchat_compress.cli, and what `--help` says of it
COMMANDS = {
    "data": ("data:data", "Conversations → tokenised data set, split by conversation."),
    "train": ("train:train", "Data set → fine-tuned GPT-2 (the teacher)."),
    "prune": ("prune:prune", "Checkpoint → smaller checkpoint, healed by distillation."),
    "quantize": ("quantize:quantize", "Checkpoint → checkpoint of blockwise integers."),
    "export": ("export:export", "Checkpoint → ONNX bundle, once it proved equal to torch."),
    "eval": ("evaluate:evaluate", "Quality on held-out conversations and the health of replies."),
    "bench": ("bench:bench", "Latency, memory and quality of models, side by side."),
    "chat": ("chat:chat", "A conversation in the terminal."),
    "generate": ("generate:generate", "Replies to prompts, texts that go on, or conversations out of nothing."),
    "serve": ("serve:serve", "OpenAI-compatible HTTP server over a bundle; needs no torch."),
    "info": ("info:info", "What a model is: shape, parameters, bytes, dialogue format, lineage."),
    "run": ("run:run", "The whole pipeline of a recipe; finished stages are not run again."),
}


def make_app(program: str = "compress") -> App:
    """The command line as cyclopts has it; `program` is what was typed to come here."""
    app = App(
        name=program,
        help="Conversations in, a small fast chat model on an edge box out: quality and speed measured at every step.",
        version=_version,
        default_parameter=Parameter(negative=()),
        group_parameters=OPTIONS,
        help_format="plaintext",
        print_error=False,
        exit_on_error=False,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    for number, (name, (target, line)) in enumerate(COMMANDS.items()):
        app.command(f"chitchat_compress.cli.{target}", name=name, help=line, sort_key=number)
    app.register_install_completion_command(help="Complete commands and options in this shell from now on.")
    return app


def _program() -> str:
    return "python -m chitchat_compress" if Path(sys.argv[0]).name == "__main__.py" else "compress"


def command_page(heading_level: int = 1) -> str:
    """The page of the documentation that tells every command and option, in Markdown."""
    return make_app().generate_docs("markdown", heading_level=heading_level, usage_name="compress")


def _version() -> str:
    from importlib.metadata import version

    return version("chitchat-compress")


def main() -> None:
    """Entry point of the console script `compress` and of `python -m chitchat_compress`."""
    from serve.quiet import silence

    silence()
    quiet_libraries()
    show_log()
    program = _program()
    call(lambda: make_app(program)(sys.argv[1:]), program)
