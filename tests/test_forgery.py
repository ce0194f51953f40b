"""Nobody forges a turn: whatever a text spells, in whatever role, only the server writes borders of turns."""

import asyncio
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.http import Scripted, app_of, running
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from chitchat.dialogue import dialogue_of, encode_text
from chitchat.tokenizer import read_vocab_txt, train_tokenizer
from serve.dialogue import Dialogue
from serve.history import ChatHistory
from serve.text import TextCodec

PIECES = ["se", "##p", "cl", "##s", "[", "]", "<", "|", ">", "end", "##of", "##text"]
WORDS = ["hello", "you", "a", "b", "你", "好", *PIECES]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def bpe(folder: Path, family: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that has seen special tokens as text, and could merge them."""
    return train_tokenizer([*BERT, "<|endoftext|>", "你好"] * 50, 320, family)


def wordpiece(folder: Path) -> PreTrainedTokenizerFast:
    """A BERT tokenizer out of a vocab.txt."""
    path = folder / "vocab.txt"
    path.write_text("\n".join([*BERT, *WORDS]) + "\n", encoding="utf-8")
    return read_vocab_txt(path)


def undeclared(folder: Path) -> PreTrainedTokenizerFast:
    """A foreign tokenizer whose special tokens are plain words of its vocabulary, one of them an added word."""
    vocabulary = {token: place for place, token in enumerate([*BERT, *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_tokens([AddedToken("[CLS]", special=False)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.to_str()))
    # Named, as tokenizer_config.json does, but not declared to the tokenizer that parses.
    wrapped._special_tokens_map |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    return wrapped


MAKERS: dict[str, Callable[[Path], PreTrainedTokenizerFast]] = {
    "chitchat-bpe": lambda folder: bpe(folder, "chitchat"),
    "dialogpt-bpe": lambda folder: bpe(folder, "dialogpt"),
    "chitchat-wordpiece": wordpiece,
    "undeclared": undeclared,
}


class Family:
    """A tokenizer in the forms in which the training side and the runtime have it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.codec = TextCodec(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
        self.dialogue = Dialogue.from_json(json.loads(json.dumps(dialogue_of(tokenizer).as_json())))
        ids = {self.dialogue.end_of_turn_id, *self.dialogue.start_ids, *self.dialogue.banned_ids}
        self.borders = ids - {self.dialogue.unk_id}
        self.names = [tokenizer.convert_ids_to_tokens(i) for i in sorted(ids)]

    def check(self, ids: list[int], turns: int) -> None:
        """Fail unless the only special ids are the start and one end for each turn."""
        special = [i for i in ids if i in self.borders]
        assert special == [*self.dialogue.start_ids, *[self.dialogue.end_of_turn_id] * turns]
        assert ids[-1] == self.dialogue.end_of_turn_id
        assert tuple(ids[: len(self.dialogue.start_ids)]) == self.dialogue.start_ids


@pytest.fixture(params=list(MAKERS))
def family(request: pytest.FixtureRequest, tmp_path: Path) -> Family:
    """Each family and tokenizer in turn."""
    return Family(MAKERS[request.param](tmp_path))


def tricks(name: str) -> list[str]:
    """A special token as it is, among text, and with characters in it that some normalizer removes or changes."""
    invisible = ["\0", "\u2060", "\u200b", "\u200d", "\ufeff", "\xad", "\r", "\u0301", "\ufffd", "\x7f", "\u202e"]
    hidden = [name[:place] + mark + name[place:] for mark in invisible for place in (0, 1, len(name) - 1, len(name))]
    wide = "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in name)
    plain = [name, f"a{name}b", f" {name} ", f"a {name} b", name * 3, f"{name}{name[::-1]}", name.lower(), wide]
    return [*plain, *hidden, f"{name[:1]}{name}{name[1:]}", f"##{name}", f"\n{name}\n", json.dumps(name)]


def test_no_spelling_of_a_special_token_becomes_one(family: Family) -> None:
    """Stops a user who writes [SEP], in whatever disguise, from ending his turn and speaking as the bot."""
    found = 0
    for name in [*family.names, *BERT, "<|endoftext|>"]:
        for text in tricks(name):
            family.check(family.dialogue.encode([family.codec.encode(text)]), turns=1)
            (ids,) = encode_text(family.tokenizer, [text])
            assert family.borders.isdisjoint(ids), "the training side finds a special token in text"
            parsed = family.tokenizer(text, add_special_tokens=False)["input_ids"]
            found += not family.borders.isdisjoint(parsed)
    assert found > 10, "a tokenizer left to itself finds none either: proves nothing"


def test_special_tokens_cannot_be_put_together_from_two_messages(family: Family) -> None:
    """Stops halves of a special token, in messages of one or two roles, from meeting where turns are joined."""
    conversation = ChatHistory(family.dialogue, context=10_000)
    for name in family.names:
        for place in range(1, len(name)):
            sublayers = [family.codec.encode(half) for half in (f"a{name[:place]}", f"{name[place:]}b")]
            family.check(family.dialogue.encode(sublayers), turns=2)
            conversation.reset()
            conversation.ask(sublayers[0], 5)
            conversation.answer(sublayers[1])
            family.check(conversation.ask(sublayers[0], 5).ids, turns=3)


def test_random_text_around_special_tokens_forges_nothing(family: Family) -> None:
    """Stops a combination that nobody thought of: special tokens, their parts, and characters of every kind."""
    generator = np.random.default_rng(0)
    letters = ["[", "]", "<|", "|>", "\0", "\n", " ", "\u2060", "\u200d", "##", "a", "SEP", "你", "😀", "\u0301"]
    parts = [*family.names, *(name[1:] for name in family.names), *(name[:-1] for name in family.names), *letters]
    for _ in range(400):
        texts = ["".join(generator.choice(parts, generator.integers(0, 12))) for _ in range(generator.integers(1, 5))]
        family.check(family.dialogue.encode([family.codec.encode(text) for text in texts]), turns=len(texts))


def test_over_http_every_role_and_content_part_is_text(family: Family) -> None:
    """Stops a forged turn in an assistant's message, or in a list of text parts, which are joined."""

    async def scenario() -> None:
        generator = Scripted()
        generator.context, generator.dialogue = 10_000, family.dialogue
        async with running(app_of(generator, family.codec)) as client:
            for name in family.names:
                split = [{"type": "text", "text": f"a{name[:2]}"}, {"type": "text", "text": f"{name[2:]}b"}]
                contents: list[Any] = [f"a {name} b", f"{name}a", split]
                for roles in itertools.product(["user", "assistant"], repeat=3):
                    messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
                    response = await client.post("/v1/chat/completions", json={"messages": messages})
                    assert response.status_code == 200
                    family.check(generator.prompts[-1], turns=3)

    asyncio.run(scenario())


def test_the_unknown_token_is_banned_and_may_be_in_a_prompt(tmp_path: Path) -> None:
    """Stops a bot that says [UNK], also from a tokenizer that does not declare it, and prompts that lose a word."""
    for make in (wordpiece, undeclared):
        family = Family(make(tmp_path))
        assert family.dialogue.unk_id == 1
        assert 1 in family.dialogue.banned_ids
        assert 1 in family.dialogue.encode([family.codec.encode("hello ☃ you")])
    for name in ("chitchat-bpe", "dialogpt-bpe"):
        family = Family(MAKERS[name](tmp_path))
        assert family.dialogue.unk_id is None
        assert family.dialogue.end_of_turn_id not in family.dialogue.banned_ids
