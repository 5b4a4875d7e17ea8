from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from rerank_udf import encoding
from rerank_udf.encoding import EncodedText, TextCache, TextEncoder, splits_at_spaces, tokenizer_threads
from rerank_udf.tokens import read_tokenizer

# What stands where a prefix may end decides whether it gives the ids of the whole: words, kinds of white space, what
# normalisers make white space or nothing of, what joins to its neighbours, and added tokens.
WORDS = (
    "a",
    "refund",
    "days",
    "über",
    "日本語",
    "ไทย",
    "한국어",
    "हिंदी",
    "شكرا",
    "x" * 120,
    "ﬁ①½",
    "A.B,c!",
    "12",
)
SPACES = (" ", " ", " ", "  ", "   ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u2028", "\x85")
SIGNS = (
    "\u200b",
    "\u200c",
    "\u200d",
    "\u00ad",
    "\ufeff",
    "\ufffd",
    "▁",
    "\x00",
    "\x07",
    "\x1c",
    "\x1f",
    "¨",
    "´",
)
JOINING = (
    "\u0301",
    "\u0308",
    "\u0600",
    "\u06dd",
    "\u0d4e",
    "\U000110bd",
    "\U000111c2",
    "ﾞ",
    "ｶﾞ",
    "👩\u200d🚀",
    "🇩",
    "ﷺ",
    "ͺ",
)
ADDED = ("<s>", "</s>", "<pad>", "<mask>", "<unk>", "[MASK]", "[SEP]", "<mas", "k>", "[", "<")
PIECES = st.sampled_from((*WORDS, *SPACES, *SPACES, *SIGNS, *JOINING, *ADDED))
TEXTS = st.lists(PIECES, min_size=1, max_size=60).map("".join) | st.text(max_size=40)
ADVERSARIAL = (
    "a " * 40,
    "a" + " " * 200 + "b c d e f",
    " " * 300,
    "a b c d e\u200b \u200b \u200b " + "b " * 20,
    "a b c d\u0d4e \u0301" * 12,
    "a b c <mask> <mask> </s> <pad>  <s>" * 6,
    "a b c d e f <mask>" + " " * 60 + "<mask> b",
    "日本語" * 100,
    "日本語 " * 60,
    "a\u3000 b\u00a0 c\u2003 d\x1c e" * 10,
    "1\ufffd 2\ufeff 3\u200d 4" * 10,
    "¨ ¨ ´ ͺ ﷺ ﾞ ｶﾞ " * 10,
    "x" * 500 + " y",
    "\x00 \x07 \x1f a \u00ad b " * 20,
    "e\u0301 " * 40,
    "🇩🇪 👩\u200d🚀 " * 30,
)


@pytest.fixture(scope="module")
def tokenizers_by_name(xlmr_tokenizer: Path, tiny_bert: Path) -> dict[str, Tokenizer]:
    stripped = Tokenizer.from_file(str(xlmr_tokenizer))  # as newer converters write XLM-R's
    precompiled = stripped.normalizer[0]
    stripped.normalizer = normalizers.Sequence([precompiled, normalizers.Strip(left=False), spaces("▁")])
    split_first = Tokenizer.from_file(str(xlmr_tokenizer))  # as older ones do
    split_first.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    return {
        "xlmr": read_tokenizer(xlmr_tokenizer),
        "xlmr, stripped": stripped,
        "xlmr, split first": split_first,
        "bert": Tokenizer.from_file(str(tiny_bert / "tokenizer.json")),
    }


def spaces(content: str) -> Any:
    from tokenizers import Regex

    return normalizers.Replace(Regex(" {2,}"), content)


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=4),
    most_tokens=st.integers(1, 25),
    characters=st.integers(1, 4),
)
@example(texts=list(ADVERSARIAL), most_tokens=1, characters=1)
@example(texts=list(ADVERSARIAL), most_tokens=5, characters=1)
@example(texts=list(ADVERSARIAL), most_tokens=11, characters=2)
@example(texts=list(ADVERSARIAL), most_tokens=40, characters=1)
def test_a_prefix_gives_the_first_ids_of_the_whole(
    tokenizers_by_name: dict[str, Tokenizer], texts: list[str], most_tokens: int, characters: int
) -> None:
    for name, tokenizer in tokenizers_by_name.items():
        encoder = TextEncoder(tokenizer, most_tokens)
        with pytest.MonkeyPatch.context() as patch:  # so that short texts are long ones
            patch.setattr(encoding, "_CHARACTERS_PER_TOKEN", characters)
            encoded = encoder.encode(texts, TextCache())
        for text, found in zip(texts, encoded, strict=True):
            whole = tokenizer.encode(text, add_special_tokens=False).ids
            assert found.ids.tolist() == whole[:most_tokens], (name, text)
            assert found.tokens == len(whole) or (most_tokens < found.tokens <= len(whole)), (name, text)


