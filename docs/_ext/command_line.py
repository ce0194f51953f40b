"""The directive `{command-line}`: what every verb answers to `--help`, so that the page says what the program does."""

import os
import subprocess
import sys
from pathlib import Path

from docutils import nodes
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
PLAIN = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "PYTHONPATH": str(ROOT)}


def help_of(*arguments: str) -> str:
    """What `compress ARGUMENTS --help` prints, 100 columns wide."""
    command = [sys.executable, "-m", "chitchat_compress", *arguments, "--help"]
    text = subprocess.run(command, env={**os.environ, **PLAIN}, capture_output=True, text=True, check=True).stdout
    lines = [line.rstrip() for line in text.replace("python -m chitchat_compress", "compress").splitlines()]
    return "\n".join(lines).strip("\n")


def verbs() -> list[str]:
    """The verbs of the command line, in its order."""
    from chitchat_compress.cli.app import app

    return [command.name or command.callback.__name__ for command in app.registered_commands]


class CommandLine(SphinxDirective):
    """One section a verb."""

    def run(self) -> list[nodes.Node]:
        return [self._section(verb) for verb in verbs()]

    def _section(self, verb: str) -> nodes.section:
        text = help_of(verb)
        section = nodes.section("", nodes.title("", f"compress {verb}"), ids=[f"compress-{verb}"])
        section += nodes.literal_block(text, text, language="text")
        self.state.document.note_implicit_target(section)
        return section


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("command-line", CommandLine)
    for name in ("txt", "csv", "tsv", "jsonl"):  # examples of corpora; tests read them by these names
        app.add_lexer(name, TextLexer)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
