"""The full-precision generator."""

import dataclasses
import logging
import threading

import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from chitchat.data.dataset import open_dataset
from chitchat.errors import BadInput
from chitchat.generate import TorchGenerator

GREEDY = {"temperature": 0.0, "max_new_tokens": 12}


@pytest.fixture
def generator(tiny_model, tiny_data):
    """A generator whose random model has strong opinions; with a tied head it would only repeat its last token."""
    torch.manual_seed(0)
    config = GPT2Config(**{**tiny_model.config.to_dict(), "tie_word_embeddings": False, "initializer_range": 0.3})
    return TorchGenerator(GPT2LMHeadModel(config), open_dataset(tiny_data).dialogue)


@pytest.fixture
def prompt(tiny_data):
    return open_dataset(tiny_data).windows("validation", 24)[0]["input_ids"]


def greedy_by_hand(model, dialogue, prompt, count, penalty=1.0, least=0, earlier=()):
    """Argmax without a cache, banned ids out, the penalty over the bot's ids."""
    reply = []
    for _ in range(count):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + reply])).logits[0, -1].clone()
        for token in {*reply, *earlier}:
            logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
        logits[list(dialogue.banned_ids)] = -torch.inf
        if len(reply) < least:
            logits[dialogue.end_of_turn_id] = -torch.inf
        token = int(logits.argmax())
        if token == dialogue.end_of_turn_id:
            break
        reply.append(token)
    return reply


@pytest.mark.parametrize(("penalty", "least"), [(1.0, 0), (1.5, 6)])
def test_greedy_is_the_argmax_without_a_cache(generator, prompt, penalty, least):
    """Stops: a cache with wrong positions, banned ids in a reply, a penalty over the prompt or blind to signs."""
    options = {**GREEDY, "repetition_penalty": penalty, "min_new_tokens": least}
    expected = greedy_by_hand(generator.model, generator.dialogue, prompt, 12, penalty, least)
    assert len(expected) == 12
    assert list(generator.stream(prompt, options)) == expected


def test_what_the_bot_said_earlier_is_penalised_as_well(generator, prompt):
    """Stops: a comparison of two generators of which only one knows the conversation."""
    options = {**GREEDY, "repetition_penalty": 1.5, "min_new_tokens": 12}
    plain = list(generator.stream(prompt, options))
    earlier = [*plain[:4], generator.dialogue.end_of_turn_id]
    expected = greedy_by_hand(generator.model, generator.dialogue, prompt, 12, 1.5, 12, plain[:4])
    assert list(generator.stream(prompt, {**options, "earlier_ids": earlier})) == expected != plain


@pytest.mark.parametrize("size", [1, 2])
def test_no_ngram_comes_twice_in_a_reply_and_the_prompt_does_not_count(generator, prompt, size):
    """Stops: an option that is silently ignored, or one that forbids to answer with the user's words."""
    options = {**GREEDY, "max_new_tokens": 30, "min_new_tokens": 30}

    def ngrams(ids):
        return list(zip(*(ids[place:] for place in range(size)), strict=False))

    free = list(generator.stream(prompt, options))
    assert len(set(ngrams(free))) < len(ngrams(free)), "nothing repeats: proves nothing"
    reply = list(generator.stream(prompt, {**options, "no_repeat_ngram": size}))
    assert len(set(ngrams(reply))) == len(ngrams(reply)) > 0
    place = next(place for place in range(30) if free[place] in free[:place])
    said = {**options, "max_new_tokens": 1, "no_repeat_ngram": 1}
    assert list(generator.stream([*prompt, *free[:place]], said)) == [free[place]]


def test_min_p_of_one_is_greedy(generator, prompt):
    """Stops: options that the engine of a bundle knows and this generator ignores."""
    options = {"temperature": 5.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 12, "min_new_tokens": 12, "seed": 1}
    greedy = list(generator.stream(prompt, {**GREEDY, "min_new_tokens": 12}))
    assert list(generator.stream(prompt, {**options, "min_p": 1.0})) == greedy
    assert list(generator.stream(prompt, options)) != greedy


def test_log_probabilities_are_of_the_model_before_penalty_bans_and_filters(generator, prompt):
    """Stops: figures that change with the sampling options, and those of the token before."""
    filters = {"temperature": 3.0, "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.5, "seed": 3}
    options = {**filters, "max_new_tokens": 8, "min_new_tokens": 8}
    plain = list(generator.stream(prompt, options))
    scored = list(generator.stream(prompt, {**options, "logprobs": 3}))
    assert scored == plain, "asking for them changes nothing"
    with torch.no_grad():
        nats = generator.model(input_ids=torch.tensor([prompt + plain])).logits[0].double().log_softmax(-1)
    for place, token in enumerate(scored, start=len(prompt) - 1):
        assert token.logprob == pytest.approx(float(nats[place, token]), abs=1e-4)
        best = nats[place].topk(3)
        assert [one for one, _ in token.likeliest] == best.indices.tolist()
        assert [one for _, one in token.likeliest] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert not generator.model._forward_hooks, "the hook is removed"


def test_the_engine_and_this_generator_take_the_same_options():
    """Stops: an option of one generator that the other one drops in silence."""
    from chitchat.generate import _DEFAULTS
    from serve.options import ReplyOptions

    assert set(_DEFAULTS) == {field.name for field in dataclasses.fields(ReplyOptions)}


def test_a_reply_ends_at_the_end_of_turn_which_is_not_given(generator, prompt):
    """Stops: an end of turn that shows up in the text or does not end the reply."""
    reply = list(generator.stream(prompt, GREEDY))
    end = reply[3]
    generator.dialogue = dataclasses.replace(generator.dialogue, end_of_turn_id=end)
    assert list(generator.stream(prompt, GREEDY)) == reply[: reply.index(end)]


def test_a_seed_repeats_a_sample_and_leaves_the_global_generator_alone(generator, prompt):
    """Stops: samples that cannot be repeated, and a reply that changes what a training draws."""
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 16, "min_new_tokens": 16}
    state = torch.random.get_rng_state()
    first, again = (list(generator.stream(prompt, {**options, "seed": 7})) for _ in range(2))
    other = list(generator.stream(prompt, {**options, "seed": 8}))
    assert first == again != other
    assert len(first) == 16
    assert list(generator.stream(prompt, options)) != list(generator.stream(prompt, options))
    assert torch.equal(state, torch.random.get_rng_state())


