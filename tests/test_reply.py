"""Log-probabilities over HTTP: beside their text, never ahead of it, the same whole and streamed."""

import asyncio
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.http import CODEC, Scripted, app_of, ask, events, joined, running
from support.tiny_codecs import SENTENCES

from serve.bundle import Bundle
from serve.engine import Engine
from serve.options import SamplingOptions
from serve.reply import LogprobBuffer
from serve.sampler import score
from serve.scored import ScoredToken
from serve.text import StopFilter, TextCodec


class Scored(Scripted):
    """A generator that says given ids and, if asked, how likely they were."""

    def stream(self, prompt_ids: list[int], options: Any) -> Iterator[int]:
        import numpy as np

        logits = np.random.default_rng(0).standard_normal(CODEC.vocab_size).astype(np.float32)
        for token in super().stream(prompt_ids, options):
            yield token if options.logprobs is None else score(logits, token, options.logprobs)


def listed(stream: list[Any]) -> list[dict[str, Any]]:
    """The listed tokens of a stream."""
    found = [choice["logprobs"] for event in stream for choice in event["choices"]]
    return [entry for logprobs in found if logprobs for entry in logprobs["content"]]


@pytest.mark.parametrize("stop", [[], ["觉得"], ["fine"], ["😅"]])
def test_a_stream_lists_the_tokens_of_the_whole_reply(stop: list[str]) -> None:
    """Stops tokens that are lost, or listed twice, where characters and stop strings hold the text back."""

    async def scenario() -> None:
        async with running(app_of(Scored())) as client:
            fields = {"stop": stop, "max_tokens": 60, "logprobs": True, "top_logprobs": 2}
            choice = (await ask(client, **fields)).json()["choices"][0]
            stream = events((await ask(client, **fields, stream=True)).text)
            assert listed(stream) == choice["logprobs"]["content"]
            text = choice["message"]["content"]
            assert joined(stream) == text
            spelled = bytes(byte for entry in listed(stream) for byte in entry["bytes"]).decode(errors="replace")
            assert spelled.startswith(text)
            assert stop or spelled == text
            assert all(len(entry["top_logprobs"]) == 2 for entry in listed(stream))
            assert stream[0]["choices"][0]["logprobs"] is None
            assert stream[-1]["choices"][0]["logprobs"] is None

    asyncio.run(scenario())


def test_without_the_field_there_are_none() -> None:
    """Stops answers that are five times as large as what was asked for."""

    async def scenario() -> None:
        async with running(app_of(Scored())) as client:
            assert (await ask(client)).json()["choices"][0]["logprobs"] is None
            stream = events((await ask(client, stream=True)).text)
            assert all(choice["logprobs"] is None for event in stream for choice in event["choices"])

    asyncio.run(scenario())


def test_tokens_are_listed_once_their_text_is_out_and_never_before() -> None:
    """Stops a stop string from being read off the list of tokens while its text is still held back."""
    generator = random.Random(0)
    for _ in range(1000):
        ids = CODEC.encode("".join(generator.choice(SENTENCES)[:12] for _ in range(2)))
        text = CODEC.decode(ids)
        place = generator.randrange(len(text))
        stops = [text[place : place + generator.randrange(1, 5)]] if generator.random() < 0.7 else []
        decoder, filtered, listing = CODEC.stream(), StopFilter(stops), LogprobBuffer()
        sent, tokens = "", []
        for token in ids:
            piece = decoder.feed(token)
            listing.made(ScoredToken(token), piece)
            out = filtered.feed(piece)
            sent += out
            tokens += listing.sent(out)
            before = b"".join(CODEC.token_bytes(listed_token) for listed_token in tokens[:-1]).decode(errors="ignore")
            assert not tokens or len(before) < len(sent), "a token is listed whose text is held back"
            if filtered.hit:
                break
        else:
            rest = filtered.feed(decoder.flush()) + filtered.flush()
            sent += rest
            tokens += listing.sent(rest, ended=not filtered.hit)
            assert filtered.hit or tokens == ids
        assert tokens == ids[: len(tokens)]
        assert CODEC.decode(tokens).startswith(sent)


def test_the_engine_gives_log_probabilities_that_are_the_models_own(tiny_bundle: Path) -> None:
    """Stops a list that is lost between the engine's thread and the client, or that depends on the temperature."""
    bundle = Bundle.open(tiny_bundle)
    engine = Engine(bundle, threads=1)

    async def scenario() -> list[Any]:
        async with running(app_of(engine, TextCodec.open(bundle.tokenizer_path))) as client:
            return [await first(client, temperature) for temperature in (0.0, 2.0)]

    async def first(client: httpx.AsyncClient, temperature: float) -> Any:
        fields = {"logprobs": True, "top_logprobs": 5, "max_tokens": 3, "min_tokens": 3, "seed": 3}
        response = await ask(client, temperature=temperature, repetition_penalty=1, **fields)
        return response.json()["choices"][0]["logprobs"]["content"]

    greedy, sampled = asyncio.run(scenario())
    assert len(greedy) == 3
    for entry in greedy:
        values = [other["logprob"] for other in entry["top_logprobs"]]
        assert values == sorted(values, reverse=True)
        assert entry["logprob"] <= 0
        assert sum(map(math.exp, values)) <= 1.0001
    assert greedy[0]["top_logprobs"] == sampled[0]["top_logprobs"]
    assert greedy[0]["token"] in [other["token"] for other in greedy[0]["top_logprobs"]]


def test_the_bots_earlier_turns_reach_the_generator_and_the_users_do_not() -> None:
    """Stops a server whose bot says the same in every turn because each request begins anew."""

    async def scenario() -> None:
        generator = Scripted()
        generator.context = 64
        said = [("user", "ab"), ("assistant", "cd"), ("user", "ef"), ("assistant", "gh"), ("user", "i")]
        messages = [{"role": role, "content": text} for role, text in said]
        async with running(app_of(generator)) as client:
            await ask(client, messages=messages)
            long = [{"role": "assistant", "content": "zz" * 40}, *messages]
            await ask(client, messages=long, truncate=True)
            await ask(client, messages=messages[:1])
        earlier = tuple(CODEC.encode("cd") + CODEC.encode("gh"))
        assert [getattr(options, "earlier_ids", None) for options in generator.options] == [earlier, earlier, None]
        assert type(generator.options[2]) is SamplingOptions

    asyncio.run(scenario())
