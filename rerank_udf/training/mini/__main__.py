"""`make mini`: from PyPI's packages and a folder of retrieval sets to the embedded model's trained layers.

Everything that takes long is kept in the work folder and found there again: e5's vectors, the tables, the run's
checkpoints. Called again with more steps, the run goes on.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from safetensors.numpy import load_file, save_file

from rerank_udf.errors import ModelError, RerankError
from rerank_udf.models import mini
from rerank_udf.models.cache import complete_folder, file_digest
from rerank_udf.models.checkpoint import WEIGHTS_FILE
from rerank_udf.training.mini import blocks
from rerank_udf.training.mini.abstracts import abstract_collections
from rerank_udf.training.mini.collections import read_all
from rerank_udf.training.mini.encoders import e5
from rerank_udf.training.mini.fusion import by_weight
from rerank_udf.training.mini.judged import Judged, Scores, judged_lists, scored
from rerank_udf.training.mini.recipe import STEPS, recipe
from rerank_udf.training.mini.tables import write_tables
from rerank_udf.training.output import CARD_FILE
from rerank_udf.training.run import HISTORY_FILE
from rerank_udf.training.train import train

HEAD = {"dense": (384, 384), "out_proj": (1, 384)}
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_DEVIATIONS = {"dense": 0.05, "out_proj": 0.02}


@click.command()
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of the retrieval sets.")
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Where what takes long is kept.")
@click.option(
    "--packages", required=True, type=click.Path(path_type=Path), help="Where two archives of PyPI lie."
)
@click.option("--steps", default=STEPS, show_default=True, help="Of the whole run.")
@click.option("--start", type=_FILE, help="Trained layers (safetensors) to begin with.")
@click.option("--tables-only", is_flag=True, help="Make the tables and stop.")
@click.option("--install", is_flag=True, help="Put the result into this checkout as the model mini.")
def main(
    data: Path,
    work: Path,
    packages: Path,
    steps: int,
    start: Path | None,
    tables_only: bool,
    install: bool,
) -> None:
    """Train mini."""
    console = Console(width=120)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("rerank_udf").setLevel(logging.INFO)
    try:
        encoder = e5()
        collections = [*read_all(data, work, encoder), *abstract_collections(packages, work, encoder)]
        write_tables(collections, work, encoder)
        if tables_only:
            return
        base = base_model(work, start)
        config = recipe(base, work, work / "model", steps, earlier_layers=start is not None)
        output = train(config, console)
        held_out = judged_lists(config)
        console.print(f"scoring {len(held_out.lists):,} held-out lists with {output}", highlight=False)
        scores = scored(output, held_out.lists)
        weights = by_weight(held_out.lists, scores, held_out.first, held_out.kinds)
        console.print(
            "nDCG@10 by the model's weight in a min-max mixture with the first stage, held-out queries"
        )
        console.print(weights.round(4).to_string(), highlight=False)
        weights.round(4).to_json(output / "fusion.json", orient="index", indent=1)
        console.print(f"{output}: load_scorer({str(output)!r})")
        if install:
            install_layers(Path(config.work), output, held_out, scores, console)
    except RerankError as error:
        print(f"mini: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def base_model(work: Path, start: Path | None) -> Path:
    """multilingual-e5-small as a cross-encoder: with a head drawn at random, or with earlier trained layers.

    Each start has a folder of its own, so that a run is never gone on with from another.
    """
    target = work / ("base" if start is None else f"base-{file_digest(start)[:16]}")

    def build(folder: Path) -> dict[str, str]:
        parts = mini.find_parts()
        with tempfile.TemporaryDirectory() as temporary:
            trained = Path(temporary) / mini.TRAINED_FILE
            if start is None:
                save_file(_new_head(), trained)
            return mini.assemble(mini.Parts(parts.frozen, parts.tokenizer, start or trained), folder)

    return complete_folder(target, build)


def _new_head() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in HEAD.items():
        drawn = rng.normal(scale=_DEVIATIONS[name], size=shape)
        tensors[f"classifier.{name}.weight"] = drawn.astype(np.float16)
        tensors[f"classifier.{name}.bias"] = np.zeros(shape[0], np.float16)
    return tensors


def install_layers(work: Path, model: Path, held_out: Judged, scores: Scores, console: Console) -> None:
    """Write what differs from e5 into the package, in 8-bit blocks, with the manifest and the card.

    `work`: the run's folder; `scores`: what the model gives the held-out lists. Raises ModelError, with nothing
    written, where the blocks cost more than `blocks.MOST` in some language.
    """
    with tempfile.TemporaryDirectory() as temporary:
        packed, whole = _in_blocks(model, Path(temporary))
        console.print("scoring them with the 8-bit blocks", highlight=False)
        cost = blocks.cost_of_blocks(held_out, scores, scored(whole, held_out.lists))
        console.print("nDCG@10 before and after the 8-bit blocks, held-out queries")
        console.print(cost.round(4).to_string(), highlight=False)
        lost = cost[blocks.BEFORE] - cost[blocks.AFTER]
        said = f"8-bit blocks cost {lost.max():.4f} nDCG@10 in {lost.idxmax()}"
        if lost.max() > blocks.MOST:
            raise ModelError(f"the {said}, and {blocks.MOST} is the most: nothing was installed")
        shutil.copyfile(packed, mini.WEIGHTS_FOLDER / mini.TRAINED_FILE)
    card = (model / CARD_FILE).read_text(encoding="utf-8") + f"- The {said}, the most of any language.\n"
    (mini.WEIGHTS_FOLDER / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    history = (work / HISTORY_FILE).read_text(encoding="utf-8")
    mini.write_manifest(
        "mini: multilingual-e5-small as a cross-encoder, trained on the sets in its card",
        json.loads(history.splitlines()[-1]),
    )


def _in_blocks(model: Path, folder: Path) -> tuple[Path, Path]:
    """The trained layers' file as it would be installed, and the whole model made with it, both in `folder`."""
    packed, whole = folder / mini.TRAINED_FILE, folder / "mini"
    save_file(mini.to_blocks(_trained_layers(model)), packed)
    whole.mkdir()
    parts = mini.find_parts()
    mini.assemble(mini.Parts(parts.frozen, parts.tokenizer, packed), whole)
    return packed, whole


def _trained_layers(model: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors that are not e5's own."""
    frozen = dict(mini.frozen_tensors(mini.find_parts().frozen))
    return {
        name: tensor
        for name, tensor in load_file(model / WEIGHTS_FILE).items()
        if name not in frozen or not np.array_equal(tensor, frozen[name].astype(np.float16))
    }


if __name__ == "__main__":
    main()
