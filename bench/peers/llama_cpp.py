"""llama.cpp: the same weights and tokenizer as GGUF, quantized by llama.cpp itself, run through its C interface.

It lives in an environment of its own (`make peers`). The quantizer is llama.cpp's, with what it decides for its users:
Q4_0 keeps the token table in 6 bits, Q4_K is the mixture that it calls Q4_K_M.
"""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bench.models.loaded import Floats, Ids, TimedReply, as_timed_reply
from bench.models.stepping import SteppingModel
from bench.peers.descriptor import Peer
from chitchat.architectures.registry import architecture_of, geometry_of

_FTYPES = {"Q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0", "Q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0", "Q4_K": "LLAMA_FTYPE_MOSTLY_Q4_K_M"}


def convert(checkpoint: Path, out: Path, weight_format: str, threads: int) -> None:
    """Write a checkpoint as the folder `out` with one GGUF file: F32, or what llama.cpp makes of it.

    Raises RuntimeError when llama.cpp does not quantize it.
    """
    import llama_cpp

    out.mkdir(parents=True)
    full_precision = out / "F32.gguf"
    write_gguf(checkpoint, full_precision)
    if weight_format != "F32":
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = getattr(llama_cpp, _FTYPES[weight_format])
        options.nthread = threads
        paths = (str(path).encode() for path in (full_precision, out / f"{weight_format}.gguf"))
        if llama_cpp.llama_model_quantize(*paths, options):
            raise RuntimeError(f"llama.cpp could not quantize {full_precision.name} to {weight_format}")
        full_precision.unlink()


