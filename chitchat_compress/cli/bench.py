"""`compress bench`: models side by side, or two reports compared."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from bench.run.options import BenchOptions
from chitchat.errors import BadInput
from chitchat_compress import api
from chitchat_compress.cli.console import INTERRUPTED, show
from chitchat_compress.cli.parameters import Data, Json, out
from chitchat_compress.cli.verb import verb


@verb
def bench(
    models: Annotated[
        list[str] | None, Parameter(help="Checkpoints, quantized checkpoints, bundles or hub ids.")
    ] = None,
    /,
    *,
    out: Annotated[Path | None, out("the report")] = None,
    data: Data | None = None,
    compare: Annotated[
        tuple[Path, Path] | None, Parameter(help="Two report.json: what changed beyond noise; nothing is run.")
    ] = None,
    options: BenchOptions | None = None,
    as_json: Json = False,
) -> int:
    """Latency, memory and quality side by side, each model in its own process; the first one is the yardstick."""
    if compare is not None:
        from bench.report.compare import compare as run_comparison

        found = run_comparison(*compare)
        print("\n".join(found.lines()))
        show(found.as_json(), as_json)
        return 0
    if out is None:
        raise BadInput("--out: say where the report goes")
    from bench.report.document import print_table

    report = api.bench(models or [], out, data=data, options=options)
    print_table(report.figures)
    show({"out": str(out), "rows": report.rows}, as_json)
    return INTERRUPTED if report.figures["partial"] else 0
