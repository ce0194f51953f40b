"""`python -m bench.peers.convert PEER FORMAT SOURCE OUT THREADS`: convert a model for a peer, in its own environment.

PEER is the address of its descriptor (`bench.models.kind.RuntimeKind.address`). OUT is complete or absent.
"""

import shutil
import sys
from pathlib import Path

from bench.models.kind import find_kind
from bench.peers.descriptor import Peer


def main(address: str, weight_format: str, source: str, out: str, threads: str) -> None:
    """Write the peer's files."""
    peer = find_kind(address)
    assert isinstance(peer, Peer), f"{address} is no peer"
    assert peer.convert is not None, f"{peer.name} loads its source as it is"
    partial = Path(f"{out}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    peer.convert(Path(source), partial, weight_format, int(threads))
    partial.rename(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
