"""Every accepted shape of candidate table, and every reason for which a row is not ranked."""

from __future__ import annotations

from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from tables_of import PASSAGES, QUERIES, frame, three_tables

from rerank_udf.config import Columns, Nested
from rerank_udf.errors import ConfigError, InputError
from rerank_udf.identity import pair_key, text_key
from rerank_udf.spark.candidates import Prepared, Shape, prepare
from rerank_udf.spark.texts import valid_utf8
from rerank_udf.tables import Reason

LONG = "query_id string, passage_id string, score double, rank int"


def prepared_rows(
    candidates: DataFrame, queries: DataFrame | None = None, passages: DataFrame | None = None, **shape: Any
) -> list[dict[str, Any]]:
    rows = prepare(candidates, queries, passages, Shape(**shape)).rows.collect()
    return sorted(
        (row.asDict(recursive=True) for row in rows),
        key=lambda row: (str(row["query_id"]), str(row["passage_id"])),
    )


def texts_of(prepared: Prepared) -> dict[bytes, tuple[str, str]]:
    """pair key → the two texts that the model would get."""
    queries = {bytes(row["query_key"]): row["query"] for row in prepared.queries.collect()}
    passages = {bytes(row["passage_key"]): row["passage"] for row in prepared.passages.collect()}
    return {
        pair_key(q, p): (query, passage) for q, query in queries.items() for p, passage in passages.items()
    }


def inline(spark: SparkSession, query: str = "q", passage: str = "p") -> DataFrame:
    return frame(
        spark,
        [("a", "b", query, passage)],
        "query_id string, passage_id string, query string, passage string",
    )


# --- shapes ---


def test_long_tables_get_the_keys_of_their_texts(spark):
    rows = prepared_rows(*three_tables(spark))
    assert len(rows) == 24
    for row in rows:
        query, passage = text_key(QUERIES[row["query_id"]]), text_key(PASSAGES[row["passage_id"]])
        assert (row["query_key"], row["passage_key"], row["pair_key"]) == (
            query,
            passage,
            pair_key(query, passage),
        )
        assert (row["reason"], row["detail"], row["beyond_depth"]) == (None, None, False)
        assert row["kept"] == {"source": f"{row['query_id']}/{row['passage_id'][1:]}"}


def test_without_ranks_the_first_stage_rank_is_the_place_by_score_then_passage_id(spark):
    given = [("a", "x", 1.0), ("a", "z", 5.0), ("a", "y", 5.0), ("a", "w", None), ("b", "x", -3.0)]
    rows = prepared_rows(
        inline_texts(frame(spark, given, "query_id string, passage_id string, score double"))
    )
    assert {(row["query_id"], row["passage_id"]): row["first_stage_rank"] for row in rows} == {
        ("a", "y"): 1,
        ("a", "z"): 2,
        ("a", "x"): 3,
        ("a", "w"): 4,
        ("b", "x"): 1,
    }


def inline_texts(table: DataFrame) -> DataFrame:
    return table.withColumn("query", F.lit("q")).withColumn("passage", F.col("passage_id").cast("string"))


def test_given_ranks_are_kept_as_they_are(spark):
    given = [("a", "x", 9.0, 3), ("a", "y", 1.0, 1), ("a", "z", 5.0, None)]
    rows = prepared_rows(inline_texts(frame(spark, given, LONG)))
    assert [(row["passage_id"], row["first_stage_rank"]) for row in rows] == [("x", 3), ("y", 1), ("z", None)]


def test_texts_may_stand_in_the_candidates(spark):
    prepared = prepare(inline(spark, "frage", "antwort"), None, None, Shape())
    (row,) = prepared.rows.collect()
    assert texts_of(prepared)[bytes(row["pair_key"])] == ("frage", "antwort")
    assert (prepared.has_rank, prepared.has_score) == (False, False)
    assert row["kept"] is None


def test_one_side_may_be_a_table_and_the_other_inline(spark):
    candidates, queries, _ = three_tables(spark)
    rows = prepared_rows(candidates.withColumn("passage", F.lit("same")), queries)
    assert {bytes(row["passage_key"]) for row in rows} == {text_key("same")}
    assert {bytes(row["query_key"]) for row in rows} == {text_key(text) for text in QUERIES.values()}


