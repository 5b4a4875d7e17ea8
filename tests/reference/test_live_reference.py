"""The reference itself, run beside rerank_udf on samples of XQuAD in all twelve languages.

Needs .venv-reference (`make reference`) and the shared retrieval sets (RERANK_UDF_DATA, by default ../shared/data
beside the checkout). The reference runs once, in a process of its own. Real weights are those of mini.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from make_models import write_model
from reference_cases import CROSS_ENCODER, FLAG
from reference_sentences import LANGUAGES
from rich.console import Console
from scipy.stats import kendalltau
from training_world import settings, write_tables

from rerank_udf import load_scorer
from rerank_udf.errors import ModelError
from rerank_udf.models import mini
from rerank_udf.tokens import PairLimits, PairTokenizer
from rerank_udf.training.settings import TrainingConfig
from rerank_udf.training.train import train

pytestmark = [pytest.mark.reference, pytest.mark.data, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
REFERENCE_PYTHON = ROOT / ".venv-reference" / "bin" / "python"
XQUAD = Path(os.environ.get("RERANK_UDF_DATA") or ROOT.parent / "shared" / "data") / "xquad"
CANDIDATES = 30
SETTINGS = {
    "flag_512": {"reference": FLAG, "max_length": 512, "query_max_length": None},
    "flag_64": {"reference": FLAG, "max_length": 64, "query_max_length": 10},
    "cross_64": {"reference": CROSS_ENCODER, "max_length": 64, "query_max_length": None},
}
LOGIT_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Sample:
    """BM25's first CANDIDATES of one question a language: row i * CANDIDATES + k is question i's candidate k."""

    queries: list[str]
    passages: list[str]
    relevance: np.ndarray

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return list(zip(self.queries, self.passages, strict=True))


@dataclass(frozen=True)
class Told:
    """What the reference said of a sample: ids and float32 logit of each pair."""

    token_ids: list[list[int]]
    logits: np.ndarray


@pytest.fixture(scope="module")
def sample() -> Sample:
    if not XQUAD.is_dir():
        pytest.skip(f"no XQuAD in {XQUAD}: set RERANK_UDF_DATA to the folder of retrieval sets")
    queries, passages, relevance = [], [], []
    for number, language in enumerate(LANGUAGES):
        for query, passage, relevant in _question(XQUAD / language, 97 * number):
            queries.append(query)
            passages.append(passage)
            relevance.append(relevant)
    return Sample(queries, passages, np.array(relevance).reshape(len(LANGUAGES), CANDIDATES))


def _question(folder: Path, number: int) -> list[tuple[str, str, int]]:
    """The `number`th question of a set with its candidates: (query, passage, relevance)."""
    queries = pq.read_table(folder / "queries.parquet").sort_by("query_id").slice(number, 1).to_pylist()
    (query,) = queries
    mine = [("query_id", "=", query["query_id"])]
    candidates = pq.read_table(folder / "candidates.parquet", filters=mine).sort_by("rank").to_pylist()
    judged = pq.read_table(folder / "qrels.parquet", filters=mine).to_pylist()
    grades = {row["passage_id"]: row["relevance"] for row in judged}
    texts = {
        row["passage_id"]: row["passage"] for row in pq.read_table(folder / "passages.parquet").to_pylist()
    }
    chosen = [row["passage_id"] for row in candidates[:CANDIDATES]]
    return [(query["query"], texts[passage], grades.get(passage, 0)) for passage in chosen]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Told]]:
    """Run the reference on a model folder and pairs under some of SETTINGS."""
    if not REFERENCE_PYTHON.exists():
        pytest.skip("no .venv-reference: `make reference` builds it")

    def run(folder: Path, pairs: list[tuple[str, str]], *settings: str) -> dict[str, Told]:
        place = tmp_path_factory.mktemp("reference")
        runs = {name: {"pairs": pairs, "batch_size": 16, **SETTINGS[name]} for name in settings}
        job = {"model": str(folder), "runs": runs}
        (place / "job.json").write_text(json.dumps(job), encoding="utf-8")
        script = Path(__file__).with_name("reference_run.py")
        done = subprocess.run(
            [REFERENCE_PYTHON, script, place / "job.json", place],
            capture_output=True,
            text=True,
            check=False,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return {name: _told(place / f"{name}.npz") for name in settings}

    return run


def _told(path: Path) -> Told:
    with np.load(path) as arrays:
        ids = np.split(arrays["token_ids"], arrays["offsets"][1:-1])
        return Told([part.tolist() for part in ids], arrays["logits"])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("tiny-xlmr", tmp_path_factory.mktemp("tiny-xlmr"))


@pytest.fixture(scope="module")
def told_of_tiny(ask: Callable[..., dict[str, Told]], tiny: Path, sample: Sample) -> dict[str, Told]:
    return ask(tiny, sample.pairs, *SETTINGS)


@pytest.fixture(scope="module")
def mini_folder() -> Path:
    try:
        return mini.assembled_folder()
    except ModelError as absent:
        pytest.skip(str(absent))


@pytest.fixture(scope="module")
def told_of_mini(ask: Callable[..., dict[str, Told]], mini_folder: Path, sample: Sample) -> Told:
    return ask(mini_folder, sample.pairs, "flag_512")["flag_512"]


def _limits(setting: str) -> dict[str, Any]:
    chosen = dict(SETTINGS[setting])
    chosen["truncation"] = "only_second" if chosen.pop("reference") == FLAG else "longest_first"
    return chosen


@pytest.mark.parametrize("setting", SETTINGS)
def test_ids_of_xquad_are_the_reference_s(
    setting: str, told_of_tiny: dict[str, Told], tiny: Path, sample: Sample
) -> None:
    tokenizer = PairTokenizer.from_folder(tiny, PairLimits(**_limits(setting)))
    pairs = tokenizer.encode(sample.queries, sample.passages)
    got = [part.tolist() for part in np.split(pairs.token_ids, pairs.offsets[1:-1])]
    expected = told_of_tiny[setting].token_ids
    assert [row for row, ids in enumerate(got) if ids != expected[row]] == []


@pytest.mark.parametrize("setting", SETTINGS)
def test_logits_of_xquad_are_the_reference_s_within_rounding(
    setting: str, told_of_tiny: dict[str, Told], tiny: Path, sample: Sample
) -> None:
    scorer = load_scorer(tiny, precision="float32", device="cpu", **_limits(setting))
    difference = np.abs(scorer.logits(sample.queries, sample.passages) - told_of_tiny[setting].logits)
    assert difference.max() <= LOGIT_TOLERANCE


def test_real_weights_give_the_reference_s_logits_within_rounding(
    told_of_mini: Told, mini_folder: Path, sample: Sample
) -> None:
    scorer = load_scorer(mini_folder, precision="float32", device="cpu")
    difference = np.abs(scorer.logits(sample.queries, sample.passages) - told_of_mini.logits)
    assert difference.max() <= LOGIT_TOLERANCE


@pytest.mark.parametrize(("precision", "least_tau"), [("bfloat16", 0.99), ("float16", 0.999)])
def test_sixteen_bit_keeps_the_order_of_real_weights(
    precision: str, least_tau: float, told_of_mini: Told, mini_folder: Path, sample: Sample
) -> None:
    exact = told_of_mini.logits.reshape(sample.relevance.shape)
    scorer = load_scorer(mini_folder, precision=precision, device="cpu")
    rounded = scorer.logits(sample.queries, sample.passages).reshape(exact.shape)
    rms_error = float(np.sqrt(np.mean((rounded - exact) ** 2)))
    taus = [kendalltau(*both).statistic for both in zip(rounded, exact, strict=True)]
    change = _mean_ndcg(rounded, sample.relevance) - _mean_ndcg(exact, sample.relevance)
    print(
        f"{precision}: rms error {rms_error:.2g}, tau {min(taus):.4f} to {max(taus):.4f}, nDCG {change:+.4f}"
    )

    assert rms_error > 0, f"{precision} gives float32's own logits: it was not used"
    assert np.mean(taus) >= least_tau
    assert abs(change) <= 0.002
    assert _swaps(rounded, exact, 6 * rms_error) == 0


def _swaps(rounded: np.ndarray, exact: np.ndarray, apart: float) -> int:
    """Pairs of one query's candidates whose exact logits differ by more than `apart` and whose order changed."""
    gaps = exact[:, :, None] - exact[:, None, :]
    rounded_gaps = rounded[:, :, None] - rounded[:, None, :]
    return int(np.count_nonzero((gaps > apart) & (rounded_gaps <= 0)))


