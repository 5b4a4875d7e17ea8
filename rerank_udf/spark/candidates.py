"""Candidate tables in any accepted shape → rows with content keys, and the reason of each row that has none.

    rows      query_id, passage_id (own types), first_stage_rank int, first_stage_score double, kept struct,
              query_key, passage_key, pair_key binary(16), reason, detail string, beyond_depth boolean
    queries   query_key, query      (texts as the model gets them; a key may stand more than once)
    passages  passage_key, passage

Nothing here runs a job: every check on a single row is a column, every check on a table's shape reads its schema.
Tables are renamed by position first, so that no setting for case sensitivity and no odd name changes the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from rerank_udf import tables
from rerank_udf.config import Columns, Nested
from rerank_udf.errors import ConfigError, InputError
from rerank_udf.spark import keys
from rerank_udf.spark.arrays import flat
from rerank_udf.spark.named import ID_TYPES, INTEGER_TYPES, NUMBER_TYPES, NamedTable
from rerank_udf.spark.texts import TextSide, text_side
from rerank_udf.tables import Reason

_RESERVED = (
    tables.QUERY_ID,
    tables.PASSAGE_ID,
    tables.RANK,
    tables.SCORE,
    tables.LOGIT,
    tables.FUSED_SCORE,
    tables.FIRST_STAGE_RANK,
    tables.FIRST_STAGE_SCORE,
)


@dataclass(frozen=True)
class Shape:
    """How the user's tables are to be read.

    `lenient_numbers`: score and rank are text (CSV) and are parsed. `reserved`: names that the output gives to
    columns of its own, beside those that it always has.
    """

    columns: Columns = field(default_factory=Columns)
    nested: Nested | None = None
    query_template: str = "{query}"
    passage_template: str = "{passage}"
    depth: int | None = None
    keep_columns: str | Sequence[str] = "all"
    limit_queries: int | None = None
    lenient_numbers: bool = False
    reserved: Sequence[str] = ()


@dataclass(frozen=True)
class Prepared:
    """What the module's docstring describes, and the number columns that the candidates had.

    `asked`: (query_id as text, query_key) of every candidate whose query can be scored, rejected or not.
    """

    rows: DataFrame
    queries: DataFrame
    passages: DataFrame
    asked: DataFrame
    queries_without_candidates: DataFrame | None
    has_rank: bool
    has_score: bool


def prepare(
    candidates: DataFrame, queries: DataFrame | None, passages: DataFrame | None, shape: Shape
) -> Prepared:
    """Check the tables' columns and types, and describe rows and texts as DataFrames.

    Raises InputError for a missing column, a wrong type or a name that the output needs; ConfigError for a template
    that names an unknown column, or `depth` without a first-stage order.
    """
    names = shape.columns
    table, unequal = _flat(candidates, shape)
    rows, has_rank, has_score = _candidate_columns(table, unequal, shape, queries, passages)
    if shape.depth is not None and not (has_rank or has_score):
        raise ConfigError(
            f"ranking.depth needs a first-stage order: candidates has neither {names.rank!r} nor {names.score!r}"
        )
    if shape.limit_queries is not None:
        rows = _some_queries(rows, shape.limit_queries)
    query_side = text_side(
        table, queries, "queries", names.query_id, "query_id", names.query, shape.query_template, names
    )
    passage_side = text_side(
        table,
        passages,
        "passages",
        names.passage_id,
        "passage_id",
        names.passage,
        shape.passage_template,
        names,
    )
    rows = _with_keys(rows, query_side, passage_side)
    asked = rows.where(F.col("_query_problem").isNull())
    rows = _with_reasons(rows, table.internal, shape)
    rows = _with_first_stage_order(rows, shape.depth, has_rank, has_score)
    return Prepared(
        rows=rows,
        queries=query_side.texts.toDF(tables.QUERY_KEY, tables.QUERY),
        passages=passage_side.texts.toDF(tables.PASSAGE_KEY, tables.PASSAGE),
        asked=asked.select("_query_id", "_query_key").toDF(tables.QUERY_ID, tables.QUERY_KEY),
        queries_without_candidates=_without_candidates(candidates, table, queries, shape),
        has_rank=has_rank,
        has_score=has_score,
    )


def _flat(candidates: DataFrame, shape: Shape) -> tuple[NamedTable, str | None]:
    """One row a pair; and, of parallel arrays, the column that says what is wrong with their lengths.

    That column comes last and gets a name that no column of the user's has.
    """
    frame = flat(candidates, shape.nested, shape.columns)
    if shape.nested is None or not shape.nested.parallel:
        return NamedTable.of("candidates", frame, "c"), None
    *theirs, unequal = frame.columns
    while unequal in theirs:
        unequal += "_"
    return NamedTable.of("candidates", frame.toDF(*theirs, unequal), "c"), unequal


def _without_candidates(
    candidates: DataFrame, flat: NamedTable, queries: DataFrame | None, shape: Shape
) -> DataFrame | None:
    """Ids of the queries that have nothing to rank: query ids that no candidate names, or empty arrays."""
    name = shape.columns.query_id
    if queries is not None:
        asked = NamedTable.of("queries", queries, "q")
        ids = asked.frame.select(asked.column(name).cast("string").alias("_id")).where(
            F.col("_id").isNotNull()
        )
        have = flat.frame.select(flat.column(name).cast("string").alias("_id"))
        return ids.distinct().join(have, "_id", "left_anti")
    if shape.nested is None:
        return None
    table = NamedTable.of("candidates", candidates, "n")
    array = table.column(shape.nested.array or shape.columns.passage_id)
    empty = F.coalesce(F.size(array), F.lit(0)) <= 0
    return table.frame.where(empty).select(table.column(name).cast("string").alias("_id"))


def _candidate_columns(
    table: NamedTable,
    unequal: str | None,
    shape: Shape,
    queries: DataFrame | None,
    passages: DataFrame | None,
) -> tuple[DataFrame, bool, bool]:
    names = shape.columns
    query_id = table.require(names.query_id, "query_id", ID_TYPES, "a string or an integer")
    passage_id = table.require(names.passage_id, "passage_id", ID_TYPES, "a string or an integer")
    score, bad_score = _number(table, names.score, "score", "double", NUMBER_TYPES, shape.lenient_numbers)
    rank, bad_rank = _number(table, names.rank, "rank", "int", INTEGER_TYPES, shape.lenient_numbers)
    used = {names.query_id, names.passage_id, names.score, names.rank}
    if unequal is not None:
        used.add(unequal)
    if queries is None:
        used.add(names.query)
    if passages is None:
        used.add(names.passage)
    kept = _kept_columns(table, used, shape)
    frame = table.frame.select(
        "*",
        query_id.alias(tables.QUERY_ID),
        passage_id.alias(tables.PASSAGE_ID),
        query_id.cast("string").alias("_query_id"),
        passage_id.cast("string").alias("_passage_id"),
        rank.alias(tables.FIRST_STAGE_RANK),
        score.alias(tables.FIRST_STAGE_SCORE),
        _struct(table, kept).alias("kept"),
        (_tie_break(table, kept)).alias("_tie"),
        bad_score.alias("_bad_score"),
        bad_rank.alias("_bad_rank"),
        (F.lit(None).cast("string") if unequal is None else table.column(unequal)).alias("_unequal"),
    )
    return frame, names.rank in table, names.score in table


def _number(
    table: NamedTable,
    name: str,
    setting: str,
    target: str,
    allowed: tuple[type[T.DataType], ...],
    lenient: bool,
) -> tuple[Column, Column]:
    """The optional number column as `target`, and a sentence for each value that cannot serve as one.

    That is: text that is no number, NaN and infinities (no order, no mean), a rank below 1 or beyond int.
    """
    if name not in table:
        if name != setting:  # asked for by name; under the usual one it may be absent
            raise InputError(
                f"{table.label} has no column {name!r} (it has {', '.join(table.internal)}); name the right one in "
                f"input.columns.{setting}, or leave that setting out"
            )
        return F.lit(None).cast(target), F.lit(None).cast("string")
    parsed = lenient and isinstance(table.types[name], T.StringType)
    expected = "a whole number from 1" if target == "int" else "a finite number"
    raw = table.column(name) if parsed else table.require(name, setting, allowed, expected)
    value = F.expr(f"try_cast(`{table.internal[name]}` as {target})")
    unusable = value < 1 if target == "int" else F.isnan(value) | (F.abs(value) == float("inf"))
    sentence = F.concat(F.lit(f"{name} is "), raw.cast("string"), F.lit(f", expected {expected} or null"))
    return value, F.when(raw.isNotNull() & (value.isNull() | unusable), sentence)


def _kept_columns(table: NamedTable, used: set[str], shape: Shape) -> list[str]:
    """The pass-through columns, in the candidates' order."""
    free = [name for name in table.internal if name not in used]
    if shape.keep_columns == "none":
        return []
    if shape.keep_columns == "all":
        kept = free
    else:
        unknown = [name for name in shape.keep_columns if name not in table.internal]
        if unknown:
            raise InputError(
                f"output.keep_columns names {unknown[0]!r}; candidates has {', '.join(table.internal)}"
            )
        kept = [name for name in shape.keep_columns if name in free]
    lowered = Counter(name.lower() for name in kept)
    twice = [name for name in kept if lowered[name.lower()] > 1]
    if twice:
        raise InputError(
            f"candidates has the columns {' and '.join(map(repr, twice[:2]))}, which many tables cannot tell apart; "
            "rename one, or leave it out through output.keep_columns"
        )
    clash = [name for name in kept if name.lower() in (*_RESERVED, *shape.reserved)]
    if clash:
        raise InputError(
            f"candidates.{clash[0]} would collide with the output's own column {clash[0].lower()!r}; "
            "rename it, or leave it out through output.keep_columns"
        )
    return kept


