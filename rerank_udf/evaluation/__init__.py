"""qrels × ranking → the field's figures, for each query and in the mean, with the evidence beside them.

ir-measures computes every measure. This module feeds it, adds the baselines that can be had on the same
candidates (oracle, random), and compares systems query by query.

A ranking is handed over as −rank, never as its scores: the measures inside one ir-measures call break equal
scores in different ways, and scores that differ in float64 can be equal in a measure's float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group

from rerank_udf.errors import ConfigError, InputError
from rerank_udf.tables import RANK, RELEVANCE

try:
    import ir_measures
    import pandas as pd
    import scipy.special  # noqa: F401
except ModuleNotFoundError as missing:
    raise ConfigError(
        f"Evaluation needs the package {missing.name!r}, which is not installed: "
        "install the extra with pip install 'rerank-udf[eval]'."
    ) from missing

from rerank_udf.evaluation import contract
from rerank_udf.evaluation.comparison import Comparison, local_figures, per_query, summarise
from rerank_udf.evaluation.counting import counts_of
from rerank_udf.evaluation.groups import Groups, check_columns
from rerank_udf.evaluation.loading import Rows, TableLike, load
from rerank_udf.evaluation.measures import parse_measures
from rerank_udf.evaluation.runs import Names, Run
from rerank_udf.evaluation.significance import BOOTSTRAP_CLUSTERS, BOOTSTRAPS
from rerank_udf.evaluation.study import CANDIDATES, ORACLE, RANDOM, Study, random_shuffles
from rerank_udf.evaluation.terminal import notes, render

__all__ = ["Evaluation", "TableLike", "check_columns", "evaluate", "parse_measures"]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    `summary`: one row per group × measure × `documents` × system. `documents` is "all", or "judged" for a
    ranking with every unjudged passage taken out. Columns: `group` ("all" for every query), the grouping
    columns, `measure`, `documents`, `system`, `mean`, `n` (queries), `n_clusters`, `baseline_mean`, `delta`,
    `ci_low`, `ci_high`, `p`, `p_holm`, `won`, `tied`, `lost`, `recall_at_depth` (of the candidates: the
    ceiling), `judged_at_10`, `baseline_judged_at_10`. Where there is nothing to compare, cells are null.

    `per_query`: `query_id`, the grouping columns, `cluster`, `system`, `documents`, `measure`, `value`.

    `counts`: `queries` (evaluated), `queries_without_qrels` (left out), `queries_without_candidates` (count
    as 0; of another system: `queries_without_candidates[NAME]`), `queries_without_relevant` (0 for every
    system), `judged_candidates` (rows of the ranking that are judged), `rows_beyond_candidates` (rows that
    the baseline's first `depth` do not have), `depth`, `clusters`, `tests` (Holm's family).
    """

    summary: pd.DataFrame
    per_query: pd.DataFrame
    counts: dict[str, int]
    settings: dict[str, Any]

    def write(self, folder: str | Path) -> None:
        """Write summary.json (settings, counts, rows), summary.parquet, per_query.parquet into `folder`."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        (target / "summary.json").write_text(self.document(), encoding="utf-8")
        self.summary.to_parquet(target / "summary.parquet", index=False)
        self.per_query.to_parquet(target / "per_query.parquet", index=False)

    def document(self) -> str:
        """summary.json: the settings, the counts, the summary's rows."""
        found = {"settings": self.settings, "counts": self.counts, "summary": self.rows()}
        return json.dumps(found, ensure_ascii=False, indent=1, allow_nan=False) + "\n"

    def rows(self) -> list[dict[str, Any]]:
        """The summary's rows in Python's own types; None for what is missing."""
        return [{str(k): _plain(v) for k, v in row.items()} for row in self.summary.to_dict("records")]

    def table(self, measure: str | None = None, *, decimals: int = 3) -> Group:
        """One measure (the first by default) for a terminal: a row per group, what it rests on below.

        Raises ConfigError for a measure that was not evaluated.
        """
        return render(self, self._chosen(measure), decimals)

    def notes(self, measure: str | None = None, *, decimals: int = 3) -> list[str]:
        """The lines below the table: the ceiling, how intervals and p were had, what was left out or cut.

        Raises ConfigError for a measure that was not evaluated.
        """
        return notes(self, self._chosen(measure), decimals)

    def _chosen(self, measure: str | None) -> str:
        names: list[str] = self.settings["measures"]
        chosen = names[0] if measure is None else str(parse_measures([measure])[0])
        if chosen not in names:
            raise ConfigError(f"The measure {chosen} was not evaluated; there are {', '.join(names)}.")
        return chosen


