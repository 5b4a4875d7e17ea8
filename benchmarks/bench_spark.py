"""What the Spark job costs beside scoring, and what it is worth: python benchmarks/bench_spark.py --help

Three measurements, each job in a process and a Spark session of its own:

    overhead  the job with a scorer that costs nothing, at several sizes: core-microseconds a pair for everything that
              is not scoring, bytes shuffled and spilled a pair, and their growth
    alone     the job with a model against the same engine without Spark on the same pairs
    plain     the job with a model against the job that people write today: mapInPandas and CrossEncoder.predict

CPU time is that of the whole process tree (driver, JVM, Python workers), so it means something on a busy machine too.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from side_by_side.machine import cores, describe_machine
from sparkbench import results
from sparkbench.pair_tables import write_pair_tables

BENCHMARKS = Path(__file__).parent
_HASH_MODEL = '{"model_type": "rerank-udf-hash"}'


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--rows", default="1e6,3e6,10e6", help="Candidate rows of the overhead jobs; empty: none.")
@click.option("--pairs", default=3000, help="Pairs of the jobs with a model; 0: none.")
@click.option("--lengths", default="xquad", help="Which pairs: xquad, short or long (as bench_engine.py).")
@click.option("--model", default="mini", help="mini, or a model folder.")
@click.option("--precision", default="auto", help="Of our model.")
@click.option("--peer-pairs", default=600, help="The first of the pairs, for the plain job; 0: none.")
@click.option("--peer-dtype", default="float32", help="Comma-separated: float32, bfloat16.")
@click.option("--peer-python", help="A Python with pyspark and sentence-transformers; else one is built.")
@click.option("--cores", "core_count", default=cores(), help="Cores of the local master.")
@click.option("--memory", default="4g", help="spark.driver.memory, which a local master's tasks share.")
@click.option("--work", type=click.Path(path_type=Path), help="Tables and runs: build/bench_spark.")
@click.option("--out", type=click.Path(path_type=Path), help="result.json, table.txt, plot.png.")
def main(**options: Any) -> None:
    """Measure the Spark job around the scorer."""
    options["work"] = (options["work"] or BENCHMARKS.parent / "build" / "bench_spark").resolve()
    options["out"] = (options["out"] or BENCHMARKS / "results" / "spark").resolve()
    options["out"].mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"command": "python " + shlex.join(sys.argv), "machine": describe_machine()}
    found["overhead"] = [overhead(size, options) for size in sizes(options["rows"])]
    if options["pairs"]:
        found |= with_model(options)
    report(found, options)


def sizes(rows: str) -> list[int]:
    """ "1e6,3e6" → [1000000, 3000000]."""
    try:
        return sorted(int(float(size)) for size in rows.split(",") if size.strip())
    except ValueError as error:
        raise click.UsageError(
            f"--rows is {rows!r}; expected numbers with commas between, as 1e6,3e6"
        ) from error


# --- measuring ---


def overhead(rows: int, options: dict[str, Any]) -> dict[str, Any]:
    """The job with the free scorer over `rows` synthetic candidates."""
    work, say = options["work"], click.echo
    spark = {"spark.driver.memory": options["memory"]}
    say(f"{rows:,} rows: tables")
    settings = {"tables": str(work / "tables"), "rows": rows, "spark": spark}
    tables = child("sparkbench.job", {"make_tables": settings}, work / "make", options)["tables"]
    model = work / "hash-model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(_HASH_MODEL)
    say(f"{rows:,} rows: job")
    job = job_settings(Path(tables), {"name": str(model)}, work / "run")
    return child("sparkbench.job", {"job": job, "free": True, "spark": spark}, work / "run", options)


def with_model(options: dict[str, Any]) -> dict[str, Any]:
    """`engine`: alone; `job`: the whole job on the same pairs; `plain`: other people's job on the first of them."""
    from side_by_side.pairs import make_pairs

    from rerank_udf.models.mini import assembled_folder

    work = options["work"]
    folder = assembled_folder() if options["model"] == "mini" else Path(options["model"]).resolve()
    pairs = make_pairs(options["lengths"], options["pairs"], folder)
    shutil.rmtree(work / "pairs", ignore_errors=True)
    tables = write_pair_tables(pairs.pairs, work / "pairs" / "all")
    found: dict[str, Any] = {"pairs": pairs.describe()}
    limits = {"max_length": pairs.max_length, "precision": options["precision"]}
    found["engine"] = child(
        "sparkbench.alone", {"tables": str(tables), "model": str(folder), **limits}, work / "alone", options
    )
    found["job"] = model_job(tables, folder, limits, options)
    if options["peer_pairs"]:
        few = write_pair_tables(pairs.pairs[: options["peer_pairs"]], work / "pairs" / "few")
        found["job_few"] = model_job(few, folder, limits, options)
        found["plain"] = {
            dtype: plain(few, folder, {**limits, "dtype": dtype}, options)
            for dtype in options["peer_dtype"].split(",")
            if dtype
        }
    return found


