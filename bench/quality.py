"""Quality on held-out conversations, through the runtime that ships.

Perplexity, bits per byte and token accuracy of the validation split, every token scored once, in windows of whole
turns. A bundle is scored by the engine on its graph, not by torch. Models are comparable when they score the same
tokens, so the bench gives one context to all. Bits per byte, unlike perplexity, compares across tokenizers.
"""

from pathlib import Path
from typing import Any

from bench.measured import MeasuredModel, vocabulary_identity
from bench.model import open_model
from chitchat.errors import BadInput


def evaluate(
    spec: str, data: Path, max_tokens: int | None = None, context: int | None = None, threads: int | None = None
) -> dict[str, Any]:
    """Quality and size of one model, for `compress eval`.

    `context` (tokens) is the window, by default the model's own; `max_tokens` ends the scoring early. Raises `BadInput`
    when the data set was made with another tokenizer than the model's.
    """
    model = open_model(spec)
    check_vocabulary(model, open_held_out(data))
    context = model.context if context is None else min(context, model.context)
    return {
        "model": spec,
        "kind": model.kind,
        "runtime": model.runtime,
        **score_held_out(model.scorer(threads), data, context, max_tokens),
        "parameters": model.parameters,
        "weight_bytes": model.weight_bytes,
        "file_bytes": model.file_bytes,
    }


def score_held_out(scorer: Any, data: Path, context: int, max_tokens: int | None) -> dict[str, Any]:
    """Score a loaded model on the validation split; `scorer` is a `chitchat.score.TokenScorer`."""
    from chitchat.score import score

    windows = open_held_out(data).windows("validation", context)
    figures = score(scorer, windows, max_tokens).as_json()
    return {**figures, "context": context}


def open_held_out(data: Path) -> Any:
    """The data set in `data`. Raises `BadInput` where there is none, or nothing is held out in it."""
    from chitchat.data.dataset import open_dataset

    opened = open_dataset(Path(data))
    if len(opened.validation) == 0:
        raise BadInput(f"--data {data}: no held-out conversations in it; make it again with a larger --validation")
    return opened


def check_vocabulary(model: MeasuredModel, data: Any) -> None:
    """Raise `BadInput` unless the data set's ids mean to the model what they meant to its tokenizer."""
    if vocabulary_identity(data.tokenizer.backend_tokenizer.to_str()) != model.vocabulary:
        raise BadInput(
            f"--data {data.path}: was made with another tokenizer than that of {model.spec}; "
            f"make it again with --tokenizer {model.spec}"
        )
