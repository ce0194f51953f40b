"""Replies to fixed held-out prompts, drawn by one sampler whatever computes the logits.

The edge runtime's sampler (`serve.sampler`) draws for torch as for the engine, and reply i has the seed i, so two forms
of one model give the same replies as far as their logits agree. The options are those that `serve` has by default, but
for two: nothing is penalised and an empty reply may be drawn, since what is measured is the model itself.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bench.models.loaded import LoadedModel
from serve.options import SamplingOptions
from serve.sampler import Sampler, build_sampler

if TYPE_CHECKING:
    from chitchat.data.dataset import ChatData
    from chitchat.dialogue import Dialogue

SAMPLING = SamplingOptions(
    temperature=0.8, top_k=40, top_p=0.95, repetition_penalty=1.0, max_new_tokens=64, min_new_tokens=0
)
SAMPLES = 200
PROMPT_TOKENS = 64


@dataclass(frozen=True)
class EvalPrompt:
    """What a reply is drawn to: the number of its held-out conversation, and the ids."""

    conversation: int
    ids: list[int]


@dataclass(frozen=True)
class Reply:
    """One reply: its `ids` without the end of turn, and whether the end of turn came (else the length was used up)."""

    prompt: EvalPrompt
    ids: list[int]
    ended: bool


def reply_prompts(data: "ChatData", count: int, context: int) -> list[EvalPrompt]:
    """Up to `count` held-out prompts, which leave half of a small context for the reply."""
    from chitchat.data.dataset import numbered_prompts

    return [EvalPrompt(row, ids) for row, ids in numbered_prompts(data, count, min(PROMPT_TOKENS, context // 2))]


def draw_replies(
    model: LoadedModel,
    prompts: Sequence[EvalPrompt],
    dialogue: "Dialogue",
    options: SamplingOptions = SAMPLING,
    context: int | None = None,
    banned: Callable[[int], Sequence[int]] | None = None,
) -> list[Reply]:
    """Draw a reply to each prompt; prompt i has the seed i, in place of that of the options.

    A reply has at most `max_new_tokens` ids, and no more than fit into `context` (the model's when None). `banned`
    gives the ids that are never drawn, for the number of the model's rows (None: those of the dialogue).
    """
    context = min(context or model.context, model.context)
    longest = max((len(prompt.ids) for prompt in prompts), default=1)
    count = model.batch_size(min(context, longest + options.max_new_tokens))
    return [
        reply
        for begin in range(0, len(prompts), count)
        for reply in _draw_batch(model, prompts[begin : begin + count], dialogue, options, context, begin, banned)
    ]


def _draw_batch(
    model: LoadedModel,
    prompts: Sequence[EvalPrompt],
    dialogue: "Dialogue",
    options: SamplingOptions,
    context: int,
    first_seed: int,
    banned: Callable[[int], Sequence[int]] | None,
) -> Iterator[Reply]:
    """Draw replies side by side; a reply that is done leaves the batch."""
    end = dialogue.end_of_turn_id
    logits = model.start([prompt.ids for prompt in prompts])
    never = dialogue.banned_ids if banned is None else banned(logits.shape[1])
    samplers: list[Sampler] = [
        build_sampler(replace(options, seed=first_seed + index), never, end) for index in range(len(prompts))
    ]
    drawn: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    alive = list(range(len(prompts)))
    while alive:
        rows, tokens = [], []
        for row, index in enumerate(alive):
            token = int(samplers[index](logits[row], drawn[index]))
            if token == end:
                ended[index] = True
                continue
            drawn[index].append(token)
            if len(drawn[index]) < min(options.max_new_tokens, context - len(prompts[index].ids)):
                rows.append(row)
                tokens.append(token)
        alive = [alive[row] for row in rows]
        if alive:
            logits = model.step(rows, tokens)
    return (Reply(*parts) for parts in zip(prompts, drawn, ended, strict=True))
