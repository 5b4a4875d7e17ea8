"""`rerank-udf`: parse, load the settings, call one function, print, exit code.

0 done · 2 bad configuration or input contract · 3 more rejects than allowed · 1 anything else
"""

from __future__ import annotations

import io
import json
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console

from rerank_udf import __version__, errors
from rerank_udf.config import JobConfig, Model, load_config, load_settings, parse_section
from rerank_udf.errors import ConfigError, RerankError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from rerank_udf.engine.doctor import ClusterReport, DoctorReport
    from rerank_udf.lake.store import Change, ScoreStore
    from rerank_udf.spark.evaluation import SparkEvaluation
    from rerank_udf.training.settings import TrainingConfig

_Command = TypeVar("_Command", bound=Callable[..., Any])
_KEEP_ALL = "all"  # no model_key: those are 32 hex digits


def _job_options(command: _Command) -> _Command:
    """--config and --set, as every job verb has them."""
    overrides = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY.PATH=VALUE",
        help="Change one setting; may be repeated.",
    )
    config = click.option(
        "--config",
        "config_path",
        required=True,
        metavar="FILE",
        help="Settings (YAML); see conf/rerank.yaml.",
    )
    return config(overrides(command))


def _only_reads(command: _Command) -> _Command:
    """--dry-run for a verb that changes nothing, so that a script may try any verb of the store with it."""
    return click.option("--dry-run", is_flag=True, expose_value=False, help="Nothing else: this only reads.")(
        command
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="rerank-udf")
def cli() -> None:
    """Rerank query-passage tables with a cross-encoder, in Spark."""


