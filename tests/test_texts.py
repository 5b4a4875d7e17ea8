from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_udf.errors import InputError
from rerank_udf.texts import TextColumn, pair_errors, text_column, text_columns


def decoded(column: TextColumn) -> list[str | None]:
    return [None if code < 0 else column.values[code] for code in column.codes.tolist()]


@given(st.lists(st.none() | st.text(max_size=5), max_size=20))
def test_a_column_decodes_to_what_it_was_made_of(texts: list[str | None]) -> None:
    for given_as in (texts, pa.array(texts, pa.string()), pa.array(texts, pa.large_string())):
        column = text_column(given_as, "texts")
        assert decoded(column) == texts
        assert len(set(column.values)) == len(column.values)


_WITH_BROKEN = st.lists(st.none() | st.sampled_from(["a", "b", "", "\ud800", "c\udfff"]), max_size=20)


@given(_WITH_BROKEN, st.integers(0, 20), st.integers(0, 20))
def test_rows_of_a_column_are_the_column_of_those_rows(
    texts: list[str | None], start: int, more: int
) -> None:
    part = text_column(texts, "texts").rows(start, start + more)
    alone = text_column(texts[start : start + more], "texts")

    def seen(column: TextColumn) -> list[object]:
        return [
            None if code < 0 else column.errors.get(code, column.values[code])
            for code in column.codes.tolist()
        ]

    assert seen(part) == seen(alone)
    assert len(part.values) == len(alone.values)
    assert len(part.errors) == len(alone.errors)


def test_dictionary_arrays_of_any_index_type_are_taken() -> None:
    array = pa.DictionaryArray.from_arrays(pa.array([1, None, 0, 1], pa.int8()), pa.array(["a", "b"]))
    assert decoded(text_column(array, "texts")) == ["b", None, "a", "b"]


def test_a_null_inside_a_dictionary_is_a_null() -> None:
    array = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), pa.array(["a", None]))
    assert decoded(text_column(array, "texts")) == ["a", None]


def test_a_dictionary_keeps_only_what_its_rows_use() -> None:
    whole = pa.DictionaryArray.from_arrays(pa.array([3, 0, None, 2, 3]), pa.array(["a", "b", None, "d"]))
    column = text_column(whole[2:], "texts")
    assert decoded(column) == [None, None, "d"]
    assert column.values == ["d"]
    assert decoded(text_column(whole[:2], "texts")) == ["d", "a"]
    assert text_column(whole[2:3], "texts").values == []


def test_bytes_that_no_row_uses_may_be_anything() -> None:
    values = pa.array([b"fine", b"\xff"], pa.binary()).view(pa.string())
    column = text_column(pa.DictionaryArray.from_arrays(pa.array([0, 0]), values), "texts")
    assert (column.values, column.errors) == (["fine"], {})


def test_chunks_with_dictionaries_of_their_own_are_taken() -> None:
    chunked = pa.chunked_array(
        [pa.array(one, pa.string()).dictionary_encode() for one in (["a", "b"], [], ["c", None, "a"])]
    )
    assert decoded(text_column(chunked, "texts")) == ["a", "b", "c", None, "a"]


def test_chunks_slices_and_arrays_of_nulls_are_taken() -> None:
    chunked = pa.chunked_array([["a", "b"], [], ["a"]], pa.string())
    assert decoded(text_column(chunked, "texts")) == ["a", "b", "a"]
    assert decoded(text_column(pa.array(["x", "y", "z"])[1:], "texts")) == ["y", "z"]
    assert decoded(text_column(pa.nulls(2), "texts")) == [None, None]
    assert decoded(text_column(pa.chunked_array([], pa.string()), "texts")) == []


@pytest.mark.skipif(not hasattr(pa, "string_view"), reason="this pyarrow has no string views")
def test_string_views_are_taken() -> None:
    assert decoded(text_column(pa.array(["a", None, "b"], pa.string_view()), "texts")) == ["a", None, "b"]


def test_bytes_that_are_not_utf8_are_an_error_of_their_text_alone() -> None:
    raw = pa.array([b"fine", b"b\xffd", b"fine"], pa.binary())
    for kind, text in ((pa.binary(), pa.string()), (pa.large_binary(), pa.large_string())):
        column = text_column(raw.cast(kind).view(text), "texts")
        assert column.values == ["fine", None]
        assert column.errors == {
            1: ("invalid_utf8", "the text is not valid UTF-8 at byte 1: invalid start byte")
        }


def test_half_a_surrogate_pair_is_an_error_of_its_text_alone() -> None:
    column = text_column(["fine", "x\ud800", None, "fine"], "texts")
    assert decoded(column) == ["fine", None, None, "fine"]
    assert column.codes.tolist() == [0, 1, -1, 0]
    assert column.errors[1][0] == "invalid_utf8"
    assert "U+D800, at character 1" in column.errors[1][1]


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ("one text", "texts is one str; expected a sequence of texts"),
        (["a", 3], r"texts\[1\] is 3 of type int; expected str or None"),
        ([float("nan")], r"texts\[0\] is nan of type float"),
        (pa.array([1, 2]), "texts is an Arrow array of int64; expected string"),
        (pa.array([1, 1]).dictionary_encode(), "texts is an Arrow array of int64; expected string"),
    ],
)
def test_what_is_no_text_is_refused(texts: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        text_column(texts, "texts")


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="2 queries and 1 passages were given"):
        text_columns(["a", "b"], ["c"])


def test_the_error_of_a_pair_is_the_querys_where_both_sides_are_bad() -> None:
    queries, passages = text_columns([None, "x\ud800", "q", "q"], [None, None, None, "p"])
    errors = pair_errors(queries.codes, queries.errors, passages.codes, passages.errors)
    assert {row: reason for row, (reason, _) in errors.items()} == {
        0: "null_query",
        1: "invalid_utf8",
        2: "null_passage",
    }
