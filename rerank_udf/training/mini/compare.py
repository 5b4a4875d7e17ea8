"""Candidates for the embedded model, side by side on what its run held out; and the mean of two models' weights.

    python -m rerank_udf.training.mini.compare --work build/mini --mean a+b=build/a,build/b build/a build/b mini

The same 24 queries a set for every model. The help sets' lists are measured twice: with passages of one language, and
of two: where the right ones are in another language, mixed with wrong ones of the asker's own, and the other way round.
A model that learnt from the first alone puts whatever is in the asker's language last, and only the second shows it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import numpy as np
import pandas as pd
from rich.console import Console
from safetensors.numpy import load_file, save_file

from rerank_udf.errors import ConfigError, RerankError
from rerank_udf.evaluation import evaluate
from rerank_udf.models import local_folder, resolve_model
from rerank_udf.models.checkpoint import CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE
from rerank_udf.tables import PASSAGE_ID, QUERY_ID, SCORE
from rerank_udf.training.development import (
    FIRST,
    SET,
    TEACHER,
    HeldOutList,
    held_out_lists,
    qrels_of,
    ranking_of,
)
from rerank_udf.training.mini.fusion import by_weight
from rerank_udf.training.mini.judged import first_stage_scores, scored
from rerank_udf.training.mini.recipe import recipe
from rerank_udf.training.mini.tables import IN_ONE_LANGUAGE, OTHER, OWN
from rerank_udf.training.settings import TrainingSet
from rerank_udf.training.split import split
from rerank_udf.training.tables import Floats, TrainingTables, read_tables

MIXED = " (mixed)"
KINDS = ("one language", "another language", "two, right in another", "two, right in the own")
_OF_EACH = 10


@click.command()
@click.option(
    "--work", required=True, type=click.Path(exists=True, path_type=Path), help="As for `make mini`."
)
@click.option("--queries", default=24, show_default=True, help="Of each set.")
@click.option(
    "--mean", "means", multiple=True, metavar="NAME=FOLDER,FOLDER", help="Also a mean, kept as WORK/NAME."
)
@click.option("--sets", help="These only, separated by commas.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the figures here as JSON.")
@click.argument("models", nargs=-1, required=True)
def main(
    work: Path,
    queries: int,
    means: tuple[str, ...],
    sets: str | None,
    out: Path | None,
    models: tuple[str, ...],
) -> None:
    """Compare MODELS: folders, or `mini`."""
    try:
        named = {Path(one).name: local_folder(resolve_model(one, None)) for one in models}
        for one in means:
            name, _, parts = one.partition("=")
            named[name] = mean_of([Path(part) for part in parts.split(",") if part], work / name)
        table, weights = compare(named, work, queries, None if sets is None else sets.split(","))
    except RerankError as error:
        print(f"compare: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    console = Console(width=140)
    console.print(table.round(3).to_string(), highlight=False)
    for name, mixtures in weights.items():
        console.print(f"{name}: by its weight in a min-max mixture with the first stage", highlight=False)
        console.print(mixtures.round(3).to_string(), highlight=False)
    if out is not None:
        said = {"sets": table.round(4).to_dict("index")}
        said["weights"] = {name: mixtures.round(4).to_dict("index") for name, mixtures in weights.items()}
        out.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def mean_of(folders: Sequence[Path], target: Path) -> Path:
    """A folder whose weights are the mean of those of `folders`, models of one shape; float16."""
    if len(folders) < 2:
        raise ConfigError("--mean NAME=FOLDER,FOLDER takes two folders or more")
    parts = [load_file(folder / WEIGHTS_FILE) for folder in folders]
    target.mkdir(parents=True, exist_ok=True)
    for file in (CONFIG_FILE, TOKENIZER_FILE):
        (target / file).write_bytes((folders[0] / file).read_bytes())
    mean = {
        name: np.mean([part[name].astype(np.float32) for part in parts], axis=0).astype(np.float16)
        for name in parts[0]
    }
    save_file(mean, target / WEIGHTS_FILE, metadata={"format": "pt"})
    return target


def compare(
    models: Mapping[str, Path], work: Path, queries: int, sets: Sequence[str] | None = None
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """nDCG@10, a row a set and a kind of sets, columns n, first, teacher, each model; and each model's `by_weight`."""
    config = recipe(Path(), work, work / "model")
    lists: list[HeldOutList] = []
    first: list[Floats] = []
    for one in config.sets:
        if one.qrels and (sets is None or one.name in sets):
            tables = read_tables(one)
            found = held_out_lists(tables, split(tables, config.seed), queries)
            lists += found
            first += first_stage_scores(one, found)
            mixed = _mixed(one, tables, found)
            lists += mixed
            first += [each.teacher for each in mixed]
    systems = {FIRST: first, TEACHER: [one.teacher for one in lists]}
    systems |= {name: scored(folder, lists) for name, folder in models.items()}
    rankings = {name: ranking_of(lists, scores) for name, scores in systems.items()}
    measured = evaluate(
        rankings.pop(FIRST),
        qrels_of(lists),
        measures=["nDCG@10"],
        baseline=rankings,
        group_by=pd.DataFrame(
            {QUERY_ID: [one.key for one in lists], SET: [one.texts.set_name for one in lists]}
        ),
        name=FIRST,
    )
    rows = measured.summary.query("documents == 'all' and group != 'all'")
    table = rows.pivot(index="group", columns="system", values="mean")[list(systems)]
    table.insert(0, "n", rows.drop_duplicates("group").set_index("group")["n"])
    parts = {kind: table[[_kind(name) == kind for name in table.index]] for kind in KINDS}
    parts = {kind: part for kind, part in parts.items() if len(part)}
    means = pd.DataFrame({kind: part.mean() for kind, part in parts.items()}).T
    means["n"] = [part["n"].sum() for part in parts.values()]
    kinds = [_kind(one.texts.set_name) for one in lists]
    weights = {name: by_weight(lists, systems[name], first, kinds) for name in models}
    return pd.concat([table, means]).astype({"n": int}), weights