def _struct(table: NamedTable, kept: Sequence[str]) -> Column:
    """The pass-through columns under their own names; a null string where there are none (Parquet has no void)."""
    if not kept:
        return F.lit(None).cast("string")
    return F.struct(*[_storable(table, name).alias(name) for name in kept])


def _storable(table: NamedTable, name: str) -> Column:
    """The column; as a string where it is `void` (a bare NULL in SQL), which Parquet has not."""
    column = table.column(name)
    return column.cast("string") if isinstance(table.types[name], T.NullType) else column


def _tie_break(table: NamedTable, kept: Sequence[str]) -> Column:
    """A number that orders duplicates which agree in rank, score and texts, by their other columns."""
    parts = [_hashable(table.column(name), table.types[name]) for name in kept]
    return F.xxhash64(*parts) if parts else F.lit(0).cast("long")


def _hashable(column: Column, kind: T.DataType) -> Column:
    """Spark hashes no maps and no variants, but writes both as text."""
    name = kind.simpleString()
    return column.cast("string") if "map<" in name or "variant" in name else column


def _some_queries(rows: DataFrame, count: int) -> DataFrame:
    """The rows of `count` queries, those whose ids hash lowest: the same ones in every run."""
    digest = F.sha2(F.col("_query_id").cast("binary"), 256)
    asked = rows.select("_query_id").where(F.col("_query_id").isNotNull()).distinct()
    chosen = asked.orderBy(digest, "_query_id").limit(count)
    return rows.join(F.broadcast(chosen), "_query_id", "left_semi")


