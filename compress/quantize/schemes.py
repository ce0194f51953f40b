"""Where how many bits go: the schemes, and the grid of every matrix under one.

`w8`: 8-bit integers everywhere. `w4`: 4 bits in the linear layers and 8 in the tables, since a 4-bit table of tokens
triples the loss for a small gain in size. `w8a8`: 8-bit weights and 8-bit activations in the linear layers, for integer
products, and w8's tables. `auto` (`compress.quantize.allocation`): w4's and w8's grids side by side.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from chitchat.architectures.registry import architecture_of
from compress.quantize.channelwise import KERNEL
from compress.quantize.checkpoint import QUANT_METHOD
from serve.geometry import Geometry

MIN_BLOCK = 16


@dataclass(frozen=True)
class Scheme:
    """Bits of the linear layers and of the tables (token and position embeddings, an untied head).

    `block_size`: how many weights share a scale unless the user says. Larger is faster and smaller, and at 8 bits loses
    next to nothing; at 4 bits it does. `static_inputs`: the linear layers round their inputs too, to 8 bits by ranges
    known beforehand.
    """

    bits: int
    table_bits: int
    block_size: int
    static_inputs: bool = False


SCHEMES = {"w8": Scheme(8, 8, 128), "w8a8": Scheme(8, 8, 128, static_inputs=True), "w4": Scheme(4, 8, 64)}


@dataclass(frozen=True)
class Grid:
    """How one matrix is stored: blocks of `bits` bits, or (`static_inputs`) a scale an output channel. `table` says
    that it is looked up or gives logits, and is no linear layer."""

    bits: int
    block_size: int
    static_inputs: bool = False
    table: bool = False


def grids(geometry: Geometry, scheme: str, block_size: int | None = None) -> dict[str, Grid]:
    """The grid of every matrix, by module, in the model's order.

    `block_size` None takes the scheme's own, and a smaller one where that does not divide a matrix's rows.
    """
    known = SCHEMES[scheme]
    size = block_size or known.block_size
    sizes = fitting_blocks(geometry, size) if block_size is None else {}
    found = {}
    for matrix in architecture_of(geometry).matrices(geometry):
        bits, static = (known.table_bits, False) if matrix.table else (known.bits, known.static_inputs)
        found[matrix.module] = Grid(bits, sizes.get(matrix.module, size), static, matrix.table)
    return found


def mixed_grids(geometry: Geometry, low: Collection[str], block_size: int | None = None) -> dict[str, Grid]:
    """w8's grids, with 4 bits in blocks of w4's size in the modules `low`."""
    four = SCHEMES["w4"].block_size if block_size is None else block_size
    sizes = fitting_blocks(geometry, four) if block_size is None else {}
    found = grids(geometry, "w8", block_size)
    return found | {name: replace(found[name], bits=4, block_size=sizes.get(name, four)) for name in low}


def fitting_blocks(geometry: Geometry, block_size: int) -> dict[str, int]:
    """Block sizes of the modules whose rows `block_size` does not divide: the largest half, quarter, … that does.

    Padding would be stored and multiplied. A row that no block of at least 16 divides keeps `block_size` and is padded.
    """
    sizes = {}
    for matrix in architecture_of(geometry).matrices(geometry):
        size = block_size
        while matrix.columns % size and size > MIN_BLOCK:
            size //= 2
        if size != block_size and matrix.columns % size == 0:
            sizes[matrix.module] = size
    return sizes


def quantization_config(scheme: str, method: str, chosen: Mapping[str, Grid]) -> dict[str, Any]:
    """What `config.json` says of it; `compress.quantize.checkpoint` describes the fields."""
    linears = [grid for grid in chosen.values() if not grid.table]
    tables = [grid for grid in chosen.values() if grid.table]
    sizes = {name: grid.block_size for name, grid in chosen.items() if not grid.static_inputs}
    common = Counter(sizes.values()).most_common(1)[0][0]
    others = {name: size for name, size in sizes.items() if size != common}
    return {
        "quant_method": QUANT_METHOD,
        "scheme": scheme,
        "method": method,
        "bits": min(grid.bits for grid in linears),
        "table_bits": min(grid.bits for grid in tables),
        "block_size": common,
        "symmetric": True,
        **({"block_sizes": others} if others else {}),
        **({"activation_bits": 8, "kernel": KERNEL} if any(grid.static_inputs for grid in linears) else {}),
    }
