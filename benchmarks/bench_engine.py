"""rerank_udf and its peers on the same pairs, side by side: python benchmarks/bench_engine.py --help

Every engine has its model loaded in a process of its own, the peers in pinned environments that are built on first
use; one process computes at a time; rounds interleave all engines; the first round is a warm-up. README.md beside
this file says what is measured and how it is kept fair. Needs pyarrow, numpy and rerank_udf; no Spark.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from side_by_side import environments, rounds
from side_by_side.client import Worker, WorkerFailedError
from side_by_side.engines import DEFAULT, ENGINES, Engine, chosen, why_not
from side_by_side.machine import cores, describe_machine
from side_by_side.pairs import LENGTHS, PairSet, make_pairs, runs_of_neighbours
from side_by_side.rounds import Outcome, Plan, Sample, say
from side_by_side.shapes import SHAPES, model_folder
from side_by_side.show import print_rows
from side_by_side.statistics import Row, rows_of

from rerank_udf.engine.capability import resolve_device, resolve_precision
from rerank_udf.errors import RerankError
from rerank_udf.models import checkpoint
from rerank_udf.models.mini import assembled_folder
from rerank_udf.tokens import PairLimits, PairTokenizer

PRECISIONS = ("auto", "bfloat16", "float16", "float32")
CALIBRATION_PAIRS = 300
SEARCH_PAIRS = {"all": 384, "fewer": 128}
CARD_SEARCH_PAIRS = 2048  # a card does them in seconds, and four of its largest batches must be in it
_TABLE_WIDTH = 200
_RESULTS = Path(__file__).parent / "results"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--shape", type=click.Choice(list(SHAPES)), default="base", help="Model with random weights.")
@click.option("--model", help="Instead of --shape: a model folder, or mini for the package's own weights.")
@click.option("--lengths", type=click.Choice(LENGTHS), default="xquad", help="Which pairs.")
@click.option("--pairs", default=3000, help="How many pairs.")
@click.option("--slow-pairs", default=512, help="Pairs for what is slow on a CPU (float32); 0: all of them.")
@click.option("--rounds", "round_count", default=3, help="Counted rounds, after one warm-up round.")
@click.option(
    "--engines", "names", default="default", help="Comma-separated; default, all, or list to see them."
)
@click.option("--precision", type=click.Choice(PRECISIONS), default="auto", help="Ours, and the peers' best.")
@click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
@click.option("--threads", default=cores(), help="Cores for every engine.")
@click.option(
    "--best-batch", multiple=True, metavar="ENGINE=N", help="Skip the search for an engine's best batch size."
)
@click.option(
    "--torch",
    default=environments.SAME_TORCH,
    help="The peers' torch: same as this Python's, or what pip is given; here: the peers that this Python has.",
)
@click.option("--url", multiple=True, metavar="ENGINE=URL", help="A server that runs: tei, infinity or vllm.")
@click.option("--served-name", help="The model's name on those servers, where they ask for one.")
@click.option("--concurrency", default=32, help="Requests under way at once to a server.")
@click.option("--reference-pairs", default=96, help="Pairs that transformers scores in float32 too; 0: none.")
@click.option("--seed", default=0, help="Of the choice of pairs.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for result.json, table.txt, plot.png, logs/."
)
def main(**options: Any) -> None:
    """Compare scoring engines on the same pairs, on this machine."""
    if options["names"] == "list":
        list_engines()
        return
    try:
        result = run(**options)
    except (ValueError, RerankError) as error:
        raise click.UsageError(str(error)) from error
    if not any(row.lane.ours for row in result):
        sys.exit(1)


def list_engines() -> None:
    """Print every engine with what it is."""
    for engine in ENGINES.values():
        places = " and ".join(engine.devices)
        wanted = (
            "a server (--url)"
            if engine.server
            else engine.environment.file
            if engine.environment
            else "this Python"
        )
        click.echo(f"{engine.name:18} {engine.title}, {engine.precision}; {places}; {wanted}")
    for device, names in DEFAULT.items():
        click.echo(f"default on {device}: {names}")


def run(
    *,
    shape: str,
    model: str | None,
    lengths: str,
    pairs: int,
    slow_pairs: int,
    round_count: int,
    names: str,
    precision: str,
    device: str,
    threads: int,
    best_batch: tuple[str, ...],
    torch: str,
    url: tuple[str, ...],
    served_name: str | None,
    concurrency: int,
    reference_pairs: int,
    seed: int,
    out: Path | None,
) -> list[Row]:
    """Measure, print, write; the rows, fastest first. Raises ValueError for options that make no sense together."""
    device = resolve_device(device)
    urls = _assignments(url, "--url", str)
    folder = _folder_of(shape, model)
    label = Path(model).name if model else shape
    plan = Plan(
        model=folder,
        device=device,
        precision=resolve_precision(precision, device),
        threads=threads,
        rounds=round_count,
        torch=torch,
        folder=(out or _RESULTS / f"{label}-{lengths}-{device.replace(':', '')}").resolve(),
        urls=urls,
        concurrency=concurrency,
        served_name=served_name,
        fixed_batches=_assignments(best_batch, "--best-batch", int),
        machine=describe_machine(),
    )
    outcome = Outcome()
    engines = runnable(names, plan, outcome)
    whole = make_pairs(lengths, pairs, folder, seed)
    slow = any(engine.slow for engine in engines) and device == "cpu" and 0 < slow_pairs < pairs
    samples = make_samples(whole, slow_pairs if slow else None, reference_pairs, plan, seed)
    measure(engines, plan, samples, make_pairs(lengths, CALIBRATION_PAIRS, folder, seed + 1), outcome)
    baseline = next((lane.engine for lane in outcome.lanes if lane.ours and lane.sample == "all"), None)
    rows = rows_of(outcome.lanes, outcome.flops, outcome.rates, baseline)
    report(rows, plan, samples, outcome, label, lengths)
    return rows


def runnable(names: str, plan: Plan, outcome: Outcome) -> list[Engine]:
    """The engines that were asked for and can run here; the others are in `outcome.not_run`."""
    engines = []
    for engine in chosen(names, plan.device):
        reason = why_not(engine, plan.device, plan.precision, plan.urls)
        if reason is None:
            engines.append(engine)
        else:
            outcome.not_run[engine.name] = reason
    return engines


def make_samples(
    whole: PairSet, fewer: int | None, reference_pairs: int, plan: Plan, seed: int
) -> dict[str, Sample]:
    """All pairs, and the slow engines' part of them; the reference's rows are in both."""
    logs = plan.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    every = np.arange(len(whole.pairs), dtype=np.int64)
    parts = {"all": every}
    if fewer is not None:
        parts["fewer"] = runs_of_neighbours(whole.lengths, fewer, min(64, max(1, fewer // 4)), seed)
    common = parts.get("fewer", every)
    by_length = common[np.argsort(whole.lengths[common], kind="stable")]
    places = np.linspace(0, len(by_length) - 1, min(reference_pairs, len(by_length))).round().astype(np.int64)
    wanted = np.sort(by_length[np.unique(places)])
    logits = reference_logits(whole.take(wanted), plan) if len(wanted) else None
    samples = {}
    for name, rows in parts.items():
        part = whole.take(rows)
        file = part.write(logs / f"pairs-{name}.json")
        samples[name] = Sample(name, part, file, np.searchsorted(rows, wanted), logits)
    return samples


def reference_logits(part: PairSet, plan: Plan) -> Any:
    """float32 logits (n,) by transformers; None, said aloud, where it cannot be had."""
    say(f"{len(part.pairs)} pairs by the reference: transformers in float32")
    logs = plan.folder / "logs"
    tokenizer = PairTokenizer.from_folder(plan.model, PairLimits(max_length=part.max_length))
    encoded = tokenizer.encode([query for query, _ in part.pairs], [passage for _, passage in part.pairs])
    np.savez(logs / "reference-ids.npz", token_ids=encoded.token_ids, offsets=encoded.offsets)
    try:
        python = environments.python_of(environments.SENTENCE_TRANSFORMERS, plan.torch)
        worker = Worker("reference", python, "reference_peer.py", plan.threads, {}, logs / "reference.log")
        try:
            worker.ask("load", model=str(plan.model), device=plan.device)
            places = {"ids": str(logs / "reference-ids.npz"), "logits": str(logs / "reference.npy")}
            worker.ask("reference", **places)
        finally:
            worker.stop()
    except (environments.EnvironmentFailedError, WorkerFailedError) as error:
        say(f"no reference, so no differences to it: {error}")
        return None
    return np.load(logs / "reference.npy")


def measure(
    engines: list[Engine], plan: Plan, samples: dict[str, Sample], calibration: PairSet, outcome: Outcome
) -> None:
    """Load, search batch sizes, run the rounds."""
    logs = plan.folder / "logs"
    calibration_file = calibration.write(logs / "calibration.json")
    searches = {}
    largest = rounds.batch_sizes(plan.device)[-1]
    for name, sample in samples.items():
        rows = runs_of_neighbours(sample.pairs.lengths, search_pairs(name, plan.device), largest)
        searches[name] = sample.pairs.take(rows).write(logs / f"search-{name}.json")
    whole = samples["all"].pairs
    # A server is asked for whole queries, in their order
    first = np.arange(min(search_pairs("all", plan.device), len(whole.pairs)), dtype=np.int64)
    searches["servers"] = whole.take(first).write(logs / "search-servers.json")
    loaded = rounds.load_all(engines, plan, samples, calibration_file, outcome)
    try:
        for found in loaded:
            best = None
            if not found.engine.plans_batches:
                try:
                    name = "servers" if found.engine.server else found.sample.name
                    best = rounds.best_batch(found, plan, searches[name])
                except WorkerFailedError as error:
                    outcome.not_run[found.engine.name] = str(error)
                    continue
            outcome.searched[found.engine.name] = found.searched
            outcome.lanes += rounds.lanes_of(found, best, samples)
        rounds.run_rounds(loaded, outcome.lanes, plan, samples, outcome)
        for found in [found for found in loaded if found.engine.ours][:1]:
            for name, sample in samples.items():
                answer = found.worker.ask("necessary", lengths=sample.pairs.lengths.tolist())
                outcome.flops[name] = float(answer["flops"])
    finally:
        for found in loaded:
            found.worker.stop()


def search_pairs(sample: str, device: str) -> int:
    """Pairs of a sample that the search for the best batch size runs over."""
    return SEARCH_PAIRS[sample] if device == "cpu" else CARD_SEARCH_PAIRS


def report(
    rows: list[Row], plan: Plan, samples: dict[str, Sample], outcome: Outcome, label: str, lengths: str
) -> None:
    """Print the table; write result.json, table.txt and plot.png."""
    whole = samples["all"].pairs
    machine = plan.machine
    device = (
        machine["cards"][0].split(",")[0]
        if plan.device != "cpu" and machine["cards"]
        else machine["processor"]
    )
    title = f"{label} · {lengths} · {plan.precision} · {device}, {plan.threads} threads"
    facts = whole.describe()
    of = f"{facts['pairs']:,} pairs of {facts['source']}"
    counted = "1 round" if plan.rounds == 1 else f"{plan.rounds} rounds"
    subtitle = f"{of}, {facts['tokens_mean']:.0f} tokens in the mean · {counted}"
    notes = notes_of(samples, outcome, plan)
    with (plan.folder / "table.txt").open("w", encoding="utf-8") as file:
        for console in (
            Console(width=max(Console().width, _TABLE_WIDTH)),
            Console(file=file, width=_TABLE_WIDTH),
        ):
            console.print(subtitle, highlight=False)
            print_rows(console, rows, title, outcome.not_run, notes)
    content = {
        "command": "python " + shlex.join(sys.argv),
        "title": title,
        "machine": machine,
        "device": plan.device,
        "precision": plan.precision,
        "threads": plan.threads,
        "model": label,
        "lengths": lengths,
        "samples": {name: sample.pairs.describe() for name, sample in samples.items()},
        "matrix_product_rate": {"precision": plan.precision, "flops_per_second": outcome.rates},
        "necessary_flops": outcome.flops,
        "best_batch_search_seconds": {
            name: {size: seconds if np.isfinite(seconds) else None for size, seconds in sizes.items()}
            for name, sizes in outcome.searched.items()
            if sizes
        },
        "rows": [row.as_json() for row in rows],
        "engines": outcome.facts,
        "not_run": outcome.not_run,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, default=str)
    # Results are kept with the code: what matters of a path is its end
    for path in (plan.folder, plan.model.parent, environments.environments_folder(), Path(sys.prefix)):
        text = text.replace(f"{path}/", "")
    (plan.folder / "result.json").write_text(text + "\n", encoding="utf-8")
    if rows:
        _draw(rows, title, subtitle, plan.folder / "plot.png")
    say(f"written to {plan.folder}")


def notes_of(samples: dict[str, Sample], outcome: Outcome, plan: Plan) -> list[str]:
    """What a reader of the table must know."""
    notes = [
        "tokens/s, pairs/s: from texts to logits, median (lowest–highest) of the rounds; tokens without padding",
        "ours ×: how many times as fast ours is on the same pairs, median (lowest–highest) of the rounds' ratios",
        "pad: share of computed tokens that are padding or computed twice; GiB: peak while scoring "
        + ("(resident)" if plan.device == "cpu" else "(on the device)"),
    ]
    if "fewer" in samples:
        part = samples["fewer"].pairs
        notes.append(
            f"* on {len(part.pairs)} of the pairs, {part.tokens:,} tokens; its ratio is to ours on the same ones"
        )
    if outcome.rates:
        rate = float(np.median(outcome.rates)) / 1e9
        notes.append(
            f"share: of this machine's {plan.precision} matrix-product rate, {rate:,.0f} GFLOP/s in this run"
        )
    if samples["all"].reference_logits is not None:
        logits = samples["all"].reference_logits
        notes.append(
            f"|Δ logit|, τ: against transformers in float32 on {len(logits)} pairs (logits {logits.mean():.2f} ± "
            f"{logits.std():.2f}); with random weights they say little about quality"
        )
    return notes


def _draw(rows: list[Row], title: str, subtitle: str, path: Path) -> None:
    try:
        from side_by_side.plot import draw

        draw(rows, title, subtitle, path)
    except ImportError as error:
        say(f"no plot: {error}")


def _folder_of(shape: str, model: str | None) -> Path:
    if model is None:
        return model_folder(SHAPES[shape])
    if model == "mini":
        return assembled_folder()
    folder = Path(model).resolve()
    if not (folder / checkpoint.CONFIG_FILE).is_file():
        raise ValueError(f"--model is {model}: expected a folder with {checkpoint.CONFIG_FILE}, or mini")
    return folder


def _assignments(values: tuple[str, ...], option: str, kind: Callable[[str], Any]) -> dict[str, Any]:
    """ENGINE=VALUE options as a dictionary."""
    found = {}
    for value in values:
        name, equals, right = value.partition("=")
        if not equals or name not in ENGINES:
            raise ValueError(f"{option} is {value!r}; expected ENGINE=VALUE with one of {', '.join(ENGINES)}")
        found[name] = kind(right)
    return found


if __name__ == "__main__":
    main()