def model_job(tables: Path, folder: Path, limits: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The whole job with the model: one task at a time on all cores, as one task a GPU."""
    click.echo(f"{tables.name} pairs: job")
    work = options["work"] / "run"
    job = job_settings(tables, {"name": str(folder), **limits}, work)
    return child("sparkbench.job", {"job": job, "spark": model_properties(options)}, work, options)


def plain(tables: Path, folder: Path, model: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The plain job in its own Python."""
    click.echo(f"{tables.name} pairs: mapInPandas with CrossEncoder.predict, {model['dtype']}")
    settings = {
        "tables": str(tables),
        "output": str(options["work"] / "plain" / "out"),
        "model": str(folder),
        "dtype": model["dtype"],
        "max_length": model["max_length"],
        "batch_size": 32,
        "partitions": 2 * options["core_count"],
        "master": f"local[{options['core_count']}]",
        "spark": model_properties(options),
    }
    python = options["peer_python"] or peer_python()
    return child("plain_job", settings, options["work"] / "plain", options, python)


def peer_python() -> str:
    """The pinned environment of the plain job, built on first use."""
    from side_by_side.environments import Environment, python_of

    return str(python_of(Environment("spark-peer", "peers/constraints-spark-peer.txt")))


def model_properties(options: dict[str, Any]) -> dict[str, str]:
    """Spark's properties for a job with a model: a task has all cores, and so has its engine."""
    return {"spark.driver.memory": options["memory"], "spark.task.cpus": str(options["core_count"])}


def job_settings(tables: Path, model: dict[str, Any], work: Path) -> dict[str, Any]:
    """The job's YAML as a dictionary."""
    return {
        "input": {name: {"path": str(tables / name)} for name in ("candidates", "queries", "passages")},
        "model": model,
        "output": {
            "reranked": {"path": str(work / "out" / "reranked")},
            "rejects": {"path": str(work / "out" / "rejects")},
        },
        "run": {"report": str(work / "out" / "report")},
    }


def child(
    module: str, settings: dict[str, Any], work: Path, options: dict[str, Any], python: str | None = None
) -> dict[str, Any]:
    """Run a part of sparkbench in a process of its own, in an empty folder `work`; what it wrote as its result."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "settings.json").write_text(json.dumps({**settings, "work": str(work)}))
    place = ["-m", module] if python is None else [str(BENCHMARKS / "sparkbench" / f"{module}.py")]
    environment = {**os.environ, "MASTER": f"local[{options['core_count']}]"}
    environment |= {"OMP_NUM_THREADS": str(options["core_count"])} if module == "sparkbench.alone" else {}
    log = work.parent / f"{work.name}.log"
    with log.open("w") as output:
        done = subprocess.run(
            [python or sys.executable, *place, str(work / "settings.json"), str(work / "result.json")],
            cwd=BENCHMARKS,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise click.ClickException(f"{module} failed with exit code {done.returncode}; see {log}")
    result: dict[str, Any] = json.loads((work / "result.json").read_text())
    shutil.rmtree(work / "out", ignore_errors=True)
    return result


# --- reporting ---


def report(found: dict[str, Any], options: dict[str, Any]) -> None:
    """Print; write result.json, table.txt, plot.png."""
    costs = [results.Overhead.of(measured) for measured in found["overhead"]]
    out = options["out"]
    with (out / "table.txt").open("w", encoding="utf-8") as file:
        for console in (Console(width=None), Console(file=file, width=140)):
            if costs:
                results.print_overheads(console, costs)
                results.print_phases(console, found["overhead"][-1])
            if "job" in found:
                results.print_model(console, found)
    (out / "result.json").write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")
    if costs:
        try:
            results.draw(
                costs, f"{found['machine']['processor']}, {options['core_count']} cores", out / "plot.png"
            )
        except ImportError as error:
            click.echo(f"no plot: {error}")
    click.echo(f"written to {out}")


if __name__ == "__main__":
    main()
