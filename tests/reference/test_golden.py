"""Ids and float32 logits against what the pinned reference gave (golden/*.parquet, written by make_golden.py).

No reference environment is needed here. A golden that no longer fits its cases or its model fails with the remedy.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from make_models import MODELS, weights_digest, write_model
from reference_cases import Case, groups

from rerank_udf import Scorer, load_scorer
from rerank_udf.errors import ModelError
from rerank_udf.models import mini
from rerank_udf.tokens import PairLimits, PairTokenizer

GOLDEN = Path(__file__).parent / "golden"
LOGIT_TOLERANCE = 1e-4
REMEDY = "run `make golden`"
GROUPS = [(model, group.name) for model in MODELS for group in groups(model)]


class Golden(NamedTuple):
    """One group: its rows as the file has them, and its texts as reference_cases.py makes them."""

    folder: Path
    rows: list[dict[str, Any]]
    queries: list[str]
    passages: list[str]

    @property
    def settings(self) -> dict[str, Any]:
        return {name: self.rows[0][name] for name in ("max_length", "query_max_length", "truncation")}

    def differing(self, equal: Iterator[bool]) -> list[str]:
        """Names of the cases that are not equal."""
        return [row["case"] for row, same in zip(self.rows, equal, strict=True) if not same]


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {model: write_model(model, tmp_path_factory.mktemp(model)) for model in MODELS}


@pytest.fixture(params=GROUPS, ids=lambda pair: "-".join(pair))
def golden(request: pytest.FixtureRequest, model_folders: dict[str, Path]) -> Golden:
    model, name = request.param
    return _golden(model, name, model_folders[model])


def _header(model: str) -> dict[str, Any]:
    return json.loads(pq.read_schema(GOLDEN / f"{model}.parquet").metadata[b"header"])


def _golden(model: str, name: str, folder: Path) -> Golden:
    rows = pq.read_table(GOLDEN / f"{model}.parquet", filters=[("group", "=", name)]).to_pylist()
    (cases,) = (group.cases for group in groups(model) if group.name == name)
    made = [(case.name, _texts_sha256(case)) for case in cases]
    assert [(row["case"], row["texts_sha256"]) for row in rows] == made, f"the cases have changed: {REMEDY}"
    return Golden(folder, rows, [case.query for case in cases], [case.passage for case in cases])


# Loading XLM-R's tokenizer takes a second, and many groups share their settings.
@cache
def _tokenizer(folder: Path, **settings: Any) -> PairTokenizer:
    return PairTokenizer.from_folder(folder, PairLimits(**settings))


@cache
def _scorer(folder: Path | str, **settings: Any) -> Scorer:
    return load_scorer(folder, precision="float32", device="cpu", **settings)


def _texts_sha256(case: Case) -> str:
    return hashlib.sha256(json.dumps([case.query, case.passage]).encode()).hexdigest()


@pytest.mark.parametrize("model", MODELS)
def test_the_golden_was_made_with_these_model_files(model: str, model_folders: dict[str, Path]) -> None:
    header, folder = _header(model), model_folders[model]
    assert weights_digest(folder) == header["weights_digest"], f"other weights than the golden's: {REMEDY}"
    tokenizer = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    expected = header["files_sha256"]["tokenizer.json"]
    assert tokenizer == expected, f"another tokenizer than the golden's: {REMEDY}"


@pytest.mark.parametrize("model", [*MODELS, "mini"])
def test_the_golden_was_made_with_the_pinned_reference(model: str) -> None:
    pins = (Path(__file__).parents[2] / "constraints-reference.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in pins if "==" in line and not line.startswith("#"))
    versions = {name: version.split("+")[0] for name, version in _header(model)["versions"].items()}
    del versions["python"]
    assert versions == {name: pinned[name] for name in versions}, f"the pins have changed: {REMEDY}"


def test_token_ids_and_types_are_the_reference_s(golden: Golden) -> None:
    pairs = _tokenizer(golden.folder, **golden.settings).encode(golden.queries, golden.passages)
    got_ids = np.split(pairs.token_ids, pairs.offsets[1:-1])
    same = (got.tolist() == row["token_ids"] for got, row in zip(got_ids, golden.rows, strict=True))
    assert golden.differing(same) == []
    if golden.rows[0]["type_ids"] is None:
        assert pairs.type_ids is None
    else:
        got_types = np.split(pairs.type_ids, pairs.offsets[1:-1])
        same = (got.tolist() == row["type_ids"] for got, row in zip(got_types, golden.rows, strict=True))
        assert golden.differing(same) == []


def test_no_pair_is_longer_than_max_length(golden: Golden) -> None:
    lengths = [len(row["token_ids"]) for row in golden.rows]
    assert max(lengths) <= golden.settings["max_length"]


def test_float32_logits_are_the_reference_s_within_rounding(golden: Golden) -> None:
    logits = _scorer(golden.folder, **golden.settings).logits(golden.queries, golden.passages)
    expected = np.array([row["logit"] for row in golden.rows], dtype=np.float32)
    assert logits.dtype == np.float32
    assert golden.differing(np.abs(logits - expected) <= LOGIT_TOLERANCE) == []


def test_scores_are_the_reference_s_normalised_scores(model_folders: dict[str, Path]) -> None:
    golden = _golden("tiny-xlmr", "sentences", model_folders["tiny-xlmr"])
    scorer = _scorer(golden.folder, **golden.settings)
    for query, passage, row in list(zip(golden.queries, golden.passages, golden.rows, strict=True))[:12]:
        (ranked,) = scorer.rank(query, [passage])
        assert ranked.score == pytest.approx(row["score"], abs=LOGIT_TOLERANCE / 4)
        assert row["score"] == pytest.approx(1 / (1 + math.exp(-row["logit"])), abs=1e-7)


@pytest.fixture(scope="module")
def mini_digests() -> dict[str, str]:
    try:
        return mini.digests()
    except ModelError as absent:
        pytest.skip(str(absent))


def test_the_golden_of_mini_was_made_with_the_weights_in_the_repository(mini_digests: dict[str, str]) -> None:
    expected = _header("mini")["files_sha256"]
    assert {name: mini_digests[name] for name in expected} == expected, f"mini has changed: {REMEDY}"


def test_mini_gives_the_reference_s_logits_over_twelve_languages(mini_digests: dict[str, str]) -> None:
    golden = _golden("mini", "sentences", mini.assembled_folder())
    logits = _scorer("mini", **golden.settings).logits(golden.queries, golden.passages)
    expected = np.array([row["logit"] for row in golden.rows], dtype=np.float32)
    assert golden.differing(np.abs(logits - expected) <= LOGIT_TOLERANCE) == []