def _with_keys(rows: DataFrame, query: TextSide, passage: TextSide) -> DataFrame:
    for side in (query, passage):
        if side.inline is not None:
            key, problem = side.inline
            rows = rows.select("*", key.alias(f"_{side.noun}_key"), problem.alias(f"_{side.noun}_problem"))
        else:
            assert side.by_id is not None
            joined = rows.join(side.by_id, F.col(side.id_column) == F.col(f"_{side.noun}_join"), "left")
            unknown = F.when(F.col(f"_{side.noun}_join").isNull(), F.lit(f"unknown_{side.noun}"))
            problem = F.coalesce(unknown, F.col(f"_{side.noun}_problem"))
            rows = joined.withColumn(f"_{side.noun}_problem", problem)
    return rows


def _with_reasons(rows: DataFrame, internal: dict[str, str], shape: Shape) -> DataFrame:
    """`reason` and `detail` of each row that cannot be ranked, the first that applies; keys only for the others."""
    names = shape.columns
    null_id = F.when(
        F.col("_query_id").isNull() | F.col("_passage_id").isNull(),
        F.concat(
            F.lit("null in "),
            F.when(F.col("_query_id").isNull(), F.lit(names.query_id)).otherwise(F.lit(names.passage_id)),
            F.lit("; every candidate needs both ids"),
        ),
    )
    sentences = [
        (Reason.UNEQUAL_ARRAYS, F.col("_unequal")),
        (Reason.NULL_ID, null_id),
        (Reason.BAD_SCORE, F.col("_bad_score")),
        (Reason.BAD_RANK, F.col("_bad_rank")),
    ]
    reason = F.coalesce(
        *[F.when(sentence.isNotNull(), F.lit(code)) for code, sentence in sentences],
        F.col("_query_problem"),
        F.col("_passage_problem"),
    )
    detail = F.coalesce(
        *[sentence for _, sentence in sentences], _text_detail("query"), _text_detail("passage")
    )
    checked = rows.select("*", reason.alias("_reason"), F.when(reason.isNotNull(), detail).alias("_detail"))
    return _with_duplicates(checked)


