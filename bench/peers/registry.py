"""The peers that there are, and what `--peers` asks for of them.

A new peer is a module in this folder with a descriptor in its `KINDS`, its name in `MODULES` here, and its packages in
the extra `peers` of pyproject.toml. `register` adds one that stands elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.peers import ctranslate2, genai, llama_cpp, openvino, optimum, torch_fp16, torch_int8, torch_no_cache
from bench.peers.descriptor import Peer
from chitchat.errors import BadInput

MODULES = (torch_no_cache, torch_int8, torch_fp16, optimum, llama_cpp, ctranslate2, openvino, genai)
PEERS: dict[str, Peer] = {peer.name: peer for module in MODULES for peer in module.KINDS}


def register(peer: Peer) -> None:
    """Let `--peers` name a peer. The module of its class, which holds it in `KINDS`, is imported where it runs."""
    PEERS[peer.name] = peer


@dataclass(frozen=True)
class PeerRequest:
    """A row that was asked for: a peer in one of its weight formats."""

    peer: Peer
    weight_format: str

    @property
    def name(self) -> str:
        """As tables show it."""
        name = self.peer.name if len(self.peer.weight_formats) == 1 else f"{self.peer.name} {self.weight_format}"
        return name if self.peer.device == "cpu" else f"{name} on {self.peer.device}"

    def at_full_precision(self) -> "PeerRequest | None":
        """The same peer at full precision; None where it has none."""
        precision = self.peer.full_precision
        return None if precision is None else PeerRequest(self.peer, precision)


def read_peers(value: str | None, devices: Sequence[str] = ("cpu",)) -> list[PeerRequest]:
    """What `--peers` names: peers (all their formats) or `peer:weight_format`, separated by commas.

    `all` are those of the `devices`. Raises `BadInput`.
    """
    if not value:
        return []
    on_devices = [name for name, peer in PEERS.items() if peer.device in ("cpu", *devices)]
    requests: list[PeerRequest] = []
    for word in on_devices if value == "all" else [word.strip() for word in value.split(",")]:
        name, _, weight_format = word.partition(":")
        if name not in PEERS:
            raise BadInput(f"--peers {word}: there is no such peer; give all, or some of {', '.join(PEERS)}")
        peer = PEERS[name]
        if weight_format and weight_format not in peer.weight_formats:
            raise BadInput(
                f"--peers {word}: {name} has no form {weight_format}; give one of {', '.join(peer.weight_formats)}"
            )
        formats = [weight_format] if weight_format else peer.weight_formats
        requests += [PeerRequest(peer, weight_format) for weight_format in formats]
    return list(dict.fromkeys(requests))
