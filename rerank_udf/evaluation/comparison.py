"""Per-query values → the summary: means, differences to the baseline, and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from rerank_udf.evaluation.groups import Groups
from rerank_udf.evaluation.measures import JUDGED_AT_10, is_judged
from rerank_udf.evaluation.significance import Floats, Ints, bootstrap_interval, holm, paired_t_test
from rerank_udf.evaluation.study import ALL, CANDIDATES, SUMMARY_COLUMNS, Key, Study, Values
from rerank_udf.tables import QUERY_ID

TIE = 1e-9


def summarise(
    study: Study, values: Values, groups: Groups, *, systems: list[str], baseline: str | None
) -> pd.DataFrame:
    """One row per group × measure × documents × system, in that order, with `SUMMARY_COLUMNS`."""
    order = [str(m) for m in study.measures]
    shown = [k for k in values if k[2] in order and k[0] != CANDIDATES]
    shown.sort(key=lambda key: (order.index(key[2]), key[1]))
    rows = []
    for group in groups.members:
        # A column called "group" is the label itself.
        keys = {"group": group.label} | {c: group.found.get(c) for c in groups.frame.columns if c != "group"}
        inside = {k: v[group.rows] for k, v in values.items()}
        found = _group_rows(inside, shown, groups.codes[group.rows], study.seed, systems, baseline)
        rows += [keys | row for row in found]
    summary = pd.DataFrame(rows)
    summary["p_holm"] = np.nan
    for _, part in summary[summary["documents"] == ALL].groupby("system"):
        summary.loc[part.index, "p_holm"] = holm(part["p"].tolist())
    counts: dict[str, Any] = dict.fromkeys(("won", "tied", "lost"), "Int64")
    first = [c for c in summary.columns if c in ("group", *groups.frame.columns)]
    return summary.astype(counts).loc[:, first + SUMMARY_COLUMNS]


def _group_rows(
    values: Values,
    shown: list[Key],
    clusters: Ints,
    seed: int,
    systems: list[str],
    baseline: str | None,
) -> list[dict[str, Any]]:
    """One row a key of `shown`; `values` holds this group's queries only."""
    compared = [k for k in shown if baseline not in (None, k[0]) and (str(baseline), *k[1:]) in values]
    differences = {k: values[k] - values[str(baseline), k[1], k[2]] for k in compared}
    tested = [k for k in compared if k[0] in systems and not is_judged(k[2])]
    tests = _tests({k: differences[k] for k in tested}, clusters, seed)
    ceiling = next(v for k, v in values.items() if k[0] == CANDIDATES).mean()
    rows = []
    for key in shown:
        row = dict(zip(("system", "documents", "measure"), key, strict=True))
        figures = {
            "mean": values[key].mean(),
            "n": len(clusters),
            "n_clusters": len(np.unique(clusters)),
            "recall_at_depth": ceiling,
            "judged_at_10": _judged_at_10(values, key[0]),
            "baseline_judged_at_10": _judged_at_10(values, baseline),
        }
        compared_with = _comparison(differences.get(key), values[key])
        rows.append({**row, **figures, **compared_with, **tests.get(key, {})})
    return rows


def _judged_at_10(values: Values, system: str | None) -> float:
    found = values.get((str(system), ALL, JUDGED_AT_10))
    return float("nan") if found is None else float(found.mean())


def _comparison(difference: Floats | None, value: Floats) -> dict[str, Any]:
    nothing: dict[str, Any] = dict.fromkeys(("baseline_mean", "delta", "ci_low", "ci_high", "p"), np.nan)
    nothing |= {"won": None, "tied": None, "lost": None}
    if difference is None:
        return nothing
    won, lost = int((difference >= TIE).sum()), int((difference <= -TIE).sum())
    figures = {"baseline_mean": (value - difference).mean(), "delta": difference.mean()}
    return nothing | figures | {"won": won, "tied": len(value) - won - lost, "lost": lost}


def _tests(differences: Mapping[Key, Floats], clusters: Ints, seed: int) -> dict[Key, dict[str, float]]:
    if not differences:
        return {}
    low, high = bootstrap_interval(np.stack(list(differences.values()), axis=1), clusters, seed=seed)
    return {
        key: {"ci_low": low[i], "ci_high": high[i], "p": paired_t_test(difference, clusters)}
        for i, (key, difference) in enumerate(differences.items())
    }


def per_query(study: Study, values: Values, groups: Groups) -> pd.DataFrame:
    """One row per query × system × documents × measure."""
    keys = pd.DataFrame({QUERY_ID: study.names.queries}, dtype=object).join(groups.frame)
    keys["cluster"] = groups.clusters
    parts = [
        keys.assign(system=system, documents=documents, measure=measure, value=value)
        for (system, documents, measure), value in values.items()
    ]
    return pd.concat(parts, ignore_index=True)
