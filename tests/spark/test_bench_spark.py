"""benchmarks/bench_spark.py: what it counts is what was used, and the command runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="CPU time is read from /proc"),
]
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import bench_spark  # noqa: E402 - the folder has to be on the path
from click.testing import CliRunner  # noqa: E402
from sparkbench import accounting, job, pair_tables, results, synthetic  # noqa: E402

ROWS = 400
BURN = 2.0


@pytest.fixture(scope="module")
def synthetic_tables(spark, tmp_path_factory) -> Path:
    return synthetic.tables(spark, tmp_path_factory.mktemp("tables"), ROWS)


def job_of(tables: Path, model: Path, work: Path, **more: Any) -> dict[str, Any]:
    (work / "scorer").mkdir(parents=True)
    return {"job": bench_spark.job_settings(tables, {"name": str(model)}, work), "work": str(work), **more}


def test_the_synthetic_tables_are_what_they_say(spark, synthetic_tables):
    read = {name: pq.read_table(synthetic_tables / name) for name in ("candidates", "queries", "passages")}
    assert [read[name].num_rows for name in read] == [ROWS, ROWS // 100, 100]
    candidates = read["candidates"].to_pylist()
    assert len({(row["query_id"], row["passage_id"]) for row in candidates}) == ROWS
    assert len({(row["query_id"], row["score"]) for row in candidates}) == ROWS
    assert len(set(read["passages"]["passage"].to_pylist())) == 100
    sizes = [len(text) for text in read["passages"]["passage"].to_pylist()]
    assert 900 < sum(sizes) / len(sizes) < 1200
    assert {row["passage_id"] for row in candidates} <= set(read["passages"]["passage_id"].to_pylist())
    with pytest.raises(ValueError, match="give a multiple of 100"):
        synthetic.tables(spark, synthetic_tables, 50)


def test_what_a_scorer_burns_in_python_workers_is_scoring_and_not_the_rest(
    spark, hash_model, synthetic_tables, tmp_path
):
    used = {}
    with accounting.CpuWatch() as watch:
        for burn in (0.0, BURN):
            work = tmp_path / str(burn)
            settings = job_of(synthetic_tables, hash_model, work, free=True, burn_seconds=burn)
            report, phases, _, cpu = job.run_job(spark, settings, watch)
            used[burn] = (cpu, accounting.scorer_use(work / "scorer"), phases, report)
    cpu, scorer, phases, report = used[BURN]
    windows = 2  # two tasks of 200 pairs
    assert (report.pairs_scored, report.unaccounted()) == (ROWS, 0)
    assert windows * BURN <= scorer["cpu"] < windows * BURN + 1.0
    assert cpu.workers >= windows * BURN * 0.9  # the tree has the workers in it
    assert cpu.workers - scorer["cpu"] < 1.5
    assert phases.cpu["score"].workers >= windows * BURN * 0.8
    assert used[0.0][1]["cpu"] < 1.0


def test_a_process_that_has_ended_still_counts():
    code = "import time\nend = time.thread_time() + 2\nwhile time.thread_time() < end: pass"
    with accounting.CpuWatch() as watch:
        before = watch.read()
        subprocess.run([sys.executable, "-c", code], check=True)
        used = watch.read() - before
    assert 1.0 < used.workers < 4.0


def test_the_pulled_and_the_yielded_are_outside_the_scorer(tmp_path):
    """What the calling thread does between windows is not the scorer's."""
    from sparkbench.scorers import burn

    class Burning:
        def stream(self, pairs: Any) -> Any:
            for pair in pairs:
                burn(0.2)
                yield pair

    def source() -> Any:
        for number in range(3):
            burn(0.3)
            yield number

    for _ in accounting.MeasuredScorer(Burning(), tmp_path).stream(source()):
        burn(0.4)
    assert 0.6 <= accounting.scorer_use(tmp_path)["cpu"] < 0.9


def event(kind: str, **fields: Any) -> str:
    return json.dumps({"Event": f"SparkListener{kind}", **fields})


