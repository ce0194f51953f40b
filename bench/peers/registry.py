"""The peers that there are, and what `--peers` asks for of them.

A new peer is a module in this folder with a descriptor in its `KINDS`, its name in `MODULES` here, and its packages in
the extra `peers` of pyproject.toml. `register` adds one that stands elsewhere.
"""

from collections.abc import Sequence

from bench.peers import ctranslate2, genai, llama_cpp, openvino, optimum, torch
from bench.peers.descriptor import Peer, PeerRequest
from chitchat.errors import BadInput

MODULES = (torch, optimum, llama_cpp, ctranslate2, openvino, genai)
PEERS: dict[str, Peer] = {peer.name: peer for module in MODULES for peer in module.KINDS}


def register(peer: Peer) -> None:
    """Let `--peers` name a peer. The module of its class, which holds it in `KINDS`, is imported where it runs."""
    PEERS[peer.name] = peer


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
        formats = PEERS[name].weight_formats
        if weight_format and weight_format not in formats:
            raise BadInput(f"--peers {word}: {name} has no form {weight_format}; give one of {', '.join(formats)}")
        requests += [PeerRequest(PEERS[name], form) for form in ([weight_format] if weight_format else formats)]
    return list(dict.fromkeys(requests))
