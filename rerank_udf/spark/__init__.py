"""Reranking inside Spark: a column function, a transform and a reader.

    from rerank_udf.spark import cross_encoder_udf, rerank, read_reranked

Importing this package on a driver loads neither torch nor transformers; executors do, on their first row.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rerank_udf.lake.versions import read_reranked
    from rerank_udf.spark.transform import rerank
    from rerank_udf.spark.udf import cross_encoder_udf

__all__ = ["cross_encoder_udf", "read_reranked", "rerank"]
_HOMES = {
    "cross_encoder_udf": "rerank_udf.spark.udf",
    "read_reranked": "rerank_udf.lake.versions",
    "rerank": "rerank_udf.spark.transform",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'rerank_udf.spark' has no attribute {name!r}; it has {', '.join(__all__)}")