def test_integer_ids_come_back_with_their_own_type_and_match_ids_that_are_text(spark):
    candidates = frame(spark, [(7, 70), (7, 71), (8, 70)], "query_id bigint, passage_id int")
    queries = frame(spark, [("7", "seven"), ("8", "eight")], "query_id string, query string")
    passages = frame(spark, [(70, "seventy"), (71, "more")], "passage_id smallint, passage string")
    prepared = prepare(candidates, queries, passages, Shape())
    assert prepared.rows.schema["query_id"].dataType.simpleString() == "bigint"
    assert prepared.rows.schema["passage_id"].dataType.simpleString() == "int"
    found = {(row["query_id"], row["passage_id"]): row["reason"] for row in prepared.rows.collect()}
    assert found == {(7, 70): None, (7, 71): None, (8, 70): None}


STRUCTS = "array<struct<passage_id string, passage string, score double>>"


def test_one_row_a_query_with_an_array_of_structs(spark):
    rows = [
        ("a", "frage", "es", [("x", "eins", 0.5), ("y", "zwei", 0.25)]),
        ("b", "frage", "es", []),
        ("c", "frage", "es", None),
        ("d", "frage", "es", [None, ("z", None, 1.0)]),
    ]
    table = frame(spark, rows, f"query_id string, query string, lang string, hits {STRUCTS}")
    prepared = prepare(table, None, None, Shape(nested=Nested(array="hits")))
    found = {(r["query_id"], r["passage_id"]): r for r in prepared.rows.collect()}
    assert [
        (*ids, row["reason"], row["first_stage_rank"]) for ids, row in sorted(found.items(), key=str)
    ] == [
        ("a", "x", None, 1),
        ("a", "y", None, 2),
        ("d", "z", Reason.NULL_PASSAGE, 2),
        ("d", None, Reason.NULL_ID, 1),
    ]
    assert found["a", "x"]["first_stage_score"] == 0.5
    assert found["a", "x"]["kept"]["lang"] == "es"
    assert prepared.queries_without_candidates is not None
    assert sorted(row[0] for row in prepared.queries_without_candidates.collect()) == ["b", "c"]


def test_struct_fields_that_carry_a_rank_keep_it_and_other_fields_pass_through(spark):
    element = "passage_id string, passage string, rank int, `u.rl` string, U string, u string"
    schema = f"query_id string, query string, hits array<struct<{element}>>"
    table = frame(spark, [("a", "q", [("x", "p", 7, "http", "big", "small")])], schema)
    with pytest.raises(InputError, match="'U' and 'u', which many tables cannot tell apart"):
        prepare(table, None, None, Shape(nested=Nested(array="hits")))
    (row,) = prepared_rows(table, nested=Nested(array="hits"), keep_columns=["u.rl", "U"])
    assert (row["first_stage_rank"], row["kept"]) == (7, {"u.rl": "http", "U": "big"})


PARALLEL = (
    "query_id string, query string, passage_id array<string>, passage array<string>, score array<double>"
)


def test_parallel_arrays_and_their_unequal_lengths(spark):
    rows = [
        ("a", "q", ["x", "y"], ["eins", "zwei"], [0.5, 0.25]),
        ("b", "q", ["x", "y"], ["eins"], [0.5, 0.25]),
        ("c", "q", ["x"], ["eins"], None),
        ("d", "q", [], [], []),
        ("e", "q", None, None, None),
        ("f", "q", ["x", None], ["eins", "zwei"], [0.5, 0.25]),
    ]
    prepared = prepare(frame(spark, rows, PARALLEL), None, None, Shape(nested=Nested(parallel=True)))
    found = [row.asDict() for row in prepared.rows.collect()]
    outcome = sorted(
        (r["query_id"], str(r["passage_id"]), r["reason"], r["first_stage_rank"])
        for r in found
        if r["reason"] is None
    )
    assert outcome == [("a", "x", None, 1), ("a", "y", None, 2), ("f", "x", None, 1)]
    rejects = {r["query_id"]: (r["reason"], r["detail"]) for r in found if r["reason"] is not None}
    assert rejects == {
        "b": (Reason.UNEQUAL_ARRAYS, "arrays of unequal length: passage_id 2, passage 1, score 2"),
        "c": (Reason.UNEQUAL_ARRAYS, "arrays of unequal length: passage_id 1, passage 1, score null"),
        "f": (Reason.NULL_ID, "null in passage_id; every candidate needs both ids"),
    }
    assert prepared.queries_without_candidates is not None
    assert sorted(row[0] for row in prepared.queries_without_candidates.collect()) == ["d", "e"]


