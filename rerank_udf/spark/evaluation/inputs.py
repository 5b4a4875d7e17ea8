"""The tables of an evaluation, checked as far as their columns go, as one table laid out by query.

Columns: tag, q, p, v, a0 … (see `rerank_udf.evaluation.parts`). Tables are renamed by position first, so that no
setting for case sensitivity and no odd name changes the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from rerank_udf.errors import ConfigError, InputError
from rerank_udf.evaluation import check_columns, contract
from rerank_udf.evaluation.parts import QRELS, RANKING, Attribute
from rerank_udf.spark.named import ID_TYPES, INTEGER_TYPES, NamedTable
from rerank_udf.tables import PASSAGE_ID, QUERY_ID, RANK, RELEVANCE


@dataclass(frozen=True)
class Size:
    """`queries`: those of the qrels; `rows`: of all rankings together."""

    queries: int
    rows: int


@dataclass(frozen=True)
class Inputs:
    """`checked`: the qrels, then the rankings, as q, p, v. `sources`: where attributes come from, as q, a …

    `attributes`, `grouping`, `cluster`: as `Part` has them; an attribute's tag is that of its source.
    """

    spark: SparkSession
    checked: list[DataFrame]
    sources: list[DataFrame]
    attributes: tuple[Attribute, ...]
    grouping: tuple[int, ...]
    cluster: int | None

    def size(self) -> Size:
        """Counted by one job over the qrels and the rankings."""
        none = F.lit(0).cast("long")
        asked = F.count_distinct("q").alias("queries")
        ranked = F.count(F.lit(1)).alias("rows")
        qrels, *rankings = self.checked
        counts = [qrels.agg(asked, none.alias("rows"))]
        counts += [ranking.agg(none.alias("queries"), ranked) for ranking in rankings]
        found = reduce(DataFrame.union, counts).agg(
            F.sum("queries").alias("queries"), F.sum("rows").alias("rows")
        )
        return Size(**found.collect()[0].asDict())

    def united(self) -> DataFrame:
        """All of them, one below the other."""
        kinds = dict(self._attribute_types())
        frames = [self._tagged(tag, frame, kinds) for tag, frame in enumerate([*self.checked, *self.sources])]
        return reduce(DataFrame.union, frames)

    def _attribute_types(self) -> Iterator[tuple[str, T.DataType]]:
        for number, one in enumerate(self.attributes):
            yield f"a{number}", self.sources[one.tag - len(self.checked)].schema[f"a{number}"].dataType

    def _tagged(self, tag: int, frame: DataFrame, kinds: Mapping[str, T.DataType]) -> DataFrame:
        types: dict[str, T.DataType] = {"q": T.StringType(), "p": T.StringType(), "v": T.LongType(), **kinds}
        columns = [
            F.col(name) if name in frame.columns else F.lit(None).cast(kind).alias(name)
            for name, kind in types.items()
        ]
        return frame.select(F.lit(tag).cast("int").alias("tag"), *columns)


def inputs_of(
    spark: SparkSession,
    rankings: Mapping[str, DataFrame],
    qrels: DataFrame,
    queries: DataFrame | Mapping[str, DataFrame] | None,
    group_by: Sequence[str],
    clusters: str | None,
) -> Inputs:
    """Check columns and types; `rankings`: the last is the ranking, the others are baselines; there may be none.

    Raises InputError with the sentences of `evaluate`, ConfigError for an attribute that no table has.
    """
    others, last = list(rankings)[:-1], list(rankings)[-1:]
    labels = {name: f"baseline {name!r}" for name in others} | dict.fromkeys(last, RANKING)
    named = {QRELS: NamedTable.of(QRELS, qrels, "e")}
    named |= {labels[name]: NamedTable.of(labels[name], rankings[name], "e") for name in [*last, *others]}
    checked = {
        label: _checked(table, RELEVANCE if label == QRELS else RANK) for label, table in named.items()
    }
    known = queries if isinstance(queries, Mapping) else {} if queries is None else {"queries": queries}
    given = {label: NamedTable.of(label, table, "e") for label, table in known.items()}
    chosen = _chosen(given | named, group_by, clusters)
    names = list(dict.fromkeys(chosen))
    places = list(dict.fromkeys(table.label for _, table in chosen.values()))
    tags = {place: len(checked) + i for i, place in enumerate(places)}
    attributes = tuple(Attribute(name, label, tags[table.label]) for name, (label, table) in chosen.items())
    sources = []
    for place in places:
        table = next(t for _, t in chosen.values() if t.label == place)
        columns = [table.column(n).alias(f"a{i}") for i, n in enumerate(names) if chosen[n][1] is table]
        sources.append(_distinct(table, columns))
    in_order = [checked[label] for label in [QRELS, *(labels[name] for name in rankings)]]
    grouping = tuple(names.index(name) for name in dict.fromkeys(group_by))
    return Inputs(spark, in_order, sources, attributes, grouping, names.index(clusters) if clusters else None)


def _checked(table: NamedTable, value: str) -> DataFrame:
    """query_id and passage_id as text, rank or relevance as a long."""
    for name in (QUERY_ID, PASSAGE_ID, value):
        if name not in table:
            raise InputError(contract.missing_column(table.label, name, ", ".join(table.internal)))
    for name in (QUERY_ID, PASSAGE_ID):
        if not isinstance(table.types[name], (*ID_TYPES, T.NullType)):
            raise InputError(contract.wrong_id_type(table.label, name, table.types[name].simpleString()))
    if not isinstance(table.types[value], (*INTEGER_TYPES, T.NullType)):
        raise InputError(contract.wrong_value_type(table.label, value, table.types[value].simpleString()))
    return table.frame.select(
        table.column(QUERY_ID).cast("string").alias("q"),
        table.column(PASSAGE_ID).cast("string").alias("p"),
        table.column(value).cast("long").alias("v"),
    )


def _chosen(
    tables: Mapping[str, NamedTable], group_by: Sequence[str], clusters: str | None
) -> dict[str, tuple[str, NamedTable]]:
    """Each attribute's name → the setting that names it, and the first table that has it."""
    found: dict[str, tuple[str, NamedTable]] = {}
    wanted = [(name, "group_by") for name in group_by] + ([(clusters, "clusters")] if clusters else [])
    check_columns(group_by, clusters)
    for name, label in wanted:
        table = next((t for t in tables.values() if name in t and QUERY_ID in t and name != QUERY_ID), None)
        if table is None:
            have = "; ".join(f"{t.label} has {', '.join(t.internal)}" for t in tables.values())
            raise ConfigError(
                f"{label} names the column {name!r}, which no table has beside query_id: {have}."
            )
        found.setdefault(name, (label, table))
    return found


def _distinct(table: NamedTable, columns: list[Column]) -> DataFrame:
    """Each query's values once; rows without a query_id say nothing."""
    identifier = table.column(QUERY_ID)
    rows = table.frame.where(identifier.isNotNull()).select(identifier.cast("string").alias("q"), *columns)
    return rows.distinct()
