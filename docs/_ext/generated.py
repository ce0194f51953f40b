"""Directives for what the program knows of itself: `{command-line}`, its options, and `{report-row}`, its figures."""

import re

from docutils import nodes
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class CommandLine(SphinxDirective):
    """One section a command."""

    def run(self) -> list[nodes.Node]:
        from chitchat_compress.cli.app import command_page

        page = command_page(2).replace("python -m chitchat_compress ", "compress ")
        page = page[page.index("### compress ") :]  # what is before it lists the commands
        page = re.sub(r"<(\w+)>", r"`<\1>`", page)  # Markdown would take it for HTML
        return self.parse_text_to_nodes(page, allow_section_headings=True)


class ReportRow(SphinxDirective):
    """A table of the figures of a row; intervals, which many of them have, are left out."""

    def run(self) -> list[nodes.Node]:
        from bench.report.row import FIGURES

        lines = ["| field | column | unit | meaning |", "| --- | --- | --- | --- |"]
        for name, figure in FIGURES.items():
            if not name.endswith("_interval"):
                meaning = figure.meaning.replace("|", "\\|")
                lines.append(f"| `{name}` | {figure.title} | {figure.unit} | {meaning} |")
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("command-line", CommandLine)
    app.add_directive("report-row", ReportRow)
    for name in ("txt", "csv", "tsv", "jsonl"):  # examples of corpora; tests read them by these names
        app.add_lexer(name, TextLexer)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