@pytest.mark.parametrize("nested", [None, Nested(array="hits"), Nested(parallel=True)], ids=str)
def test_a_column_named_as_our_own_remark_on_arrays_is_the_users(spark, nested):
    """`_unequal`: kept as any other, and no reason to reject; the lengths of arrays are still compared."""
    pair: dict[str, tuple[Any, ...]] = {
        "passage_id string, passage string": ("x", "eins"),
        "hits array<struct<passage_id string, passage string>>": ([("x", "eins")],),
        "passage_id array<string>, passage array<string>": (["x"], ["eins"]),
    }
    columns = list(pair)[0 if nested is None else 1 if nested.array else 2]
    rows: list[tuple[Any, ...]] = [
        (q, "q", own, q, *pair[columns]) for q, own in (("a", "mine"), ("b", None))
    ]
    if nested is not None and nested.parallel:
        rows.append(("c", "q", "mine", "c", ["x", "y"], ["eins"]))
    table = frame(spark, rows, f"query_id string, query string, _unequal string, _unequal_ string, {columns}")
    found = [(r["query_id"], r["reason"], r["kept"]) for r in prepared_rows(table, nested=nested)]
    assert found[:2] == [
        ("a", None, {"_unequal": "mine", "_unequal_": "a"}),
        ("b", None, {"_unequal": None, "_unequal_": "b"}),
    ]
    rejected = [("c", Reason.UNEQUAL_ARRAYS, {"_unequal": "mine", "_unequal_": "c"})]
    assert found[2:] == (rejected if nested is not None and nested.parallel else [])


def test_queries_that_no_candidate_names_are_known(spark):
    candidates = frame(spark, [("a", ["x"]), ("b", [])], "query_id string, passage_id array<string>")
    queries = frame(spark, [("a", "q"), ("b", "q"), ("c", "q"), (None, "q")], "query_id string, query string")
    passages = frame(spark, [("x", "p")], "passage_id string, passage string")
    prepared = prepare(candidates, queries, passages, Shape(nested=Nested(parallel=True)))
    assert prepared.queries_without_candidates is not None
    assert sorted(row[0] for row in prepared.queries_without_candidates.collect()) == ["b", "c"]


# --- names and templates ---


def test_the_users_names_may_be_anything(spark):
    names = Columns(
        query_id="qid.x", passage_id="`pid`", query="Text", passage="text", score="100%", rank="Rang"
    )
    schema = "`qid.x` string, ```pid``` string, Text string, text string, `100%` double, Rang int, "
    schema += "`a.b` int, `c``d` int"
    table = spark.createDataFrame(
        [("a", "b", "q", "p", 0.5, 4, 1, 2), ("a", "c", "q", "p", float("nan"), 4, 1, 2)], schema
    )
    good, bad = prepared_rows(table, columns=names)
    assert (good["query_id"], good["passage_id"], good["first_stage_score"], good["first_stage_rank"]) == (
        "a",
        "b",
        0.5,
        4,
    )
    assert good["pair_key"] == pair_key(text_key("q"), text_key("p"))
    assert good["kept"] == {"a.b": 1, "c`d": 2}
    assert bad["detail"] == "100% is NaN, expected a finite number or null"


def test_templates_render_what_the_keys_are_of(spark):
    candidates = frame(spark, [("a", "x"), ("a", "y")], "query_id string, passage_id string")
    queries = frame(spark, [("a", "why")], "query_id string, query string")
    passages = frame(
        spark,
        [("x", "Head", 3, "body"), ("y", None, None, "bare")],
        "passage_id string, h1 string, n int, passage string",
    )
    prepared = prepare(
        candidates,
        queries,
        passages,
        Shape(
            columns=Columns(title="h1"),
            query_template="Find {{it}}: {query}?",
            passage_template="{title} ({n}) {passage}",
        ),
    )
    texts = texts_of(prepared)
    found = {row["passage_id"]: texts[bytes(row["pair_key"])] for row in prepared.rows.collect()}
    assert found == {"x": ("Find {it}: why?", "Head (3) body"), "y": ("Find {it}: why?", " () bare")}


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (
            "{titel} {passage}",
            r"names 'titel', but candidates has no column 'titel' \(it has query_id, passage_id",
        ),
        ("{title}", "but candidates has no column 'title'"),
        ("text", r"does not contain \{passage\}"),
        ("{passage", "write {{ for a brace"),
        ("{passage:>5}", "only plain {column} fields are understood"),
        ("{passage!r}", "only plain {column} fields are understood"),
        ("{} {passage}", "names ''"),
    ],
)
def test_a_template_that_cannot_be_rendered_is_an_error(spark, template, sentence):
    with pytest.raises(ConfigError, match=sentence):
        prepare(inline(spark), None, None, Shape(passage_template=template))


