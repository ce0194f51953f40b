"""Where how many bits go: the schemes, and the grid of every matrix under one.

`w8`: 8-bit integers everywhere. `w4`: 4 bits in the linear layers and 8 in the tables, since a 4-bit table of tokens
triples the loss for a small gain in size. `w8a8`: 8-bit weights and 8-bit activations in the linear layers, for integer
products, and w8's tables. `auto` (`compress.quantize.allocation`): w4's and w8's grids side by side.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from compress.quantize.channelwise import KERNEL
from compress.quantize.checkpoint import QUANT_METHOD, is_conv1d, matrix_shapes

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
    """How one matrix is stored: blocks of `bits` bits, or (`static_inputs`) a scale an output channel."""

    bits: int
    block_size: int
    static_inputs: bool = False


def grids(config: Mapping[str, Any], scheme: str, block_size: int | None = None) -> dict[str, Grid]:
    """The grid of every matrix of a GPT-2, by module.

    `block_size` None takes the scheme's own, and a smaller one where that does not divide a matrix's rows.
    """
    known = SCHEMES[scheme]
    size = block_size or known.block_size
    sizes = fitting_blocks(config, size) if block_size is None else {}
    found = {}
    for name, _ in matrix_shapes(config):
        static = known.static_inputs and is_conv1d(name)
        found[name] = Grid(known.bits if is_conv1d(name) else known.table_bits, sizes.get(name, size), static)
    return found


def mixed_grids(config: Mapping[str, Any], low: Collection[str], block_size: int | None = None) -> dict[str, Grid]:
    """w8's grids, with 4 bits in blocks of w4's size in the modules `low`."""
    four = SCHEMES["w4"].block_size if block_size is None else block_size
    sizes = fitting_blocks(config, four) if block_size is None else {}
    mixed = {name: Grid(4, sizes.get(name, four)) for name in low}
    return grids(config, "w8", block_size) | mixed


def fitting_blocks(config: Mapping[str, Any], block_size: int) -> dict[str, int]:
    """Block sizes of the modules whose rows `block_size` does not divide: the largest half, quarter, … that does.

    Padding would be stored and multiplied. A row that no block of at least 16 divides keeps `block_size` and is padded.
    """
    sizes = {}
    for name, (_, columns) in matrix_shapes(config):
        size = block_size
        while columns % size and size > MIN_BLOCK:
            size //= 2
        if size != block_size and columns % size == 0:
            sizes[name] = size
    return sizes


def quantization_config(scheme: str, method: str, chosen: Mapping[str, Grid]) -> dict[str, Any]:
    """What `config.json` says of it; `compress.quantize.checkpoint` describes the fields."""
    linears = [grid for name, grid in chosen.items() if is_conv1d(name)]
    tables = [grid for name, grid in chosen.items() if not is_conv1d(name)]
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
