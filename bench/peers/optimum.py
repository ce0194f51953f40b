"""optimum's ORTModelForCausalLM over the portable bundle: standard ONNX, a growing cache, transformers' `generate`."""

from typing import Any

from bench.models.loaded import Floats, Ids
from bench.models.stepping import SteppingModel
from bench.models.torch import TORCH_MODULES, TransformersModel
from bench.peers.descriptor import Peer, Source
from chitchat.architectures.registry import geometry_of
from chitchat.system.interpreters import PORTABLE
from serve.quiet import load


class OptimumModel(TransformersModel, SteppingModel):
    """Times are those of transformers' `generate`, as everywhere in torch; what computes is onnxruntime."""

    def __init__(self, spec: str, threads: int, device: str, slots: int = 1) -> None:
        import torch

        torch.set_num_threads(threads)
        options = load("onnxruntime").SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        model = load("optimum.onnxruntime").ORTModelForCausalLM.from_pretrained(spec, session_options=options)
        self._model = model.to(device)
        self._cache: Any = None
        self._seen = 0
        self.context = geometry_of(self._model.config).context

    def run(self, ids: Ids, *, fresh: bool) -> Floats:
        import torch

        if fresh:
            self._cache, self._seen = None, 0
        positions = torch.arange(self._seen, self._seen + len(ids))[None]
        self._seen += len(ids)
        output = self._model(
            input_ids=torch.tensor([list(ids)]),
            attention_mask=torch.ones(1, self._seen, dtype=torch.long),
            position_ids=positions,
            past_key_values=self._cache,
        )
        self._cache = output.past_key_values
        logits: Floats = output.logits[0].numpy()
        return logits


KINDS = (
    Peer(
        name="optimum",
        model=OptimumModel,
        modules=("onnxruntime", *TORCH_MODULES, "optimum.onnxruntime"),
        weight_formats=("fp32",),
        full_precision="fp32",
        source=Source.PORTABLE,
        install="optimum-onnx",
        import_name="optimum.onnxruntime",
        environment=PORTABLE,
    ),
)