class Recorded:
    """A tokenizer that writes down what it is asked to encode."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.texts: list[str] = []

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> Any:
        self.texts += texts
        return self._tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@pytest.fixture(params=["xlmr", "bert"])
def recorded(request: pytest.FixtureRequest, tokenizers_by_name: dict[str, Tokenizer]) -> Any:
    return Recorded(tokenizers_by_name[request.param])


def test_only_as_much_of_a_long_text_is_read_as_a_pair_can_hold(recorded: Any) -> None:
    (found,) = TextEncoder(recorded, 60).encode(["five days " * 50_000], TextCache())
    (read,) = recorded.texts
    assert read == "five days " * 36 + "five days"
    assert len(found.ids) == 60
    assert found.tokens == 74


def test_a_prefix_with_too_few_tokens_is_read_again_twice_as_long(recorded: Any) -> None:
    text = "a " + "é" * 700 + " five" * 5_000
    (found,) = TextEncoder(recorded, 60).encode([text], TextCache())
    whole = recorded.encode(text, add_special_tokens=False).ids
    assert found.ids.tolist() == whole[:60]
    assert [len(part) for part in recorded.texts] == sorted({len(part) for part in recorded.texts})
    assert len(recorded.texts[-1]) < 2 * len(recorded.texts[0]) + 800


def test_a_long_text_without_a_safe_end_is_read_whole(recorded: Any) -> None:
    texts = ["日本語" * 500, "a" + " " * 3000 + "b", "a\u200b " * 1000]
    TextEncoder(recorded, 20).encode(texts, TextCache())
    assert recorded.texts == texts


def test_a_prefix_that_the_tokenizer_refuses_is_not_the_last_word(recorded: Any) -> None:
    class OnlyWhole(Recorded):
        def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> Any:
            if any(not text.endswith("!") for text in texts):
                raise ValueError("no")
            return super().encode_batch_fast(texts, add_special_tokens)

    tokenizer: Any = OnlyWhole(recorded)
    found = TextEncoder(tokenizer, 20).encode(["five days " * 500 + "!", "a?"], TextCache())
    assert len(found[0].ids) == 20
    assert found[1].error == ("tokenizer_error", "ValueError: no")


def test_a_text_is_counted_whole(recorded: Any) -> None:
    texts = ["five days " * 5_000, "", "a"]
    whole = [len(recorded.encode(text, add_special_tokens=False).ids) for text in texts]
    assert TextEncoder(recorded, 60).count(texts) == whole


def test_the_tokenizers_of_both_families_split_at_spaces(tokenizers_by_name: dict[str, Tokenizer]) -> None:
    assert {
        name: splits_at_spaces(tokenizer) for name, tokenizer in tokenizers_by_name.items()
    } == dict.fromkeys(tokenizers_by_name, True)


def replaced(part: str, value: Any) -> Callable[[Tokenizer], None]:
    return lambda tokenizer: setattr(tokenizer, part, value)


class Shouting:
    def normalize(self, text: Any) -> None:
        text.uppercase()


@pytest.mark.parametrize(
    "change",
    [
        replaced("pre_tokenizer", pre_tokenizers.Metaspace(split=False)),
        replaced("pre_tokenizer", pre_tokenizers.ByteLevel()),
        replaced("pre_tokenizer", pre_tokenizers.Sequence([])),
        replaced("normalizer", normalizers.Replace(" a", "b")),
        replaced("normalizer", normalizers.Sequence([normalizers.NFC(), normalizers.Prepend("▁")])),
        replaced("normalizer", normalizers.Normalizer.custom(Shouting())),
        replaced("model", models.BPE()),
        lambda tokenizer: tokenizer.add_tokens(["new york"]),
        lambda tokenizer: tokenizer.add_special_tokens([AddedToken(" x", normalized=False)]),
        lambda tokenizer: tokenizer.add_tokens(["▁x"]),
    ],
)
def test_a_tokenizer_whose_words_may_span_spaces_is_given_whole_texts(
    tokenizers_by_name: dict[str, Tokenizer], change: Callable[[Tokenizer], None]
) -> None:
    tokenizer = copy.deepcopy(tokenizers_by_name["bert"])
    assert splits_at_spaces(tokenizer)
    change(tokenizer)
    assert not splits_at_spaces(tokenizer)
    recorded: Any = Recorded(tokenizer)
    TextEncoder(recorded, 20).encode(["five days " * 500], TextCache())
    assert recorded.texts == ["five days " * 500]


def test_a_tokenizer_without_pre_tokenizer_is_given_whole_texts() -> None:
    assert not splits_at_spaces(Tokenizer(models.WordPiece({"a": 0}, unk_token="a")))


def test_texts_are_encoded_once_for_all_calls_with_one_cache(recorded: Any) -> None:
    encoder, cache = TextEncoder(recorded, 20), TextCache()
    first = encoder.encode(["a", "b", None, "a"], cache)
    second = encoder.encode(["c", "a", "b"], cache)
    assert recorded.texts == ["a", "b", "c"]
    assert (encoder.texts_tokenised, encoder.cache_hits) == (3, 2)
    assert [first[0], first[1]] == second[1:]
    assert (first[2].ids.tolist(), first[2].tokens) == ([], 0)
    encoder.encode(["a"], TextCache())
    assert encoder.texts_tokenised == 4


def text_of(tokens: int) -> EncodedText:
    return EncodedText(np.zeros(tokens, np.int32), tokens)


def test_what_was_used_last_stays_in_a_full_cache() -> None:
    cache = TextCache(100_000)
    for number in range(100):
        cache.put(f"text {number}", text_of(1000))
        assert cache.get("text 0") is not None
    kept = [number for number in range(100) if cache.get(f"text {number}") is not None]
    assert kept == [0, *range(100 - len(kept) + 1, 100)]
    assert 10 <= len(kept) <= 25


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3000)), max_size=200))
def test_a_cache_never_holds_much_more_than_it_may(puts: list[tuple[int, int]]) -> None:
    cache = TextCache(50_000)
    put: list[weakref.ref[Any]] = []
    for name, tokens in puts:
        encoded = text_of(tokens)
        put.append(weakref.ref(encoded.ids))
        cache.put(str(name), encoded)
        assert cache.get(str(name)) is encoded
        held = [ids.nbytes for one in put if (ids := one()) is not None]
        assert sum(held) <= 50_000 + max(held)


def test_the_threads_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYON_NUM_THREADS", "3")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    assert tokenizer_threads() == 3
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert tokenizer_threads() == 1
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    monkeypatch.setenv("RAYON_NUM_THREADS", "0")
    assert tokenizer_threads() == os.cpu_count()
