from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rerank_udf.encoding import TextCache
from rerank_udf.errors import ConfigError, ModelError
from rerank_udf.texts import text_columns
from rerank_udf.tokens import PairLimits, PairTokenizer, TokenizedPairs, pair_template

SPECIALS = (
    "<s>",
    "</s>",
    "<pad>",
    "<mask>",
    "<unk>",
    "[SEP]",
    "[PAD]",
    "\x00",
    "\u200d",
    "▁",
    "  ",
    "\n",
    "é",
    "e\u0301",
)
WORDS = st.sampled_from((*SPECIALS, "refund", "days", "a", "日本", "ไทย", "🙂", "شكرا"))
TEXTS = (
    st.text(max_size=12)
    | st.lists(WORDS, max_size=25).map(" ".join)
    | st.lists(WORDS, max_size=6).map("".join)
)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), max_size=8)
# What counts as a long text, of which a prefix is read: one of a few words, or none here.
CHARACTERS = st.sampled_from([1, 1000])


@contextlib.contextmanager
def prefixes_of(characters_per_token: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rerank_udf.encoding._CHARACTERS_PER_TOKEN", characters_per_token)
        yield


def split(encoded: TokenizedPairs) -> list[list[int]]:
    return [
        encoded.token_ids[a:b].tolist() for a, b in zip(encoded.offsets, encoded.offsets[1:], strict=False)
    ]


def one_pair_only_second(
    tokenizer: Tokenizer, query: str, passage: str, limits: PairLimits, parts: list[list[int]]
) -> tuple[list[int], bool]:
    """FlagReranker's rule, written for one pair: special tokens as literal numbers."""
    q = tokenizer.encode(query, add_special_tokens=False).ids
    p = tokenizer.encode(passage, add_special_tokens=False).ids
    most = limits.query_max_length or int(limits.max_length * 0.75)
    kept = q[:most]
    specials = sum(map(len, parts))
    over = len(kept) + len(p) + specials - limits.max_length
    cut = p[: len(p) - over] if over > 0 else p
    return parts[0] + kept + parts[1] + cut + parts[2], len(kept) < len(q) or over > 0


@pytest.fixture(scope="module")
def xlmr(xlmr_tokenizer: Path) -> Tokenizer:
    return Tokenizer.from_file(str(xlmr_tokenizer))


@pytest.fixture(scope="module")
def bert(tiny_bert: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_bert / "tokenizer.json"))


