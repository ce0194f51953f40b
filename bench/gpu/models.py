"""`python -m bench.gpu.models FOLDER`: the standard work as a checkpoint, and exported for the CPU and for CUDA.

Each bundle has both graphs: float32 for the CPU with float16 for CUDA, and 4-bit integers in both.
"""

import sys
from pathlib import Path

from bench.run.standard import WHOLE, make_checkpoint, make_integers
from chitchat.errors import ChitchatError
from export.options import ExportOptions
from export.stage import export

BUNDLES = {"whole": "fp32", "whole-w4": "w4"}


def make_models(folder: Path) -> None:
    """Make what is missing in `folder`."""
    make_checkpoint(folder, WHOLE)
    for name, scheme in BUNDLES.items():
        if not (folder / name).is_dir():
            source = folder / WHOLE if scheme == "fp32" else make_integers(folder, WHOLE, scheme)
            export(str(source), folder / name, options=ExportOptions(target="cpu+cuda"))


def main(folder: str) -> int:
    """Run from the command line; give the exit code."""
    try:
        make_models(Path(folder))
    except ChitchatError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
