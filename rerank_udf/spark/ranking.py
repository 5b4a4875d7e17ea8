"""Rows and scores → what became of each row: a rank, a cut or a reject. No Python runs in these plans.

Order is total: fused score where fusion is on, else logit, descending; then first-stage rank; then passage_id.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, Window, WindowSpec
from pyspark.sql import functions as F
from pyspark.sql import types as T

from rerank_udf import tables
from rerank_udf.config import Fusion, Ranking
from rerank_udf.errors import ConfigError
from rerank_udf.spark.candidates import Prepared
from rerank_udf.tables import Cut, Reason

_CUT = "cut"
_LOST = "a text of this pair changed while it was being read; rerun when the input is at rest, or persist it first"


@dataclass(frozen=True)
class Outcome:
    """Every input row once: `rank` set, or `cut` set, or `reason` set.

    columns: query_id, passage_id, rank, score, logit, [fused_score], first_stage_rank, first_stage_score, kept,
    reason, detail, cut
    """

    rows: DataFrame
    fused: bool

    def reranked(self) -> DataFrame:
        """The ranked rows with the output's columns, pass-through columns last."""
        return self.rows.where(F.col(tables.RANK).isNotNull()).select(*self._columns())

    def listed(self) -> DataFrame:
        """Ranked and rejected rows in one table, `reason` and `detail` last; cut rows are left out."""
        shown = self.rows.where(F.col(_CUT).isNull())
        return shown.select(*self._columns(), tables.REASON, tables.DETAIL)

    def _columns(self) -> list[str]:
        has_kept = isinstance(self.rows.schema["kept"].dataType, T.StructType)
        return [
            tables.QUERY_ID,
            tables.PASSAGE_ID,
            tables.RANK,
            tables.SCORE,
            tables.LOGIT,
            *([tables.FUSED_SCORE] if self.fused else []),
            tables.FIRST_STAGE_RANK,
            tables.FIRST_STAGE_SCORE,
            *(["kept.*"] if has_kept else []),
        ]

    def rejects(self) -> DataFrame:
        """The rejected rows: ids, first-stage rank and score, reason, detail."""
        return rejected(self.rows)

    def counts(self) -> dict[str, dict[str, int]]:
        """{"ranked": {"": n}, "cut": {by reason}, "rejects": {by reason}}; runs one job."""
        kind = (
            F.when(F.col(tables.REASON).isNotNull(), F.lit("rejects"))
            .when(F.col(_CUT).isNotNull(), F.lit("cut"))
            .otherwise(F.lit("ranked"))
        )
        why = F.coalesce(tables.REASON, _CUT, F.lit(""))
        found: dict[str, dict[str, int]] = {"ranked": {}, "cut": {}, "rejects": {}}
        for row in self.rows.groupBy(kind.alias("kind"), why.alias("why")).count().collect():
            found[row["kind"]][row["why"]] = row["count"]
        return found


def rejected(rows: DataFrame) -> DataFrame:
    """The rejects table out of rows that carry `reason`, scored or not."""
    return rows.where(F.col(tables.REASON).isNotNull()).select(
        tables.QUERY_ID,
        tables.PASSAGE_ID,
        tables.FIRST_STAGE_RANK,
        tables.FIRST_STAGE_SCORE,
        tables.REASON,
        tables.DETAIL,
    )


def check_fusion(fusion: Fusion, prepared: Prepared) -> None:
    """Raise ConfigError where the fusion asks for a first-stage number that the candidates do not carry."""
    if fusion.method == "min_max" and not prepared.has_score:
        raise ConfigError(
            "ranking.fusion min_max needs a first-stage score column in candidates; rrf works on ranks"
        )
    if fusion.method == "rrf" and not (prepared.has_score or prepared.has_rank):
        raise ConfigError("ranking.fusion rrf needs a first-stage rank or score column in candidates")


def outcome(rows: DataFrame, scored: DataFrame, ranking: Ranking, partitions: int | None = None) -> Outcome:
    """Join `scored` (pair_key, logit, reason, detail) to prepared `rows` and decide each row's fate.

    `partitions`: of the result, each query in one of them; None leaves it to the session.
    """
    fused = ranking.fusion.method != "none"
    judged = _judged(rows, scored, ranking)
    if partitions is not None:
        judged = judged.repartition(partitions, tables.QUERY_ID)
    if fused:
        judged = judged.withColumn(tables.FUSED_SCORE, _fused(ranking.fusion))
    key = F.col(tables.FUSED_SCORE if fused else tables.LOGIT)
    eligible = F.col(tables.REASON).isNull() & F.col(_CUT).isNull()
    by_key = _total_order(key)
    if ranking.depth is not None:  # rows beyond it have no score, and follow in the first stage's order
        beyond = F.col("beyond_depth") & F.col(tables.FIRST_STAGE_RANK).isNull()
        by_key.insert(2, F.when(beyond, F.col(tables.FIRST_STAGE_SCORE)).desc_nulls_last())
    order = _window(eligible).orderBy(F.col("beyond_depth"), *by_key)
    rank = F.when(eligible, F.row_number().over(order)).cast("int")
    numbered = judged.withColumn("_place", rank)
    kept = F.lit(True) if ranking.top_k is None else F.col("_place") <= ranking.top_k
    placed = F.col("_place").isNotNull()
    decided = numbered.withColumn(tables.RANK, F.when(kept, F.col("_place"))).withColumn(
        _CUT, F.when(placed & ~kept, F.lit(Cut.TOP_K)).otherwise(F.col(_CUT))
    )
    return Outcome(decided.drop("_place", "beyond_depth"), fused)


