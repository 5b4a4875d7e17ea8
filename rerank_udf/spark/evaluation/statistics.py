"""The figures of every group out of sums that Spark adds up: for evaluations too large for the driver.

    values by query → sums of each group                        means, differences, won and lost
                    → sums of each group's clusters → moments   tests, and the intervals of large groups
                                                    → the clusters of small groups, a group a task: bootstraps

"all" is one group more. No Python runs but in the bootstraps, and what comes to the driver is a row a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from operator import mul
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

from rerank_udf.evaluation.comparison import TIE, Comparison, Figures
from rerank_udf.evaluation.groups import group_label
from rerank_udf.evaluation.parts import whole_groups
from rerank_udf.evaluation.significance import BOOTSTRAP_CLUSTERS, POWERS, Moments, bootstrap_of_sums
from rerank_udf.evaluation.study import ALL, Key
from rerank_udf.spark.evaluation.measuring import Measured

Name: TypeAlias = "tuple[str, ...]"  # a group's value in each grouping column; () is "all"

_MOST_TASKS = 1_000


def figures(
    measured: Measured, comparison: Comparison
) -> tuple[list[tuple[str, Mapping[str, str], Figures]], int]:
    """What `summarise` takes, and how many clusters there are."""
    part, values = measured.part, measured.values()
    by = [f"g{i}" for i in range(len(part.grouping))]
    sums = _with_all(_sums(values, by, comparison), by)
    clusters = _clusters(values, by, comparison, clustered=part.cluster is not None)
    moments = _moments(clusters, by, comparison)
    whole = _whole(clusters) if part.cluster is not None and by else None
    if whole is not None:
        moments |= _moments(whole, [], comparison)
    elif by:
        moments[()] = _added(moments.values())
    tests = _tests(clusters, whole, by, moments, comparison, part.seed)
    found: list[tuple[str, Mapping[str, str], Figures]] = []
    for name in [(), *sorted(n for n in sums if n)]:
        n_clusters = int(moments[name]["clusters"])
        label = group_label(name) if name else ALL
        group = dict(zip(part.group_by(), name, strict=False))
        found.append((label, group, _figures(sums[name], n_clusters, tests[name], comparison)))
    return found, int(moments[()]["clusters"])


def _figures(
    sums: Mapping[str, Any], n_clusters: int, tests: Mapping[Key, Mapping[str, float]], comparison: Comparison
) -> Figures:
    n, compared = int(sums["n"]), list(enumerate(comparison.compared()))
    return Figures(
        n=n,
        n_clusters=n_clusters,
        mean={key: sums[f"s{i}"] / n for i, key in enumerate(comparison.keys)},
        delta={key: sums[f"d{i}"] / n for i, key in compared},
        won={key: int(sums[f"w{i}"]) for i, key in compared},
        lost={key: int(sums[f"l{i}"]) for i, key in compared},
        tests=tests,
    )


# --- sums over queries ---


def _difference(key: Key, comparison: Comparison) -> Column:
    places = [list(comparison.keys).index(k) for k in (key, comparison.of_baseline(key))]
    return F.col(f"v{places[0]}") - F.col(f"v{places[1]}")


def _sums(values: DataFrame, by: Sequence[str], comparison: Comparison) -> dict[Name, dict[str, Any]]:
    """Of each group: n, s0 … (values), d0 … (differences), w0 … and l0 … (won, lost)."""
    columns = [F.count(F.lit(1)).alias("n")]
    columns += [F.sum(f"v{i}").alias(f"s{i}") for i in range(len(comparison.keys))]
    for i, key in enumerate(comparison.compared()):
        difference = _difference(key, comparison)
        columns += [
            F.sum(difference).alias(f"d{i}"),
            F.sum((difference >= F.lit(TIE)).cast("long")).alias(f"w{i}"),
            F.sum((difference <= F.lit(-TIE)).cast("long")).alias(f"l{i}"),
        ]
    return _by_name(values.groupBy(*by).agg(*columns).collect(), by)


def _by_name(rows: Sequence[Row], by: Sequence[str]) -> dict[Name, dict[str, Any]]:
    return {tuple(row[name] for name in by): row.asDict() for row in rows}


def _with_all(groups: dict[Name, dict[str, Any]], by: Sequence[str]) -> dict[Name, dict[str, Any]]:
    return groups if not by else groups | {(): _added(groups.values())}


def _added(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of every number of the rows."""
    listed = list(rows)
    numbers = [name for name, value in listed[0].items() if not isinstance(value, str)]
    return {name: sum(row[name] for row in listed) for name in numbers}


# --- sums over clusters ---


