"""Onnxruntime's part of the engine: the session over a graph, and runs of it with everything bound beforehand."""

import contextlib
import io
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from serve.cache import KVCache
from serve.errors import BadBundle, BadRequest, ServeError
from serve.graph_selection import PROVIDERS, SelectedGraph
from serve.quiet import load

if TYPE_CHECKING:
    import onnxruntime

KEPT_RUNS = 64  # bindings are small: a few kB each

Logits = npt.NDArray[np.float32]


def open_session(choice: SelectedGraph, threads: int) -> "onnxruntime.InferenceSession":
    """Load the graph.

    Raises BadBundle when onnxruntime cannot, or when its inputs or outputs are not those in bundle.json, and BadRequest
    for a device that does not start.
    """
    ort = load("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors come as exceptions; not again on stderr
    # Threads spin between the operators of a step: without, decode loses a quarter of its speed on an idle machine.
    # They go to sleep some 50 ms after the last run.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    if choice.provider == PROVIDERS["cuda"]:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find; the session will tell
            ort.preload_dlls()  # where CUDA's libraries came as Python packages, no loader finds them by itself
    try:
        session: onnxruntime.InferenceSession = ort.InferenceSession(
            str(choice.path), options, providers=[choice.provider]
        )
    except Exception as error:
        raise BadBundle(f"{choice.path}: onnxruntime cannot load it ({first_line(error)})") from error
    if choice.provider not in session.get_providers():  # it falls back to the CPU silently
        raise BadRequest(
            f"{choice.provider}: onnxruntime could not start it (are CUDA's and cuDNN's libraries those that "
            "onnxruntime-gpu asks for?); repair the installation, or give --device cpu"
        )
    inputs = tuple(item.name for item in session.get_inputs())
    outputs = tuple(item.name for item in session.get_outputs())
    if (inputs, outputs) != (choice.graph.inputs, choice.graph.outputs):
        raise BadBundle(f"{choice.path}: its inputs and outputs are not those of bundle.json; export it again")
    return session


def kv_dtype(session: "onnxruntime.InferenceSession") -> str:
    """The type of the cache's numbers as the graph has it: "float32", "float16" or "int8"."""
    kind = session.get_inputs()[-1].type.removeprefix("tensor(").removesuffix(")")
    return "float32" if kind == "float" else str(kind)


class Run:
    """Inputs, logits and their binding for runs of one shape over one range of slots. The arrays are written by hand.

    ids, positions   int64 [slots, tokens]
    wanted           int64 [slots, rows]: the indices among `tokens` whose logits are wanted
    last             int32 [slots]: valid tokens of a slot after the run - 1
    total            int32 scalar: the most valid tokens of a slot after the run
    logits           float32 [slots, rows, vocab]
    """

    def __init__(self, owner: "Runs", first: int, slots: int, tokens: int, rows: int) -> None:
        self.ids = owner.ids[: slots * tokens].reshape(slots, tokens)
        self.positions = owner.positions[: slots * tokens].reshape(slots, tokens)
        self.wanted = np.tile(np.arange(tokens - rows, tokens, dtype=np.int64), (slots, 1))
        self.last = owner.last[:slots]
        self.total = owner.total
        kept = slots * rows <= len(owner.logits)
        flat = owner.logits[: slots * rows] if kept else np.empty((slots * rows, owner.vocab), dtype=np.float32)
        self.logits: Logits = flat.reshape(slots, rows, owner.vocab)
        self._session = owner.session
        self._inputs: dict[str, npt.NDArray[Any]] = {
            "input_ids": self.ids,
            "position_ids": self.positions,
            "logits_positions": self.wanted,
            "seqlens_k": self.last,
            "total_sequence_length": self.total,
        }
        self._binding = self._session.io_binding()
        owner.cache.bind(self._binding, first, slots)
        self._bind_inputs()
        logits = self.logits
        self._binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._copied = owner.on_device

    def _bind_inputs(self) -> None:
        for name, array in self._inputs.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def __call__(self) -> Logits:
        """Run on what the arrays say: the logits, overwritten by the next run of any shape."""
        try:
            if self._copied:  # a device takes its inputs when they are bound, the CPU when it runs
                self._bind_inputs()
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime raises classes of its own and RuntimeError
            raise ServeError(f"onnxruntime failed: {first_line(error)}") from error
        return self.logits


class Runs:
    """The runs of a session over a cache: made when a shape is first needed, kept, all over the same arrays."""

    def __init__(
        self, session: "onnxruntime.InferenceSession", cache: KVCache, vocab: int, *, on_device: bool = False
    ) -> None:
        tokens = max(cache.context, cache.slots)
        self.session, self.cache, self.vocab, self.on_device = session, cache, vocab, on_device
        self.ids = np.zeros(tokens, dtype=np.int64)
        self.positions = np.zeros(tokens, dtype=np.int64)
        self.last = np.zeros(cache.slots, dtype=np.int32)
        self.total = np.zeros((), dtype=np.int32)
        self.logits = np.zeros((cache.slots, vocab), dtype=np.float32)
        self._kept: OrderedDict[tuple[int, int, int, int], Run] = OrderedDict()

    def get(self, first: int, slots: int, tokens: int, rows: int = 1) -> Run:
        """The run over `slots` slots from `first` on, of `tokens` new tokens each, with logits for the last `rows`."""
        key = (first, slots, tokens, rows)
        run = self._kept.get(key)
        if run is None:
            run = Run(self, *key)
            if slots * rows <= len(self.logits):  # else it has a large array of its own
                self._kept[key] = run
                if len(self._kept) > KEPT_RUNS:
                    self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        return run


def first_line(error: Exception) -> str:
    """What an exception says, in one line of bounded length."""
    return " ".join(str(error).split())[:200]
