"""The health of replies: words in every script, and what is counted within a reply and what over all of them."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.evaluate.reply_stats import ReplyStats, TextReply, words


def said(*texts: str, conversations: list[int] | None = None) -> ReplyStats:
    """Replies, each to a conversation of its own unless said otherwise."""
    numbers = conversations or list(range(len(texts)))
    return ReplyStats([TextReply(number, text, 3, True) for number, text in zip(numbers, texts, strict=True)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so, how are you?", ["so,", "how", "are", "you?"]),
        ("你好，world 2。", ["你", "好", "，", "world", "2", "。"]),
        ("ありがとうGPT-2", [*"ありがとう", "GPT-2"]),
        ("我　们", ["我", "们"]),  # the ideographic space is a space
        ("สวย", ["ส", "ว", "ย"]),
        ("안녕하세요 여러분", ["안녕하세요", "여러분"]),
        ("𠮷野家", ["𠮷", "野", "家"]),
        (" \n", []),
    ],
)
def test_words_stand_between_spaces_and_unspaced_scripts_count_by_characters(text: str, expected: list[str]) -> None:
    """A Chinese reply was one word, so every reply was distinct and none could repeat itself."""
    assert words(text) == expected


def test_distinct_is_counted_over_all_replies() -> None:
    """Averaged over replies, a bot that always says the same was as varied as any."""
    same = said("i do not know", "i do not know", "i do not know")
    assert same.distinct(1).figure == pytest.approx(4 / 12)
    assert same.distinct(2).figure == pytest.approx(3 / 9)
    assert said("a b", "c d").distinct(2).figure == 1.0
    assert said("我知道", "我知").distinct(2).figure == pytest.approx(2 / 3)
    assert said("one", "two").distinct(2).figure is None, "no reply has two words"


def test_distinct_without_a_conversation_is_distinct_of_the_others() -> None:
    """The jackknife took away a reply where a conversation had several, and words that others say as well."""
    texts = ["a b c", "a b", "c d e", "b c b c", "x"]
    numbers = [4, 4, 7, 9, 9]
    found = said(*texts, conversations=numbers).distinct(2)
    without = [
        said(*(text for text, of in zip(texts, numbers, strict=True) if of != number)).distinct(2).figure
        for number in (4, 7, 9)
    ]
    assert found.left_out.tolist() == pytest.approx(without)


def test_entropy_of_4_grams_is_that_of_dstc_7() -> None:
    """Two bots of the same distinct-4, of which one says one thing nearly always, were equally varied."""
    even = said("a b c d", "e f g h", "a b c d", "e f g h")
    uneven = said("a b c d", "e f g h", "a b c d", "a b c d")
    assert even.distinct(4).figure == uneven.distinct(4).figure
    assert even.figures()["entropy_4"] == pytest.approx(math.log(2))
    assert uneven.figures()["entropy_4"] == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert said("一二三四五").figures()["entropy_4"] == pytest.approx(math.log(2)), "characters, within a reply"
    low, high = said(*(f"{place} b c {place % 5} e f" for place in range(30))).figures()["entropy_4_interval"]
    assert 0 < low < high
    assert said("a b c d").figures()["entropy_4"] == 0
    same = said("a b c d", "a b c d").figures()
    assert (same["entropy_4"], same["entropy_4_interval"]) == (0, None)
    assert said("a b c d", "e f g h").figures()["entropy_4_interval"] is None, "each alone says one thing"
    assert said("a b c", "d").figures()["entropy_4"] is None, "no reply has four words"


def test_the_interval_of_the_entropy_holds_that_of_other_draws() -> None:
    """An interval that is far too narrow or too wide for what another draw of conversations gives."""
    random = np.random.default_rng(0)

    def draw() -> tuple[float, list[float]]:
        weights = 1 / np.arange(1, 41)
        lengths = random.integers(4, 14, size=60)
        texts = [" ".join(map(str, random.choice(40, size=n, p=weights / weights.sum()))) for n in lengths]
        found = said(*texts).figures()
        return found["entropy_4"], found["entropy_4_interval"]

    drawn = [draw() for _ in range(60)]
    spread = float(np.std([figure for figure, _ in drawn]))
    width = float(np.mean([high - low for _, (low, high) in drawn])) / (2 * 1.96)
    assert 0.7 < width / spread < 1.4


def test_repetition_is_counted_within_each_reply() -> None:
    """Two replies with the same words counted as a loop; a loop between two replies' ends did too."""
    assert said("a b c d", "a b c d").figures()["repetition_4"] == 0
    looping = said("a b a b a b a b", "one two three four five")  # 5 4-grams of 2 kinds, and 2 of 2
    assert looping.figures()["repetition_4"] == pytest.approx(3 / 7)
    assert said("哈哈哈哈哈哈").figures()["repetition_4"] == pytest.approx(2 / 3)
    assert said("no", "yes").figures()["repetition_4"] == 0


