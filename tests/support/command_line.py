"""The command line in this process: what the shell would get, without a new interpreter for each case."""

import signal
import sys

import pytest

from chitchat_compress.cli import app


def type_in(*arguments: object, program: str = "compress") -> int:
    """The exit code of `compress ARGUMENTS`. The handler of SIGTERM is put back afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [program, *map(str, arguments)])
            with pytest.raises(SystemExit) as left:
                app.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    return int(left.value.code or 0)
