"""A score store of many made-up facts, and what using it costs: `python -m sparkbench.big_store SETTINGS RESULT`."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from rerank_udf.lake.store.parquet import ParquetStore
from rerank_udf.spark.lookup import known_facts, unknown_facts
from sparkbench.accounting import LOGGED, StageCost, stages
from sparkbench.job import session

MODEL_KEY = "0" * 32
_APPENDS = 20
_OVERLAP = 0.99  # of the pairs that are looked up


def main(settings_path: str, result_path: str) -> None:
    settings = json.loads(Path(settings_path).read_text())
    work = Path(settings["work"])
    (work / "events").mkdir(parents=True, exist_ok=True)
    spark = session({**LOGGED, "spark.eventLog.dir": (work / "events").as_uri(), **settings.get("spark", {})})
    try:
        timed = measure(spark, work, settings["facts"], settings["small"], settings["large"])
    finally:
        spark.stop()
    costs = stages(work / "events")
    for step in timed:
        step |= _shuffled(costs, step.pop("begun"), step["seconds"])
    Path(result_path).write_text(json.dumps({"steps": timed}, indent=1))


def measure(spark: SparkSession, work: Path, facts: int, small: int, large: int) -> list[dict[str, Any]]:
    """Build, count, look up few and many, as it is done and as a plain anti-join, compact; each step timed."""
    shutil.rmtree(work / "store", ignore_errors=True)
    store = ParquetStore(spark, str(work / "store"))
    steps: list[dict[str, Any]] = []

    def step(name: str, function: Callable[[], Any]) -> Any:
        begun, clock = time.time(), time.perf_counter()
        answer = function()
        seconds = time.perf_counter() - clock
        steps.append({"step": name, "begun": begun, "seconds": seconds, "answer": _plain(answer)})
        return answer

    each = facts // _APPENDS

    def append_all() -> None:
        for number in range(_APPENDS):
            store.append(made_up(spark, number * each, (number + 1) * each), MODEL_KEY, f"{number:032}")

    step(f"append {facts:,} facts in {_APPENDS} appends", append_all)
    step("stats", store.stats)
    known = known_facts(store.facts(MODEL_KEY))
    assert known is not None
    for count in (small, large):
        first = int(facts - count * _OVERLAP)
        pairs = made_up(spark, first, first + count).select("pair_key")
        step(f"which of {count:,} pairs are new", lambda p=pairs, n=count: unknown_facts(p, n, known).count())
        step(f"the same, plain anti-join, {count:,}", lambda p=pairs: plain(p, known.facts).count())
    step("compact", lambda: store.compact(False))
    step("stats after it", store.stats)
    return steps


def made_up(spark: SparkSession, first: int, last: int) -> DataFrame:
    """The facts number first … last − 1: keys that look like hashes, logits and tokens that look like a model's."""
    return spark.range(first, last, 1, max(1, (last - first) // 1_250_000)).select(
        F.unhex(F.md5(F.col("id").cast("string"))).alias("pair_key"),
        (F.pmod(F.xxhash64("id"), F.lit(16_000_000)) / 1e6 - 8).cast("float").alias("logit"),
        F.pmod(F.xxhash64("id", F.lit(1)), F.lit(480)).cast("int").alias("tokens"),
        F.lit(False).alias("truncated"),
    )


def plain(pairs: DataFrame, facts: DataFrame) -> DataFrame:
    """As people write it: no hint, whatever the optimiser makes of it."""
    return pairs.join(facts.select("pair_key"), "pair_key", "left_anti")


def _shuffled(costs: list[StageCost], begun: float, seconds: float) -> dict[str, Any]:
    within = [cost for cost in costs if begun - 0.01 <= cost.begun <= begun + seconds]
    return {
        "core_seconds": sum(cost.task_cpu for cost in within),
        "shuffled_bytes": sum(cost.shuffled for cost in within),
    }


def _plain(answer: Any) -> Any:
    return str(answer) if isinstance(answer, list) else answer


if __name__ == "__main__":
    main(*sys.argv[1:])
