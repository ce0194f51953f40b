"""The prompts and texts that every model of a bench is asked with."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.evaluate.other_tokenizer import codec_of, turns_of
from bench.models.handle import ModelHandle

WARMUPS = 2
TEXTS = 24  # held-out turns that are answered in the scenario of whole replies


def make_prompts(models: Sequence[ModelHandle], data: Any, tokens: int, count: int, seed: int) -> list[list[int]]:
    """`count` prompts of exactly `tokens` ids that every model has: held-out conversations, else random ids.

    A held-out prompt is the beginning of a conversation, further conversations following where one is too short; it may
    end within a turn, since all prompts of a run are of one length.
    """
    random = np.random.default_rng(seed)
    if data is None:
        start = list(models[0].dialogue.start_ids)
        size = min(model.geometry.vocab for model in models)
        banned = {token for model in models for token in (*model.dialogue.banned_ids, model.dialogue.end_of_turn_id)}
        usable = np.setdiff1d(np.arange(size), sorted(banned))
        return [(start + random.choice(usable, tokens).tolist())[:tokens] for _ in range(count)]
    order = random.permutation(len(data.validation))
    prompts: list[list[int]] = []
    taken = 0
    while len(prompts) < count:
        ids: list[int] = []
        while len(ids) < tokens:
            ids += data.validation[int(order[taken % len(order)])]["input_ids"]
            taken += 1
        prompts.append(ids[:tokens])
    return prompts


def held_out_texts(data: Any) -> list[str]:
    """First turns of held-out conversations, the same ones every time."""
    codec = codec_of(data)
    order = np.random.default_rng(0).permutation(len(data.validation))[:TEXTS]
    rows = (data.validation[int(number)] for number in order)
    return [codec.decode(turns_of(row, data.dialogue.end_of_turn_id)[0]) for row in rows]
