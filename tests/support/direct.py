"""Runs a graph file in onnxruntime without the engine: buffers of the types and shapes that the graph asks for."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}


class Direct:
    """One conversation on one graph; `prefill`, `step`, `logits` and `context` are those of the engine."""

    def __init__(self, path: Path, provider: str = "CPUExecutionProvider", threads: int = 1) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        self.session = ort.InferenceSession(str(path), options, providers=[provider])
        self.past = {}
        for item in self.session.get_inputs():
            if item.name.startswith("past_key_values"):
                array = np.zeros([1, *item.shape[1:]], dtype=TYPES[item.type])
                self.past[item.name] = (array, ort.OrtValue.ortvalue_from_numpy(array))
        self.context = array.shape[2]
        self.length = 0

    def run(self, ids: Sequence[int], positions: Sequence[int]) -> np.ndarray:
        """Append ids to the conversation; the logits [n, vocab] at `positions` among them."""
        count = len(ids)
        inputs = {
            "input_ids": np.array([list(ids)], dtype=np.int64),
            "position_ids": np.arange(self.length, self.length + count, dtype=np.int64)[None],
            "logits_positions": np.array([list(positions)], dtype=np.int64),
            "seqlens_k": np.array([self.length + count - 1], dtype=np.int32),
            "total_sequence_length": np.array(self.length + count, dtype=np.int32),
        }
        binding = self.session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        for name, (_, value) in self.past.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        binding.bind_output("logits")
        self.session.run_with_iobinding(binding)
        self.length += count
        return binding.get_outputs()[-1].numpy()[0].copy()

    def prefill(self, ids: Sequence[int]) -> np.ndarray:
        """Start a conversation: the logits [vocab] after the last id."""
        self.length = 0
        return self.run(ids, [len(ids) - 1])[0]

    def step(self, token: int) -> np.ndarray:
        """Add one id: the logits [vocab] that follow it."""
        return self.run([token], [0])[0]

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """The logits [n, vocab] after every one of ids."""
        self.length = 0
        return self.run(ids, range(len(ids)))
