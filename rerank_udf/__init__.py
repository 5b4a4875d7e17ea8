"""Rerank query-passage tables with a cross-encoder, alone or inside Spark.

    from rerank_udf import load_scorer
    load_scorer("mini").rank("how long does a refund take", ["Refunds take five days.", "We ship on Mondays."])

The names below load on first use; importing the package imports neither torch nor pyspark.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rerank_udf.engine import Ranked, Scorer, load_scorer

__all__ = ["Ranked", "Scorer", "load_scorer"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("rerank_udf.engine"), name)
    raise AttributeError(f"module 'rerank_udf' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
