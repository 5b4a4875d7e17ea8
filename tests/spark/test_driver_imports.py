"""Building a transform on the driver loads no torch, even for a real model folder."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import os, sys
os.environ["PYSPARK_PYTHON"] = sys.executable
from pyspark.sql import SparkSession
from rerank_udf.spark import cross_encoder_udf, rerank
spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
schema = "query_id string, passage_id string, query string, passage string"
table = spark.createDataFrame([("q", "p", "how long", "five days")], schema)
options = {"precision": "float32", "device": "cpu"}
reranked = rerank(table, model=sys.argv[1], partitions=1, **options)
logit = cross_encoder_udf(sys.argv[1], returns="logit", **options)
scored = table.select(logit("query", "passage"))
before = [name for name in ("torch", "transformers") if name in sys.modules]
logits = [reranked.collect()[0]["logit"], scored.collect()[0][0]]
after = [name for name in ("torch", "transformers") if name in sys.modules]
print("RESULT", before, after, logits[0] == logits[1], abs(logits[0]) > 0)
"""


@pytest.mark.slow
def test_a_driver_never_loads_torch_though_its_workers_score_with_it(tiny_bert):
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tiny_bert)], capture_output=True, text=True, timeout=300, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines == ["RESULT [] [] True True"], done.stderr[-3000:]
