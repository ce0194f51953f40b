"""What an evaluation is asked for."""

from dataclasses import dataclass

from chitchat.options import MAX_TOKENS, THREADS, TOKENIZER, Options, option


@dataclass(frozen=True, kw_only=True)
class EvalOptions(Options):
    """What is measured of a model on held-out conversations: see `bench.evaluate.measure.evaluate`."""

    teacher: str | None = option(None, "Compare with this model of the same vocabulary: KL, top-1, ratios.")
    max_tokens: int | None = option(None, **MAX_TOKENS)
    samples: int | None = option(
        None,
        "Replies drawn to held-out prompts (default: 200, or as many as there are); 0: none.",
        unit="replies",
        ge=0,
    )
    tokenizer: str | None = option(None, **TOKENIZER)
    threads: int | None = option(None, **THREADS)
    seed: int = option(0, "As every command; nothing is random here.", unit="seed", ge=0)
