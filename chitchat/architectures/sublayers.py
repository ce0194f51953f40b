"""Sublayers of a decoder: their projections, and the columns of these that belong to a unit."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

Kind = Literal["attention", "feed_forward"]
Role = Literal["query", "key", "value", "inner"]


@dataclass(frozen=True)
class Part:
    """Output columns of an in-projection that belong to units: `count` units of `size` columns each from `start` on.

    `role` is "query", "key" or "value" (units are heads) or "inner" (units of a feed-forward; gate and up both).
    """

    role: Role
    start: int
    size: int
    count: int

    @property
    def columns(self) -> slice:
        """All columns of the part."""
        return slice(self.start, self.start + self.count * self.size)

    def columns_of(self, units: Sequence[int], of: int) -> list[int]:
        """The columns of some of `of` units of the sublayer; units that share keys and values share columns."""
        share = of // self.count
        groups = dict.fromkeys(unit // share for unit in units)
        return [self.start + group * self.size + column for group in groups for column in range(self.size)]


@dataclass(frozen=True)
class Projection:
    """A linear map of a sublayer: `name` is its module's name, `module` the module.

    `transposed`: the module stores its weight as [in, out] (transformers' Conv1D) and not as [out, in] (nn.Linear).
    `weight` is always a view [in, out]; `bias` is [out] or None. `parts` are the output columns of an in-projection
    that belong to units; an out-projection has none.
    """

    name: str
    module: "nn.Module"
    transposed: bool
    parts: tuple[Part, ...] = ()

    @property
    def weight(self) -> "Tensor":
        """The weight as a view [in, out]."""
        weight: Tensor = self.module.weight
        return weight if self.transposed else weight.T

    @property
    def bias(self) -> "Tensor | None":
        """The bias [out], or None."""
        return getattr(self.module, "bias", None)

    def __call__(self, inputs: "Tensor") -> "Tensor":
        """[..., in] to [..., out]."""
        output: Tensor = self.module(inputs)
        return output

    def store(self, weight: "Tensor", bias: "Tensor | None" = None) -> None:
        """Store a weight [in, out] and a bias [out] in the module. Raises ValueError for a bias if it has none."""
        self.weight.copy_(weight)
        if bias is not None:
            if self.bias is None:
                raise ValueError(f"{self.name} has no bias")
            self.bias.copy_(bias)


@dataclass(frozen=True)
class Columns:
    """Output columns of a projection: `columns` of `projection`."""

    projection: Projection
    columns: slice


@dataclass(frozen=True)
class Sublayer:
    """Half a layer. `body` maps the normed stream [batch, tokens, width] to the addend of the stream.

    `in_projs` read the normed stream (one fused matrix, or query, key and value; gate and up), `out_proj` writes to the
    stream. `units` are what pruning removes, attention heads or feed-forward units, each `unit_size` consecutive inputs
    of `out_proj`. `kv_heads` divides `heads`; both are 0 in a feed-forward.
    """

    name: str
    kind: Kind
    norm: "nn.Module"
    body: "Callable[[Tensor], Tensor]"
    in_projs: tuple[Projection, ...]
    out_proj: Projection
    heads: int = 0
    kv_heads: int = 0

    @property
    def unit_size(self) -> int:
        """Inputs of `out_proj` that belong to a unit: the head's size, or 1."""
        return self.out_proj.weight.shape[0] // self.heads if self.heads else 1

    @property
    def units(self) -> int:
        """Attention heads, or units of the feed-forward."""
        return self.heads or int(self.out_proj.weight.shape[0])

    @property
    def linear_value(self) -> Columns | None:
        """The output columns that reach `out_proj` linearly, head by head: an attention's values; None elsewhere."""
        found = [columns for role, columns in self._parts() if role == "value"]
        return found[0] if found else None

    def part(self, role: Role) -> Columns:
        """The columns of a role that only one in-projection has: query, key or value. Raises KeyError for none."""
        found = [columns for known, columns in self._parts() if known == role]
        if len(found) != 1:
            raise KeyError(f"{self.name}: {role}")
        return found[0]

    def in_columns(self, units: Sequence[int]) -> "tuple[list[int], ...]":
        """The output columns of each in-projection that belong to those units (for a head: query, key and value)."""
        return tuple(
            [column for part in projection.parts for column in part.columns_of(units, self.units)]
            for projection in self.in_projs
        )

    def __call__(self, stream: "Tensor") -> "Tensor":
        """What the sublayer adds to the stream, [batch, tokens, width]."""
        return self.body(self.norm(stream))

    def _parts(self) -> Iterator[tuple[Role, Columns]]:
        for projection in self.in_projs:
            for part in projection.parts:
                yield part.role, Columns(projection, part.columns)
