"""The portable flavour: standard ONNX operators with a growing cache, exported by optimum.

It is the reference and the way into other tools: slower than our graph, and any ONNX runtime takes it. It is proven by
generating through optimum's ORTModelForCausalLM. Our engine does not run it.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from chitchat.errors import WorkFailed
from export.parity import NEW_TOKENS, Parity, same_tokens
from serve.quiet import load


def export_portable(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write model.onnx and what ORTModelForCausalLM and AutoTokenizer read beside it.

    Gives the names of the graph's inputs and outputs. Raises WorkFailed when optimum cannot.
    """
    with _quiet():
        onnx_export_from_model = load("optimum.exporters.onnx").onnx_export_from_model
        try:
            onnx_export_from_model(model, folder, task="text-generation-with-past", do_validation=False)
        except Exception as error:  # optimum and torch.onnx raise what they please
            raise WorkFailed(f"optimum could not export the model ({' '.join(str(error).split())[:200]})") from error
        tokenizer.save_pretrained(folder)
    session = open_portable(folder).session
    return tuple(item.name for item in session.get_inputs()), tuple(item.name for item in session.get_outputs())


def open_portable(folder: Path) -> Any:
    """Load a portable bundle as a user would, as an ORTModelForCausalLM."""
    options = load("onnxruntime").SessionOptions()
    options.log_severity_level = 4
    with _quiet():
        return load("optimum.onnxruntime").ORTModelForCausalLM.from_pretrained(folder, session_options=options)


def check_portable(
    folder: Path, model: GPT2LMHeadModel, prompts: Sequence[Sequence[int]], origin: dict[str, int]
) -> Parity:
    """Measure that ORTModelForCausalLM generates torch's greedy tokens."""
    loaded = open_portable(folder)
    context = model.config.n_positions

    def reply_of(prompt: Sequence[int]) -> list[int]:
        ids = torch.tensor([list(prompt)])
        count = min(NEW_TOKENS, context - len(prompt))
        # The engine's check goes on after an end of turn too: -1 is no token, so nothing ends the reply early.
        with torch.no_grad(), _quiet():
            whole = loaded.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                do_sample=False,
                eos_token_id=-1,
                pad_token_id=0,
            )
        return [int(token) for token in whole[0, len(prompt) :]]

    parity = Parity(origin, {"greedy_diverged": 0})
    parity.figures = same_tokens(prompts, model, reply_of)
    return parity


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what optimum and the tracer print and warn about off the user's screen; errors still come as exceptions."""
    loggers = [logging.getLogger(name) for name in ("optimum", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    verbosity = transformers_logging.get_verbosity()
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        transformers_logging.set_verbosity_error()
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
