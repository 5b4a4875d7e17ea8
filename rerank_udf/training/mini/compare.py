"""Candidates for the embedded model, side by side on what its run held out; and the mean of two models' weights.

    python -m rerank_udf.training.mini.compare --work build/mini --mean a+b=build/a,build/b build/a build/b mini

The same 24 queries a set for every model. The help sets' lists are measured twice: with passages of one other language,
and mixed with the wrong ones of the asker's own.
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
from rerank_udf.training.mini.collections import SAME_LANGUAGE
from rerank_udf.training.mini.fusion import scored
from rerank_udf.training.mini.recipe import recipe
from rerank_udf.training.mini.tables import OWN
from rerank_udf.training.settings import TrainingSet
from rerank_udf.training.split import split
from rerank_udf.training.tables import Floats, TrainingTables, read_tables

MIXED = " (mixed)"
KINDS = ("one language", "another language", "mixed")
_DEPTH = 20


@click.command()
@click.option(
    "--work", required=True, type=click.Path(exists=True, path_type=Path), help="As for `make mini`."
)
@click.option("--queries", default=24, show_default=True, help="Of each set.")
@click.option(
    "--mean", "means", multiple=True, metavar="NAME=FOLDER,FOLDER", help="Also a mean, kept as WORK/NAME."
)
@click.option("--out", type=click.Path(path_type=Path), help="Also write the figures here as JSON.")
@click.argument("models", nargs=-1, required=True)
def main(work: Path, queries: int, means: tuple[str, ...], out: Path | None, models: tuple[str, ...]) -> None:
    """Compare MODELS: folders, or `mini`."""
    try:
        named = {Path(one).name: local_folder(resolve_model(one, None)) for one in models}
        for one in means:
            name, _, parts = one.partition("=")
            named[name] = mean_of([Path(part) for part in parts.split(",") if part], work / name)
        table = compare(named, work, queries)
    except RerankError as error:
        print(f"compare: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    Console(width=140).print(table.round(3).to_string(), highlight=False)
    if out is not None:
        out.write_text(json.dumps(table.round(4).to_dict("index"), indent=1) + "\n", encoding="utf-8")


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


def compare(models: Mapping[str, Path], work: Path, queries: int) -> pd.DataFrame:
    """nDCG@10: a row a set and a kind of sets, columns n, first, teacher and each model."""
    config = recipe(Path(), work, work / "model")
    lists: list[HeldOutList] = []
    for one in config.sets:
        if one.qrels:
            tables = read_tables(one)
            lists += _lists(one, tables, held_out_lists(tables, split(tables, config.seed), queries))
    texts = [one.texts for one in lists]
    systems = {FIRST: [-_places(one) for one in lists], TEACHER: [one.teacher for one in lists]}
    systems |= {name: scored(folder, texts) for name, folder in models.items()}
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
    rows = measured.summary.query("documents == 'all' and group != '(all)'")
    table = rows.pivot(index="group", columns="system", values="mean")[list(systems)]
    table.insert(0, "n", rows.drop_duplicates("group").set_index("group")["n"])
    kinds = {kind: table[[_kind(name) == kind for name in table.index]] for kind in KINDS}
    means = pd.DataFrame({kind: part.mean() for kind, part in kinds.items()}).T
    means["n"] = [part["n"].sum() for part in kinds.values()]
    return pd.concat([table, means]).astype({"n": int})


def _kind(name: str) -> str:
    if name.endswith(MIXED):
        return KINDS[2]
    return KINDS[0] if name in SAME_LANGUAGE or name == "help-titles" else KINDS[1]


def _places(one: HeldOutList) -> Floats:
    return np.arange(len(one.passage_ids), dtype=np.float32)


def _lists(settings: TrainingSet, tables: TrainingTables, lists: list[HeldOutList]) -> list[HeldOutList]:
    """The lists as they are, and mixed where the set has a ranking in the asker's language."""
    return [*lists, *_mixed(settings, tables, lists)] if OWN in settings.rankings else lists


def _mixed(settings: TrainingSet, tables: TrainingTables, lists: list[HeldOutList]) -> list[HeldOutList]:
    """The same queries over both languages: by e5's cosine, the first `_DEPTH` of what is in either list."""
    rows = pd.read_parquet(str(settings.rankings[OWN].path))
    own = dict(list(rows.groupby(QUERY_ID)))
    text_of = dict(zip(tables.passages.ids, tables.passages.texts, strict=True))
    found = []
    for one in lists:
        query = one.key.split(" ", 1)[1]
        other = pd.DataFrame({PASSAGE_ID: one.passage_ids, SCORE: one.teacher / settings.teacher.scale})  # type: ignore[union-attr]
        both = pd.concat([other, own[query][[PASSAGE_ID, SCORE]]]) if query in own else other
        both = both.sort_values(SCORE, ascending=False, kind="stable").head(_DEPTH)
        ids = both[PASSAGE_ID].tolist()
        name = settings.name + MIXED
        texts = dataclasses.replace(one.texts, set_name=name, passages=[text_of[passage] for passage in ids])
        found.append(
            dataclasses.replace(
                one,
                key=f"{name} {query}",
                texts=texts,
                passage_ids=ids,
                teacher=both[SCORE].to_numpy(np.float32),
            )
        )
    return found


if __name__ == "__main__":
    main()
