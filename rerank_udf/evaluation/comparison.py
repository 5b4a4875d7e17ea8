"""What is known of each group → the summary: means, differences to the baseline, and how sure they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rerank_udf.evaluation.groups import Groups
from rerank_udf.evaluation.measures import JUDGED_AT_10, is_judged
from rerank_udf.evaluation.significance import Ints, holm, mean_interval, paired_t_test
from rerank_udf.evaluation.study import ALL, CANDIDATES, SUMMARY_COLUMNS, Key, Values
from rerank_udf.tables import QUERY_ID

TIE = 1e-9


@dataclass(frozen=True)
class Comparison:
    """What is shown, what is compared with the baseline, and what of that is tested. `keys`: of all values."""

    keys: Sequence[Key]
    measures: Sequence[str]
    systems: Sequence[str]
    baseline: str | None

    def shown(self) -> list[Key]:
        """The summary's rows of one group, in order."""
        found = [k for k in self.keys if k[2] in self.measures and k[0] != CANDIDATES]
        return sorted(found, key=lambda key: (self.measures.index(key[2]), key[1]))

    def compared(self) -> list[Key]:
        """What the baseline has too."""
        return [k for k in self.shown() if self.baseline != k[0] and self.of_baseline(k) in self.keys]

    def tested(self) -> list[Key]:
        """The systems' quality: neither the references made here nor the rate of judged passages."""
        return [k for k in self.compared() if k[0] in self.systems and not is_judged(k[2])]

    def of_baseline(self, key: Key) -> Key:
        """The same measure of the same documents, of the baseline."""
        return str(self.baseline), key[1], key[2]


@dataclass(frozen=True)
class Figures:
    """A group in numbers: means of every key, what became of the compared ones, how sure the tested ones are."""

    n: int
    n_clusters: int
    mean: Mapping[Key, float]
    delta: Mapping[Key, float]
    won: Mapping[Key, int]
    lost: Mapping[Key, int]
    tests: Mapping[Key, Mapping[str, float]]  # ci_low, ci_high, p


def figures_of(values: Values, clusters: Ints, comparison: Comparison, seed: int) -> Figures:
    """From the group's own values, each float64 (queries,), and clusters, int (queries,)."""
    differences = {k: values[k] - values[comparison.of_baseline(k)] for k in comparison.compared()}
    tested = comparison.tested()
    tests: dict[Key, dict[str, float]] = {}
    if tested:
        low, high = mean_interval(np.stack([differences[k] for k in tested], axis=1), clusters, seed=seed)
        for i, key in enumerate(tested):
            p = paired_t_test(differences[key], clusters)
            tests[key] = {"ci_low": float(low[i]), "ci_high": float(high[i]), "p": p}
    return Figures(
        n=len(clusters),
        n_clusters=len(np.unique(clusters)),
        mean={k: float(v.mean()) for k, v in values.items()},
        delta={k: float(d.mean()) for k, d in differences.items()},
        won={k: int((d >= TIE).sum()) for k, d in differences.items()},
        lost={k: int((d <= -TIE).sum()) for k, d in differences.items()},
        tests=tests,
    )


def summarise(
    groups: Iterable[tuple[str, Mapping[str, str], Figures]], columns: Sequence[str], comparison: Comparison
) -> pd.DataFrame:
    """One row per group × measure × documents × system, in that order, with `SUMMARY_COLUMNS`.

    groups: the label, the value in each grouping column (none for "all"), the figures. `columns`: the grouping ones.
    """
    rows = []
    for label, found, figures in groups:
        # A column called "group" is the label itself.
        keys = {"group": label} | {c: found.get(c) for c in columns if c != "group"}
        rows += [keys | _row(key, figures, comparison) for key in comparison.shown()]
    summary = pd.DataFrame(rows)
    summary["p_holm"] = np.nan
    for _, part in summary[summary["documents"] == ALL].groupby("system"):
        summary.loc[part.index, "p_holm"] = holm(part["p"].tolist())
    counts: dict[str, Any] = dict.fromkeys(("won", "tied", "lost"), "Int64")
    first = [c for c in summary.columns if c in ("group", *columns)]
    return summary.astype(counts).loc[:, first + SUMMARY_COLUMNS]


def local_figures(
    values: Values, groups: Groups, comparison: Comparison, seed: int
) -> Iterable[tuple[str, Mapping[str, str], Figures]]:
    """What `summarise` takes, from arrays over all queries."""
    for group in groups.members:
        inside = {k: v[group.rows] for k, v in values.items()}
        yield group.label, group.found, figures_of(inside, groups.codes[group.rows], comparison, seed)


def _row(key: Key, figures: Figures, comparison: Comparison) -> dict[str, Any]:
    row: dict[str, Any] = dict(zip(("system", "documents", "measure"), key, strict=True))
    row |= {
        "mean": figures.mean[key],
        "n": figures.n,
        "n_clusters": figures.n_clusters,
        "recall_at_depth": next(v for k, v in figures.mean.items() if k[0] == CANDIDATES),
        "judged_at_10": figures.mean.get((key[0], ALL, JUDGED_AT_10), np.nan),
        "baseline_judged_at_10": figures.mean.get((str(comparison.baseline), ALL, JUDGED_AT_10), np.nan),
    }
    row |= dict.fromkeys(("baseline_mean", "delta", "ci_low", "ci_high", "p"), np.nan)
    row |= {"won": None, "tied": None, "lost": None}
    if key not in figures.delta:
        return row
    won, lost = figures.won[key], figures.lost[key]
    row |= {"baseline_mean": figures.mean[comparison.of_baseline(key)], "delta": figures.delta[key]}
    row |= {"won": won, "tied": figures.n - won - lost, "lost": lost}
    return row | dict(figures.tests.get(key, {}))


def per_query(queries: list[str], values: Values, groups: Groups) -> pd.DataFrame:
    """One row per query × system × documents × measure."""
    keys = pd.DataFrame({QUERY_ID: queries}, dtype=object).join(groups.frame)
    keys["cluster"] = groups.clusters
    parts = [
        keys.assign(system=system, documents=documents, measure=measure, value=value)
        for (system, documents, measure), value in values.items()
    ]
    return pd.concat(parts, ignore_index=True)
