"""The way into onnxruntime-genai: a second, thin graph over the same weights, and `genai_config.json`.

Its generators feed input_ids, position_ids, an attention mask and a cache that is shared between past and present
(DecoderOnly_State of microsoft/onnxruntime-genai). `model.genai.onnx` is our decoder behind an adaptor that derives
the other inputs from those; its weights are the file that `model.onnx` reads, so it costs kilobytes:

    seqlens_k              = sum of the mask's row - 1
    total_sequence_length  = the mask's second size
    logits_positions       = the index of the largest position, the last token that is no padding

The logits are those of one position, which genai recognises by the static size 1; the cache has the fixed size
`context`. genai knows no banned ids and no penalty on the bot's own turns alone: the default sampling is near ours, not
equal; greedy tokens are the same. Its tokenizer (onnxruntime-extensions) reads byte-level BPE and no WordPiece: there
the ids come from `tokenizer.json` through the tokenizers package.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnxscript import GraphBuilder
from transformers import PreTrainedTokenizerFast

from chitchat.errors import WorkFailed
from chitchat.formats.tokenizer_files import save_tokenizer
from export.parity import Floats, greedy_reply
from serve.bundle import Bundle, Geometry
from serve.dialogue import Dialogue
from serve.engine import Engine
from serve.options import SamplingOptions
from serve.quiet import load

if TYPE_CHECKING:
    import onnxruntime

GENAI_GRAPH = "model.genai.onnx"
GENAI_CONFIG = "genai_config.json"
DERIVED = ("logits_positions", "seqlens_k", "total_sequence_length")
MASK = "attention_mask"
TOKENIZER_FILES = ("tokenizer_config.json", "chat_template.jinja")  # its tokenizer reads these and tokenizer.json
CHECKED_PROMPTS = 5
# Kernels for one row and for many round 4-bit products differently; a wrong position or mask is off by much more.
LOGITS_RMS = 0.05


def write_genai(bundle: Bundle, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write what onnxruntime-genai reads beside a cpu graph whose weights lie in `model.onnx.data`."""
    folder = bundle.folder
    ir.save(adapted(ir.load(bundle.graph_path("cpu"))), folder / GENAI_GRAPH)
    onnx.checker.check_model(str(folder / GENAI_GRAPH), full_check=True)
    config = genai_config(bundle.geometry, bundle.dialogue, bundle.sampling)
    (folder / GENAI_CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    if json.loads(tokenizer.backend_tokenizer.to_str())["model"]["type"] == "BPE":
        with tempfile.TemporaryDirectory() as saved:
            save_tokenizer(tokenizer, Path(saved))
            for name in TOKENIZER_FILES:
                if (Path(saved) / name).exists():
                    shutil.copyfile(Path(saved) / name, folder / name)


def check_genai(bundle: Bundle, prompts: Sequence[Sequence[int]]) -> None:
    """Raise WorkFailed unless the adapted graph, fed as genai feeds it, gives the engine's logits along its replies."""
    engine = Engine(bundle, threads=1, device="cpu")
    session = load("onnxruntime").InferenceSession(str(bundle.folder / GENAI_GRAPH), providers=["CPUExecutionProvider"])
    for prompt in prompts[:CHECKED_PROMPTS]:
        reply, want = greedy_reply(engine, prompt)
        error = _fed_as_genai(session, prompt, reply) - want
        relative = float(np.sqrt(np.square(error).sum() / np.square(want - want.mean()).sum()))
        if not relative <= LOGITS_RMS:
            raise WorkFailed(
                f"{GENAI_GRAPH}: its logits are off the engine's by {relative:.3g} (at most {LOGITS_RMS}); no bundle"
            )


def _fed_as_genai(session: "onnxruntime.InferenceSession", prompt: Sequence[int], reply: Sequence[int]) -> Floats:
    """Logits [reply, vocab] before each id of a reply, from a session whose present buffers go back as past."""
    outputs = [item.name for item in session.get_outputs()]
    past = {item.name: _buffer(item) for item in session.get_inputs() if item.name.startswith("past_key_values")}
    rows, length = [], 0
    for step in ([*prompt], *([token] for token in reply[:-1])):
        feed = {
            "input_ids": np.array([step]),
            "position_ids": np.arange(length, length + len(step))[None],
            MASK: np.ones((1, length + len(step)), dtype=np.int64),
        }
        logits, *present = session.run(outputs, feed | past)
        past = dict(zip(past, present, strict=True))
        length += len(step)
        rows.append(logits[0, 0])
    return np.stack(rows)


def _buffer(item: "onnxruntime.NodeArg") -> npt.NDArray[np.generic]:
    dtype = np.int8 if item.type == "tensor(int8)" else np.float32
    return np.zeros([1, *item.shape[1:]], dtype=dtype)


def adapted(model: ir.Model) -> ir.Model:
    """Put the adaptor before a cpu graph, in place; weights that lie in another file stay there."""
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    first = graph[0]
    head = ir.Graph([], [], nodes=[], opset_imports=dict(graph.opset_imports))
    builder = GraphBuilder(head)
    mask = ir.Value(name=MASK, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", "total"]))
    op = builder.op
    one = op.Constant(value_ints=[1])
    derived = {
        "seqlens_k": op.Cast(op.Sub(op.ReduceSum(mask, one, keepdims=0), one), to=ir.DataType.INT32),
        "total_sequence_length": op.Cast(op.Squeeze(op.Shape(mask, start=1, end=2)), to=ir.DataType.INT32),
        "logits_positions": op.ArgMax(inputs["position_ids"], axis=1, keepdims=1),
    }
    nodes = list(head)
    head.remove(nodes)
    graph.insert_before(first, nodes)
    for name in DERIVED:
        inputs[name].replace_all_uses_with(derived[name])
        graph.inputs.remove(inputs[name])
    graph.inputs.insert(2, mask)
    logits = graph.outputs[0]
    logits.shape = ir.Shape(["batch", 1, *list(logits.shape or [])[2:]])
    return model


def genai_config(geometry: Geometry, dialogue: Dialogue, sampling: SamplingOptions) -> dict[str, Any]:
    """The object of `genai_config.json`. Fields that onnxruntime-genai's config.cpp does not know are refused there."""
    end = dialogue.end_of_turn_id
    # Rows of a batch are told apart by trailing padding, and every prompt ends with the end of a turn.
    padding = dialogue.pad_id if dialogue.pad_id not in (None, end) else int(end == 0)
    return {
        "model": {
            "type": "decoder",
            "vocab_size": geometry.vocab,
            "context_length": geometry.context,
            "bos_token_id": dialogue.start_ids[0] if dialogue.start_ids else end,
            "eos_token_id": end,
            "pad_token_id": padding,
            "decoder": {
                "filename": GENAI_GRAPH,
                "session_options": {"provider_options": []},
                "hidden_size": geometry.width,
                "num_attention_heads": geometry.heads,
                "num_key_value_heads": geometry.kv_heads,
                "num_hidden_layers": geometry.layers,
                "head_size": geometry.kv_head_dim,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": MASK,
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": sampling.temperature > 0,
            "max_length": geometry.context,
            "past_present_share_buffer": True,
            "repetition_penalty": sampling.repetition_penalty,
            "temperature": sampling.temperature or 1.0,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
        },
    }
