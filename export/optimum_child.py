"""optimum's half of a portable export: a script for the interpreter of `make portable`, and nothing else of ours.

    python -I export/optimum_child.py CHECKPOINT OUT REQUEST

It runs beside transformers 4, so it imports no module of ours but `serve.quiet`, which imports nothing. CHECKPOINT is a
folder that transformers 4 reads, OUT gets model.onnx and what ORTModelForCausalLM and AutoTokenizer read, REQUEST is a
JSON file: `prompts` (ids of each), `new_tokens`, `context`. Lines of JSON on stdout: `{"reply": ids}` for each prompt
as ORTModelForCausalLM continues it greedily, then the last one, `{"inputs": names, "outputs": names, "versions": …}` of
the graph, or `{"error": one line}` with exit code 1. Nothing else is printed.
"""

import importlib.metadata
import importlib.util
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("optimum-onnx", "transformers", "torch", "onnxruntime")


def load(module: str) -> Any:
    """`serve.quiet.load`, by its file: the project is not on the path, where our transformers may lie too."""
    found = importlib.util.spec_from_file_location("quiet", Path(__file__).parents[1] / "serve" / "quiet.py")
    assert found is not None
    assert found.loader is not None
    quiet = importlib.util.module_from_spec(found)
    found.loader.exec_module(quiet)
    return quiet.load(module)


def export(checkpoint: Path, out: Path) -> None:
    """Write the graph, the configuration and the tokenizer."""
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    onnx_export_from_model = load("optimum.exporters.onnx").onnx_export_from_model
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    scaled = getattr(model.config, "scale_attn_weights", True)
    if not scaled or getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
        model.set_attn_implementation("eager")  # the fused attentions ignore both
    onnx_export_from_model(model, out, task="text-generation-with-past", do_validation=False)
    # This class takes tokenizer.json as it is; those of the old models would put normalizers of their own into it.
    PreTrainedTokenizerFast.from_pretrained(checkpoint).save_pretrained(out)


def open_exported(folder: Path) -> Any:
    """Load a portable bundle as a user would."""
    options = load("onnxruntime").SessionOptions()
    options.log_severity_level = 4
    return load("optimum.onnxruntime").ORTModelForCausalLM.from_pretrained(folder, session_options=options)


def replies(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int, context: int) -> Iterator[list[int]]:
    """The greedy continuation of each prompt, as long as `new_tokens` and `context` let it be."""
    import torch
    from transformers import GenerationConfig

    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        # No end of turn: the check goes on after one, and the folder's own options would bend the greedy reply.
        options = GenerationConfig(
            do_sample=False, max_new_tokens=min(new_tokens, context - len(prompt)), eos_token_id=None, pad_token_id=0
        )
        with torch.no_grad():
            whole = model.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=options, use_model_defaults=False
            )
        yield whole[0, len(prompt) :].tolist()


def main(checkpoint: str, out: str, request: str) -> int:
    """Do all of it; give the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches us too, and the parent is the one that answers it
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # optimum, the tracer and onnxruntime print what they please
        os.dup2(nowhere, stream)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"  # all is on the disk

    def say(line: dict[str, Any]) -> None:
        print(json.dumps(line), file=channel, flush=True)

    try:
        work = json.loads(Path(request).read_text(encoding="utf-8"))
        export(Path(checkpoint), Path(out))
        model = open_exported(Path(out))
        for reply in replies(model, work["prompts"], work["new_tokens"], work["context"]):
            say({"reply": reply})
        names = {"inputs": model.session.get_inputs(), "outputs": model.session.get_outputs()}
        versions = {package: importlib.metadata.version(package) for package in PACKAGES}
        say({**{key: [item.name for item in items] for key, items in names.items()}, "versions": versions})
    except Exception as error:  # libraries raise what they please
        say({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