def test_empty_and_unfinished_replies_and_their_length_are_told() -> None:
    """A bot that had gone silent had the best repetition of all."""
    replies = [TextReply(0, " ", 1, True), TextReply(1, "", 0, True), TextReply(2, "a b", 2, False)]
    figures = ReplyStats([*replies, TextReply(3, "c", 1, True)]).figures()
    assert (figures["empty_replies"], figures["unfinished_replies"], figures["reply_tokens"]) == (0.5, 0.25, 1.0)
    assert figures["replies"] == 4
    low, high = figures["empty_replies_interval"]
    assert 0 <= low < 0.5 < high <= 1


def test_a_silent_bot_has_figures_too() -> None:
    """Nothing divided by nothing."""
    figures = said("", "").figures()
    assert (figures["distinct_1"], figures["distinct_1_interval"], figures["repetition_4"]) == (None, None, 0.0)
    compared = said("", "").against(said("a b", "c d"))
    assert (compared["distinct_2_ratio"], compared["repetition_4_difference"]) == (None, 0.0)


def test_two_models_are_compared_by_conversation() -> None:
    """Replies that differ only by prompt made a wide interval of a small difference."""
    talks = [f"w{place} and x{place % 7} then y{place % 3} again" for place in range(60)]
    teacher = said(*talks)
    itself = teacher.against(teacher)
    assert (itself["distinct_2_ratio"], itself["distinct_2_ratio_interval"]) == (1.0, [1.0, 1.0])
    assert (itself["repetition_4_difference"], itself["repetition_4_difference_interval"]) == (0.0, [0.0, 0.0])
    duller = said(*(text.replace("again", "so so so so so so") if len(text) % 2 else text for text in talks))
    found = duller.against(teacher)
    low, high = found["distinct_2_ratio_interval"]
    assert low < found["distinct_2_ratio"] < high < 1
    low, high = found["repetition_4_difference_interval"]
    assert 0 < low < found["repetition_4_difference"] < high


def test_replies_to_other_prompts_are_not_compared() -> None:
    """Two runs of different --samples were set against each other."""
    with pytest.raises(ValueError, match="other prompts"):
        said("a").against(said("a", "b"))


CONVERSATIONS = st.lists(
    st.tuples(st.integers(0, 4), st.lists(st.sampled_from("abc"), max_size=9)), min_size=1, max_size=12
)


@given(drawn=CONVERSATIONS, size=st.integers(1, 4))
def test_distinct_entropy_and_repetition_are_those_of_a_plain_count(
    drawn: list[tuple[int, list[str]]], size: int
) -> None:
    """An n-gram that two conversations share was lost with either of them, or ran over the end of a reply."""

    def distinct(kept: list[list[str]]) -> float:
        grams = [tuple(text[i : i + size]) for text in kept for i in range(len(text) - size + 1)]
        return len(set(grams)) / len(grams) if grams else math.nan

    stats = ReplyStats([TextReply(number, " ".join(text), len(text), True) for number, text in drawn])
    found = stats.distinct(size)
    figure = distinct([text for _, text in drawn])
    assert found.figure == (None if math.isnan(figure) else pytest.approx(figure))
    without = [distinct([text for other, text in drawn if other != number]) for number in sorted({n for n, _ in drawn})]
    assert np.allclose(found.left_out, without, equal_nan=True)

    def entropy(kept: list[list[str]]) -> float:
        grams = Counter(tuple(text[i : i + size]) for text in kept for i in range(len(text) - size + 1))
        shares = [count / grams.total() for count in grams.values()]
        return -sum(one * math.log(one) for one in shares) if shares else math.nan

    found_entropy, figure = stats.entropy(size), entropy([text for _, text in drawn])
    assert found_entropy.figure == (None if math.isnan(figure) else pytest.approx(figure, abs=1e-12))
    without = [entropy([text for other, text in drawn if other != number]) for number in sorted({n for n, _ in drawn})]
    assert np.allclose(found_entropy.left_out, without, equal_nan=True)
    grams = [[tuple(text[i : i + 4]) for i in range(len(text) - 3)] for _, text in drawn]
    repeated = sum(len(of_reply) - len(set(of_reply)) for of_reply in grams)
    assert stats.figures()["repetition_4"] == pytest.approx(repeated / max(1, sum(map(len, grams))))
