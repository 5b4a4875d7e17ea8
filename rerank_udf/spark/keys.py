"""The content keys of identity.py as Spark columns: same bytes, computed in the JVM."""

from __future__ import annotations

from pyspark.sql import Column
from pyspark.sql import functions as F

from rerank_udf.identity import KEY_BYTES


def text_key(text: Column) -> Column:
    """binary(16): the first bytes of sha256 over the text's UTF-8 bytes; null for null."""
    return _short_sha256(text.cast("binary"))


def pair_key(query_key: Column, passage_key: Column) -> Column:
    """binary(16): the first bytes of sha256(query_key ‖ passage_key); null where either is null."""
    return _short_sha256(F.concat(query_key, passage_key))


def _short_sha256(data: Column) -> Column:
    return F.substring(F.unhex(F.sha2(data, 256)), 1, KEY_BYTES)
