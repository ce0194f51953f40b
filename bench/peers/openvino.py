"""OpenVINO: the portable ONNX graph, made stateful so that its cache stays inside, weights compressed by NNCF.

That is what `optimum-intel` makes of a GPT-2 (its exporter, then `nncf.compress_weights`), without the packages that
pull another transformers in.
"""

import json
from pathlib import Path

import numpy as np

from bench.models.loaded import Floats, Ids
from bench.models.stepping import SteppingModel
from bench.peers.descriptor import Peer, Source
from chitchat.architectures.registry import geometry_of
from serve.quiet import load

MODEL = "openvino_model.xml"


def convert(portable: Path, out: Path, weight_format: str, threads: int) -> None:
    """Write the portable graph for OpenVINO: `weight_format` fp32, int8 (a scale a row) or int4 (groups of 64)."""
    ov, passes = load("openvino"), load("openvino.passes")
    model = ov.Core().read_model(portable / "model.onnx")
    # One conversation: a cache whose first dimension is open would begin with none.
    model.reshape({port: ov.PartialShape([1, *list(port.partial_shape)[1:]]) for port in model.inputs})
    pairs = {
        name: name.replace("past_key_values", "present")
        for parameter in model.inputs
        for name in parameter.get_names()
        if name.startswith("past_key_values")
    }
    manager = passes.Manager()
    manager.register_pass(passes.MakeStateful(pairs))
    manager.run_passes(model)
    if weight_format != "fp32":
        nncf = load("nncf")
        mode = {"int8": nncf.CompressWeightsMode.INT8_SYM, "int4": nncf.CompressWeightsMode.INT4_SYM}[weight_format]
        options = {"group_size": 64, "ratio": 1.0} if weight_format == "int4" else {}
        narrow = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
        model = nncf.compress_weights(model, mode=mode, advanced_parameters=narrow, **options)
    out.mkdir(parents=True)
    ov.save_model(model, out / MODEL, compress_to_fp16=False)
    config = json.loads((portable / "config.json").read_text(encoding="utf-8"))
    # Left to itself OpenVINO computes in bfloat16 where the CPU has it, which full precision is not.
    config["inference_precision"] = "f32" if weight_format == "fp32" else None
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")


class OpenVinoModel(SteppingModel):
    """A stateful model on one of OpenVINO's devices."""

    def __init__(self, spec: str, threads: int, device: str, slots: int = 1) -> None:
        ov = load("openvino")
        config = json.loads((Path(spec) / "config.json").read_text(encoding="utf-8"))
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        if config["inference_precision"] is not None:
            options["INFERENCE_PRECISION_HINT"] = config["inference_precision"]
        compiled = ov.Core().compile_model(Path(spec) / MODEL, device.upper(), options)
        self._request = compiled.create_infer_request()
        self._names = {name for parameter in compiled.inputs for name in parameter.get_names()}
        self._seen = 0
        self.context = geometry_of(config).context

    def run(self, ids: Ids, *, fresh: bool) -> Floats:
        if fresh:
            self._request.reset_state()
            self._seen = 0
        total = self._seen + len(ids)
        inputs = {
            "input_ids": np.array([list(ids)], dtype=np.int64),
            "attention_mask": np.ones((1, total), dtype=np.int64),
            "position_ids": np.arange(self._seen, total, dtype=np.int64)[None],
        }
        self._seen = total
        self._request.infer({name: value for name, value in inputs.items() if name in self._names})
        logits: Floats = self._request.get_tensor("logits").data[0]
        return logits


KINDS = (
    Peer(
        name="openvino",
        model=OpenVinoModel,
        modules=("openvino",),
        weight_formats=("fp32", "int8", "int4"),
        full_precision="fp32",
        source=Source.PORTABLE,
        install="openvino nncf",
        convert=convert,
    ),
)
