"""What evaluating costs as queries grow: python benchmarks/bench_evaluate.py --help

For each size N: two rankings of N queries × 100 candidates and five judged passages a query, made by Spark as Parquet,
then `evaluate_tables` on them. Printed are seconds, CPU seconds of the whole process tree (which mean something on a
busy machine too), ranking rows a second, and the most memory that the driver's Python process ever held. Up to
`--driver` queries `rerank_udf.evaluation.evaluate` is measured on the same files beside it: all rows on the driver.

Each measurement has a process and a Spark session of its own.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from side_by_side.machine import cores, describe_machine
from sparkbench.accounting import CpuWatch

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

BENCHMARKS = Path(__file__).parent
CANDIDATES = 100
JUDGED = 5
NAMES = ("first", "second", "qrels", "queries")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--queries", default="1e4,1e5,1e6", help="Sizes.")
@click.option(
    "--driver", default=10_000, help="The largest size that is also evaluated on the driver; 0: none."
)
@click.option("--cores", "core_count", default=cores(), help="Cores of the local master.")
@click.option("--memory", default="4g", help="spark.driver.memory, which a local master's tasks share.")
@click.option("--work", type=click.Path(path_type=Path), help="Tables and results: build/bench_evaluate.")
@click.option("--out", type=click.Path(path_type=Path), help="result.json, table.txt: results/evaluate.")
def main(queries: str, driver: int, work: Path | None, out: Path | None, **options: Any) -> None:
    """Measure the evaluation of N queries × 100 candidates, two systems."""
    work = (work or BENCHMARKS.parent / "build" / "bench_evaluate").resolve()
    out = (out or BENCHMARKS / "results" / "evaluate").resolve()
    found: dict[str, Any] = {
        "command": "python " + shlex.join(sys.argv),
        "machine": describe_machine(),
        "runs": [],
    }
    for size in sorted(int(float(text)) for text in queries.split(",") if text.strip()):
        tables = work / f"tables-{size}"
        if not (tables / NAMES[-1]).exists():
            click.echo(f"{size:,} queries: tables")
            child("make", size, tables, work, options)
        for where in ["spark", *(["driver"] if size <= driver else [])]:
            click.echo(f"{size:,} queries: evaluated in {where}")
            found["runs"].append(child(where, size, tables, work, options))
    report(found, out)


def child(what: str, size: int, tables: Path, work: Path, options: dict[str, Any]) -> dict[str, Any]:
    """One part in a process of its own; what it found."""
    work.mkdir(parents=True, exist_ok=True)
    result = work / "result.json"
    result.unlink(missing_ok=True)
    arguments = [what, str(size), str(tables), str(result), options["memory"]]
    environment = {
        **os.environ,
        "MASTER": f"local[{options['core_count']}]",
        "PYSPARK_PYTHON": sys.executable,
    }
    command = [sys.executable, __file__, "--child", *arguments]
    with (work / f"{what}-{size}.log").open("w") as log:
        done = subprocess.run(
            command, cwd=BENCHMARKS, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        raise click.ClickException(f"{what} ended with {done.returncode}; see {work / f'{what}-{size}.log'}")
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def in_child(what: str, size: str, tables: str, result: str, memory: str) -> None:
    """What `child` starts."""
    part = {"make": make, "spark": in_spark, "driver": on_driver}[what]
    found = part(int(size), Path(tables), memory)
    Path(result).write_text(json.dumps(found))


# --- the parts ---


def session(memory: str) -> SparkSession:
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName("bench_evaluate").config("spark.driver.memory", memory)
    quiet = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.host": "127.0.0.1",
    }
    for name, value in quiet.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def make(queries: int, tables: Path, memory: str) -> dict[str, Any]:
    """Rankings, qrels and queries as Parquet: a hash stands in for every random choice, so all runs see the same."""
    from pyspark.sql import functions as F

    spark = session(memory)
    pairs = spark.range(0, queries * CANDIDATES, 1, max(1, queries // 10_000)).select(
        F.concat(F.lit("q"), F.floor(F.col("id") / CANDIDATES)).alias("query_id"),
        F.concat(F.lit("p"), F.col("id") * 7919 % 8_841_823).alias("passage_id"),
        (F.col("id") % CANDIDATES + 1).cast("int").alias("rank"),
        F.col("id"),
    )
    pairs.select("query_id", "passage_id", "rank").write.mode("overwrite").parquet(
        str(tables / "first.partial")
    )
    # 37 is prime to 100: every query is permuted, each by its own shift.
    shift = F.pmod(F.xxhash64("query_id"), F.lit(CANDIDATES))
    second = pairs.withColumn("rank", (((F.col("rank") * 37 + shift) % CANDIDATES) + 1).cast("int"))
    second.select("query_id", "passage_id", "rank").write.mode("overwrite").parquet(
        str(tables / "second.partial")
    )
    judged = pairs.where(F.pmod(F.xxhash64("id", F.lit(1)), F.lit(CANDIDATES // JUDGED)) == 0)
    grades = F.pmod(F.xxhash64("id", F.lit(2)), F.lit(3)).cast("int").alias("relevance")
    judged.select("query_id", "passage_id", grades).write.mode("overwrite").parquet(
        str(tables / "qrels.partial")
    )
    known = spark.range(queries).select(
        F.concat(F.lit("q"), "id").alias("query_id"),
        F.concat(F.lit("language "), F.col("id") % 13).alias("language"),
    )
    known.write.mode("overwrite").parquet(str(tables / "queries.partial"))
    for name in NAMES:
        (tables / f"{name}.partial").rename(tables / name)
    spark.stop()
    return {}


def in_spark(queries: int, tables: Path, memory: str) -> dict[str, Any]:
    """`evaluate_tables` by language, its values written as a table."""
    from rerank_udf.spark.evaluation import evaluate_tables

    spark = session(memory)
    read: dict[str, DataFrame] = {name: spark.read.parquet(str(tables / name)) for name in NAMES}
    with CpuWatch() as watch:
        before, begun = watch.read(), perf_counter()
        found = evaluate_tables(
            spark,
            {name: read[name] for name in ("first", "second")},
            read["qrels"],
            measures=["nDCG@10", "RR@10"],
            queries=read["queries"],
            group_by=["language"],
        )
        measured, cpu = perf_counter() - begun, (watch.read() - before).total
        found.values.write.mode("overwrite").parquet(str(tables / "values"))
        seconds, cpu_with_values = perf_counter() - begun, (watch.read() - before).total
    result = figures("spark", queries, measured, cpu, found.summary)
    found.release()
    spark.stop()
    return result | {
        "seconds_with_values": seconds,
        "cpu_seconds_with_values": cpu_with_values,
        "interval_by_expansion": found.settings["expansion_groups"],
    }


def on_driver(queries: int, tables: Path, _: str) -> dict[str, Any]:
    """`evaluate` on the same files."""
    import pandas as pd

    from rerank_udf.evaluation import evaluate

    with CpuWatch() as watch:
        before, begun = watch.read(), perf_counter()
        found = evaluate(
            tables / "second",
            tables / "qrels",
            baseline={"first": tables / "first"},
            name="second",
            group_by=pd.read_parquet(tables / "queries"),
        )
        seconds = perf_counter() - begun
        cpu = (watch.read() - before).total
    return figures("driver", queries, seconds, cpu, found.summary)


def figures(where: str, queries: int, seconds: float, cpu: float, summary: Any) -> dict[str, Any]:
    """What is kept of a run; the first row's mean and interval show that two runs found the same."""
    row = summary[(summary["system"] == "second") & (summary["documents"] == "all")].iloc[0]
    return {
        "where": where,
        "queries": queries,
        "rows": 2 * CANDIDATES * queries,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "driver_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "found": {name: float(row[name]) for name in ("mean", "delta", "ci_low", "ci_high", "p")},
    }


# --- reporting ---


def report(found: dict[str, Any], out: Path) -> None:
    """Print; write result.json and table.txt."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    columns = (
        "queries",
        "where",
        "ranking rows",
        "s",
        "CPU s",
        "rows/s",
        "driver peak MB",
        "nDCG@10",
        "Δ [95 % CI]",
    )
    table = Table(*columns, box=None, pad_edge=False)
    for run in found["runs"]:
        at = run["found"]
        table.add_row(
            f"{run['queries']:,}",
            run["where"],
            f"{run['rows']:,}",
            f"{run['seconds']:.1f}",
            f"{run['cpu_seconds']:.1f}",
            f"{run['rows'] / run['seconds']:,.0f}",
            f"{run['driver_peak_mb']:,.0f}",
            f"{at['mean']:.4f}",
            f"{at['delta']:+.5f} [{at['ci_low']:+.5f}, {at['ci_high']:+.5f}]",
        )
    with (out / "table.txt").open("w", encoding="utf-8") as file:
        for console in (Console(), Console(file=file, width=140)):
            console.print(table)
    click.echo(f"written to {out}")


if __name__ == "__main__":
    in_child(*sys.argv[2:]) if sys.argv[1:2] == ["--child"] else main()
