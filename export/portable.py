"""The portable flavour: standard ONNX operators with a growing cache, exported by optimum.

It is the reference and the way into other tools: slower than our graph, and any ONNX runtime takes it. optimum cannot
be installed beside our transformers, so it works in an environment of its own (`make portable`), as a child process
that is given a checkpoint and prompts (`export.optimum_child`). The bundle is proven here: what ORTModelForCausalLM
generated there is held against torch. Our engine does not run it.
"""

import json
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from chitchat.checkpoint import save_model
from chitchat.errors import BadInput, WorkFailed
from chitchat.formats.tokenizer_files import save_tokenizer
from chitchat.system.child import run_child
from chitchat.system.interpreters import PORTABLE, find_interpreter, named_interpreter
from export.parity import NEW_TOKENS, Parity, same_tokens

MODULES = ("optimum.onnxruntime", "optimum.exporters.onnx")
_CHILD = Path(__file__).with_name("optimum_child.py")


@dataclass(frozen=True)
class Exported:
    """What optimum wrote: the names of the graph's inputs and outputs, and the versions of what wrote it."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    versions: dict[str, str]
    replies: list[list[int]]  # greedy, one a prompt, by ORTModelForCausalLM


def find_optimum(portable_python: str | None) -> str:
    """The interpreter that has optimum. Raises `BadInput` with the line to type where there is none."""
    python = find_interpreter(PORTABLE, portable_python, MODULES)
    if python is not None:
        return python
    named = named_interpreter(PORTABLE, portable_python)
    if named is not None:
        raise BadInput(f"{' '.join(named)}: has no optimum; make one that has it with {PORTABLE.remedy}")
    raise BadInput(f"--target portable: needs optimum, in an environment of its own: {PORTABLE.remedy}")


def export_portable(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    prompts: Sequence[Sequence[int]],
    python: str,
) -> Exported:
    """Have the interpreter `python` write model.onnx and what ORTModelForCausalLM and AutoTokenizer read beside it.

    `folder` exists; a complete checkpoint lies in it meanwhile. Raises WorkFailed when optimum cannot.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".checkpoint-") as scratch:
        save_model(model, Path(scratch))
        save_tokenizer(tokenizer, Path(scratch))
        request = Path(scratch) / "request.json"
        work = {
            "prompts": list(map(list, prompts)),
            "new_tokens": NEW_TOKENS,
            "context": model.config.max_position_embeddings,
        }
        request.write_text(json.dumps(work), encoding="utf-8")
        figures, replies = _run([python, "-I", str(_CHILD), scratch, str(folder), str(request)], len(prompts))
    return Exported(tuple(figures["inputs"]), tuple(figures["outputs"]), figures["versions"], replies)


def check_portable(
    exported: Exported, model: PreTrainedModel, prompts: Sequence[Sequence[int]], origin: dict[str, int]
) -> Parity:
    """Measure that ORTModelForCausalLM generated torch's greedy tokens."""
    parity = Parity(origin, {"greedy_diverged": 0})
    replies = iter(exported.replies)
    parity.figures = same_tokens(prompts, model, lambda prompt: next(replies))
    return parity


def _run(argv: Sequence[str], prompts: int) -> tuple[dict[str, Any], list[list[int]]]:
    """The figures of `export.optimum_child`, and the replies that it printed on the way."""
    replies: list[list[int]] = []
    with tqdm(total=prompts, desc="optimum", unit="prompt", disable=None) as progress:

        def take(line: str) -> None:
            replies.append(json.loads(line)["reply"])
            progress.update()

        code, figures = run_child(argv, take)
    if code == 0 and figures is not None and len(replies) == prompts:
        return figures, replies
    if code < 0:
        name = signal.Signals(-code).name
        reason = f"it was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    else:
        reason = (figures or {}).get("error", f"it ended with exit code {code} without a word")
    raise WorkFailed(f"optimum could not export the model ({reason})")