def write_gguf(checkpoint: Path, path: Path) -> None:
    """Write a checkpoint with a tied head, and its tokenizer, as a float32 GGUF file."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    architecture, geometry = architecture_of(config), geometry_of(config)
    writer = gguf.GGUFWriter(path, architecture.gguf_type)
    writer.add_block_count(geometry.layers)
    writer.add_context_length(geometry.context)
    writer.add_embedding_length(geometry.width)
    writer.add_feed_forward_length(geometry.ffn)
    writer.add_head_count(geometry.heads)
    writer.add_layer_norm_eps(architecture.norm_epsilon(config))
    writer.add_vocab_size(geometry.vocab)
    _add_tokenizer(writer, checkpoint, geometry.vocab)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, array in load_file(checkpoint / "model.safetensors").items():
        stored_name = architecture.gguf_tensor(name)
        if stored_name is not None:
            module, _, kind = name.rpartition(".")
            rows = array.T if kind == "weight" and architecture.is_transposed(module) else array
            writer.add_tensor(stored_name, np.ascontiguousarray(rows, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, checkpoint: Path, size: int) -> None:
    """The tokenizer as llama.cpp knows it: "gpt2" for a byte-level BPE, "bert" for a WordPiece; "none" for others."""
    import gguf

    file = checkpoint / "tokenizer.json"
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    model = record.get("model", {})
    if model.get("type") not in ("BPE", "WordPiece"):
        writer.add_tokenizer_model("none")
        return
    special = {token["id"]: token["content"] for token in record["added_tokens"] if token["special"]}
    texts = {number: text for text, number in model["vocab"].items()} | special
    tokens = [texts.get(number, f"[unused{number}]") for number in range(size)]
    kinds = [gguf.TokenType.CONTROL if number in special else gguf.TokenType.NORMAL for number in range(size)]
    if model["type"] == "WordPiece":  # words begin with U+2581 there, further pieces have no mark
        begun = (text.removeprefix("##") if text.startswith("##") else f"\u2581{text}" for text in tokens)
        tokens = [
            text if number in special else piece for number, (text, piece) in enumerate(zip(tokens, begun, strict=True))
        ]
        writer.add_tokenizer_model("bert")
        writer.add_tokenizer_pre("default")
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
        writer.add_token_merges(list(pairs))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    by_text = {text: number for number, text in special.items()}
    for name, add in (
        ("[PAD]", writer.add_pad_token_id),
        ("[UNK]", writer.add_unk_token_id),
        ("[CLS]", writer.add_bos_token_id),
        ("[SEP]", writer.add_eos_token_id),
        ("<|endoftext|>", writer.add_eos_token_id),
    ):
        if name in by_text:
            add(by_text[name])
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


class LlamaCppModel(SteppingModel):
    """A GGUF file in llama.cpp, driven through `llama_decode`: no sampler, text or copies of logits in between."""

    supports_concurrency: ClassVar[bool] = True

    def __init__(self, spec: str, threads: int, device: str, slots: int = 1) -> None:
        import llama_cpp

        self._llama = llama_cpp
        _silence(llama_cpp)
        llama_cpp.llama_backend_init()
        path = Path(spec)
        file = next(path.glob("*.gguf")) if path.is_dir() else path
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0 if device == "cpu" else -1
        self._model = llama_cpp.llama_load_model_from_file(str(file).encode(), options)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {file.name}")
        self.context = int(llama_cpp.llama_model_n_ctx_train(self._model))
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = self.context * slots
        settings.n_seq_max = slots
        settings.n_batch = settings.n_ubatch = settings.n_ctx
        settings.n_threads = settings.n_threads_batch = threads
        if file.stem == "F32":  # full precision throughout; else the cache is float16, which is its default
            settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
        self._context = llama_cpp.llama_new_context_with_model(self._model, settings)
        self._size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._held: list[int] = []

    def begin(self, prompt: Ids, *, reuse: bool) -> Floats:
        """With `reuse`, what the cache holds of the prompt's beginning stays, as llama.cpp's server has it."""
        if not reuse:
            return self.feed(prompt, fresh=True)
        limit = min(len(self._held), len(prompt) - 1)
        same = next((index for index in range(limit) if self._held[index] != prompt[index]), limit)
        self._llama.llama_memory_seq_rm(self._memory(), 0, same, -1)
        del self._held[same:]
        return self.feed(prompt[same:], fresh=False)

    def run(self, ids: Ids, *, fresh: bool) -> Floats:
        if fresh:
            self._forget()
        array = (self._llama.llama_token * len(ids))(*ids)
        self._decode(self._llama.llama_batch_get_one(array, len(ids)))
        self._held += ids
        return self._row(-1)[None]

    def logits(self, ids: Ids) -> Floats:
        self._forget()
        self._run([(token, index, 0, True) for index, token in enumerate(ids)])
        logits = self._llama.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, (len(ids), self._size)).copy()

    def generate_concurrent(self, prompts: Sequence[Ids], new_tokens: int, end_of_turn_id: int) -> list[TimedReply]:
        """See `LoadedModel.generate_concurrent`: one batch of all prompts, then one of a token each."""
        self._forget()
        times: list[float] = []
        replies: list[list[int]] = [[] for _ in prompts]
        started = time.perf_counter()
        ends = [len(prompt) - 1 for prompt in prompts]
        entries = [
            (token, index, row, index == ends[row])
            for row, prompt in enumerate(prompts)
            for index, token in enumerate(prompt)
        ]
        while True:
            self._run(entries)
            wanted = [number for number, entry in enumerate(entries) if entry[3]]
            for row, number in enumerate(wanted):
                logits = self._row(number)
                logits[end_of_turn_id] = -np.inf
                replies[row].append(int(logits.argmax()))
            times.append(time.perf_counter())
            if len(times) == new_tokens:
                return [as_timed_reply(started, times, reply, new_tokens) for reply in replies]
            entries = [(reply[-1], ends[row] + len(reply), row, True) for row, reply in enumerate(replies)]

    def _run(self, entries: Sequence[tuple[int, int, int, bool]]) -> None:
        """Decode a batch of (token, position, conversation, whether its logits are wanted)."""
        batch = self._llama.llama_batch_init(len(entries), 0, 1)
        try:
            batch.n_tokens = len(entries)
            for number, (token, position, conversation, wanted) in enumerate(entries):
                batch.token[number] = token
                batch.pos[number] = position
                batch.n_seq_id[number] = 1
                batch.seq_id[number][0] = conversation
                batch.logits[number] = wanted
            self._decode(batch)
        finally:
            self._llama.llama_batch_free(batch)

    def _decode(self, batch: Any) -> None:
        if self._llama.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp could not decode a batch")

    def _row(self, number: int) -> Floats:
        return np.ctypeslib.as_array(self._llama.llama_get_logits_ith(self._context, number), (self._size,))

    def _forget(self) -> None:
        self._llama.llama_memory_clear(self._memory(), True)
        self._held = []

    def _memory(self) -> Any:
        return self._llama.llama_get_memory(self._context)


def _silence(llama_cpp: Any) -> None:
    """Keep llama.cpp's log out of a measurement's last words."""

    def ignore(level: int, text: bytes, data: Any) -> None:
        pass

    callback: Callable[..., Any] = llama_cpp.llama_log_callback(ignore)
    _KEPT.append(callback)  # ctypes callbacks must outlive the library's use of them
    with suppress(AttributeError):
        llama_cpp.llama_log_set(callback, None)


_KEPT: list[Any] = []


KINDS = (
    Peer(
        name="llama.cpp",
        model=LlamaCppModel,
        modules=("llama_cpp",),
        weight_formats=("F32", *_FTYPES),
        full_precision="F32",
        install="llama-cpp-python gguf",
        convert=convert,
    ),
)