def _clusters(values: DataFrame, by: Sequence[str], comparison: Comparison, *, clustered: bool) -> DataFrame:
    """A row a cluster of a group: g0 …, cluster, size, t0 … (its sums of the tested differences)."""
    tested = [_difference(key, comparison).alias(f"t{i}") for i, key in enumerate(comparison.tested())]
    rows = values.select(*by, "cluster", F.lit(1.0).alias("size"), *tested)
    return _summed(rows, [*by, "cluster"], len(tested)) if clustered else rows


def _whole(clusters: DataFrame) -> DataFrame:
    """The clusters of all groups together."""
    tested = [name for name in clusters.columns if name.startswith("t")]
    return _summed(clusters, ["cluster"], len(tested))


def _summed(rows: DataFrame, by: Sequence[str], tested: int) -> DataFrame:
    return rows.groupBy(*by).agg(*[F.sum(name).alias(name) for name in ("size", *_tested(tested))])


def _tested(count: int) -> list[str]:
    return [f"t{i}" for i in range(count)]


def _moments(clusters: DataFrame, by: Sequence[str], comparison: Comparison) -> dict[Name, dict[str, Any]]:
    """Of each group: clusters, and m0_00 … (of a tested difference and a pair of POWERS)."""
    columns = [F.count(F.lit(1)).alias("clusters")]
    for name in _tested(len(comparison.tested())):
        for s, m in POWERS:
            factors = [F.lit(1.0), *[F.col(name)] * s, *[F.col("size")] * m]
            columns.append(F.sum(reduce(mul, factors)).alias(f"{name}_{s}{m}"))
    return _by_name(clusters.groupBy(*by).agg(*columns).collect(), by)


# --- tests ---


def _tests(
    clusters: DataFrame,
    whole: DataFrame | None,
    by: Sequence[str],
    moments: Mapping[Name, Mapping[str, Any]],
    comparison: Comparison,
    seed: int,
) -> dict[Name, dict[Key, dict[str, float]]]:
    """p from the moments; intervals from them too, or by bootstraps where the clusters are few enough."""
    found: dict[Name, dict[Key, dict[str, float]]] = {}
    for name, row in moments.items():
        found[name] = {}
        for i, key in enumerate(comparison.tested()):
            at = Moments({(s, m): float(row[f"t{i}_{s}{m}"]) for s, m in POWERS})
            low, high = at.interval()
            found[name][key] = {"ci_low": low, "ci_high": high, "p": at.p()}
    few = [name for name, row in moments.items() if row["clusters"] <= BOOTSTRAP_CLUSTERS]
    if few and comparison.tested():
        numbered = _numbered(clusters, whole, by, few)
        for one in _bootstrapped(numbered, len(comparison.tested()), len(few), seed).collect():
            key = comparison.tested()[one["tested"]]
            found[few[one["number"]]][key] |= {"ci_low": one["low"], "ci_high": one["high"]}
    return found


def _numbered(
    clusters: DataFrame, whole: DataFrame | None, by: Sequence[str], few: Sequence[Name]
) -> DataFrame:
    """The clusters of the groups in `few`, with the group's place there as `number`."""
    kept = ["cluster", "size", *[name for name in clusters.columns if name.startswith("t")]]
    frames = []
    if () in few:
        everything = clusters if whole is None else whole
        frames.append(everything.select(F.lit(few.index(())).cast("int").alias("number"), *kept))
    named = [(*name, number) for number, name in enumerate(few) if name]
    if named:
        schema = ", ".join([*(f"_{column} string" for column in by), "number int"])
        numbers = F.broadcast(clusters.sparkSession.createDataFrame(named, schema))
        same = reduce(lambda a, b: a & b, [F.col(column) == F.col(f"_{column}") for column in by])
        frames.append(clusters.join(numbers, same).select("number", *kept))
    return frames[0] if len(frames) == 1 else frames[0].union(frames[1])


def _bootstrapped(numbered: DataFrame, tested: int, groups: int, seed: int) -> DataFrame:
    """number, tested, low, high; a group's clusters come to one task, in the order that `evaluate` has them in."""
    columns = ["number", "cluster", *_tested(tested), "size"]
    tasks = min(groups, _MOST_TASKS)
    in_order = (
        numbered.select(*columns).repartition(tasks, "number").sortWithinPartitions("number", "cluster")
    )

    def intervals(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for table in whole_groups(batches, "number", 2 * BOOTSTRAP_CLUSTERS):
            numbers = np.asarray(table["number"])
            sums = np.stack([np.asarray(table[name]) for name in columns[2:]], axis=1)
            for number in np.unique(numbers):
                low, high = bootstrap_of_sums(sums[numbers == number], seed=seed)
                rows = {
                    "number": np.full(tested, number, np.int32),
                    "tested": np.arange(tested, dtype=np.int32),
                }
                yield pa.RecordBatch.from_pydict({**rows, "low": low, "high": high})

    return in_order.mapInArrow(intervals, "number int, tested int, low double, high double")