def test_a_template_takes_no_column_whose_text_depends_on_settings(spark):
    table = inline(spark).withColumn("at", F.current_timestamp())
    with pytest.raises(
        ConfigError, match="names 'at', which is timestamp in candidates: its text depends on time zone"
    ):
        prepare(table, None, None, Shape(passage_template="{at} {passage}"))


def test_only_the_columns_that_are_asked_for_pass_through(spark):
    table = inline(spark).withColumn("a", F.lit(1)).withColumn("b", F.lit(2))
    assert prepared_rows(table, keep_columns=["b"])[0]["kept"] == {"b": 2}
    assert prepared_rows(table, keep_columns="none")[0]["kept"] is None
    with pytest.raises(
        InputError, match=r"output\.keep_columns names 'c'; candidates has query_id, passage_id"
    ):
        prepare(table, None, None, Shape(keep_columns=["c"]))


@pytest.mark.parametrize("name", ["Logit", "first_stage_rank", "fused_score", "QUERY_ID", "reason"])
def test_a_column_that_would_collide_with_the_outputs_own_is_an_error(spark, name):
    table = inline(spark).withColumnsRenamed({"query_id": "qid"}).withColumn(name, F.lit(1))
    with pytest.raises(InputError, match=f"candidates.{name} would collide with the output's own column"):
        prepare(table, None, None, Shape(columns=Columns(query_id="qid"), reserved=("reason",)))
    prepare(table, None, None, Shape(columns=Columns(query_id="qid"), keep_columns="none"))


def test_two_columns_of_one_name_are_an_error(spark):
    table = inline(spark).select("*", F.lit("other").alias("query"))
    with pytest.raises(InputError, match="candidates has two columns called 'query'"):
        prepare(table, None, None, Shape())


def test_a_bare_null_column_passes_through_as_a_string(spark):
    prepared = prepare(inline(spark).withColumn("nothing", F.lit(None)), None, None, Shape())
    assert prepared.rows.schema["kept"].dataType.simpleString() == "struct<nothing:string>"


# --- tables that are wrong as a whole ---


@pytest.mark.parametrize(
    ("drop", "sentence"),
    [
        (
            "query_id",
            r"candidates has no column 'query_id' \(it has passage_id, query, passage\); name the right one in",
        ),
        ("passage_id", "candidates has no column 'passage_id'"),
        ("query", "no text for the queries: candidates has no column 'query'"),
        ("passage", "no text for the passages: candidates has no column 'passage'"),
    ],
)
def test_a_missing_column_is_an_error_that_says_what_is_there(spark, drop, sentence):
    with pytest.raises(InputError, match=sentence):
        prepare(inline(spark).drop(drop), None, None, Shape())


def test_a_missing_column_of_the_text_tables_is_an_error(spark):
    candidates, queries, passages = three_tables(spark)
    with pytest.raises(InputError, match="queries has no column 'query_id'"):
        prepare(candidates, queries.drop("query_id"), passages, Shape())
    with pytest.raises(ConfigError, match="but passages has no column 'passage'"):
        prepare(candidates, queries, passages.drop("passage"), Shape())


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        (
            "query_id",
            "double",
            "candidates.query_id is double, expected a string or an integer; cast it first",
        ),
        ("passage_id", "binary", "candidates.passage_id is binary"),
        ("score", "string", "candidates.score is string, expected a finite number"),
        ("rank", "double", "candidates.rank is double, expected a whole number from 1"),
        ("passage", "int", "candidates.passage is int, expected a string"),
        ("query", "array<string>", "candidates.query is array<string>"),
    ],
)
def test_a_wrong_type_is_an_error_that_names_it(spark, name, kind, sentence):
    table = inline(spark).withColumn(name, F.lit(None).cast(kind))
    with pytest.raises(InputError, match=sentence):
        prepare(table, None, None, Shape())