def _mean_ndcg(logits: np.ndarray, relevance: np.ndarray, depth: int = 10) -> float:
    """nDCG@10 with linear gains, the ideal being that of the candidates; 0 for a query with none relevant."""
    discounts = 1 / np.log2(np.arange(2, depth + 2))
    found = np.take_along_axis(relevance, np.argsort(-logits, axis=1, kind="stable"), axis=1)[:, :depth]
    ideal = -np.sort(-relevance, axis=1)[:, :depth]
    gains, best = found @ discounts, ideal @ discounts
    return float(np.mean(np.divide(gains, best, out=np.zeros_like(gains), where=best > 0)))


@pytest.mark.parametrize("kind", ["FlagReranker", "CrossEncoder"])
def test_a_model_that_was_trained_here_loads_in_the_reference(
    kind: str, ask: Callable[..., dict[str, Told]], tiny: Path, tmp_path: Path, sample: Sample
) -> None:
    write_tables(tmp_path)
    config = TrainingConfig.model_validate(settings(tmp_path, tiny, freeze={"embeddings": True}))
    folder = train(config, Console(quiet=True))
    setting = next(name for name, one in SETTINGS.items() if one["reference"] == kind)
    told = ask(folder, sample.pairs, setting)[setting]
    scorer = load_scorer(folder, precision="float32", device="cpu", **_limits(setting))
    difference = np.abs(scorer.logits(sample.queries, sample.passages) - told.logits)
    assert difference.max() <= LOGIT_TOLERANCE
