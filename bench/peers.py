"""llama.cpp as a backend: the same weights written as GGUF, quantized by llama.cpp itself, run through its C interface.

It lives in an environment of its own (`make peers`), so nothing here imports what only ours has. Token ids go in and
out; the GGUF file carries no tokenizer. The quantizer is llama.cpp's, with what it decides for its users: Q4_0 keeps
the token table in 6 bits.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.sample import Sample, as_sample

GGUF_TYPES = ("F32", "Q8_0", "Q4_0")
# Hugging Face's name of a module -> GGUF's (llama.cpp, src/llama-arch.cpp, LLM_ARCH_GPT2).
_LAYER = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_OUTSIDE = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}


def write_gguf(checkpoint: Path, path: Path) -> None:
    """Write a GPT-2 checkpoint with a tied head as a float32 GGUF file without a tokenizer."""
    import gguf
    import numpy as np
    from safetensors.numpy import load_file

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(config["n_inner"] or 4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, array in load_file(checkpoint / "model.safetensors").items():
        known = gguf_name(name)
        if known is not None:
            flat = array.T if name.endswith(".weight") and ".c_" in name else array  # Conv1D keeps [in, out]
            writer.add_tensor(known, np.ascontiguousarray(flat, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str | None:
    """Give GGUF's name of a GPT-2 tensor; None for what is not stored (the tied head, masks)."""
    parts = name.removeprefix("transformer.").split(".")
    kind = parts[-1]
    if parts[0] == "h":
        module = ".".join(parts[2:-1])
        return f"blk.{parts[1]}.{_LAYER[module]}.{kind}" if module in _LAYER else None
    return f"{_OUTSIDE[parts[0]]}.{kind}" if parts[0] in _OUTSIDE else None


def quantize_gguf(source: Path, path: Path, kind: str, threads: int) -> None:
    """Let llama.cpp quantize a float32 file to `kind` (of `GGUF_TYPES`). Raises RuntimeError when it does not."""
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = {"Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}[kind]
    options.nthread = threads
    if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), options):
        raise RuntimeError(f"llama.cpp could not quantize {source.name} to {kind}")


class LlamaCppBackend:
    """A GGUF file in llama.cpp, driven through `llama_decode`: no sampler, text or copies of logits in between."""

    def __init__(self, spec: str, threads: int, device: str) -> None:
        import llama_cpp

        self._llama = llama_cpp
        _silence(llama_cpp)
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        self._model = llama_cpp.llama_load_model_from_file(spec.encode(), options)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {spec}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = llama_cpp.llama_model_n_ctx_train(self._model)
        settings.n_batch = settings.n_ubatch = settings.n_ctx
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama_cpp.llama_new_context_with_model(self._model, settings)
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def generate(self, prompt: Sequence[int], new_tokens: int, end_of_turn_id: int) -> Sample:
        """See `bench.sample.Backend.generate`."""
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
        times: list[float] = []
        ids: list[int] = []
        started = time.perf_counter()
        token = self._step(prompt, end_of_turn_id)
        while True:
            times.append(time.perf_counter())
            ids.append(token)
            if len(ids) == new_tokens:
                return as_sample(started, times, ids, new_tokens)
            token = self._step([token], end_of_turn_id)

    def runtime(self) -> Any:
        """Quality is measured on what ships from here; a peer is measured for speed only."""
        raise NotImplementedError("llama.cpp is timed only")

    def _step(self, ids: Sequence[int], banned: int) -> int:
        import numpy as np

        array = (self._llama.llama_token * len(ids))(*ids)
        batch = self._llama.llama_batch_get_one(array, len(ids))
        if self._llama.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp could not decode a batch")
        logits = np.ctypeslib.as_array(self._llama.llama_get_logits_ith(self._context, -1), (self._vocab,))
        logits[banned] = -np.inf
        return int(logits.argmax())


def _silence(llama_cpp: Any) -> None:
    """Keep llama.cpp's log out of a measurement's last words."""

    def ignore(level: int, text: bytes, data: Any) -> None:
        pass

    callback: Callable[..., Any] = llama_cpp.llama_log_callback(ignore)
    _KEPT.append(callback)  # ctypes callbacks must outlive the library's use of them
    with suppress(AttributeError):
        llama_cpp.llama_log_set(callback, None)


_KEPT: list[Any] = []


def main(checkpoint: str, folder: str, threads: str) -> int:
    """Write the GGUF files of a checkpoint into a folder; each is complete or absent. Give the exit code."""
    missing = [name for name in ("gguf", "llama_cpp", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"this environment has no {', '.join(missing)}; make one with make peers", file=sys.stderr)
        return 2
    source = Path(folder) / "F32.gguf"
    for kind in GGUF_TYPES:
        path = Path(folder) / f"{kind}.gguf"
        partial = path.with_suffix(".partial")
        if kind == "F32":
            write_gguf(Path(checkpoint), partial)
        else:
            quantize_gguf(source, partial, kind, int(threads))
        partial.rename(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