def test_nested_settings_that_do_not_fit_the_table_are_errors(spark):
    table = frame(spark, [("a", "q", ["x"])], "query_id string, query string, passage_id array<string>")
    with pytest.raises(InputError, match="candidates has no column 'hits'"):
        prepare(table, None, None, Shape(nested=Nested(array="hits")))
    with pytest.raises(
        InputError, match=r"candidates.passage_id is array<string>, expected array<struct<passage_id"
    ):
        prepare(table, None, None, Shape(nested=Nested(array="passage_id")))
    with pytest.raises(
        InputError, match=r"candidates.passage_id is not an array column; candidates has query_id string"
    ):
        prepare(inline(spark), None, None, Shape(nested=Nested(parallel=True)))


def test_depth_needs_a_first_stage_order(spark):
    with pytest.raises(
        ConfigError, match="depth needs a first-stage order: candidates has neither 'rank' nor 'score'"
    ):
        prepare(inline(spark), None, None, Shape(depth=3))


# --- rows that are wrong ---


def invalid_text(spark: SparkSession) -> Any:
    return F.unhex(F.lit("61FF62")).cast("string")


def test_every_bad_row_gets_the_reason_that_fits_and_every_row_comes_back(spark):
    candidates = spark.createDataFrame(
        [
            ("q1", "p1", 9.0, 1, "good"),
            (None, "p1", 9.0, 1, "no query id"),
            ("q1", None, 9.0, 1, "no passage id"),
            ("nobody", "p1", 9.0, 1, "unknown query"),
            ("q1", "nowhere", 9.0, 1, "unknown passage"),
            ("twice", "p1", 9.0, 1, "two queries of one id"),
            ("q1", "twice", 9.0, 1, "two passages of one id"),
            ("same", "p1", 9.0, 1, "an id twice with the same text is no harm"),
            ("q1", "p1", 8.0, 2, "the same candidate again"),
            ("null", "p1", 9.0, 1, "null query"),
            ("q1", "null", 9.0, 1, "null passage"),
            ("q1", "bytes", 9.0, 1, "not UTF-8"),
            ("q1", "p2", float("nan"), 1, "NaN"),
            ("q1", "p3", float("-inf"), 1, "infinite"),
            ("q1", "p4", 9.0, 0, "a rank of 0"),
            ("q1", "empty", None, None, "an empty text, no score, no rank: good"),
        ],
        f"{LONG}, note string",
    )
    queries = frame(
        spark,
        [
            ("q1", "a"),
            ("twice", "a"),
            ("twice", "b"),
            ("same", "a"),
            ("same", "a"),
            ("null", None),
            (None, "z"),
        ],
        "query_id string, query string",
    )
    passages = frame(
        spark,
        [
            *((f"p{n}", "text") for n in range(1, 5)),
            ("twice", "a"),
            ("twice", None),
            ("null", None),
            ("empty", ""),
        ],
        "passage_id string, passage string",
    ).union(spark.range(1).select(F.lit("bytes"), invalid_text(spark)))
    rows = prepared_rows(candidates, queries, passages)
    assert len(rows) == 16
    assert {row["kept"]["note"]: row["reason"] for row in rows} == {
        "good": None,
        "no query id": Reason.NULL_ID,
        "no passage id": Reason.NULL_ID,
        "unknown query": Reason.UNKNOWN_QUERY,
        "unknown passage": Reason.UNKNOWN_PASSAGE,
        "two queries of one id": Reason.AMBIGUOUS_QUERY,
        "two passages of one id": Reason.AMBIGUOUS_PASSAGE,
        "an id twice with the same text is no harm": None,
        "the same candidate again": Reason.DUPLICATE_CANDIDATE,
        "null query": Reason.NULL_QUERY,
        "null passage": Reason.NULL_PASSAGE,
        "not UTF-8": Reason.INVALID_UTF8,
        "NaN": Reason.BAD_SCORE,
        "infinite": Reason.BAD_SCORE,
        "a rank of 0": Reason.BAD_RANK,
        "an empty text, no score, no rank: good": None,
    }
    for row in rows:
        assert (row["pair_key"] is None) == (row["reason"] is not None) == (row["detail"] is not None)
    details = {row["kept"]["note"]: row["detail"] for row in rows}
    assert details["unknown query"] == "query_id nobody is not in queries; add it there or drop the row"
    assert details["a rank of 0"] == "rank is 0, expected a whole number from 1 or null"
    assert details["no query id"] == "null in query_id; every candidate needs both ids"
    assert "not valid UTF-8" in details["not UTF-8"]


