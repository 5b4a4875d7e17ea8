"""`make demo`: the job on the embedded tables, then what it did to three questions and to nDCG@10."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from rerank_udf.config import JobConfig, load_config, parse_config
from rerank_udf.errors import ConfigError, RerankError
from rerank_udf.models import mini
from rerank_udf.report import RunReport, clock

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import SparkSession

SETTINGS = Path("conf/demo.yaml")
SHOWN_PASSAGES = 3


def run(console: Console) -> None:
    """Run the demo and print its story. Raises what the job raises."""
    if not SETTINGS.is_file():
        raise ConfigError(f"no {SETTINGS} here: run the demo from the root of a checkout (make demo)")
    config = load_config(SETTINGS)
    from rerank_udf.spark.assess import FIRST, FUSED, assess, system_name
    from rerank_udf.spark.judged import write_evaluation
    from rerank_udf.spark.pipeline import run_rerank
    from rerank_udf.spark.session import job_session

    spark = job_session("rerank-udf demo")
    console.print(f"weights: {mini.manifest()['description']}\n", highlight=False)
    shutil.rmtree(str(config.store_path()), ignore_errors=True)  # so that every demo tells the same story
    report = run_rerank(spark, config, console, command="make demo")
    tables = _tables(spark, config)
    console.print(_headline(spark, config, report, tables), highlight=False)
    evaluation = assess(spark, config)
    for query_id, before, after in _most_changed(evaluation.per_query, FIRST, FUSED):
        console.print(f"\nnDCG@10 {_short(before)} → {_short(after)}", highlight=False)
        for line in _question(query_id, tables):
            console.print(line, highlight=False)
    console.print()
    for measure in evaluation.settings["measures"][:1]:
        console.print(evaluation.table(measure))
    alone, weight = system_name(config), config.ranking.fusion.reranker_weight
    fused = f"{FUSED}: min-max, {weight:g} {alone} + {1 - weight:.1g} {FIRST}"
    systems = f"{FIRST}: multilingual-e5-small · {alone}: the reranker alone · {fused}"
    console.print(systems, highlight=False)
    folder = Path(config.run.report) / "evaluation"
    evaluation.write(folder)
    write_evaluation(spark, config, report, evaluation, console)
    for told in _again(spark, config):
        console.print(told, highlight=False)
    shown = report.output.get("page", report.output["report"])
    console.print(f"report  {shown}    evaluation  {folder}", highlight=False)
    console.print(f"table   {report.output['path']}", highlight=False)
    console.print(f"yours   {_command()} rerank --config conf/rerank.yaml --dry-run", highlight=False)


def _command() -> str:
    """How this installation's rerank-udf is called from here."""
    beside = Path(sys.executable).with_name("rerank-udf")
    if shutil.which("rerank-udf") == str(beside) or not beside.is_file():
        return "rerank-udf"
    return str(beside.relative_to(Path.cwd())) if beside.is_relative_to(Path.cwd()) else str(beside)


def _again(spark: SparkSession, config: JobConfig) -> Iterator[str]:
    """The same run again, and once more with one passage changed: a line each."""
    from rerank_udf.spark.pipeline import run_rerank

    text = (
        "case when passage_id = (select min(passage_id) from p) then concat(passage, ' *') else passage end"
    )
    table = f"parquet.`{config.sources()['input.passages'].path}`"
    changed = {
        "sql": f"with p as (select * from {table}) select p.* except (passage), {text} as passage from p"
    }
    out = Path(str(config.output.reranked.path)).parent / "again"
    for name, passages in (("unchanged:     ", None), ("1 text changed:", changed)):
        raw = config.model_dump(mode="json")
        raw["input"]["passages"] = passages or raw["input"]["passages"]
        raw["store"]["path"] = config.store_path()
        raw["output"] |= {"reranked": {"path": f"{out}/reranked"}, "rejects": {"path": f"{out}/rejects"}}
        raw["run"]["report"] = f"{out}/report"
        done = run_rerank(spark, parse_config(raw), Console(quiet=True), command="make demo")
        loaded = "" if done.models_loaded else ", model not loaded"
        yield f"again, {name} {done.pairs_scored:,} pairs scored{loaded}, {clock(sum(done.seconds.values()))}"


def _tables(spark: SparkSession, config: JobConfig) -> dict[str, pd.DataFrame]:
    from rerank_udf.lake import targets
    from rerank_udf.lake.sources import read_source

    found = {name: read_source(spark, source, name).toPandas() for name, source in config.sources().items()}
    return {**found, "reranked": targets.read(spark, config.output.reranked).toPandas()}


def _headline(
    spark: SparkSession, config: JobConfig, report: RunReport, tables: dict[str, pd.DataFrame]
) -> str:
    queries, passages = tables["input.queries"], tables["input.passages"]
    version = ".".join(spark.version.split(".")[:2])
    languages = len(set(queries["lang"]) | set(passages["lang"]))
    return (
        f"{len(queries)} questions · {languages} languages · {len(passages)} passages · {config.model.name} "
        f"({report.model['precision']}) · Spark {version} {spark.sparkContext.master}\n"
        f"{report.pairs_in:,} pairs · {report.rejected():,} rejects · {clock(sum(report.seconds.values()))} · "
        f"{report.tokens_per_second:,.0f} tokens/s"
    )


def _most_changed(per_query: pd.DataFrame, before: str, after: str) -> list[tuple[str, float, float]]:
    """The question of each kind that gained most, then the one that lost most: (query_id, before, after)."""
    shown = per_query.query("documents == 'all' and measure == 'nDCG@10'")
    values = shown.pivot(index=["kind", "query_id"], columns="system", values="value")
    gain = (values[after] - values[before]).sort_index()
    chosen = [
        *(gain[gain.index.get_level_values("kind") == kind].idxmax() for kind in sorted(set(shown["kind"])))
    ]
    chosen.append(gain.idxmin())
    return [(key[1], values.loc[key, before], values.loc[key, after]) for key in chosen]


def _question(query_id: str, tables: dict[str, pd.DataFrame]) -> Iterator[Text]:
    """The question, its first passages after reranking, and where each stood before; ✓ answers, ~ helps."""
    query = tables["input.queries"].set_index("query_id").loc[query_id]
    passages = tables["input.passages"].set_index("passage_id")
    relevance = tables["evaluation.qrels"].set_index(["query_id", "passage_id"])["relevance"]
    ranked = tables["reranked"].query("query_id == @query_id").sort_values("rank").head(SHOWN_PASSAGES)
    yield Text(f"Q ({query['lang']}) «{query['query']}»")
    for row in ranked.to_dict("records"):
        passage = passages.loc[row["passage_id"]]
        mark = {0: " ", 1: "~", 2: "✓"}[int(relevance.get((query_id, row["passage_id"]), 0))]
        place = f"{row['rank']:>4}  was {row['first_stage_rank']:<3} {_short(row['score'])}  {mark}  "
        yield _clipped(f"{place}({passage['lang']}) {passage['title']} · {passage['passage']}")


def _short(score: Any) -> str:
    text = f"{float(score):.2f}"
    return text.removeprefix("0") if text != "0.00" else ".00"


def _clipped(line: str) -> Text:
    text = Text(line, no_wrap=True, overflow="ellipsis")
    text.truncate(110, overflow="ellipsis")
    return text


def main() -> None:
    """Run the demo; a failure is a sentence and the failure's exit code."""
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    try:
        run(console)
    except RerankError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
