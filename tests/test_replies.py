"""Replies that are measured: one sampler, fixed seeds, and the same replies from every form of a model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.bundles import DIALOGUE, exported, random_gpt2

from bench.evaluate.replies import SAMPLING, EvalPrompt, Reply, draw_replies, reply_prompts
from bench.models.engine import EngineModel
from bench.models.torch import CheckpointModel
from chitchat.dialogue import Dialogue
from serve.engine import Engine

TALK = Dialogue.from_json(DIALOGUE)
PROMPTS = [
    EvalPrompt(number, list(range(3 + number, 3 + number + length))) for number, length in enumerate([9, 2, 30, 5])
]
SHORT = replace(SAMPLING, max_new_tokens=20)


class OneByOne(CheckpointModel):
    """The torch runtime without a batch."""

    def batch_size(self, tokens: int) -> int:
        return 1


def test_replies_drawn_side_by_side_are_those_drawn_alone() -> None:
    """Padding was attended to, or a reply that ended took another one's cache with it."""
    model = random_gpt2(vocab_size=40)
    together, alone = CheckpointModel(model), OneByOne(model)
    assert together.batch_size(64) >= len(PROMPTS)
    flat = replace(SHORT, temperature=3.0, top_k=0, top_p=1.0)
    replies = draw_replies(together, PROMPTS * 3, TALK, flat)
    assert replies == draw_replies(alone, PROMPTS * 3, TALK, flat)
    assert len({len(reply.ids) for reply in replies}) > 2, "they end at different times"
    assert len({tuple(reply.ids) for reply in replies}) > len(PROMPTS), "the same prompt has another seed each time"
    assert [reply.prompt for reply in replies] == PROMPTS * 3


def test_the_engine_says_what_torch_says_and_what_it_streams(tmp_path: Path) -> None:
    """The health of a bundle was that of another sampler, or of the checkpoint that it was made from."""
    model = random_gpt2(initializer_range=0.3)
    engine = Engine(exported(model, tmp_path), threads=1)
    replies = draw_replies(EngineModel(engine), PROMPTS, TALK, SHORT)
    assert replies == draw_replies(CheckpointModel(model), PROMPTS, TALK, SHORT)
    for seed, reply in enumerate(replies):
        engine.reset()
        assert list(engine.stream(reply.prompt.ids, replace(SHORT, seed=seed))) == reply.ids


def test_both_runtimes_give_the_same_logits_of_a_text(tmp_path: Path) -> None:
    """KL between two forms of one model was that between two positions."""
    model = random_gpt2()
    ids = list(range(3, 60))
    of_engine = EngineModel(Engine(exported(model, tmp_path), threads=1)).logits(ids)
    of_torch = CheckpointModel(model).logits(ids)
    assert of_engine.shape == of_torch.shape == (57, 101)
    assert np.abs(of_engine - of_torch).max() < 1e-4 * np.abs(of_torch).max()


def test_a_reply_ends_with_its_turn_its_length_or_the_context() -> None:
    """A reply that filled the context was taken for one that had come to its end."""
    model = random_gpt2()
    runtime = CheckpointModel(model)
    with torch.no_grad():
        model.transformer.wte.weight[2] = 0  # a logit of zero: the end of turn is not among the likeliest
    never = draw_replies(runtime, PROMPTS[:2], TALK, replace(SHORT, top_k=3), context=12)
    assert [(len(reply.ids), reply.ended) for reply in never] == [(3, False), (10, False)]
    assert [len(reply.ids) for reply in draw_replies(runtime, PROMPTS[:2], TALK, replace(SHORT, top_k=3))] == [20, 20]


def test_a_model_that_ends_every_turn_at_once_has_empty_replies() -> None:
    """The sampler's least length of one token hid that a model had nothing to say."""

    class Silent(OneByOne):
        def start(self, prompts: list[list[int]]) -> np.ndarray:
            logits = np.zeros((1, 101), dtype=np.float32)
            logits[0, TALK.end_of_turn_id] = 50
            return logits

    replies = draw_replies(Silent(random_gpt2()), PROMPTS, TALK)
    assert replies == [Reply(prompt, [], True) for prompt in PROMPTS]


def test_prompts_of_replies_are_held_out_and_leave_room_for_a_reply(tiny_data: Path) -> None:
    """A prompt as long as a small context left no room, and every reply was cut to nothing."""
    from chitchat.data.dataset import held_out_prompts, open_dataset

    data = open_dataset(tiny_data)
    prompts = reply_prompts(data, 10, context=40)
    assert [prompt.ids for prompt in prompts] == held_out_prompts(data, 10, 20)
    rows = data.validation["input_ids"]
    for prompt in prompts:
        turns = " ".join(map(str, prompt.ids[1:]))
        assert turns in " ".join(map(str, rows[prompt.conversation])), "the number is that of its conversation"
    assert 0 < len(reply_prompts(data, 100_000, context=40)) < 1_000, "as many as there are"


@pytest.mark.parametrize("tokens", [1, 64, 100_000])
def test_a_batch_has_at_least_one_row(tokens: int) -> None:
    """A context longer than a batch divided by zero."""
    assert CheckpointModel(random_gpt2()).batch_size(tokens) >= 1