def evaluate(
    ranking: TableLike,
    qrels: TableLike,
    *,
    measures: Sequence[str] = ("nDCG@10", "RR@10"),
    baseline: TableLike | Mapping[str, TableLike] | None = None,
    group_by: TableLike | Mapping[Any, Any] | None = None,
    clusters: TableLike | Mapping[Any, Any] | None = None,
    depth: int | None = None,
    top_k: int | None = None,
    name: str = "reranked",
    seed: int = 0,
) -> Evaluation:
    """Measure a ranking, and compare it with a baseline, query by query.

    `ranking`, `baseline`: query_id, passage_id, rank (from 1, unique in a query). `qrels`: query_id,
    passage_id, relevance. Each is a pandas DataFrame, a pyarrow Table or a path to Parquet; ids are integers
    or strings, compared as strings. `baseline` may be a mapping from names to rankings: the others, and the
    ranking (called `name`), are compared with the first. `group_by`: query_id → group, or a table of query_id
    and grouping columns. `clusters`: query_id → what is resampled as one (a paragraph asked about in twelve
    languages is one); each query by default. `depth`: how many candidates a query the reranker saw.
    `top_k`: of every ranking so many are measured, as where the reranker's is cut there: lists of unequal length
    do not compare.

    - The queries are those of the qrels: one without candidates counts as 0. A query without qrels is left
      out and counted. An unjudged passage is not relevant. Gain is linear, as trec_eval's.
    - `p`: two-sided paired t-test, cluster-robust where there are clusters. `p_holm`: Holm's correction over
      all groups (and "all") × measures of one system. Judged@k says something of the qrels and nothing of a
      ranking's quality: it is shown, not tested.
    - `ci_low`, `ci_high`: 95 % interval of the mean difference by 10,000 paired bootstraps over clusters.
      Each group starts from `seed`, so that its interval does not depend on the groups beside it. A group of
      more than 20,000 clusters has the interval that bootstraps converge to (`Moments.interval`).
    - `oracle` sorts the candidates by relevance, `random` is the mean of shuffles that depend on the seed and
      the query alone. The candidates are the baseline's first `depth`, or the ranking's own where there is no
      baseline.

    Raises InputError for a table that breaks its contract (column and id are named) and for qrels that name
    no query of the ranking, nor of any baseline; ConfigError for an unknown measure and for a name used twice.
    """
    parsed = parse_measures(measures)
    named = _named_baselines(baseline, name)
    check_depth(depth)
    check_depth(top_k, "top_k")
    first = next(iter(named), None)
    judgements, ranked = load(qrels, "qrels", RELEVANCE), load(ranking, "ranking", RANK)
    labels = {n: f"baseline {n!r}" for n in named} | {name: "ranking"}
    rankings = {n: load(table, labels[n], RANK) for n, table in named.items()} | {name: ranked}
    _check_common_queries({labels[n]: rows for n, rows in rankings.items()}, judgements)

    names = Names.of(judgements, rankings.values())
    shuffles = random_shuffles(len(names.queries))
    study = Study(names, names.judgements(judgements), parsed, seed, shuffles)
    runs = {system: Run.of(rows, judgements, names) for system, rows in rankings.items()}
    pool = runs[name if first is None else first].first(depth)
    values = study.measure_all(runs, pool, top_k)
    groups = Groups.of(names.queries, group_by, clusters)
    comparison = Comparison(list(values), [str(m) for m in parsed], list(runs), first)
    figures = local_figures(values, groups, comparison, seed)
    summary = summarise(figures, list(groups.frame.columns), comparison)

    counts = counts_of(judgements, ranked, runs, pool) | {
        "depth": pool.depth(),
        "clusters": len(set(groups.clusters)),
        "tests": tests_of(summary),
    }
    group_columns = list(groups.frame.columns)
    settings = settings_of(comparison, summary, group_columns, seed, len(names.queries), top_k)
    return Evaluation(summary, per_query(names.queries, values, groups), counts, settings)


def settings_of(
    comparison: Comparison,
    summary: pd.DataFrame,
    group_by: list[str],
    seed: int,
    queries: int,
    top_k: int | None,
) -> dict[str, Any]:
    """`Evaluation.settings`; `expansion_groups` are those whose interval is not by bootstraps: they are too large."""
    large = summary[summary["ci_low"].notna() & (summary["n_clusters"] > BOOTSTRAP_CLUSTERS)]
    return {
        "measures": list(comparison.measures),
        "ranking": comparison.systems[-1],
        "baseline": comparison.baseline,
        "systems": list(comparison.systems),
        "group_by": group_by,
        "top_k": top_k,
        "seed": seed,
        "bootstraps": BOOTSTRAPS,
        "expansion_groups": list(dict.fromkeys(large["group"])),
        "random_shuffles": random_shuffles(queries),
        "ir_measures": ir_measures.__version__,
    }


def tests_of(summary: pd.DataFrame) -> int:
    """The size of Holm's family."""
    return int(summary.groupby("system")["p_holm"].count().max())


def check_depth(depth: int | None, name: str = "depth") -> None:
    """Raise ConfigError for a depth (or another such number, by its name) that leaves nothing."""
    if depth is not None and depth < 1:
        raise ConfigError(f"{name} is {depth}; a number of candidates from 1, or None for all, is expected.")


def check_names(ranking: str, baselines: Iterable[str]) -> None:
    """Raise ConfigError where two systems would have one name."""
    others = list(baselines)
    made_here = {ORACLE, RANDOM, CANDIDATES}
    taken = (made_here & {ranking, *others}) | ({ranking} & set(others))
    if taken:
        raise ConfigError(
            f"The system name {min(taken)!r} is used twice: {ORACLE}, {RANDOM} and {CANDIDATES} are made "
            f"here, and {ranking!r} is the ranking. Give each baseline a name of its own."
        )


def _named_baselines(baseline: TableLike | Mapping[str, TableLike] | None, name: str) -> dict[str, TableLike]:
    if baseline is None:
        named: dict[str, TableLike] = {}
    else:
        named = dict(baseline) if isinstance(baseline, Mapping) else {"first stage": baseline}
    check_names(name, named)
    return named


def _check_common_queries(rankings: Mapping[str, Rows], judgements: Rows) -> None:
    """One ranking with a judged query is enough: of the others a threshold or rejects may have left none."""
    if not judgements.queries:
        raise InputError(contract.NO_QRELS)
    judged = set(judgements.queries)
    if all(judged.isdisjoint(rows.queries) for rows in rankings.values()):
        first = {label: next(iter(rows.queries), None) for label, rows in rankings.items()}
        raise InputError(contract.no_common_query(judgements.queries[0], first))


def _plain(value: Any) -> Any:
    """A cell as JSON has it: Python's own numbers, and null for what is missing."""
    if value is None or value is pd.NA:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