def test_inline_texts_that_are_null_or_no_utf8_are_rejects(spark):
    table = (
        inline(spark)
        .withColumn("query", invalid_text(spark))
        .union(
            frame(
                spark,
                [("a", "c", "q", None), ("a", "d", None, "p")],
                "query_id string, passage_id string, query string, passage string",
            )
        )
    )
    found = {row["passage_id"]: row["reason"] for row in prepared_rows(table)}
    assert found == {"b": Reason.INVALID_UTF8, "c": Reason.NULL_PASSAGE, "d": Reason.NULL_QUERY}


def test_binary_parquet_read_as_text_is_checked(spark, tmp_path):
    rows = spark.sql("select 'a' query_id, 'b' passage_id, 'q' query, unhex('C328') passage")
    rows.write.parquet(str(tmp_path / "raw"))
    read = spark.read.schema("query_id string, passage_id string, query string, passage string").parquet(
        str(tmp_path / "raw")
    )
    assert [row["reason"] for row in prepared_rows(read)] == [Reason.INVALID_UTF8]


def test_what_spark_3_does_for_want_of_is_valid_utf8_finds_the_same(session_settings, monkeypatch):
    spark = session_settings
    spark.conf.set("spark.sql.legacy.codingErrorAction", "true")  # decode() as Spark 3 has it
    texts = [
        "",
        "61",
        "C3A9",
        "C328",
        "FF",
        "EDA080",
        "F09F9880",
        "F0808080",
        "EFBFBD",
        "00",
        "61FF62",
        "E282",
    ]
    table = spark.createDataFrame([(t,) for t in texts], "hex string").withColumn(
        "t", F.unhex("hex").cast("string")
    )
    new = [row[0] for row in table.select(valid_utf8(F.col("t"))).collect()]
    monkeypatch.delattr(F, "is_valid_utf8", raising=False)
    old = [row[0] for row in table.select(valid_utf8(F.col("t"))).collect()]

    def decodes(text: str) -> bool:
        try:
            bytes.fromhex(text).decode("utf-8")
        except UnicodeDecodeError:
            return False
        return True

    assert new == old == [decodes(text) for text in texts]


def test_of_equal_candidates_the_best_placed_stays_whatever_order_they_come_in(spark):
    rows = [
        ("a", "x", 1.0, 2, "p"),
        ("a", "x", 9.0, 1, "p"),
        ("a", "x", 9.0, 1, "other"),
        ("a", "x", float("nan"), 1, "p"),
    ]
    schema = f"{LONG}, passage string"
    kept = set()
    for order in (rows, rows[::-1]):
        table = spark.createDataFrame(order, schema).withColumn("query", F.lit("q")).coalesce(1)
        found = prepared_rows(table)
        assert sorted(str(row["reason"]) for row in found) == [
            "None",
            "bad_score",
            *["duplicate_candidate"] * 2,
        ]
        (survivor,) = [row for row in found if row["reason"] is None]
        assert (survivor["first_stage_rank"], survivor["first_stage_score"]) == (1, 9.0)
        kept.add(bytes(survivor["passage_key"]))
    assert len(kept) == 1


def test_duplicates_are_told_apart_by_columns_that_spark_cannot_hash(spark):
    table = inline(spark).crossJoin(spark.range(2)).withColumn("m", F.create_map(F.lit("k"), "id")).drop("id")
    found = prepared_rows(table)
    assert sorted(str(row["reason"]) for row in found) == ["None", "duplicate_candidate"]


