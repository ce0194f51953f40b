"""What the rest of the project knows of an architecture: residual sublayers with their projections, tables and names.

A decoder is a residual stream: embeddings, then per layer a few sublayers, each of which reads the stream through a
norm and its in-projections and adds what its out-projection gives; then a last norm and a head. Pruning, quantization,
healing and export walk over that and name no module. `chitchat.architectures.gpt2` is the one implementation.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

Kind = Literal["attention", "feed_forward"]


@dataclass(frozen=True)
class Projection:
    """A linear map of a sublayer: `name` is its module's name, `module` the module.

    `transposed` says that the module keeps its weight as [in, out] (transformers' Conv1D) and not as [out, in]
    (nn.Linear). `weight` is always seen as [in, out]; `bias` is [out], or None where the module has none.
    """

    name: str
    module: nn.Module
    transposed: bool

    @property
    def weight(self) -> Tensor:
        """The weight as a view [in, out]."""
        weight: Tensor = self.module.weight
        return weight if self.transposed else weight.T

    @property
    def bias(self) -> Tensor | None:
        """The bias [out], or None."""
        return getattr(self.module, "bias", None)

    def __call__(self, inputs: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        output: Tensor = self.module(inputs)
        return output

    def store(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Put a weight [in, out] into the module and, where it has one, a bias [out]."""
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
    """Half a layer. `body` maps the normed stream [batch, tokens, width] to what is added to the stream.

    `in_projs` read the normed stream (one fused matrix, or query, key and value; gate and up), `out_proj` writes to the
    stream. `linear_value` are the output columns that reach `out_proj` linearly, head by head (the values of an
    attention), None where a nonlinearity stands between. `kv_heads` divide `heads`; both are 0 in a feed-forward.
    """

    name: str
    kind: Kind
    norm: nn.Module
    body: Callable[[Tensor], Tensor]
    in_projs: tuple[Projection, ...]
    out_proj: Projection
    linear_value: Columns | None = None
    heads: int = 0
    kv_heads: int = 0

    def __call__(self, stream: Tensor) -> Tensor:
        """What the sublayer adds to the stream, [batch, tokens, width]."""
        return self.body(self.norm(stream))

    def with_inputs(self, stream: Tensor) -> tuple[Tensor, Tensor]:
        """What it adds, and the inputs of its out-projection, [batch, tokens, in]."""
        seen: list[Tensor] = []
        hook = self.out_proj.module.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        try:
            return self(stream), seen[0]
        finally:
            hook.remove()


class Architecture(Protocol):
    """One family of decoders. Models, configurations and weights are those of transformers."""

    model_type: str

    def layers(self, model: Any) -> Sequence[nn.Module]:
        """The layers, in order."""

    def sublayers(self, model: Any, layer: int) -> tuple[Sublayer, ...]:
        """The sublayers of a layer, in the order in which they run."""

    def token_table(self, model: Any) -> tuple[str, nn.Module]:
        """Name and module of the token embedding, [vocab, width]; a tied head is this table."""

    def position_table(self, model: Any) -> tuple[str, nn.Module] | None:
        """Name and module of learned positions, [positions, width]; None where positions are rotary."""

    def final_norm(self, model: Any) -> tuple[str, nn.Module]:
        """Name and module of the norm before the head."""

    def head(self, model: Any) -> tuple[str, nn.Module]:
        """Name and module of the head, weight [vocab, width]."""

    def embed(self, model: Any, ids: Tensor) -> Tensor:
        """Where the residual stream begins: ids int64 [batch, tokens] to [batch, tokens, width]."""

    def matrix_shapes(self, config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, int]]]:
        """`(module, (out, in))` of every weight matrix and table of a `config.json`, in the model's order."""

    def is_transposed(self, module: str) -> bool:
        """Whether transformers keeps the weight of this module as [in, out]."""
