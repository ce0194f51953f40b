"""`compress run`: the whole pipeline of a recipe."""

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from chitchat.errors import BadInput
from chitchat_compress import api
from chitchat_compress.cli.console import show
from chitchat_compress.cli.parameters import Json, out
from chitchat_compress.cli.verb import verb
from chitchat_compress.options import RunOptions


@verb
def run(
    recipe: Annotated[Path | None, Parameter(help="Recipe (default: the demo that ships with compress).")] = None,
    /,
    *,
    out: Annotated[Path | None, out("everything the recipe makes")] = None,
    schema: Annotated[
        bool, Parameter(help="Print the JSON Schema of recipes, for editors, and do nothing.", show_default=False)
    ] = False,
    options: RunOptions | None = None,
    as_json: Json = False,
) -> None:
    """The whole pipeline of a recipe; finished stages are not run again."""
    if schema:
        from chitchat_compress.pipeline.schema import recipe_schema

        print(json.dumps(recipe_schema(), indent=1, ensure_ascii=False))
        return
    if out is None:
        raise BadInput("--out: say where everything goes that the recipe makes")
    show(api.run_recipe(recipe, out, options=options, show_report=_show_report).figures, as_json)


def _show_report(report: dict[str, Any]) -> None:
    from bench.report.document import print_table

    print()
    print_table(report)
