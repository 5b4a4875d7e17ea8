"""What an evaluation inside Spark hands back: the driver's `Evaluation`, and the values by query as a table."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from rerank_udf.errors import ConfigError
from rerank_udf.evaluation import Evaluation
from rerank_udf.lake import files
from rerank_udf.spark.evaluation.measuring import Measured, collected

_WHOLE = ("n", "n_clusters", "won", "tied", "lost")


def check_folder(spark: SparkSession, folder: str) -> None:
    """Raise ConfigError where no evaluation could be written to `folder`; for before the work."""
    refused = files.refusal(spark, folder)
    if refused is not None:
        raise ConfigError(
            f"the evaluation cannot be written to {folder}: {refused}; give a folder that can be written or made"
        )


class SparkEvaluation(Evaluation):
    """An `Evaluation` with `values`: the rows of `per_query` as a DataFrame, to be written as a table.

    Of a small evaluation `per_query` is here already. Of a large one it is collected whenever it is asked for (a row
    a query × system × measure: think twice), and `values` rests on persisted rows until `release`.
    """

    values: DataFrame

    def __init__(
        self,
        summary: pd.DataFrame,
        counts: dict[str, int],
        settings: dict[str, Any],
        values: DataFrame,
        held: pd.DataFrame | Measured,
    ) -> None:
        for name, value in (("summary", summary), ("counts", counts), ("settings", settings)):
            object.__setattr__(self, name, value)
        self.values = values
        self._held = held

    @property
    def per_query(self) -> pd.DataFrame:
        """As `Evaluation` describes it."""
        if isinstance(self._held, Measured):
            table = collected(self.values)
            assert table is not None  # without queries there is no evaluation
            frame: pd.DataFrame = table.to_pandas()
            return frame
        return self._held

    def release(self) -> None:
        """Free the persisted rows of a large evaluation; what is asked of `values` later is computed again."""
        if isinstance(self._held, Measured):
            self._held.release()

    def write(self, folder: str | Path) -> None:
        """As `Evaluation.write`, to where Spark resolves `folder`.

        Of a large evaluation, and on an object store, Spark writes: its tables are then folders of files. Raises
        ConfigError where nothing can be written there.
        """
        spark, place = self.values.sparkSession, str(folder).rstrip("/")
        check_folder(spark, place)
        local = files.local_path(spark, place)
        if local is not None and not isinstance(self._held, Measured):
            if (local / "per_query.parquet").is_dir():
                shutil.rmtree(local / "per_query.parquet")
            super().write(local)
            return
        files.write_text(spark, f"{place}/summary.json", self.document())
        if local is None:
            summary = spark.createDataFrame(self._summary_rows(), self._summary_schema())
            summary.coalesce(1).write.mode("overwrite").parquet(f"{place}/summary.parquet")
        else:
            self.summary.to_parquet(local / "summary.parquet", index=False)
        self.values.write.mode("overwrite").parquet(f"{place}/per_query.parquet")

    def _summary_rows(self) -> list[tuple[Any, ...]]:
        return [tuple(row.values()) for row in self.rows()]

    def _summary_schema(self) -> T.StructType:
        kinds = {"O": T.StringType(), "f": T.DoubleType()}
        return T.StructType(
            [
                T.StructField(str(name), T.LongType() if name in _WHOLE else kinds[kind.kind])
                for name, kind in self.summary.dtypes.items()
            ]
        )

    def __repr__(self) -> str:
        found = f"{self.counts['queries']:,} queries: {', '.join(self.settings['systems'])}"
        return f"<evaluation of {found}>"
