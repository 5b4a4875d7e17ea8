"""Decide once, before anything is scored, which files score and in which precision."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyspark.sql import SparkSession

from rerank_udf.config import Model
from rerank_udf.engine import ScorerPlan, load_scorer, resolve_scorer
from rerank_udf.engine.capability import check_precision, resolve_device
from rerank_udf.errors import RerankError
from rerank_udf.models import resolve_model
from rerank_udf.spark.scoring import Loadable, LoadedOnExecutor
from rerank_udf.spark.session import is_local

if TYPE_CHECKING:
    from rerank_udf.models import ModelFiles

_SETTINGS = [name for name in inspect.signature(load_scorer).parameters if name != "model"]


def plan_for_functions(model: str, scorer: dict[str, Any]) -> Loadable:
    """For the column function and the transform, which run no job of their own.

    The driver digests and checks the files where it sees them; device and `auto` precision are each executor's own.
    Raises TypeError for an unknown argument, ModelError and ConfigError for what the driver can see is wrong.
    """
    unknown = sorted(set(scorer) - set(_SETTINGS))
    if unknown:
        raise TypeError(f"unknown argument {unknown[0]!r}; a scorer takes {', '.join(_SETTINGS)}")
    check_precision(scorer.get("precision", "auto"))
    resolve_device(scorer.get("device", "auto"))
    found = on_driver(model, scorer.get("revision"))
    settings = {name: value for name, value in scorer.items() if name != "revision"}
    if isinstance(found, str):
        return LoadedOnExecutor(found, settings)
    resolve_scorer(
        found, **{**settings, "device": "cpu", "precision": "float32"}
    )  # checks lengths against the files
    return LoadedOnExecutor(found, settings)


def plan_for_job(spark: SparkSession, model: Model, *, calibrate: bool = True) -> ScorerPlan:
    """The job's scorer, fully resolved: files digested, revision pinned, precision settled, `model_key` known.

    Where the driver does not see the path, or is not a machine that scores, a one-row task resolves it on an
    executor. `calibrate` as in `resolve_scorer`. Raises ModelError where the model cannot be used, ConfigError for
    settings that do not fit it.
    """
    settings = {
        "max_length": model.max_length,
        "query_max_length": model.query_max_length,
        "truncation": model.truncation,
        "precision": model.precision,
        "device": model.device,
        "max_tokens_per_batch": None if model.max_tokens_per_batch == "auto" else model.max_tokens_per_batch,
        "calibrate": calibrate,
    }
    found = on_driver(model.name, model.revision)
    if isinstance(found, str) or not is_local(spark):
        return _on_executor(spark, found, settings)
    return resolve_scorer(found, **settings)  # type: ignore[arg-type]


def on_driver(model: str | ModelFiles, revision: str | None = None) -> str | ModelFiles:
    """Digest a folder, pin a hub revision; a path that only executors may see is passed on as it is.

    Raises ModelError where the driver sees the model and finds it unusable.
    """
    if not isinstance(model, str):
        return model
    if model.startswith(("/", "./", "../")) and not Path(model).exists():
        return model
    return resolve_model(model, revision)


def _on_executor(spark: SparkSession, found: str | ModelFiles, settings: dict[str, Any]) -> ScorerPlan:
    """Resolve in a one-row task; what goes wrong there comes back as the error it was."""

    def resolve(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if not batch.num_rows:
                continue
            try:
                answer: Any = resolve_scorer(found, **settings)
            except RerankError as error:
                answer = error
            yield pa.RecordBatch.from_arrays([pa.array([pickle.dumps(answer)])], ["answer"])

    rows = spark.range(1, numPartitions=1).mapInArrow(resolve, "answer binary").collect()
    answer = pickle.loads(bytes(rows[0]["answer"]))
    if isinstance(answer, RerankError):
        raise answer
    assert isinstance(answer, ScorerPlan)
    return answer
