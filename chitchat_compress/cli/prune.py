"""`compress prune`: a checkpoint to a smaller one, or what a budget would buy."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from chitchat.errors import BadInput
from chitchat_compress import api
from chitchat_compress.cli.console import show, show_table
from chitchat_compress.cli.parameters import Checkpoint, Data, Json, Resume, out
from chitchat_compress.cli.verb import verb
from compress.prune.options import PruneOptions


@verb
def prune(
    checkpoint: Checkpoint,
    /,
    *,
    data: Data,
    out: Annotated[Path | None, out("the smaller checkpoint (not with --plan)")] = None,
    plan: Annotated[bool, Parameter(help="Print what the budget buys, and do nothing.", show_default=False)] = False,
    options: PruneOptions | None = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Checkpoint → smaller checkpoint: cut, refitted, and healed by distillation from the unpruned one."""
    if plan:
        figures = api.plan_pruning(checkpoint, data, options=options)
        show_table(figures["candidates"])
        show(figures, as_json)
        return
    if out is None:
        raise BadInput("--out: say where the smaller checkpoint goes, or --plan to see what the budget buys")
    show(api.prune(checkpoint, data, out, options=options, resume=resume).figures, as_json)