def test_csv_numbers_are_parsed_and_what_is_none_is_a_reject(spark):
    rows = [
        ("a", "1.5", "1"),
        ("b", "1e3", "02"),
        ("c", "none", "1"),
        ("d", None, "x"),
        ("e", "NaN", "1"),
        ("f", "1.5", "1.5"),
        ("g", " 2 ", "-1"),
        ("h", "1e999", "1"),
    ]
    table = inline_texts(
        frame(spark, rows, "passage_id string, score string, rank string").withColumn("query_id", F.lit("q"))
    )
    found = {
        r["passage_id"]: (r["reason"], r["first_stage_score"])
        for r in prepared_rows(table, lenient_numbers=True)
    }
    assert found["a"] == (None, 1.5)
    assert found["b"] == (None, 1000.0)
    assert {name for name, (reason, _) in found.items() if reason == Reason.BAD_SCORE} == {"c", "e", "h"}
    assert {name for name, (reason, _) in found.items() if reason == Reason.BAD_RANK} == {"d", "f", "g"}


def test_decimal_scores_and_long_ranks_are_taken(spark):
    table = inline_texts(
        spark.sql(
            "select 'q' query_id, 'p' passage_id, cast(12.5 as decimal(38,10)) score, 3L rank "
            "union all select 'q', 'r', 1, 3000000000L"
        )
    )
    good, bad = prepared_rows(table)
    assert (good["first_stage_score"], good["first_stage_rank"]) == (12.5, 3)
    assert (bad["reason"], bad["detail"]) == (
        Reason.BAD_RANK,
        "rank is 3000000000, expected a whole number from 1 or null",
    )


# --- depth and trial runs ---


def test_depth_marks_the_sound_rows_beyond_it(spark):
    rows = [
        ("a", "x", 1.0, 3),
        ("a", "y", 2.0, 1),
        ("a", "z", 3.0, 3),
        ("a", "v", 3.0, None),
        ("a", "u", float("nan"), 2),
        ("b", "x", 0.0, 9),
    ]
    found = prepared_rows(inline_texts(frame(spark, rows, LONG)), depth=2)
    assert {(r["query_id"], r["passage_id"]): r["beyond_depth"] for r in found} == {
        ("a", "y"): False,
        ("a", "x"): False,  # equal ranks: passage_id decides
        ("a", "z"): True,
        ("a", "v"): True,  # no rank: last
        ("a", "u"): False,  # a reject takes no place
        ("b", "x"): False,
    }


def test_depth_goes_by_score_where_there_is_no_rank(spark):
    rows = [
        ("a", "v", 1.0, None),
        ("a", "w", None, None),
        ("a", "x", 3.0, None),
        ("a", "y", 2.0, None),
        ("a", "z", 0.0, 1),
    ]
    found = prepared_rows(inline_texts(frame(spark, rows, LONG)), depth=3)
    assert {r["passage_id"] for r in found if not r["beyond_depth"]} == {"z", "x", "y"}


def test_a_trial_run_takes_the_same_whole_queries_every_time(spark):
    rows = [(f"q{n}", f"p{m}") for n in range(20) for m in range(3)] + [(None, "p1")]
    table = inline_texts(frame(spark, rows, "query_id string, passage_id string"))
    few = {(r["query_id"], r["passage_id"]) for r in prepared_rows(table, limit_queries=2)}
    more = {
        (r["query_id"], r["passage_id"]) for r in prepared_rows(table.orderBy("passage_id"), limit_queries=5)
    }
    assert len({query for query, _ in few}) == 2
    assert len(few) == 6
    assert len(more) == 15
    assert few < more


def test_preparing_runs_no_job(spark):
    tracker = spark.sparkContext.statusTracker()
    spark.sparkContext.setJobGroup("prepare", "prepare")
    try:
        prepare(*three_tables(spark), Shape(depth=3, limit_queries=2))
        assert list(tracker.getJobIdsForGroup("prepare")) == []
    finally:
        spark.sparkContext.setLocalProperty("spark.jobGroup.id", None)


@pytest.mark.parametrize("setting", ["score", "rank"])
def test_a_score_or_rank_that_is_asked_for_and_not_there_is_named(spark, setting):
    """Under its usual name it may be absent: then the other one orders, or none does."""
    table = frame(
        spark,
        [("q", "p", "t", "u", 1)],
        f"query_id string, passage_id string, query string, passage string, {setting} int",
    )
    wrong = Columns(**{setting: "misspelt"})
    with pytest.raises(
        InputError,
        match=rf"no column 'misspelt' \(it has .*{setting}.*\); name the right one in input.columns.{setting}",
    ):
        prepare(table, None, None, Shape(columns=wrong, keep_columns="none"))
    prepare(table, None, None, Shape(keep_columns="none"))
