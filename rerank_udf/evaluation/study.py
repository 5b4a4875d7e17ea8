"""ir-measures run over every system, its judged passages alone, the oracle, chance and the ceiling."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from subprocess import CalledProcessError
from typing import TypeAlias

import ir_measures
import numpy as np

from rerank_udf.errors import ConfigError
from rerank_udf.evaluation.measures import JUDGED_AT_10, is_judged, parse_measures, safe_cut
from rerank_udf.evaluation.runs import Names, Run
from rerank_udf.evaluation.shuffling import query_seeds, random_words
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
CLUSTER, VALUE = "cluster", "value"  # of the per-query table, beside the summary's first columns


@dataclass(frozen=True)
class Study:
    """The qrels and the measures. Every array of values, float64 (queries,), is in the order of the names.

    `shuffles`: of each query, for the random baseline.
    """

    names: Names
    qrels: dict[str, dict[str, int]]
    measures: list[ir_measures.Measure]
    seed: int
    shuffles: int

    def measure_all(self, runs: Mapping[str, Run], pool: Run, top_k: int | None) -> Values:
        """Every system, its judged passages alone, the references and the ceiling: the keys of `keys_of`.

        Of every system and of the references the first `top_k`; the ceiling is that of the whole pool.
        """
        everything, quality = measured(self.measures)
        values: Values = {}
        for system, whole in runs.items():
            run = whole.first(top_k)
            values |= _keyed(system, ALL, self.measure(everything, run))
            values |= _keyed(system, JUDGED, self.measure(quality, run.take(run.judged)))
        best_first = np.lexsort((pool.positions(), -pool.relevance, pool.query))
        values |= _keyed(ORACLE, ALL, self.measure(quality, pool.take(best_first).first(top_k)))
        values |= _keyed(RANDOM, ALL, self.random(quality, pool, top_k))
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
        known: dict[
            int, tuple[ir_measures.Measure, Floats]
        ] = {}  # a measure's name costs more than its value
        try:
            for metric in ir_measures.iter_calc(measures, self.qrels, nested):
                found = known.get(id(metric.measure))
                if found is None:
                    found = known[id(metric.measure)] = (metric.measure, values[str(metric.measure)])
                found[1][int(metric.query_id)] = metric.value
        except (CalledProcessError, OSError) as problem:
            names = ", ".join(values)
            raise ConfigError(f"A program that ir-measures runs for {names} failed: {problem}") from problem
        except ArithmeticError as problem:  # Accuracy divides by the passages that are not relevant
            names = ", ".join(values)
            raise ConfigError(
                f"ir-measures cannot compute one of {names} for a query here: {problem}; leave that measure out"
            ) from problem
        return values

    def random(self, measures: list[ir_measures.Measure], pool: Run, top_k: int | None) -> dict[str, Floats]:
        """The mean of seeded shuffles, `top_k` of each: an estimate of what chance gives on these candidates."""
        seeds = query_seeds(self.names.queries, self.seed)[pool.query]
        positions = pool.positions()
        total = {str(m): np.zeros(len(self.names.queries)) for m in measures}
        for shuffle in range(self.shuffles):
            words = random_words(seeds, positions + (shuffle << 32))
            shuffled = pool.take(np.lexsort((words, pool.query)))
            for measure, value in self.measure(measures, shuffled.first(top_k)).items():
                total[measure] += value / self.shuffles
        return total


def measured(
    measures: list[ir_measures.Measure],
) -> tuple[list[ir_measures.Measure], list[ir_measures.Measure]]:
    """What is computed of a ranking, and the part of it that says something of the ranking's quality."""
    everything = list(dict.fromkeys([*measures, *parse_measures([JUDGED_AT_10])]))
    return everything, [m for m in measures if not is_judged(str(m))]


def keys_of(measures: list[ir_measures.Measure], systems: Iterable[str], depth: int) -> list[Key]:
    """The keys that `Study.measure_all` has for these systems, in its order; `depth`: of the deepest pool."""
    everything, quality = ([str(m) for m in found] for found in measured(measures))
    keys = [(s, d, m) for s in systems for d, found in ((ALL, everything), (JUDGED, quality)) for m in found]
    keys += [(s, ALL, m) for s in (ORACLE, RANDOM) for m in quality]
    return [*keys, (CANDIDATES, ALL, str(ir_measures.R @ depth))]


def random_shuffles(queries: int) -> int:
    """How often each query is shuffled for the random baseline: 10,000 rankings in all, 1 to 100 a query."""
    return min(100, max(1, math.ceil(10_000 / max(1, queries))))


def _keyed(system: str, documents: str, values: Mapping[str, Floats]) -> Values:
    return {(system, documents, measure): value for measure, value in values.items()}