@cli.command()
@_job_options
@click.option("--dry-run", is_flag=True, help="Count and estimate; no model is loaded, nothing is written.")
def rerank(config_path: str, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Rerank the configured candidates and publish them."""
    config = load_config(config_path, overrides)
    spark = _session("rerank-udf rerank")
    evaluated = config.evaluation.qrels is not None
    if evaluated and config.output.layout == "nested":
        _console().print("evaluation.qrels: nothing is measured, since output.layout is nested")
        evaluated = False
    if evaluated:
        from rerank_udf.spark import assess

        assess.check(spark, config)  # now, not after hours of scoring
    if dry_run:
        _print_estimate(spark, config)
        return
    from rerank_udf.spark.pipeline import at_versions, run_rerank

    console = _console()
    report = run_rerank(spark, config, console, command=_command_line())
    console.print(report.table())
    if evaluated:
        from rerank_udf.spark.judged import write_evaluation
        from rerank_udf.spark.reporting import published_all_the_same

        as_read = at_versions(config, report.input_versions)
        again = (
            "rerank-udf evaluate with the same settings measures it once that is mended, and scores nothing"
        )
        with published_all_the_same(config, "could not be evaluated", again):
            write_evaluation(spark, as_read, report, _print_evaluation(spark, as_read, None), console)


@cli.command()
@_job_options
@click.option(
    "--ranking",
    "rankings",
    multiple=True,
    metavar="NAME=PLACE",
    help="Another ranking beside the job's own: a path or a table's name; may be repeated.",
)
@click.option(
    "--out", metavar="FOLDER", help="Also write summary.json, summary.parquet and per_query.parquet here."
)
def evaluate(
    config_path: str, overrides: tuple[str, ...], rankings: tuple[str, ...], out: str | None
) -> None:
    """Measure the published table against evaluation.qrels and the first stage."""
    config, others = load_config(config_path, overrides), _named_places(rankings)
    _print_evaluation(_session("rerank-udf evaluate"), config, out, others).release()


def _named_places(given: Sequence[str]) -> dict[str, str]:
    """Each NAME=PLACE of --ranking."""
    found: dict[str, str] = {}
    for text in given:
        name, _, place = text.partition("=")
        if not name or not place or name in found:
            raise ConfigError(
                f"--ranking takes NAME=PLACE, a path or a table's name, each name once; found {text!r}"
            )
        found[name] = place
    return found


@cli.command()
@_job_options
@click.option("--query-id", required=True, help="The query to look at.")
@click.option(
    "--most",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Print at most this many candidates.",
)
def explain(config_path: str, overrides: tuple[str, ...], query_id: str, most: int) -> None:
    """Print one query's candidates before and after, as the model saw them."""
    config = load_config(config_path, overrides)
    from rerank_udf.spark.explain import explain as explain_query

    explanation = explain_query(_session("rerank-udf explain"), config, query_id)
    console = _console()
    text = "" if explanation.query is None else f" «{explanation.query}»"
    console.print(f"Q {explanation.query_id}{text}", markup=False, highlight=False)
    for candidate in explanation.candidates[:most]:
        console.print(_explained_line(candidate), markup=False, highlight=False)
    left = len(explanation.candidates) - most
    if left > 0:
        console.print(f"… {left} more (--most)")


def _explained_line(candidate: Any) -> str:
    rank = "–" if candidate.rank is None else str(candidate.rank)
    was = "–" if candidate.first_stage_rank is None else str(candidate.first_stage_rank)
    fused = "" if candidate.fused_score is None else f"fused {candidate.fused_score:#.4g}  "
    scored = "" if candidate.logit is None else f"score {candidate.score:.4f}  logit {candidate.logit:+.4f}  "
    cut = ", passage cut" if candidate.truncated else ""
    note = f"  [{candidate.note}]" if candidate.note else ""
    shown = f"\n      {candidate.seen}{' …' if candidate.truncated else ''}" if candidate.seen else ""
    numbers = f"{fused}{scored}{candidate.tokens} tokens{cut}"
    return f"{rank:>4}  was {was:>3}  {numbers}  {candidate.passage_id}{note}{shown}"


@cli.command()
@click.option("--from", "source_format", required=True, metavar="FORMAT", help="What SOURCE is.")
@click.option("--to", "target_format", required=True, metavar="FORMAT", help="What TARGET becomes.")
@click.option("--overwrite", is_flag=True, help="Replace tables or files that are there.")
@click.option("--split", metavar="NAME", help="beir: which qrels (test).")
@click.option("--tag", metavar="NAME", help="to trec-run: the run's name (rerank_udf).")
@click.option(
    "--replace-whitespace", is_flag=True, default=None, help="to msmarco: tabs and line breaks become spaces."
)
@click.option("--scores", is_flag=True, default=None, help="to flagembedding: with first-stage scores.")
@click.argument("source")
@click.argument("target")
def convert(
    source_format: str, target_format: str, source: str, target: str, overwrite: bool, **given: Any
) -> None:
    """Convert SOURCE to TARGET.

    Formats: parquet (a folder of queries, passages, candidates, qrels), beir (a folder), trec-run, trec-qrels,
    msmarco-queries, msmarco-collection, msmarco-top1000, msmarco-qrels, msmarco-run, flagembedding (files, gzip or
    not). Several files make one parquet folder by several calls.
    """
    from rerank_udf.formats import convert as convert_files

    options = {name: value for name, value in given.items() if value is not None}
    written = convert_files(source_format, source, target_format, target, overwrite=overwrite, **options)
    for name, rows in written.items():
        _console().print(f"{name}  {rows:,} rows", highlight=False)


@cli.group()
def store() -> None:
    """Look at the score store, check it, and keep it small."""


@store.command()
@_job_options
@_only_reads
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def stats(config_path: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Count facts, files and bytes under each model_key."""
    found = _store(config_path, overrides).stats()
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found], indent=2))
        return
    columns = ("model_key", "facts", "appends", "files", "bytes", "bytes a fact")
    rows = [
        (
            one.model_key,
            f"{one.facts:,}",
            "–" if one.appends is None else f"{one.appends:,}",
            f"{one.files:,}",
            f"{one.bytes:,}",
            f"{one.bytes / max(1, one.facts):.1f}",
        )
        for one in found
    ]
    _print_rows(columns, rows, "the store is empty")


@store.command()
@_job_options
@_only_reads
def verify(config_path: str, overrides: tuple[str, ...]) -> None:
    """Read every file of the store; name the damaged ones and end with 1 where there are any."""
    opened = _store(config_path, overrides)
    damage = opened.verify()
    for one in damage:  # a line each and none cut short: a path is copied from it
        _console().print(
            f"{one.file}: {one.problem} (model_key {one.model_key})", soft_wrap=True, markup=False
        )
    if damage:
        _fail(
            f"{len(damage)} damaged: bring the files back, or delete the folders they stand in (of a table: the rows); "
            "their pairs are then scored again",
            1,
        )
    if opened.stats():
        _console().print("every file is sound")
    else:
        _console().print(f"there are no facts in {opened.place}: is it the right place?", markup=False)


@store.command()
@_job_options
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
def compact(config_path: str, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Write many small files anew as few large ones; readers may go on meanwhile."""
    _print_changes(_store(config_path, overrides).compact(dry_run), dry_run)


@store.command()
@_job_options
@click.option(
    "--keep",
    multiple=True,
    required=True,
    metavar="MODEL_KEY",
    help="Keep its facts; repeatable. all: keep all facts.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
def vacuum(config_path: str, overrides: tuple[str, ...], keep: tuple[str, ...], dry_run: bool) -> None:
    """Forget the facts of every model_key that is not kept, and delete what no reader needs.

    Not while a job runs whose model_key is not kept.
    """
    found = _store(config_path, overrides)
    known = {one.model_key for one in found.stats()}
    missing = sorted(set(keep) - known - {_KEEP_ALL})
    if missing:
        raise ConfigError(
            f"--keep {missing[0]}: the store has no such model_key; it has {', '.join(sorted(known)) or 'none'}. "
            "Nothing was deleted"
        )
    _print_changes(found.vacuum(None if _KEEP_ALL in keep else frozenset(keep), dry_run), dry_run)


def _store(config_path: str, overrides: tuple[str, ...]) -> ScoreStore:
    config = load_config(config_path, overrides)
    spark = _session("rerank-udf store")
    from rerank_udf.lake.store import open_store

    return open_store(spark, config.store, config.store_path())


def _print_changes(changes: Sequence[Change], dry_run: bool) -> None:
    rows = [
        (one.model_key, one.what, f"{one.files_before:,}", f"{one.files_after:,}", f"{one.bytes:,}")
        for one in changes
    ]
    _print_rows(("model_key", "what", "files before", "after", "bytes"), rows, "nothing to do")
    if dry_run and rows:
        _console().print("--dry-run: nothing was changed")


def _print_rows(columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    from rich.table import Table
    from rich.text import Text

    if not rows:
        _console().print(empty)
        return
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    _console().print(table, highlight=False)


@cli.command()
@_job_options
@click.option(
    "--dry-run", is_flag=True, help="Read the tables, print what would be learnt, and load no model."
)
def train(config_path: str, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Train a cross-encoder on tables of the job's contract; the same command again goes on."""
    from rerank_udf.training.settings import TrainingConfig

    config = load_settings(config_path, overrides, TrainingConfig, "conf/train.yaml")
    try:
        from rerank_udf.training.train import preview, train
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"training needs the package {missing.name!r}: pip install 'rerank-udf[train]'"
        ) from missing
    if dry_run:
        with tempfile.TemporaryDirectory() as folder:  # the work folder's own copies may be those of a run
            preview(_without_spark(config.model_copy(update={"work": folder})), _console())
        return
    model = train(_without_spark(config), _console())
    _console().print(f"model  {model}    card  {model / 'README.md'}", soft_wrap=True)


def _without_spark(config: TrainingConfig) -> TrainingConfig:
    """The settings with copies in the work folder of whatever Spark has to read."""
    if not config.needs_spark():
        return config
    session = _session("rerank-udf train")
    from rerank_udf.spark.training_tables import exported

    return exported(session, config)


@cli.command()
@click.option("--spark", "on_spark", is_flag=True, help="Examine every executor of the Spark session.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
@click.option("--model", metavar="NAME", help="mini (the default), a hub id, or a path.")
@click.option("--revision", help="Of a hub id: a commit, tag or branch.")
@click.option("--precision", help="float32, bfloat16, float16, int8, or auto (the default).")
@click.option("--device", help="cpu, cuda, cuda:N, or auto (the default).")
@click.option("--config", "config_path", metavar="FILE", help="Take the model section of a job's settings.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY.PATH=VALUE",
    help="Change one setting of FILE; may be repeated.",
)
def doctor(
    on_spark: bool, as_json: bool, config_path: str | None, overrides: tuple[str, ...], **given: str | None
) -> None:
    """Check this machine, or every executor: exactness, speed, memory, versions.

    Ends with 1 where a device's logits are wrong, or torch does not support it.
    """
    model = _model_settings(config_path, overrides, given)
    report = _cluster_report(model) if on_spark else _machine_report(model)
    if as_json:
        click.echo(json.dumps(report.to_dict(), ensure_ascii=False, indent=2))
    else:
        from rerank_udf.engine.doctor import show

        _console().print(show(report), highlight=False)
    if not report.passed:
        sys.exit(1)


def _cluster_report(model: Model) -> ClusterReport:
    session = _session("rerank-udf doctor")
    from rerank_udf.spark.doctor import examine_cluster

    return examine_cluster(session, model)


def _machine_report(model: Model) -> DoctorReport:
    from rerank_udf.engine.doctor import examine_model

    try:
        return examine_model(model)
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"doctor compares with transformers in torch and needs {missing.name}, which is not installed; "
            "pip install 'rerank-udf[torch]'"
        ) from None


def _model_settings(
    config_path: str | None, overrides: tuple[str, ...], given: dict[str, str | None]
) -> Model:
    """The model section of a job's settings, or its defaults, with what the command line gives in its place."""
    if overrides and config_path is None:
        raise ConfigError("--set changes a setting of --config FILE, and there is none; give the file too")
    section = load_config(config_path, overrides).model if config_path else Model()
    named = {option: value for option, value in given.items() if value is not None}
    raw = section.model_dump()
    if "model" in named:
        raw |= {"name": named.pop("model"), "revision": None}  # the file's revision is of the file's model
    return parse_section(Model, raw | named, "the options of doctor")


def _print_estimate(spark: SparkSession, config: JobConfig) -> None:
    from rerank_udf.report import clock
    from rerank_udf.spark.estimate import estimate

    found = estimate(spark, config)
    console = _console()
    rejects = ", ".join(f"{reason} {count:,}" for reason, count in sorted(found.rejects.items())) or "0"
    left = found.pairs_distinct - found.pairs_known
    distinct = f"{found.pairs_in:,} in · {found.pairs_distinct:,} distinct"
    console.print(
        f"pairs    {distinct} · {found.pairs_known:,} in the store · {left:,} to score", highlight=False
    )
    console.print(f"rejects  {rejects}", highlight=False)
    if found.beyond_depth:
        console.print(f"depth    {found.beyond_depth:,} rows beyond it", highlight=False)
    cut = f"{found.truncated_share:.1%} of pairs cut at {config.model.max_length}"
    sampled = f"from {found.sampled_pairs:,} sampled pairs"
    told = (
        f"about {found.tokens:,} ({sampled}; {cut})"
        if found.tokens is not None
        else "unknown: no tokenizer here"
    )
    console.print(f"tokens   {told}", highlight=False)
    if found.seconds:
        speed = f"{found.last_tokens_per_second:,.0f} tokens/s of the last run"
        console.print(f"time     about {clock(found.seconds)} at the {speed}", highlight=False)


def _print_evaluation(
    spark: SparkSession, config: JobConfig, out: str | None, others: dict[str, str] | None = None
) -> SparkEvaluation:
    from rerank_udf.spark.assess import assess
    from rerank_udf.spark.evaluation.result import check_folder

    if out:
        check_folder(spark, out)
    evaluation = assess(spark, config, others)
    console = _console()
    for measure in evaluation.settings["measures"]:
        console.print(evaluation.table(measure))
    if out:
        evaluation.write(out)
        console.print(f"written to {out}", markup=False)
    return evaluation


def _session(name: str) -> SparkSession:
    try:
        from rerank_udf.spark.session import job_session
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"this verb needs {missing.name}, which is not installed; pip install 'rerank-udf[spark,torch,eval]', "
            "or run it with the cluster's spark-submit"
        ) from None
    return job_session(name)


def _console() -> Console:
    """Standard output; wide enough for tables where it is a file or a log."""
    console = Console(soft_wrap=False)
    return console if console.is_terminal else Console(width=max(console.width, 120))


def _command_line() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; every expected failure is one sentence on standard error."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a letter shows a sign in its place
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if not os.environ.get("RERANK_UDF_DEBUG"):
        _keep_py4j_quiet()
    try:
        cli.main(
            args=None if arguments is None else list(arguments), prog_name="rerank-udf", standalone_mode=False
        )
    except click.exceptions.Abort:
        _interrupted()
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except Exception as error:
        if os.environ.get("RERANK_UDF_DEBUG") and getattr(error, "exit_code", 1) == 1:
            raise
        if _was_interrupted(error):
            _interrupted()
        raised = error if isinstance(error, RerankError) else _worker_error(error)
        if raised is not None:
            _fail(str(raised), raised.exit_code)
        _fail(_place_error(error) or _any_error(error), 1)


def _was_interrupted(error: BaseException) -> bool:
    """Whether the error came up while an interrupt was already on its way out: the JVM hears of Ctrl-C too."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, KeyboardInterrupt):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _keep_py4j_quiet() -> None:
    """No stacks of the gateway's on top of the sentence that ends the run: it logs through the root logger."""
    logging.getLogger("py4j").setLevel(logging.CRITICAL)
    logging.getLogger().addFilter(_is_not_of_py4j)


def _is_not_of_py4j(record: logging.LogRecord) -> bool:
    return "py4j" not in Path(record.pathname).parts


def _worker_error(error: Exception) -> RerankError | None:
    """What a Python worker raised, out of Spark's long message; None for anything but an error of ours."""
    marker = "rerank_udf.errors."
    for line in str(error).splitlines():
        if line.startswith(marker):
            name, _, sentence = line.removeprefix(marker).partition(": ")
            found = RerankError(sentence)
            found.exit_code = getattr(getattr(errors, name, None), "exit_code", RerankError.exit_code)
            return found
    return None


def _place_error(error: Exception) -> str | None:
    """A disk that is full, or where nothing may be written; None for anything else."""
    from rerank_udf.lake.failures import place_failure

    found = place_failure(error)
    if found is None:
        return None
    return f"{found}; mend it and run the same command again (scores that are in the store are not computed again)"


def _any_error(error: Exception) -> str:
    """The kind of error, and its innermost cause where Spark wraps one; or the file that is damaged."""
    from rerank_udf.lake.failures import innermost_cause, unreadable_file

    file = unreadable_file(error)
    if file is not None:
        cause = innermost_cause(error).rstrip(".")
        return (
            f"{file} cannot be read: {cause}; bring back a whole one and run the same command again "
            "(where it is the score store's: rerank-udf store verify names every damaged one)"
        )
    return f"{type(error).__name__}: {innermost_cause(error)}" if str(error).strip() else type(error).__name__


def _interrupted() -> None:
    print("rerank-udf: interrupted", file=sys.stderr)
    sys.exit(1)


def _fail(message: str, code: int) -> None:
    hint = "" if code in (2, 3) else "\n(RERANK_UDF_DEBUG=1 shows the whole stack)"
    print(f"rerank-udf: {message}{hint}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
