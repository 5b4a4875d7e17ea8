"""What the score store saves and costs: python benchmarks/bench_store.py --help

    reruns     a job, the same again, and with one query in a hundred changed: seconds and pairs scored, as a share of
               the first run; bytes stored and shuffled a pair
    hot        the same job where one passage stands in every query's list
    big        a store of many facts: appending, looking up few and many pairs, `stats`, `compact`

Each job runs in a process and a Spark session of its own. `--model hash` makes scoring nearly free, so that the shares
are the worst there can be; with a real model they shrink as the model grows.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from bench_spark import child, job_settings, model_properties
from rich.console import Console
from rich.table import Table
from side_by_side.machine import cores, describe_machine
from sparkbench.pair_tables import write_pair_tables

BENCHMARKS = Path(__file__).parent
_HASH_MODEL = '{"model_type": "rerank-udf-hash"}'
CHANGED = 0.01


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--rows", default=1_000_000, help="Candidate rows of the jobs with the hash scorer; 0: none.")
@click.option("--pairs", default=3000, help="XQuAD pairs of the jobs with mini; 0: none.")
@click.option("--facts", default=50_000_000, help="Facts in the big store; 0: none.")
@click.option("--small", default=200_000, help="Pairs to look up in it, few.")
@click.option("--large", default=20_000_000, help="Pairs to look up in it, many.")
@click.option("--cores", "core_count", default=cores(), help="Cores of the local master.")
@click.option("--memory", default="6g", help="spark.driver.memory, which a local master's tasks share.")
@click.option("--work", type=click.Path(path_type=Path), help="Tables and runs: build/bench_store.")
@click.option("--out", type=click.Path(path_type=Path), help="result.json, table.txt.")
def main(**options: Any) -> None:
    """Measure the score store."""
    options["work"] = (options["work"] or BENCHMARKS.parent / "build" / "bench_store").resolve()
    options["out"] = (options["out"] or BENCHMARKS / "results" / "store").resolve()
    options["out"].mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"command": "python " + shlex.join(sys.argv), "machine": describe_machine()}
    if options["rows"]:
        found["reruns, hash scorer"] = reruns(*hash_job(options), options)
        found["one passage in every list, hash scorer"] = hot(options)
    if options["pairs"]:
        found["reruns, mini"] = reruns(*mini_job(options), options)
    if options["facts"]:
        sizes = {name: options[name] for name in ("facts", "small", "large")}
        settings = {**sizes, "spark": {"spark.driver.memory": options["memory"]}}
        found["big store"] = child("sparkbench.big_store", settings, options["work"] / "big", options)
        shutil.rmtree(options["work"] / "big", ignore_errors=True)
    report(found, options["out"])


# --- jobs ---


def hash_job(options: dict[str, Any]) -> tuple[Path, dict[str, Any], dict[str, str]]:
    """Tables, model section and Spark properties of the job with the hash scorer."""
    spark = {"spark.driver.memory": options["memory"]}
    made = {"tables": str(options["work"] / "tables"), "rows": options["rows"], "spark": spark}
    tables = child("sparkbench.job", {"make_tables": made}, options["work"] / "make", options)["tables"]
    model = options["work"] / "hash-model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(_HASH_MODEL)
    return Path(tables), {"name": str(model)}, spark


def mini_job(options: dict[str, Any]) -> tuple[Path, dict[str, Any], dict[str, str]]:
    """The same of the job with mini over XQuAD pairs."""
    from side_by_side.pairs import make_pairs

    from rerank_udf.models.mini import assembled_folder

    folder = assembled_folder()
    pairs = make_pairs("xquad", options["pairs"], folder)
    place = options["work"] / "pairs"
    shutil.rmtree(place, ignore_errors=True)
    tables = write_pair_tables(pairs.pairs, place)
    limits = {"name": str(folder), "max_length": pairs.max_length}
    return tables, limits, model_properties(options)


def reruns(
    tables: Path, model: dict[str, Any], spark: dict[str, str], options: dict[str, Any]
) -> list[dict[str, Any]]:
    """The job on an empty store, again, and on input of which a hundredth has changed."""
    kept = options["work"] / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    changed = with_changed_queries(tables, options["work"] / "changed")
    steps = []
    for name, place in (("first run", tables), ("nothing changed", tables), ("1 % changed", changed)):
        click.echo(f"{name}: {place}")
        steps.append({"step": name, **_one(place, model, spark, kept, options)})
    shutil.rmtree(kept, ignore_errors=True)
    return steps


def hot(options: dict[str, Any]) -> list[dict[str, Any]]:
    """The hash scorer's job where the first passage of every list is the same one."""
    tables, model, spark = hash_job(options)
    kept = options["work"] / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    place = with_hot_passage(tables, options["work"] / "hot")
    click.echo(f"one passage in every list: {place}")
    return [{"step": "first run", **_one(place, model, spark, kept, options)}]