def _text_detail(noun: str) -> Column:
    problem, identifier = F.col(f"_{noun}_problem"), F.col(f"_{noun}_id")
    plural = "queries" if noun == "query" else "passages"
    sentences = {
        f"unknown_{noun}": F.format_string(
            f"{noun}_id %s is not in {plural}; add it there or drop the row", identifier
        ),
        f"ambiguous_{noun}": F.format_string(
            f"{noun}_id %s has several texts in {plural}; keep one", identifier
        ),
        f"null_{noun}": F.format_string(
            f"the text of {noun}_id %s is null; give it a text (an empty one is valid)", identifier
        ),
        Reason.INVALID_UTF8: F.format_string(
            f"the text of {noun}_id %s is not valid UTF-8; re-encode it", identifier
        ),
    }
    detail = F.lit(None).cast("string")
    for code, sentence in sentences.items():
        detail = F.when(problem == code, sentence).otherwise(detail)
    return detail


def _with_duplicates(rows: DataFrame) -> DataFrame:
    """Of several sound rows with the same ids the best placed stays, the others are rejects."""
    order = [
        F.col("_reason").isNotNull(),
        F.col(tables.FIRST_STAGE_RANK).asc_nulls_last(),
        F.col(tables.FIRST_STAGE_SCORE).desc_nulls_last(),
        F.col("_query_key").asc_nulls_last(),
        F.col("_passage_key").asc_nulls_last(),
        F.col("_tie"),
    ]
    place = F.row_number().over(Window.partitionBy("_query_id", "_passage_id").orderBy(*order))
    # By the query alone, so that one exchange serves this window and those over a query's rows.
    numbered = rows.repartition("_query_id").withColumn("_place", place)
    duplicate = F.col("_reason").isNull() & (F.col("_place") > 1)
    sentence = F.format_string(
        "candidate %d of the same ids (query_id %s, passage_id %s); the best placed is kept",
        F.col("_place"),
        F.col("_query_id"),
        F.col("_passage_id"),
    )
    reason = F.when(duplicate, F.lit(Reason.DUPLICATE_CANDIDATE)).otherwise(F.col("_reason"))
    sound = reason.isNull()
    return numbered.select(
        tables.QUERY_ID,
        tables.PASSAGE_ID,
        "_query_id",
        "_passage_id",
        tables.FIRST_STAGE_RANK,
        tables.FIRST_STAGE_SCORE,
        "kept",
        F.when(sound, F.col("_query_key")).alias(tables.QUERY_KEY),
        F.when(sound, F.col("_passage_key")).alias(tables.PASSAGE_KEY),
        F.when(sound, keys.pair_key(F.col("_query_key"), F.col("_passage_key"))).alias(tables.PAIR_KEY),
        reason.alias(tables.REASON),
        F.when(duplicate, sentence).otherwise(F.col("_detail")).alias(tables.DETAIL),
    )


def first_stage_order() -> list[Column]:
    """By rank, then, of rows that have none, by falling score, then by passage_id."""
    rank, score = F.col(tables.FIRST_STAGE_RANK), F.col(tables.FIRST_STAGE_SCORE)
    return [
        rank.asc_nulls_last(),
        F.when(rank.isNull(), score).desc_nulls_last(),
        F.col(tables.PASSAGE_ID).asc(),
    ]


def _with_first_stage_order(rows: DataFrame, depth: int | None, has_rank: bool, has_score: bool) -> DataFrame:
    """Fill `first_stage_rank` from the score where there is no rank, and mark the rows beyond `depth`."""
    sound = F.col(tables.REASON).isNull()
    if not has_rank and has_score:
        by_score = Window.partitionBy("_query_id", sound).orderBy(
            F.col(tables.FIRST_STAGE_SCORE).desc_nulls_last(), F.col(tables.PASSAGE_ID)
        )
        rows = rows.withColumn(
            tables.FIRST_STAGE_RANK, F.when(sound, F.row_number().over(by_score)).cast("int")
        )
    beyond = F.lit(False)
    if depth is not None:
        by_rank = Window.partitionBy("_query_id", sound).orderBy(*first_stage_order())
        beyond = sound & (F.row_number().over(by_rank) > depth)
    return rows.withColumn("beyond_depth", beyond).drop("_query_id", "_passage_id")
