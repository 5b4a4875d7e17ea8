"""Tables for a training run out of whatever Spark reads: written as Parquet beside the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from rerank_udf.lake.sources import bad_lines_told, read_source
from rerank_udf.tables import PASSAGE_ID, QUERY_ID, RANK
from rerank_udf.training.settings import TrainingConfig

FOLDER = "tables"


def exported(spark: SparkSession, config: TrainingConfig) -> TrainingConfig:
    """`config` with every table that is not plain Parquet replaced by a copy under its work folder.

    The copies pass the driver, as training holds them in memory anyway. Their rows are in the order of their ids: Spark
    gives them in any, and a run goes on with the rows that it began with. Raises InputError as `read_source`.
    """
    raw = config.model_dump(mode="json", by_alias=True)
    for one, settings in zip(config.sets, raw["sets"], strict=True):
        for name, source in one.sources().items():
            if source.is_plain_parquet():
                continue
            path = Path(config.work) / FOLDER / one.name / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            with bad_lines_told():
                rows = read_source(spark, source, f"sets.{one.name}.{name}").toPandas()
            keys = [QUERY_ID, PASSAGE_ID, RANK, *([one.teacher.column] if one.teacher else [])]
            order = [column for column in keys if column in rows]
            rows.sort_values(order, kind="stable").to_parquet(path, index=False)
            _put(settings, name, {"path": str(path)})
    return TrainingConfig.model_validate(raw)


def _put(settings: dict[str, Any], name: str, source: dict[str, str]) -> None:
    section, _, ranking = name.partition(".")
    if ranking:
        settings["rankings"][ranking] = source
    elif section in ("qrels", "teacher"):
        settings[section] = source if section == "qrels" else {**settings["teacher"], "table": source}
    else:
        settings["input"][section] = source
