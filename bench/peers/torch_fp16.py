"""transformers' own `generate` in float16: what GPU users run. A CPU has no fast products of that size."""

from typing import TYPE_CHECKING, ClassVar

from bench.models.torch import TORCH_MODULES, CheckpointModel
from bench.peers.descriptor import Peer, Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HalfModel(CheckpointModel):
    """A checkpoint in float16."""

    supports_concurrency: ClassVar[bool] = False

    @classmethod
    def read(cls, spec: str) -> "PreTrainedModel":
        """See `TorchModel.read`."""
        return super().read(spec).half()


KINDS = (
    Peer(
        name="torch-fp16",
        model=HalfModel,
        modules=TORCH_MODULES,
        weight_formats=("fp16",),
        full_precision=None,
        source=Source.CHECKPOINT,
        install="torch",
        import_name="torch",
        device="cuda",
    ),
)
