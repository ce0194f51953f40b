"""Whether CUDA can be used here."""

import onnx
import onnxruntime as ort


def why_not_cuda() -> str:
    """Why nothing can run on CUDA here, or "": asked of the runtime, by opening a session."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return f"onnxruntime {ort.__version__} has no CUDAExecutionProvider (that is the package onnxruntime-gpu)"
    # Not an empty graph: onnxruntime refuses one.
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "small", ends[:1], ends[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    used = ort.InferenceSession(model.SerializeToString(), options, providers=["CUDAExecutionProvider"]).get_providers()
    return "" if "CUDAExecutionProvider" in used else "onnxruntime-gpu cannot load CUDA (no driver, device or cuDNN)"
