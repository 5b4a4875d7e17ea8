"""The statistics against scipy, slow loops, closed forms and examples worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rerank_udf.evaluation import significance
from rerank_udf.evaluation.significance import bootstrap_interval, holm, paired_t_test


@pytest.fixture
def differences() -> np.ndarray:
    return np.random.default_rng(5).normal(0.03, 0.2, size=57)


def test_the_paired_t_test_is_scipys_where_each_query_is_its_own_cluster(differences):
    other = np.random.default_rng(6).random(57)
    expected = stats.ttest_rel(other + differences, other).pvalue
    assert paired_t_test(differences, np.arange(57)) == pytest.approx(expected, rel=1e-9)


def test_the_t_test_of_equal_clusters_is_the_t_test_of_their_means(differences):
    clusters = np.repeat(np.arange(19), 3)
    expected = stats.ttest_1samp(differences.reshape(19, 3).mean(axis=1), 0.0).pvalue
    assert paired_t_test(differences, clusters) == pytest.approx(expected, rel=1e-9)


def test_the_same_question_asked_twelve_times_is_no_more_evidence_than_once(differences):
    twelve = np.tile(differences, 12)
    assert paired_t_test(twelve, np.tile(np.arange(57), 12)) == pytest.approx(
        paired_t_test(differences, np.arange(57)), rel=1e-9
    )
    once = bootstrap_interval(differences[:, None], np.arange(57), seed=1, bootstraps=300)
    again = bootstrap_interval(twelve[:, None], np.tile(np.arange(57), 12), seed=1, bootstraps=300)
    np.testing.assert_allclose(again, once, rtol=1e-9)


def test_no_difference_anywhere_has_p_one_and_one_cluster_has_none(differences):
    assert paired_t_test(np.zeros(5), np.arange(5)) == 1.0
    assert paired_t_test(np.full(4, 0.5), np.arange(4)) == 0.0
    assert np.isnan(paired_t_test(differences, np.zeros(57, dtype=int)))
    assert np.isnan(bootstrap_interval(differences[:, None], np.zeros(57, dtype=int), seed=0)).all()


def test_the_bootstrap_is_the_slow_loop_of_the_same_seed():
    rng = np.random.default_rng(3)
    values, clusters = rng.normal(size=(23, 2)), rng.integers(0, 9, size=23) * 7
    names = sorted(set(clusters.tolist()))
    rng = np.random.default_rng(42)
    means = []
    for _ in range(400):
        rows = [
            r for c in rng.integers(len(names), size=len(names)) for r in np.flatnonzero(clusters == names[c])
        ]
        means.append(values[rows].mean(axis=0))
    low, high = bootstrap_interval(values, clusters, seed=42, bootstraps=400)
    np.testing.assert_allclose([low, high], np.percentile(means, [2.5, 97.5], axis=0), rtol=1e-12)


def test_the_bootstrap_does_not_depend_on_how_much_is_held_at_once(differences, monkeypatch):
    whole = bootstrap_interval(differences[:, None], np.arange(57), seed=9, bootstraps=101)
    monkeypatch.setattr(significance, "_CELLS_AT_ONCE", 57 * 4)
    assert bootstrap_interval(differences[:, None], np.arange(57), seed=9, bootstraps=101) == whole


def test_the_interval_of_a_large_sample_is_the_normal_one():
    values = np.random.default_rng(8).normal(1.0, 2.0, size=(2000, 1))
    low, high = bootstrap_interval(values, np.arange(2000), seed=0)
    error = values.std() / np.sqrt(2000)
    np.testing.assert_allclose(
        [low[0], high[0]], values.mean() + np.array([-1.96, 1.96]) * error, atol=0.1 * error
    )


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(11)
    covered = 0
    for seed in range(200):
        low, high = bootstrap_interval(
            rng.normal(0.2, 1.0, size=(60, 1)), np.arange(60), seed=seed, bootstraps=500
        )
        covered += bool(low[0] <= 0.2 <= high[0])
    assert 0.89 <= covered / 200 <= 0.985


def test_holm_on_an_example_worked_by_hand():
    # sorted: .005 × 4 = .02, .01 × 3 = .03, .03 × 2 = .06, .04 × 1 → not below .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_stops_at_one_keeps_order_among_ties_and_does_not_count_what_is_no_test():
    nan = float("nan")
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([0.02, nan, 0.02]) == pytest.approx([0.04, nan, 0.04], nan_ok=True)
    assert holm([]) == []
    assert np.isnan(holm([nan])).all()


def skewed(clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Differences of one to five queries a cluster, most of them none, the others skewed."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(clusters), rng.integers(1, 6, clusters))
    values = np.where(rng.random(len(codes)) < 0.3, rng.exponential(0.4, len(codes)) - 0.25, 0.0)
    return values + 0.02 * np.bincount(codes)[codes], codes


def test_moments_have_the_t_test_and_add_up_over_parts(differences):
    clusters = np.random.default_rng(2).integers(0, 20, 57)
    sums = significance.cluster_sums(differences[:, None], clusters)
    whole = significance.Moments.of(sums[:, 0], sums[:, 1])
    assert whole.p() == pytest.approx(paired_t_test(differences, clusters), abs=1e-12)
    parts = [significance.Moments.of(part[:, 0], part[:, 1]).sums for part in np.array_split(sums, 4)]
    added = significance.Moments({power: sum(part[power] for part in parts) for power in whole.sums})
    np.testing.assert_allclose(added.interval(), whole.interval(), rtol=1e-12)


def test_moments_of_no_difference_of_equal_ones_and_of_one_cluster():
    ones = np.ones(5)
    none, equal = significance.Moments.of(np.zeros(5), ones), significance.Moments.of(0.5 * ones, ones)
    assert (none.p(), none.interval()) == (1.0, (0.0, 0.0))
    assert (equal.p(), equal.interval()) == (0.0, (0.5, 0.5))
    one = significance.Moments.of(np.ones(1), np.ones(1))
    assert np.isnan([one.p(), *one.interval()]).all()


@pytest.mark.parametrize("clusters", [300, 3000])
def test_the_expansion_is_what_many_bootstraps_converge_to(clusters):
    """Nearer than 10,000 bootstraps are to one another (2.7 % of a standard error), and than the normal interval."""
    values, codes = skewed(clusters, seed=clusters)
    sums = significance.cluster_sums(values[:, None], codes)
    moments = significance.Moments.of(sums[:, 0], sums[:, 1])
    low, high = moments.interval()
    many = np.concatenate(bootstrap_interval(values[:, None], codes, seed=1, bootstraps=100_000))
    error = (high - low) / (2 * 1.959964)
    assert np.abs(many - [low, high]).max() < 0.02 * error
    if clusters == 300:
        normal = values.mean() + np.array([-1.959964, 1.959964]) * error
        assert np.abs(many - [low, high]).max() < np.abs(many - normal).max()


def test_an_interval_is_by_bootstraps_up_to_a_number_of_clusters(differences, monkeypatch):
    clusters = np.arange(57)
    plain = bootstrap_interval(differences[:, None], clusters, seed=4)
    assert significance.mean_interval(differences[:, None], clusters, seed=4) == plain
    monkeypatch.setattr(significance, "BOOTSTRAP_CLUSTERS", 56)
    low, high = significance.mean_interval(differences[:, None], clusters, seed=4)
    expected = significance.Moments.of(differences, np.ones(57)).interval()
    assert (low[0], high[0]) == expected
    np.testing.assert_allclose(np.concatenate([low, high]), np.concatenate(plain), atol=0.003)
