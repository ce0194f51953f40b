"""From a checkpoint to what ships: the ONNX graph with an in-place KV cache, its parity check, the bundle."""
