"""How staged buckets become waves and tasks."""

from __future__ import annotations

import pytest

from rerank_udf.spark.waves import WaveFacts, WavePlanner, scoring_tasks


def finished(pairs_per_second: float) -> WaveFacts:
    return WaveFacts(1, 1, 1, 1.0, pairs_per_second, 1, "2026-01-31T00:00:00.000+00:00")


def all_waves(planner: WavePlanner, pairs_per_second: float) -> list[tuple[tuple[int, ...], int]]:
    found = []
    while (wave := planner.next()) is not None:
        found.append((wave.buckets, wave.pairs))
        planner.finished(finished(pairs_per_second))
    return found


def test_every_bucket_is_in_one_wave_and_the_first_is_a_small_pilot():
    sizes = {bucket: 5000 + bucket for bucket in range(40)}
    found = all_waves(WavePlanner(sizes, 2, 60.0), pairs_per_second=500.0)
    assert sorted(bucket for buckets, _ in found for bucket in buckets) == list(range(40))
    assert [pairs for _, pairs in found] == [sum(sizes[b] for b in buckets) for buckets, _ in found]
    assert found[0] == ((0,), 5000)
    assert all(20_000 < pairs < 40_000 for _, pairs in found[1:-1])
    assert found[-1][1] > 15_000  # no crumb at the end


def test_no_wave_is_given_out_while_the_pilot_runs():
    planner = WavePlanner(dict.fromkeys(range(10), 5000), 2, 60.0)
    assert planner.next() is not None
    assert planner.next() is None
    planner.finished(finished(100.0))
    assert planner.next() is not None


def test_little_work_is_one_wave_and_none_is_none():
    assert all_waves(WavePlanner({0: 700, 1: 900}, 2, 600.0), 10.0) == [((0, 1), 1600)]
    assert all_waves(WavePlanner({}, 2, 600.0), 10.0) == []


def test_tasks_last_about_two_minutes_once_the_speed_is_known():
    planner = WavePlanner({0: 1_000_000, 1: 1_000_000, 2: 1_000_000}, 4, 600.0)
    pilot = planner.next()
    assert pilot is not None
    planner.finished(finished(400.0))  # 100 pairs a second in each of 4 slots: 12,000 in two minutes
    wave = planner.next()
    assert wave is not None
    assert wave.pairs / planner.tasks(wave) == pytest.approx(12_000, rel=0.01)


@pytest.mark.parametrize(
    ("pairs", "slots", "tasks"),
    [(0, 8, 1), (3, 8, 3), (5000, 2, 8), (5000, 8, 9), (10**6, 2, 50), (10**6, 100, 400), (10**8, 8, 5000)],
)
def test_tasks_fill_the_slots_and_stay_short(pairs, slots, tasks):
    assert scoring_tasks(pairs, slots) == tasks
