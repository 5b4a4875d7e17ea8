"""`cross_encoder_udf`: a cross-encoder as a Spark column function."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import chain
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.types import DoubleType, FloatType

from rerank_udf.engine.scorer import sigmoid
from rerank_udf.errors import ConfigError, InputError
from rerank_udf.spark.model import plan_for_functions
from rerank_udf.spark.scoring import process_scorer
from rerank_udf.spark.texts import valid_utf8


def cross_encoder_udf(
    model: str = "mini", *, returns: Literal["score", "logit"] = "score", **scorer: Any
) -> Any:
    """A column function of (query, passage): `df.withColumn("score", udf("query", "passage"))`.

    An iterator pandas UDF: the model is loaded once per Python worker, on its first row, and kept. `returns="score"`
    gives double sigmoid(logit), `"logit"` float. A null text gives null, and so do a text that is not valid UTF-8 and
    a pair that cannot be scored. `scorer` takes what `load_scorer` takes (max_length, precision, device, ...).

    For SQL: `spark.udf.register("rerank_score", cross_encoder_udf(...))`. There Spark hands texts over unseen, and
    one that is not valid UTF-8 fails the task: where there may be such texts, pass `try_validate_utf8(text)`.

    Marked nondeterministic, though its values are not random: Spark evaluates a deterministic UDF again for every
    place that mentions its result (a filter on the score would score every pair twice).

    Raises ConfigError for another `returns`, ModelError where the driver can see that the model cannot be used.
    """
    if returns not in ("score", "logit"):
        raise ConfigError(f"returns is {returns!r}, expected 'score' or 'logit'")
    plan = plan_for_functions(model, scorer)
    kind = DoubleType() if returns == "score" else FloatType()

    def score(batches: Iterator[tuple[pd.Series, pd.Series]]) -> Iterator[pd.Series]:
        filled = (
            (_texts(queries), _texts(passages)) for queries, passages in map(_pair, batches) if len(queries)
        )
        first = next(filled, None)
        if first is None:
            return
        for pairs in process_scorer(plan)[0].stream(chain([first], filled)):
            yield pd.Series(sigmoid(pairs.logits) if returns == "score" else pairs.logits)

    function = pandas_udf(score, returnType=kind).asNondeterministic()  # type: ignore[call-overload]

    # With the attributes of the function that it wraps, by which `spark.udf.register` knows it.
    @functools.wraps(function)
    def of_valid_texts(query: Column | str, passage: Column | str) -> Column:
        return function(_valid(query), _valid(passage))  # type: ignore[no-any-return]

    return of_valid_texts


def _valid(text: Column | str) -> Column:
    """The text, or null where it is not valid UTF-8, which pandas cannot hold."""
    column = F.col(text) if isinstance(text, str) else text
    return F.when(valid_utf8(column), column)


def _pair(batch: Any) -> tuple[pd.Series, pd.Series]:
    """Two columns of a batch. SQL calls a registered function with any number: of one, a batch is no tuple."""
    columns = batch if isinstance(batch, tuple) else (batch,)
    if len(columns) != 2:
        raise InputError(f"cross_encoder_udf takes two columns, (query, passage), found {len(columns)}")
    return columns


def _texts(texts: pd.Series) -> pa.Array:
    try:
        return pa.Array.from_pandas(texts, type=pa.large_string())
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise InputError(f"cross_encoder_udf takes two string columns (query, passage): {error}") from None
