"""ir-measures run over every system, its judged passages alone, the oracle, chance and the ceiling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from subprocess import CalledProcessError
from typing import TypeAlias

import ir_measures
import numpy as np

from rerank_udf.errors import ConfigError
from rerank_udf.evaluation.measures import JUDGED_AT_10, is_judged, parse_measures, safe_cut
from rerank_udf.evaluation.runs import Names, Run
from rerank_udf.evaluation.significance import Floats

Key: TypeAlias = "tuple[str, str, str]"  # system, documents, measure
Values: TypeAlias = "dict[Key, Floats]"  # each float64 (queries,)

ALL = "all"
JUDGED = "judged"
ORACLE = "oracle"
RANDOM = "random"
CANDIDATES = "candidates"
SUMMARY_COLUMNS = [
    "measure",
    "documents",
    "system",
    "mean",
    "n",
    "n_clusters",
    "baseline_mean",
    "delta",
    "ci_low",
    "ci_high",
    "p",
    "p_holm",
    "won",
    "tied",
    "lost",
    "recall_at_depth",
    "judged_at_10",
    "baseline_judged_at_10",
]


@dataclass(frozen=True)
class Study:
    """The qrels and the measures. Every array of values, float64 (queries,), is in the order of the names."""

    names: Names
    qrels: dict[str, dict[str, int]]
    measures: list[ir_measures.Measure]
    seed: int

    def measure_all(self, runs: Mapping[str, Run], pool: Run) -> Values:
        """Every system, its judged passages alone, the references and the ceiling."""
        quality = [m for m in self.measures if not is_judged(str(m))]
        everything = list(dict.fromkeys([*self.measures, *parse_measures([JUDGED_AT_10])]))
        values: Values = {}
        for system, run in runs.items():
            values |= _keyed(system, ALL, self.measure(everything, run))
            values |= _keyed(system, JUDGED, self.measure(quality, run.take(run.judged)))
        best_first = np.lexsort((pool.positions(), -pool.relevance, pool.query))
        values |= _keyed(ORACLE, ALL, self.measure(quality, pool.take(best_first)))
        values |= _keyed(RANDOM, ALL, self.random(quality, pool))
        # What is not relevant does not change the recall at the pool's own depth, so it need not be passed.
        recall = [ir_measures.R @ pool.depth()]
        return values | _keyed(CANDIDATES, ALL, self.measure(recall, pool.take(pool.relevance > 0)))

    def measure(self, measures: list[ir_measures.Measure], run: Run) -> dict[str, Floats]:
        """{measure: values}; 0 for a query that the run does not have."""
        values = {str(m): np.zeros(len(self.names.queries)) for m in measures}
        if not measures:
            return values
        run = run.first(safe_cut(measures))
        nested = self.names.nested(run.query, run.passage, -run.positions().astype(np.float64))
        try:
            for metric in ir_measures.iter_calc(measures, self.qrels, nested):
                values[str(metric.measure)][int(metric.query_id)] = metric.value
        except (CalledProcessError, OSError) as problem:
            names = ", ".join(values)
            raise ConfigError(f"A program that ir-measures runs for {names} failed: {problem}") from problem
        return values

    def random(self, measures: list[ir_measures.Measure], pool: Run) -> dict[str, Floats]:
        """The mean of seeded shuffles: an estimate of what chance gives on these candidates."""
        rng = np.random.default_rng(self.seed)
        shuffles = random_shuffles(len(self.names.queries))
        total = {str(m): np.zeros(len(self.names.queries)) for m in measures}
        for _ in range(shuffles):
            shuffled = pool.take(np.lexsort((rng.random(len(pool.query)), pool.query)))
            for measure, value in self.measure(measures, shuffled).items():
                total[measure] += value / shuffles
        return total


def random_shuffles(queries: int) -> int:
    """How often each query is shuffled for the random baseline: 10,000 rankings in all, 1 to 100 a query."""
    return min(100, max(1, math.ceil(10_000 / max(1, queries))))


def _keyed(system: str, documents: str, values: Mapping[str, Floats]) -> Values:
    return {(system, documents, measure): value for measure, value in values.items()}
