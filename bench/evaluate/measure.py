"""Quality on held-out conversations, through the runtime that ships.

Perplexity, bits per byte and token accuracy of the validation split, every token scored once, in windows of whole
turns; statistics of replies that are drawn to fixed held-out prompts (`bench.evaluate.reply_stats`); against a teacher,
KL and top-1 agreement (`bench.evaluate.divergence`) and paired ratios. A bundle is computed by the engine on its graph,
not by torch. Models are comparable when they score the same tokens, so the bench gives one context to all. Bits per
byte, unlike perplexity, compares across tokenizers. Intervals are those of `bench.evaluate.bootstrap`, over
conversations.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.evaluate.bootstrap import percentiles, ratio_interval, resampled
from bench.evaluate.divergence import Divergence, measure_divergence
from bench.evaluate.options import EvalOptions
from bench.evaluate.other_tokenizer import codec_of
from bench.evaluate.replies import SAMPLES, EvalPrompt, draw_replies, reply_prompts
from bench.evaluate.reply_stats import ReplyStats, TextReply
from bench.models.handle import ModelHandle
from bench.models.loaded import LoadedModel
from bench.models.open import for_missing, open_model
from chitchat.errors import BadInput
from chitchat.formats.same_tokenizer import tokenizer_differences
from chitchat.score import Sums, conversation_sums

if TYPE_CHECKING:
    from chitchat.data.dataset import ChatData

KL_TOKENS = 16_384  # KL settles long before: its interval stands beside it


@dataclass(frozen=True)
class EvalTask:
    """What quality is measured on: window of `context` tokens, at most `max_tokens` scored (None: all).

    `samples` replies are drawn, None for as many as the split has prompts for, up to `SAMPLES`; `kl_tokens` bounds the
    positions that are compared with the teacher.
    """

    context: int
    max_tokens: int | None = None
    samples: int | None = None
    kl_tokens: int = KL_TOKENS


@dataclass(frozen=True)
class Quality:
    """What was measured of one model: sums per conversation, replies as texts, and how far it is from a teacher."""

    context: int
    sums: Sums
    replies: list[TextReply]
    divergence: Divergence | None = None

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON takes it; `from_json` reads it."""
        return {
            "context": self.context,
            "scores": {name: column.tolist() for name, column in asdict(self.sums).items()},
            "replies": [asdict(reply) for reply in self.replies],
            "divergence": None if self.divergence is None else asdict(self.divergence),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Quality":
        """What `as_json` gave."""
        return cls(
            record["context"],
            Sums(**{name: np.asarray(column) for name, column in record["scores"].items()}),
            [TextReply(**reply) for reply in record["replies"]],
            None if record["divergence"] is None else Divergence(**record["divergence"]),
        )

    def figures(self, teacher: "Quality | None" = None) -> dict[str, Any]:
        """All figures with their intervals; with a teacher's quality, measured by the same task, the ratios as well."""
        found: dict[str, Any] = {**self.sums.score().as_json(), **_score_intervals(self.sums), "context": self.context}
        if self.divergence is not None:
            found |= self.divergence.figures()
        if teacher is not None:
            found |= _perplexity_ratio(self.sums, teacher.sums)
        if self.replies:
            stats = ReplyStats(self.replies)
            found |= stats.figures()
            if teacher is not None and teacher.replies:
                found |= stats.against(ReplyStats(teacher.replies))
        return found


def evaluate(
    spec: str, data: Path, options: EvalOptions | None = None, *, context: int | None = None
) -> dict[str, Any]:
    """Quality and size of one model, for `compress eval`.

    `context` (tokens) is the window, by default the model's own (with a teacher, the smaller one of both). With
    `options.teacher` come `kl`, `kl_p99`, `top1`, the teacher's own main figures and the ratios. Raises `BadInput` when
    the data set was made with another tokenizer than the model's, for a teacher of another vocabulary, and for more
    samples than there are prompts.
    """
    options = options or EvalOptions()
    model = open_model(spec, tokenizer=options.tokenizer)
    held_out = open_held_out(data)
    check_vocabulary(model, held_out)
    teacher = None if options.teacher is None else open_teacher(options.teacher, model, options.tokenizer)
    contexts = [opened.context for opened in (model, teacher) if opened is not None]
    task = EvalTask(min(contexts if context is None else [context, *contexts]), options.max_tokens, options.samples)
    check_samples(held_out, task)
    loaded = model.load(options.threads)
    loaded_teacher = None if teacher is None else teacher.load(options.threads)
    reference = None if loaded_teacher is None else measure_quality(loaded_teacher, held_out, task)
    quality = measure_quality(loaded, held_out, task, loaded_teacher)
    return {
        "model": spec,
        "kind": model.kind,
        "runtime": model.runtime,
        **quality.figures(reference),
        **({} if reference is None else {"teacher": options.teacher, **_of_teacher(reference)}),
        "parameters": model.parameters,
        "weight_bytes": model.weight_bytes,
        "file_bytes": model.file_bytes,
    }


def measure_quality(
    model: LoadedModel, data: "ChatData", task: EvalTask, teacher: LoadedModel | None = None
) -> Quality:
    """Score a loaded model on the validation split, draw its replies, and compare it with a loaded teacher."""
    windows = data.windows("validation", task.context)
    divergence = None
    if teacher is not None:
        tokens = task.kl_tokens if task.max_tokens is None else min(task.kl_tokens, task.max_tokens)
        divergence = measure_divergence(teacher, model, windows, tokens)
    sums = conversation_sums(model.scorer(), windows, task.max_tokens)
    return Quality(task.context, sums, _draw_texts(model, data, _prompts(data, task), task.context), divergence)


def open_teacher(spec: str, model: ModelHandle, tokenizer: str | None = None) -> ModelHandle:
    """The teacher that `model` is compared with. Raises `BadInput` unless every id means the same to both."""
    teacher = open_model(spec, tokenizer=for_missing(spec, tokenizer))
    if not teacher.reads_like(model):
        sizes = [opened.geometry.vocab for opened in (model, teacher)]
        raise BadInput(
            f"--teacher {spec}: has another vocabulary ({sizes[1]} ids) than {model.spec} ({sizes[0]}), so their "
            "predictions cannot be compared; give a teacher of the same tokenizer, or compare bits per byte"
        )
    return teacher


def open_held_out(data: Path) -> "ChatData":
    """The data set in `data`. Raises `BadInput` where there is none, or nothing is held out in it."""
    from chitchat.data.dataset import open_dataset

    opened = open_dataset(Path(data))
    if len(opened.validation) == 0:
        raise BadInput(f"--data {data}: no held-out conversations in it; make it again with a larger --validation")
    return opened


def check_vocabulary(model: ModelHandle, data: "ChatData") -> None:
    """Raise `BadInput` unless the data set's ids mean to the model what they meant to its tokenizer."""
    if found := tokenizer_differences(data.tokenizer.backend_tokenizer.to_str(), model.tokenizer_json()):
        raise BadInput(
            f"--data {data.path}: was made with another tokenizer than that of {model.spec} (another "
            f"{', '.join(found)}); make it again with --tokenizer {model.spec}"
        )


def check_samples(data: "ChatData", task: EvalTask) -> None:
    """Raise `BadInput` for more samples than the held-out conversations have prompts for."""
    if task.samples is not None and (found := len(_prompts(data, task))) < task.samples:
        raise BadInput(
            f"--samples {task.samples}: {data.path} has only {found} held-out turns to answer; give at most as many, "
            "or hold out more with `compress data --validation`"
        )


def _prompts(data: "ChatData", task: EvalTask) -> list[EvalPrompt]:
    return reply_prompts(data, SAMPLES if task.samples is None else task.samples, task.context)


def _draw_texts(model: LoadedModel, data: "ChatData", prompts: list[EvalPrompt], context: int) -> list[TextReply]:
    """Draw the replies and read them with the data set's tokenizer, whatever form the model has."""
    codec = codec_of(data)
    drawn = draw_replies(model, prompts, data.dialogue, context=context, banned=data.banned_ids)
    return [
        TextReply(reply.prompt.conversation, codec.decode(reply.ids), len(reply.ids), reply.ended) for reply in drawn
    ]


def _score_intervals(sums: Sums) -> dict[str, Any]:
    nats = ratio_interval(sums.nll, sums.tokens)
    bits = ratio_interval(sums.nll / math.log(2), sums.bytes)
    return {
        "perplexity_interval": None if nats is None else [math.exp(min(end, 700.0)) for end in nats],
        "bits_per_byte_interval": bits,
        "token_accuracy_interval": ratio_interval(sums.hits, sums.tokens),
    }


def _perplexity_ratio(mine: Sums, theirs: Sums) -> dict[str, Any]:
    """The model's perplexity over the teacher's, by conversation; {} unless both scored the same tokens."""
    if not np.array_equal(mine.conversation, theirs.conversation) or not np.array_equal(mine.tokens, theirs.tokens):
        return {}
    more = mine.nll - theirs.nll
    interval = None
    if len(more) > 1:
        differences, tokens = resampled([more, mine.tokens])
        interval = percentiles(np.exp(differences / tokens))
    ratio = math.exp(float(more.sum()) / int(mine.tokens.sum()))
    return {"perplexity_ratio": ratio, "perplexity_ratio_interval": interval}


def _of_teacher(reference: Quality) -> dict[str, Any]:
    """The figures of the teacher that ratios are read beside."""
    found = reference.figures()
    of_replies = ("distinct_1", "distinct_2", "entropy_4", "repetition_4", "empty_replies", "reply_tokens")
    names = ("perplexity", "bits_per_byte", *of_replies)
    return {f"teacher_{name}": found[name] for name in names if name in found}
