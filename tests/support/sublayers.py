"""What flows inside a sublayer, by a hook of its own: the walkers' are what is tested."""

from torch import Tensor

from chitchat.architectures.sublayers import Sublayer


def out_inputs(sublayer: Sublayer, stream: Tensor) -> Tensor:
    """The inputs of the out-projection, [batch, tokens, in]."""
    seen: list[Tensor] = []
    hook = sublayer.out_proj.module.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    sublayer(stream)
    hook.remove()
    return seen[0]


def rows_of(sublayer: Sublayer, units: list[int]) -> list[int]:
    """The inputs of the out-projection that are those units."""
    size = sublayer.unit_size
    return [row for unit in units for row in range(unit * size, (unit + 1) * size)]