def test_stages_are_summed_from_the_event_log(tmp_path):
    shuffle = {"Shuffle Bytes Written": 700}
    metrics = {
        "Executor CPU Time": 2_000_000_000,
        "Executor Deserialize CPU Time": 500_000_000,
        "Executor Run Time": 3000,
        "JVM GC Time": 40,
        "Shuffle Write Metrics": shuffle,
        "Memory Bytes Spilled": 11,
        "Disk Bytes Spilled": 5,
        "Input Metrics": {"Bytes Read": 100},
        "Output Metrics": {"Bytes Written": 60},
    }
    lines = [
        event("JobStart", **{"Stage IDs": [0, 1], "Properties": {"spark.sql.execution.id": "4"}}),
        event("StageSubmitted", **{"Stage Info": {"Stage ID": 0, "Submission Time": 5000}}),
        event("StageSubmitted", **{"Stage Info": {"Stage ID": 1, "Submission Time": 9000}}),
        *[event("TaskEnd", **{"Stage ID": 0, "Task Metrics": metrics})] * 2,
        event("TaskEnd", **{"Stage ID": 1, "Task Metrics": None}),
    ]
    (tmp_path / "local-1").write_text("\n".join(lines) + "\n")
    first, second = accounting.stages(tmp_path)
    assert (first.stage, first.execution, first.begun, first.tasks) == (0, 4, 5.0, 2)
    assert (first.task_cpu, first.task_seconds, first.gc_seconds) == (5.0, 6.0, 0.08)
    assert (first.shuffled, first.spilled_memory, first.spilled_disk) == (1400, 22, 10)
    assert (first.read, first.written) == (200, 120)
    assert (second.tasks, second.task_cpu) == (1, 0.0)


def cost(pairs: int, core_seconds: float) -> results.Overhead:
    each = core_seconds * 1e6 / pairs
    return results.Overhead(pairs, each, each, 0, 0, 0, 0, 1.0, 500, 0, 10)


def test_growth_is_told_apart_from_what_a_job_costs_once():
    linear = results.growth([cost(size, 30 + 8e-6 * size) for size in (10**6, 3 * 10**6, 10**7)])
    assert linear is not None
    assert linear.fixed_core_seconds == pytest.approx(30)
    assert linear.marginal_core_us == pytest.approx(8)
    assert all(exponent < 1 for exponent in linear.exponents)
    square = results.growth([cost(size, 1e-12 * size**2) for size in (10**6, 10**7)])
    assert square is not None
    assert square.exponents == pytest.approx([2.0])
    assert results.growth([cost(100, 1.0)]) is None


def test_pairs_become_three_tables(tmp_path):
    pairs = [("a", "x"), ("a", "y"), ("b", "x"), ("a", "x")]
    folder = pair_tables.write_pair_tables(pairs, tmp_path)
    read = {n: pq.read_table(folder / n).to_pylist() for n in ("candidates", "queries", "passages")}
    queries = {row["query_id"]: row["query"] for row in read["queries"]}
    passages = {row["passage_id"]: row["passage"] for row in read["passages"]}
    found = [
        (queries[row["query_id"]], passages[row["passage_id"]], row["rank"]) for row in read["candidates"]
    ]
    assert found == [("a", "x", 1), ("a", "y", 2), ("b", "x", 1)]


def test_the_command_prints_a_table_and_writes_what_it_measured(tmp_path):
    options = ["--rows", "200", "--pairs", "0", "--memory", "1g", "--cores", "2"]
    folders = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(bench_spark.main, [*options, *folders], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "everything that is not scoring, per pair" in done.output
    found = json.loads((tmp_path / "out/result.json").read_text())
    (measured,) = found["overhead"]
    overhead = results.Overhead.of(measured)
    assert (overhead.pairs, measured["report"]["ranked"]) == (200, 200)
    parts = overhead.tasks + overhead.jvm_other + overhead.workers + overhead.driver
    assert overhead.total == pytest.approx(parts)
    assert overhead.shuffled > 0
    assert {stage["phase"] for stage in measured["stages"]} >= {"stage", "score", "publish"}
    assert (tmp_path / "out/plot.png").stat().st_size > 1000
    assert not (tmp_path / "work/run/out").exists()


@pytest.mark.parametrize(("rows", "found"), [("1e6,3e6", [1000000, 3000000]), ("", []), ("200", [200])])
def test_sizes(rows, found):
    assert bench_spark.sizes(rows) == found


def test_a_size_that_is_none_is_a_usage_error():
    done = CliRunner().invoke(bench_spark.main, ["--rows", "many"])
    assert done.exit_code == 2
    assert "--rows is 'many'; expected numbers with commas between" in done.output
