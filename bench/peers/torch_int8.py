"""torch's dynamic int8: linear layers with integer products, activations rounded as they come."""

from typing import TYPE_CHECKING, ClassVar

from bench.models.torch import TORCH_MODULES, CheckpointModel
from bench.peers.descriptor import Peer, Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DynamicInt8Model(CheckpointModel):
    """A checkpoint whose linear layers are int8 in memory."""

    supports_concurrency: ClassVar[bool] = False

    @classmethod
    def read(cls, spec: str) -> "PreTrainedModel":
        """See `TorchModel.read`."""
        import torch

        model = _with_linear_layers(super().read(spec))
        quantized: PreTrainedModel = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
        return quantized


def _with_linear_layers(model: "PreTrainedModel") -> "PreTrainedModel":
    """The same model with nn.Linear for transformers' Conv1D, in place: what dynamic quantization knows."""
    import torch
    from transformers.pytorch_utils import Conv1D

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Conv1D):
                linear = torch.nn.Linear(child.nx, child.nf)
                linear.weight.data = child.weight.data.T.contiguous()
                linear.bias.data = child.bias.data
                setattr(module, name, linear)
    return model


KINDS = (
    Peer(
        name="torch-int8",
        model=DynamicInt8Model,
        modules=TORCH_MODULES,
        reads_stored_weights=False,
        weight_formats=("int8",),
        full_precision=None,
        source=Source.CHECKPOINT,
        install="torch",
        import_name="torch",
    ),
)