def test_options_may_be_a_dataclass_and_top_k_one_is_greedy(generator, prompt):
    """Stops: field names that drift from `serve.options.SamplingOptions`, and options that are silently ignored."""
    from serve.options import SamplingOptions

    sampled = SamplingOptions(temperature=1.0, top_k=1, top_p=1.0, repetition_penalty=1.0, max_new_tokens=5)
    greedy = SamplingOptions(temperature=0.0, repetition_penalty=1.0, max_new_tokens=5)
    assert list(generator.stream(prompt, sampled)) == list(generator.stream(prompt, greedy))


def test_a_top_p_of_zero_is_off(generator, prompt):
    """transformers refuses a top-p of 0, which GPT2-chitchat's own chat has."""
    options = {"temperature": 2.0, "max_new_tokens": 8, "seed": 3}
    replies = [list(generator.stream(prompt, {**options, "top_p": top_p, "top_k": 0})) for top_p in (0, 1.0)]
    assert replies[0] == replies[1] != list(generator.stream(prompt, {**options, "top_p": 1e-9}))


def test_a_reply_never_exceeds_the_context(generator, prompt):
    """Stops: an index error in the position table in the middle of a reply."""
    long = (prompt * 10)[:60]
    options = {**GREEDY, "max_new_tokens": 50, "min_new_tokens": 50}
    assert len(list(generator.stream(long, options))) == 4
    for bad in ([], (prompt * 10)[:64]):
        with pytest.raises(BadInput, match="give 1 to 63"):
            generator.stream(bad, options)


def test_a_consumer_that_leaves_stops_the_generation(generator, prompt):
    """Stops: a thread that goes on generating for a client that is gone."""
    stream = generator.stream(prompt, {**GREEDY, "max_new_tokens": 40, "min_new_tokens": 40})
    next(stream)
    stream.close()
    assert not any(thread.name == "generate" for thread in threading.enumerate())


def test_an_error_in_the_thread_reaches_the_consumer(generator, prompt, monkeypatch):
    """Stops: a consumer that waits for ever on a queue that nobody fills."""

    def fail(**_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(generator.model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(generator.stream(prompt, GREEDY))


def test_unconditional_generation_begins_with_the_blank_prompt(generator, caplog):
    """Stops: a blank prompt that warns of a missing mask or gives nothing."""
    options = {**GREEDY, "min_new_tokens": 3}
    with caplog.at_level(logging.WARNING, logger="transformers"):
        blank = list(generator.blank(options))
    assert len(blank) >= 3
    assert blank == list(generator.stream(list(generator.dialogue.unconditional_prompt_ids), options))
    assert not caplog.records


def test_a_prompt_that_ends_with_the_padding_id_is_answered_without_a_warning(generator, prompt, monkeypatch):
    """DialoGPT pads with its end of turn: transformers drops a mask of ones, and then says that there is none."""
    plain, warned = list(generator.stream([*prompt, generator.dialogue.end_of_turn_id], GREEDY)), []
    generator.model.config.pad_token_id = generator.dialogue.end_of_turn_id
    monkeypatch.setattr(
        generator.model.transformer,
        "warn_if_padding_and_no_attention_mask",
        lambda ids, mask: warned.append(mask is None and generator.model.transformer.config.pad_token_id is not None),
    )
    assert list(generator.stream([*prompt, generator.dialogue.end_of_turn_id], GREEDY)) == plain
    assert len(warned) >= len(plain)
    assert not any(warned)
    assert generator.model.config.pad_token_id == generator.dialogue.end_of_turn_id


def test_the_checkpoints_own_generation_settings_do_not_leak_into_a_reply(generator, prompt):
    """transformers 5 fills what a caller leaves out from them: a repetition penalty made greedy replies others."""
    plain = list(generator.stream(prompt, GREEDY))
    settings = GenerationConfig(repetition_penalty=9.0, no_repeat_ngram_size=1, suppress_tokens=[plain[0]])
    generator.model.generation_config = settings
    assert list(generator.stream(prompt, GREEDY)) == plain
    assert generator.model.generation_config is settings