@pytest.fixture(params=["xlmr", "bert"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


def literal_template(tokenizer: Tokenizer) -> list[list[int]]:
    if tokenizer.token_to_id("</s>") is not None:
        return [[0], [2, 2], [2]]
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    return [[cls], [sep], [sep]]


@settings(max_examples=60, deadline=None)
@given(
    pairs=PAIRS,
    max_length=st.integers(20, 60),
    query_max_length=st.none() | st.integers(1, 15),
    characters=CHARACTERS,
)
def test_only_second_gives_the_ids_of_the_rule_written_for_one_pair(
    xlmr: Tokenizer,
    bert: Tokenizer,
    pairs: list[tuple[str, str]],
    max_length: int,
    query_max_length: int | None,
    characters: int,
) -> None:
    limits = PairLimits(max_length, query_max_length)
    for tokenizer in (xlmr, bert):
        with prefixes_of(characters):
            encoded = PairTokenizer(tokenizer, limits).encode([q for q, _ in pairs], [p for _, p in pairs])
        parts = literal_template(tokenizer)
        expected = [one_pair_only_second(tokenizer, q, p, limits, parts) for q, p in pairs]
        assert split(encoded) == [ids for ids, _ in expected]
        assert encoded.truncated.tolist() == [cut for _, cut in expected]


@settings(max_examples=60, deadline=None)
@given(pairs=PAIRS, max_length=st.integers(8, 50), characters=CHARACTERS)
def test_longest_first_gives_what_the_tokenizers_library_cuts(
    xlmr: Tokenizer, bert: Tokenizer, pairs: list[tuple[str, str]], max_length: int, characters: int
) -> None:
    limits = PairLimits(max_length, truncation="longest_first")
    for tokenizer in (xlmr, bert):
        with prefixes_of(characters):
            encoded = PairTokenizer(tokenizer, limits).encode([q for q, _ in pairs], [p for _, p in pairs])
        tokenizer.enable_truncation(max_length, strategy="longest_first")
        expected = [tokenizer.encode(q, p) for q, p in pairs]
        tokenizer.no_truncation()
        assert split(encoded) == [encoding.ids for encoding in expected]
        assert encoded.truncated.tolist() == [bool(encoding.overflowing) for encoding in expected]
        if encoded.type_ids is not None:
            assert encoded.type_ids.tolist() == [t for encoding in expected for t in encoding.type_ids]


def test_token_types_tell_query_from_passage_in_bert(bert: Tokenizer) -> None:
    encoded = PairTokenizer(bert, PairLimits()).encode(["how long", ""], ["five days ship", "a"])
    assert encoded.type_ids is not None
    assert encoded.type_ids.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1]


def test_a_single_token_type_gives_no_types(xlmr: Tokenizer) -> None:
    assert PairTokenizer(xlmr, PairLimits()).encode(["a"], ["b"]).type_ids is None


def test_the_template_is_read_off_the_post_processor(xlmr: Tokenizer, bert: Tokenizer) -> None:
    template = pair_template(xlmr)
    assert (template.before.ids, template.between.ids, template.after.ids) == ((0,), (2, 2), (2,))
    assert not template.uses_types
    assert pair_template(bert).after.types == (1,)


def test_the_shapes_and_types_are_as_promised(tokenizer: Tokenizer) -> None:
    encoded = PairTokenizer(tokenizer, PairLimits()).encode(["a", None, "b"], ["c", "d", "e"])
    assert encoded.token_ids.dtype == np.int32
    assert encoded.offsets.dtype == np.int64
    assert encoded.truncated.dtype == np.bool_
    assert encoded.offsets.tolist()[-1] == len(encoded.token_ids)
    assert encoded.lengths.tolist()[1] == 0


def test_empty_texts_are_texts(xlmr: Tokenizer) -> None:
    assert split(PairTokenizer(xlmr, PairLimits()).encode(["", "a"], ["", ""])) == [
        [0, 2, 2, 2],
        [0, 10, 2, 2, 2],
    ]


def test_a_literal_mask_takes_the_spaces_before_it_as_in_the_reference(tiny_xlmr: Path) -> None:
    texts = ["a<mask>", "a <mask>", "a   <mask>"]
    encoded = PairTokenizer.from_folder(tiny_xlmr).encode(texts, [""] * 3)
    assert split(encoded) == [[0, 10, 250001, 2, 2, 2]] * 3


def test_no_pairs_give_no_tokens(tokenizer: Tokenizer) -> None:
    encoded = PairTokenizer(tokenizer, PairLimits()).encode([], [])
    assert (len(encoded.token_ids), encoded.offsets.tolist(), len(encoded.truncated)) == (0, [0], 0)


def test_arrow_arrays_give_the_ids_of_lists(xlmr: Tokenizer) -> None:
    queries, passages = ["a", "b", None, "a"], ["x y", "", "z", "x y"]
    tokenizer = PairTokenizer(xlmr, PairLimits())
    expected = split(tokenizer.encode(queries, passages))
    arrays = pa.array(queries), pa.array(passages, pa.large_string())
    assert split(tokenizer.encode(*arrays)) == expected
    assert split(tokenizer.encode(*(array.dictionary_encode() for array in arrays))) == expected


class WatchedTokenizer:
    """A tokenizer that counts the texts it is given and refuses some."""

    def __init__(
        self, tokenizer: Tokenizer, refuses: str | None = None, error: BaseException | None = None
    ) -> None:
        self._tokenizer, self._refuses, self._error = tokenizer, refuses, error
        self.texts: list[str] = []
        self.calls = 0

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> Any:
        self.texts += texts
        self.calls += 1
        if self._error is not None and self._refuses in texts:
            raise self._error
        return self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def test_each_distinct_text_is_tokenised_once(xlmr: Tokenizer) -> None:
    watched: Any = WatchedTokenizer(xlmr)
    PairTokenizer(watched, PairLimits()).encode(["q"] * 50, [f"passage {i % 5}" for i in range(50)])
    assert sorted(watched.texts) == ["passage 0", "passage 1", "passage 2", "passage 3", "passage 4", "q"]


def test_long_columns_are_tokenised_in_several_calls(
    xlmr: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rerank_udf.encoding._CHARACTERS_PER_CALL", 30)
    texts = [f"a text of about thirty characters, {number}" for number in range(5)] + ["", "short", None]
    watched: Any = WatchedTokenizer(xlmr)
    encoded = PairTokenizer(watched, PairLimits()).encode([""] * len(texts), texts)
    assert watched.calls == 1 + 6
    alone = [PairTokenizer(xlmr, PairLimits()).encode([""], [text]) for text in texts]
    assert split(encoded) == [split(one)[0] for one in alone]


def test_a_very_long_text_is_kept_only_as_far_as_a_pair_can_hold_it(xlmr: Tokenizer) -> None:
    watched: Any = WatchedTokenizer(xlmr)
    pairs = PairTokenizer(watched, PairLimits(64)).cut(*text_columns(["q"], ["word " * 50_000]))
    assert len(pairs._arena.ids) == 4 + 1 + 60
    assert (pairs.lengths.tolist(), pairs.truncated.tolist()) == ([64], [True])
    assert sum(map(len, watched.texts)) < 500


@pytest.mark.parametrize("max_length", [20, 21])
@pytest.mark.parametrize(("query_words", "passage_words"), [(900, 1000), (1000, 900), (1000, 1000), (3, 900)])
def test_an_odd_token_goes_to_the_longer_of_two_long_texts(
    bert: Tokenizer, max_length: int, query_words: int, passage_words: int
) -> None:
    query, passage = "a " * query_words, "a " * passage_words
    limits = PairLimits(max_length, truncation="longest_first")
    encoded = PairTokenizer(bert, limits).encode([query], [passage])
    bert.enable_truncation(max_length, strategy="longest_first")
    expected = bert.encode(query, passage)
    bert.no_truncation()
    assert encoded.token_ids.tolist() == expected.ids
    assert encoded.truncated.tolist() == [True]


def test_texts_of_an_earlier_call_are_not_tokenised_again(xlmr: Tokenizer) -> None:
    watched: Any = WatchedTokenizer(xlmr)
    tokenizer, cache = PairTokenizer(watched, PairLimits()), TextCache()
    tokenizer.cut(*text_columns(["a", "b"], ["c", "b"]), cache)
    second = tokenizer.cut(*text_columns(["b", "d"], ["a", "c"]), cache)
    assert sorted(watched.texts) == ["a", "b", "c", "d"]
    ids, _, _ = second.assemble(np.array([1, 0]))
    assert ids.tolist() == PairTokenizer(xlmr, PairLimits()).encode(["d", "b"], ["c", "a"]).token_ids.tolist()


class PanicException(BaseException):
    """What a panic in Rust looks like from Python."""


@pytest.mark.parametrize("error", [ValueError("no"), PanicException("index out of bounds")])
def test_a_text_that_the_tokenizer_refuses_fails_only_its_pairs(
    xlmr: Tokenizer, error: BaseException
) -> None:
    watched: Any = WatchedTokenizer(xlmr, "bad", error)
    tokenizer = PairTokenizer(watched, PairLimits())
    encoded = tokenizer.encode(["q", "q", "bad"], ["good", "bad", "good"])
    assert {row: reason for row, (reason, _) in encoded.errors.items()} == {
        1: "tokenizer_error",
        2: "tokenizer_error",
    }
    assert str(error) in encoded.errors[1][1]
    assert split(encoded)[0] == split(PairTokenizer(xlmr, PairLimits()).encode(["q"], ["good"]))[0]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_what_is_not_the_texts_fault_is_raised(xlmr: Tokenizer, error: BaseException) -> None:
    watched: Any = WatchedTokenizer(xlmr, "bad", error)
    with pytest.raises(type(error)):
        PairTokenizer(watched, PairLimits()).encode(["q"], ["bad"])


def test_the_tokenizers_own_truncation_and_padding_are_off(xlmr_tokenizer: Path) -> None:
    tokenizer = Tokenizer.from_file(str(xlmr_tokenizer))
    tokenizer.enable_truncation(6)
    tokenizer.enable_padding(length=40)
    assert len(split(PairTokenizer(tokenizer, PairLimits()).encode(["a b c d e f g h i"], ["j"]))[0]) == 14


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"truncation": "only_first"}, "it must be 'only_second' or 'longest_first'"),
        ({"max_length": 0}, "max_length is 0; it must be a positive number"),
        ({"query_max_length": -1}, "query_max_length is -1; it must be a positive number"),
        (
            {"truncation": "longest_first", "query_max_length": 9},
            "leave it out, or use truncation 'only_second'",
        ),
    ],
)
def test_limits_that_contradict_themselves_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        PairLimits(**settings)


@pytest.mark.parametrize(
    "limits",
    [PairLimits(16), PairLimits(64, 60), PairLimits(5, truncation="longest_first")],
)
def test_a_query_that_leaves_no_room_for_a_passage_is_a_configuration_error(
    xlmr: Tokenizer, limits: PairLimits
) -> None:
    with pytest.raises(ConfigError, match=r"leave no room|set max_length to 6 or more"):
        PairTokenizer(xlmr, limits)


def test_a_folder_without_a_usable_tokenizer_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no tokenizer\.json"):
        PairTokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read as a tokenizer"):
        PairTokenizer.from_folder(tmp_path)


def test_a_tokenizer_that_does_not_join_pairs_is_a_model_error() -> None:
    from tokenizers import models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "x": 2}, unk_token="x"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair="$B:1 x $A", special_tokens=[("x", 2)]
    )
    with pytest.raises(ModelError, match="expected special tokens around the query, then the passage"):
        pair_template(tokenizer)
