"""Whole replies, from text to text: whose loop draws them, and that the clock runs over all of it."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.models.text_pipeline import TextPipeline
from bench.models.torch import CheckpointModel
from bench.peers.torch import NoCacheModel
from chitchat.checkpoint import load_tokenizer
from chitchat.dialogue import dialogue_of

TEXTS = ["hello there", "how are you", "fine"]


@pytest.fixture
def speech(tiny_checkpoint: Path) -> dict[str, Any]:
    dialogue = dialogue_of(load_tokenizer(tiny_checkpoint))
    return {"tokenizer": str(tiny_checkpoint / "tokenizer.json"), "dialogue": dialogue.as_json()}


def replies(model: Any, speech: dict[str, Any]) -> list[dict[str, Any]]:
    speaker = TextPipeline(model, **speech)
    return [speaker.reply(text, seed, 12) for seed, text in enumerate(TEXTS)]


def test_the_loop_without_a_cache_has_none_in_its_replies(
    tiny_checkpoint: Path, speech: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its replies were drawn over a cache and came as fast as those of the generator that has one."""
    expected = replies(CheckpointModel.open(str(tiny_checkpoint), 1, "cpu"), speech)
    model = NoCacheModel.open(str(tiny_checkpoint), 1, "cpu")
    lengths: list[int] = []
    forward = model._model.forward

    def noted(*args: Any, **options: Any) -> Any:
        assert not options.get("past_key_values")
        assert options["use_cache"] is False
        lengths.append(options["input_ids"].shape[1])
        return forward(*args, **options)

    monkeypatch.setattr(model._model, "forward", noted)
    found = replies(model, speech)
    assert [reply["text"] for reply in found] == [reply["text"] for reply in expected]
    assert len(lengths) == sum(reply["tokens"] for reply in found) + sum(reply["tokens"] < 12 for reply in found)
    assert lengths[1] == lengths[0] + 1, "the whole text again"


def test_a_loop_of_the_runtimes_own_is_on_the_clock(tiny_checkpoint: Path, speech: dict[str, Any]) -> None:
    """Stops a reply that is made before the clock starts, and our loop around a runtime that has its own."""

    class Slow(CheckpointModel):
        def reply(self, prompt: Sequence[int], options: Any, dialogue: Any) -> Iterator[int]:
            assert prompt[-1] == dialogue.end_of_turn_id
            assert options.max_new_tokens == 12
            for token in (40, 41):
                time.sleep(0.02)
                yield token

    for reply in replies(Slow.open(str(tiny_checkpoint), 1, "cpu"), speech):
        assert reply["tokens"] == 2
        assert 20 <= reply["first_ms"] <= reply["ms"] - 20


def test_replies_follow_the_seed(tiny_checkpoint: Path, speech: dict[str, Any]) -> None:
    """Stops a seed that is dropped on the way, and two models that are asked for different words."""
    torch.manual_seed(1)
    model = CheckpointModel.open(str(tiny_checkpoint), 1, "cpu")
    once = [reply["text"] for reply in replies(model, speech)]
    torch.manual_seed(2)
    assert [reply["text"] for reply in replies(model, speech)] == once