def _one(
    tables: Path, model: dict[str, Any], spark: dict[str, str], kept: Path, options: dict[str, Any]
) -> dict[str, Any]:
    work = options["work"] / "run"
    job = {**job_settings(tables, model, work), "store": {"path": str(kept / "store")}}
    done = child("sparkbench.job", {"job": job, "spark": spark}, work, options)
    told, pairs = done["report"], done["report"]["pairs_in"]
    files = list((kept / "store").glob("facts/*/*/part-*"))
    facts = sum(pq.read_metadata(path).num_rows for path in files)
    tasks = [stage["tasks"] for stage in done["stages"] if stage["phase"] == "score"]
    return {
        **{
            name: told[name]
            for name in ("pairs_in", "pairs_scored", "pairs_reused", "models_loaded", "seconds")
        },
        "job_seconds": done["job"]["seconds"],
        "core_seconds": sum(done["job"]["cpu"].values()),
        "shuffled_bytes_a_pair": sum(stage["shuffled"] for stage in done["stages"]) / pairs,
        "largest_stage_tasks": max(tasks, default=0),
        "stored_bytes_a_fact": sum(path.stat().st_size for path in files) / max(1, facts),
    }


# --- tables ---


def with_changed_queries(tables: Path, place: Path) -> Path:
    """A copy in which every hundredth query has another text."""
    queries = pq.read_table(tables / "queries")
    changed = [
        f"{text} indeed" if number % int(1 / CHANGED) == 0 else text
        for number, text in enumerate(queries["query"].to_pylist())
    ]
    return _copy(tables, place, queries=queries.set_column(1, "query", pa.array(changed)))


def with_hot_passage(tables: Path, place: Path) -> Path:
    """A copy in which the best candidate of every query is one and the same new passage."""
    candidates, passages = pq.read_table(tables / "candidates"), pq.read_table(tables / "passages")
    ids = pc.if_else(_is_first(candidates), "hot", candidates["passage_id"])
    text = f"in every list: {passages['passage'][0].as_py()}"
    more = pa.table({"passage_id": ["hot"], "passage": [text]}, schema=passages.schema)
    return _copy(
        tables,
        place,
        candidates=candidates.set_column(candidates.schema.get_field_index("passage_id"), "passage_id", ids),
        passages=pa.concat_tables([passages, more]),
    )


def _is_first(candidates: pa.Table) -> pa.Array:
    """Whether a row is the first of its query; rows of a query stand together."""
    ids = candidates["query_id"].to_pylist()
    return pa.array([number == 0 or ids[number - 1] != name for number, name in enumerate(ids)])


def _copy(tables: Path, place: Path, **changed: pa.Table) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for name in ("candidates", "queries", "passages"):
        if name in changed:
            (place / name).mkdir()
            pq.write_table(changed[name], place / name / "part-0.parquet")
        else:
            (place / name).symlink_to(tables / name)
    return place


# --- reporting ---


def report(found: dict[str, Any], out: Path) -> None:
    """Print; write result.json and table.txt."""
    with (out / "table.txt").open("w", encoding="utf-8") as file:
        for console in (Console(width=None), Console(file=file, width=140)):
            for title, steps in found.items():
                if title == "big store":
                    print_steps(console, steps["steps"])
                elif isinstance(steps, list):
                    print_runs(console, title, steps)
    (out / "result.json").write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")
    click.echo(f"written to {out}")


def print_runs(console: Console, title: str, steps: list[dict[str, Any]]) -> None:
    """A line a run, with its share of the first one."""
    table = Table(title=title, box=None)
    columns = (
        "run",
        "pairs",
        "scored",
        "models",
        "seconds",
        "of first",
        "core-s",
        "of first",
        "shuffled B a pair",
    )
    for name in (*columns, "stored B a fact"):
        table.add_column(name, justify="left" if name == "run" else "right")
    first = steps[0]
    for step in steps:
        table.add_row(
            step["step"],
            f"{step['pairs_in']:,}",
            f"{step['pairs_scored']:,}",
            str(step["models_loaded"]),
            f"{step['job_seconds']:.1f}",
            f"{step['job_seconds'] / first['job_seconds']:.1%}",
            f"{step['core_seconds']:.1f}",
            f"{step['core_seconds'] / first['core_seconds']:.1%}",
            f"{step['shuffled_bytes_a_pair']:.0f}",
            f"{step['stored_bytes_a_fact']:.1f}",
        )
    console.print(table)


def print_steps(console: Console, steps: list[dict[str, Any]]) -> None:
    """The big store, a line a step."""
    table = Table(title="a big store", box=None)
    for name in ("step", "seconds", "core-s", "shuffled MB"):
        table.add_column(name, justify="left" if name == "step" else "right")
    for step in steps:
        table.add_row(
            step["step"],
            f"{step['seconds']:.1f}",
            f"{step['core_seconds']:.1f}",
            f"{step['shuffled_bytes'] / 1e6:,.0f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