def _judged(rows: DataFrame, scored: DataFrame, ranking: Ranking) -> DataFrame:
    """Rows with score, logit, reason and the cuts that do not depend on the order."""
    facts = scored.select(
        F.col(tables.PAIR_KEY).alias("_pair_key"),
        tables.LOGIT,
        F.col(tables.REASON).alias("_failure"),
        F.col(tables.DETAIL).alias("_failure_detail"),
    )
    joined = rows.join(facts, F.col(tables.PAIR_KEY) == F.col("_pair_key"), "left")
    beyond = F.col("beyond_depth")
    logit = F.when(~beyond, F.col(tables.LOGIT))
    lost = F.col(tables.REASON).isNull() & F.col("_pair_key").isNull()
    failure = F.when(~beyond, F.when(lost, Reason.TEXT_CHANGED).otherwise(F.col("_failure")))
    failure_detail = F.when(~beyond, F.when(lost, _LOST).otherwise(F.col("_failure_detail")))
    sound = F.coalesce(tables.REASON, failure).isNull()
    score = _activated(logit, ranking.activation)
    cut = F.lit(None).cast("string")
    if ranking.beyond_depth == "drop":
        cut = F.when(sound & beyond, F.lit(Cut.DEPTH)).otherwise(cut)
    if ranking.min_score is not None:
        low = sound & ~beyond & (score < ranking.min_score)
        cut = F.when(low, F.lit(Cut.MIN_SCORE)).otherwise(cut)
    return joined.select(
        tables.QUERY_ID,
        tables.PASSAGE_ID,
        score.alias(tables.SCORE),
        logit.alias(tables.LOGIT),
        tables.FIRST_STAGE_RANK,
        tables.FIRST_STAGE_SCORE,
        "kept",
        F.coalesce(tables.REASON, failure).alias(tables.REASON),
        F.coalesce(tables.DETAIL, failure_detail).alias(tables.DETAIL),
        cut.alias(_CUT),
        "beyond_depth",
    )


def _activated(logit: Column, activation: str) -> Column:
    value = logit.cast("double")
    return value if activation == "identity" else 1.0 / (1.0 + F.exp(-value))


def _total_order(key: Column) -> list[Column]:
    return [
        key.desc_nulls_last(),
        F.col(tables.FIRST_STAGE_RANK).asc_nulls_last(),
        F.col(tables.PASSAGE_ID).asc(),
    ]


def _window(eligible: Column) -> WindowSpec:
    return Window.partitionBy(tables.QUERY_ID, eligible)


def _fused(fusion: Fusion) -> Column:
    """Fused score over the scored candidates of a query, higher is better; null for the others.

    min_max: w · minmax(logit) + (1 − w) · minmax(first-stage score); a missing first-stage score counts as the
    lowest, and where all are equal that part is 0. rrf (Cormack et al., SIGIR 2009), weighted: w / (k + rank) +
    (1 − w) / (k + first-stage rank); a missing first-stage rank adds nothing.
    """
    scored = F.col(tables.REASON).isNull() & F.col(tables.LOGIT).isNotNull()
    group = _window(scored)
    weight = fusion.reranker_weight
    if fusion.method == "min_max":
        parts = [_min_max(F.col(c).cast("double"), group) for c in (tables.LOGIT, tables.FIRST_STAGE_SCORE)]
        value = weight * parts[0] + (1.0 - weight) * parts[1]
    else:
        rank = F.row_number().over(group.orderBy(*_total_order(F.col(tables.LOGIT))))
        # as doubles: int would overflow near its end, with an error or without, as ANSI mode says
        k, first_rank = float(fusion.rrf_k), F.col(tables.FIRST_STAGE_RANK).cast("double")
        first = F.coalesce(1.0 / (k + first_rank), F.lit(0.0))
        value = weight / (k + rank) + (1.0 - weight) * first
    return F.when(scored, value)


def _min_max(value: Column, group: WindowSpec) -> Column:
    low, high = F.min(value).over(group), F.max(value).over(group)
    return F.when(high > low, (F.coalesce(value, low) - low) / (high - low)).otherwise(F.lit(0.0))


def nested(reranked: DataFrame) -> DataFrame:
    """One row a query: query_id, passages array<struct<rank, passage_id, score, …>> in rank order."""
    others = [c for c in reranked.columns if c not in (tables.QUERY_ID, tables.RANK)]
    element = F.struct(tables.RANK, *[F.col(tables.quoted(c)) for c in others])
    in_order = F.array_sort(F.collect_list(element), lambda a, b: a[tables.RANK] - b[tables.RANK])
    return reranked.groupBy(tables.QUERY_ID).agg(in_order.alias(tables.PASSAGES))
