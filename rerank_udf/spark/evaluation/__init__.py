"""The evaluation of `rerank_udf.evaluation` over tables of any size: measured in Python tasks, summed up in Spark.

    rankings, qrels, attributes of queries → one table, laid out by query
    → each query's values and each part's findings (parts.measure_batches, which runs ir-measures)
    → up to COLLECTED_QUERIES queries the values come to the driver, and the summary is the driver's own;
      beyond that it is made of sums (statistics), and only those come

Results are those of `rerank_udf.evaluation.evaluate` on the same tables, and its errors for the same faults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession

from rerank_udf.errors import ConfigError, InputError
from rerank_udf.evaluation import check_depth, check_names, contract, settings_of, tests_of
from rerank_udf.evaluation.comparison import Comparison, local_figures, per_query, summarise
from rerank_udf.evaluation.counting import none_has_a_judged_query
from rerank_udf.evaluation.findings import Findings
from rerank_udf.evaluation.groups import Groups
from rerank_udf.evaluation.measures import JUDGED_AT_10, parse_measures
from rerank_udf.evaluation.parts import QRELS, Part
from rerank_udf.evaluation.study import keys_of, random_shuffles
from rerank_udf.spark.evaluation import statistics
from rerank_udf.spark.evaluation.inputs import inputs_of
from rerank_udf.spark.evaluation.measuring import Measured, collected, findings_of, measured
from rerank_udf.spark.evaluation.result import SparkEvaluation

__all__ = ["SparkEvaluation", "evaluate_tables", "fault_of"]

# Up to so many queries their values are worth having on the driver: some ten megabytes.
COLLECTED_QUERIES = 100_000


def evaluate_tables(
    spark: SparkSession,
    rankings: Mapping[str, DataFrame],
    qrels: DataFrame,
    *,
    measures: Sequence[str] = ("nDCG@10", "RR@10"),
    baseline: str | None = None,
    queries: DataFrame | Mapping[str, DataFrame] | None = None,
    group_by: Sequence[str] = (),
    clusters: str | None = None,
    depth: int | None = None,
    top_k: int | None = None,
    seed: int = 0,
) -> SparkEvaluation:
    """Measure rankings side by side and compare them with a baseline, query by query, inside Spark.

    `rankings`: by name, each query_id, passage_id, rank (from 1, unique in a query); the last is the one that is
    looked at, `baseline` (the first, where there are several) the one that the others are compared with. `qrels`:
    query_id, passage_id, relevance. `group_by`, `clusters`: columns of `queries` (query_id and whatever is known of a
    query; or several such tables, by the name that errors call them), else of the qrels, else of a ranking, with one
    value a query. The rest is as in
    `rerank_udf.evaluation.evaluate`.

    What comes to the driver is one number a query × measure × system, and nothing but sums above
    COLLECTED_QUERIES. Runs on Spark Connect, where the workers have this package and ir-measures. No session setting
    changes the result.

    Raises what `evaluate` raises; ConfigError too for a column that no table has and an unknown baseline.
    """
    parsed = parse_measures(measures)
    baseline, systems = _systems(rankings, baseline)
    check_depth(depth)
    check_depth(top_k, "top_k")
    inputs = inputs_of(spark, {name: rankings[name] for name in systems}, qrels, queries, group_by, clusters)
    size = inputs.size()
    part = Part(
        measures=tuple(str(m) for m in parsed),
        systems=tuple(systems),
        baseline=baseline,
        depth=depth,
        top_k=top_k,
        seed=seed,
        shuffles=random_shuffles(size.queries),
        attributes=inputs.attributes,
        grouping=inputs.grouping,
        cluster=inputs.cluster,
    )
    stage = measured(inputs, part, size.rows)
    return _small(stage) if size.queries <= COLLECTED_QUERIES else _large(stage)


def fault_of(
    spark: SparkSession,
    qrels: DataFrame,
    *,
    queries: DataFrame | Mapping[str, DataFrame] | None = None,
    group_by: Sequence[str] = (),
    clusters: str | None = None,
    complete: bool = True,
) -> str | None:
    """The sentence that `evaluate_tables` would fail with on these tables, whatever the rankings; None where none.

    By the same code and one reading of each table. Begins with qrels, group_by or clusters. `complete`: whether every
    query of the qrels needs a value of `group_by` and `clusters`; not where some are left out later.

    Raises what `evaluate_tables` raises for columns and types.
    """
    inputs = inputs_of(spark, {}, qrels, queries, group_by, clusters)
    part = Part(
        measures=(JUDGED_AT_10,),
        systems=(),
        baseline=None,
        depth=None,
        top_k=None,
        seed=0,
        shuffles=1,
        attributes=inputs.attributes,
        grouping=inputs.grouping,
        cluster=inputs.cluster,
    )
    findings = measured(inputs, part, None).findings()
    if not complete:
        findings.forget("absent")
    return findings.worst() or (None if QRELS in findings.first else contract.NO_QRELS)


def _systems(rankings: Mapping[str, DataFrame], baseline: str | None) -> tuple[str | None, list[str]]:
    """The baseline, and all names: it first where there is one, the ranking last."""
    if not rankings:
        raise ConfigError("rankings is empty; at least one ranking, by name, is expected.")
    names = list(rankings)
    if baseline is None:
        baseline = names[0] if len(names) > 1 else None
    elif baseline not in names[:-1]:
        have = ", ".join(names[:-1]) or "none"
        raise ConfigError(
            f"baseline is {baseline!r}; one of the rankings before the last is expected: {have}."
        )
    others = [n for n in names[:-1] if n != baseline]
    check_names(names[-1], names[:-1])
    return baseline, [*([baseline] if baseline else []), *others, names[-1]]


def _check(findings: Findings, part: Part) -> None:
    problem = findings.worst()
    if problem is not None:
        raise InputError(problem)
    if QRELS not in findings.first:
        raise InputError(contract.NO_QRELS)
    if none_has_a_judged_query(findings.counts):
        _, ranking, *baselines = (label for _, label in part.labels())
        first = {label: findings.first.get(label) for label in (*baselines, ranking)}
        raise InputError(contract.no_common_query(findings.first[QRELS], first))


def _small(stage: Measured) -> SparkEvaluation:
    """Everything by one job; the summary is made on the driver as `evaluate` makes it, to the bit."""
    rows = collected(stage.rows)
    if rows is None:
        raise InputError(contract.NO_QRELS)
    findings = findings_of(rows["note"].drop_null().to_pylist())
    _check(findings, stage.part)
    part, comparison = stage.part, _comparison(stage.part, findings)
    table = rows.filter(pc.is_null(rows["note"])).sort_by("query_id")
    texts = {name: table[f"g{i}"].to_pylist() for i, name in enumerate(part.group_by())}
    queries, clusters = table["query_id"].to_pylist(), table["cluster"].to_pylist()
    groups = Groups.arranged(pd.DataFrame(texts, index=range(len(queries)), dtype=object), clusters)
    values = {key: np.asarray(table[f"v{i}"]) for i, key in enumerate(comparison.keys)}
    summary = summarise(local_figures(values, groups, comparison, part.seed), part.group_by(), comparison)
    frame = per_query(queries, values, groups)
    return _evaluation(stage, findings, summary, len(set(clusters)), frame)


def _large(stage: Measured) -> SparkEvaluation:
    """The values stay where they are; only sums come to the driver."""
    with stage.kept_unless_it_fails():
        findings = stage.findings()
        _check(findings, stage.part)
        comparison = _comparison(stage.part, findings)
        groups, clusters = statistics.figures(stage, comparison)
        summary = summarise(groups, stage.part.group_by(), comparison)
        return _evaluation(stage, findings, summary, clusters, stage)


def _comparison(part: Part, findings: Findings) -> Comparison:
    keys = keys_of(parse_measures(part.measures), part.systems, findings.depth)
    return Comparison(keys, part.measures, part.systems, part.baseline)


def _evaluation(
    stage: Measured, findings: Findings, summary: pd.DataFrame, clusters: int, held: pd.DataFrame | Measured
) -> SparkEvaluation:
    part, comparison = stage.part, _comparison(stage.part, findings)
    counts = {
        **findings.counts,
        "depth": findings.depth,
        "clusters": clusters,
        "tests": tests_of(summary),
    }
    settings = settings_of(comparison, summary, part.group_by(), part.seed, counts["queries"], part.top_k)
    return SparkEvaluation(summary, counts, settings, stage.long(comparison.keys), held)
