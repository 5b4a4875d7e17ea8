"""Names of tables: what passes, what it is made of, and that nothing else gets into a statement."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_udf.errors import ConfigError
from rerank_udf.tables import checked_table_name, quoted, table_parts


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("reranked", ["reranked"]),
        ("rag.reranked", ["rag", "reranked"]),
        ("main.rag.reranked_2", ["main", "rag", "reranked_2"]),
        ("ice.a.b.c.d", ["ice", "a", "b", "c", "d"]),
        ("`my catalog`.rag.`a-b`", ["my catalog", "rag", "a-b"]),
        ("a.`x``y`", ["a", "x`y"]),
        ("`a.b`.c", ["a.b", "c"]),
        ("`日本`", ["日本"]),
    ],
)
def test_a_name_is_its_parts(name, parts):
    assert table_parts(name) == parts
    assert checked_table_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "a.", ".a", "a..b", "``", "a.``", "`a", "a`", "`a`b", "a`b`", "`````"),
        *(
            "a b",
            "a-b",
            " a",
            "a ",
            "a\n",
            "`a\nb`",
            "`a\x00`",
            "ä",
            "a;drop table b",
            "a--b",
            "a/*b*/",
            "(a)",
            "'a'",
        ),
        *("parquet.`/etc`", "delta.`/data/x`", "`..`.a", "a.`.`", "`a\\b`", "range(9)"),
    ],
)
def test_anything_else_is_refused(name):
    with pytest.raises(
        ConfigError, match=r"is not a table name; expected table, schema\.table or catalog\.schema\.table"
    ):
        checked_table_name(name)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_quoted_parts_come_back_or_are_refused(parts):
    """Whatever the parts hold, a name made of them is those parts or no name."""
    name = ".".join(quoted(part) for part in parts)
    try:
        assert table_parts(name) == parts
    except ConfigError:
        assert any("/" in p or "\\" in p or p in (".", "..") or not p.isprintable() for p in parts)
