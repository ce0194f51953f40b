"""optimum's ORTModelForCausalLM over the portable bundle: standard ONNX, a growing cache, transformers' `generate`."""

from collections.abc import Sequence
from typing import Any

from bench.models.stepping import Floats, SteppingBackend
from bench.models.torch import TorchBackend
from serve.quiet import load


class OptimumBackend(TorchBackend):
    """Times are those of transformers' `generate`, as everywhere in torch; what computes is onnxruntime."""

    def _read(self, spec: str, threads: int) -> Any:
        options = load("onnxruntime").SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        return load("optimum.onnxruntime").ORTModelForCausalLM.from_pretrained(spec, session_options=options)

    def runtime(self) -> Any:
        """See `bench.models.backend.Backend.runtime`."""
        return _Steps(self._model).runtime()


class _Steps(SteppingBackend):
    """The same model asked for its logits."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache: Any = None
        self._seen = 0
        self.context = int(model.config.n_positions)

    def feed(self, ids: Sequence[int], *, fresh: bool) -> Floats:
        """See `SteppingBackend.feed`."""
        return self._run(ids, fresh=fresh)[-1]

    def logits(self, ids: Sequence[int]) -> Floats:
        """See `SteppingBackend.logits`."""
        return self._run(ids, fresh=True)

    def _run(self, ids: Sequence[int], *, fresh: bool) -> Floats:
        import torch

        if fresh:
            self._cache, self._seen = None, 0
        positions = torch.arange(self._seen, self._seen + len(ids))[None]
        self._seen += len(ids)
        found = self._model(
            input_ids=torch.tensor([list(ids)]),
            attention_mask=torch.ones(1, self._seen, dtype=torch.long),
            position_ids=positions,
            past_key_values=self._cache,
        )
        self._cache = found.past_key_values
        logits: Floats = found.logits[0].numpy()
        return logits
