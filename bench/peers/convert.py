"""`python -m bench.peers.convert PEER FORM SOURCE OUT THREADS`: convert a model for a peer, in that peer's environment.

OUT is complete or absent.
"""

import importlib
import shutil
import sys
from pathlib import Path

from bench.models.runtimes import KINDS


def main(peer: str, weight_format: str, source: str, out: str, threads: str) -> None:
    """Write the peer's files."""
    module = importlib.import_module(f"bench.{KINDS[peer].module}")
    partial = Path(f"{out}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    module.convert(Path(source), partial, weight_format, int(threads))
    partial.rename(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