def _kind(name: str) -> str:
    own = name.removesuffix(MIXED) in IN_ONE_LANGUAGE
    if name.endswith(MIXED):
        return KINDS[3] if own else KINDS[2]
    return KINDS[0] if own else KINDS[1]


def _mixed(settings: TrainingSet, tables: TrainingTables, lists: list[HeldOutList]) -> list[HeldOutList]:
    """The same queries over two languages: the first `_OF_EACH` of either, in the order of e5's cosines."""
    wrong = _wrong_ones_of_the_other_side(settings)
    if wrong is None:
        return []
    assert settings.teacher is not None
    by_query = dict(list(wrong.groupby(QUERY_ID)))
    text_of = dict(zip(tables.passages.ids, tables.passages.texts, strict=True))
    name = settings.name + MIXED
    found = []
    for one in lists:
        query = one.key.split(" ", 1)[1]
        parts = [
            pd.DataFrame({PASSAGE_ID: one.passage_ids, SCORE: one.teacher / settings.teacher.scale}),
            by_query.get(query, wrong.head(0))[[PASSAGE_ID, SCORE]],
        ]
        both = pd.concat([part.head(_OF_EACH) for part in parts]).sort_values(
            SCORE, ascending=False, kind="stable"
        )
        ids = both[PASSAGE_ID].tolist()
        texts = dataclasses.replace(one.texts, set_name=name, passages=[text_of[passage] for passage in ids])
        cosines = both[SCORE].to_numpy(np.float32)
        found.append(
            dataclasses.replace(one, key=f"{name} {query}", texts=texts, passage_ids=ids, teacher=cosines)
        )
    return found


def _wrong_ones_of_the_other_side(settings: TrainingSet) -> pd.DataFrame | None:
    """query_id, passage_id, score, best first; None for a set that has no such lists."""
    for ranking in (OWN, OTHER):
        if ranking in settings.rankings:
            return pd.read_parquet(str(settings.rankings[ranking].path))
    return None


if __name__ == "__main__":
    main()
