"""The job as people write it today: join the texts, mapInPandas with CrossEncoder.predict, rank in a window.

`python plain_job.py SETTINGS.json RESULT.json`, in an environment with pyspark, pandas and sentence-transformers; it
imports nothing of rerank_udf.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main(settings_path: str, result_path: str) -> None:
    settings = json.loads(Path(settings_path).read_text())
    Path(result_path).write_text(json.dumps(measure(settings), indent=2))


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """settings: tables, output, model, dtype, batch_size, partitions, spark (properties), master."""
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    builder = SparkSession.builder.master(settings["master"]).config("spark.ui.enabled", "false")
    builder = builder.config("spark.ui.showConsoleProgress", "false")
    for name, value in settings["spark"].items():
        builder = builder.config(name, value)
    clock = time.perf_counter()
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    begun = time.perf_counter()
    rerank(spark, settings)
    seconds = time.perf_counter() - begun
    rows = spark.read.parquet(settings["output"]).count()
    spark.stop()
    versions = {
        name: importlib.metadata.version(name) for name in ("pyspark", "sentence-transformers", "torch")
    }
    return {"pairs": rows, "session_seconds": begun - clock, "seconds": seconds, "versions": versions}


def rerank(spark: Any, settings: dict[str, Any]) -> None:
    """Read, join, score, rank, write."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    model_name, dtype, batch_size = settings["model"], settings["dtype"], settings["batch_size"]
    max_length = settings["max_length"]

    def predict(frames: Any) -> Any:
        from sentence_transformers import CrossEncoder

        model = CrossEncoder(model_name, max_length=max_length, model_kwargs={"torch_dtype": dtype})
        for frame in frames:
            pairs = list(zip(frame["query"], frame["passage"], strict=True))
            scores = model.predict(pairs, batch_size=batch_size, show_progress_bar=False)
            yield frame[["query_id", "passage_id"]].assign(score=scores.astype("float64"))

    candidates, queries, passages = (
        spark.read.parquet(f"{settings['tables']}/{name}") for name in ("candidates", "queries", "passages")
    )
    pairs = candidates.join(queries, "query_id").join(passages, "passage_id")
    pairs = pairs.select("query_id", "passage_id", "query", "passage").repartition(settings["partitions"])
    scored = pairs.mapInPandas(predict, "query_id string, passage_id string, score double")
    place = F.row_number().over(Window.partitionBy("query_id").orderBy(F.desc("score")))
    scored.withColumn("rank", place).write.mode("overwrite").parquet(settings["output"])


if __name__ == "__main__":
    main(*sys.argv[1:])
