"""A table whose columns are renamed by position, so that no setting for case sensitivity and no odd name matters."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from rerank_udf.errors import InputError

INTEGER_TYPES = (T.ByteType, T.ShortType, T.IntegerType, T.LongType)
ID_TYPES = (T.StringType, *INTEGER_TYPES)
NUMBER_TYPES = (*INTEGER_TYPES, T.FloatType, T.DoubleType, T.DecimalType)


@dataclass(frozen=True)
class NamedTable:
    """A DataFrame whose columns are renamed by position, with the user's names beside them."""

    label: str
    frame: DataFrame
    internal: dict[str, str]
    types: dict[str, T.DataType]

    @classmethod
    def of(cls, label: str, frame: DataFrame, prefix: str) -> NamedTable:
        """Rename the columns to `_<prefix>0`, `_<prefix>1`, …; InputError where two have the same name."""
        twice = [name for name, count in Counter(frame.columns).items() if count > 1]
        if twice:
            raise InputError(f"{label} has two columns called {twice[0]!r}; rename or drop one of them")
        names = [f"_{prefix}{i}" for i in range(len(frame.columns))]
        internal = dict(zip(frame.columns, names, strict=True))
        types = {f.name: f.dataType for f in frame.schema.fields}
        return cls(label, frame.toDF(*names), internal, types)

    def __contains__(self, name: str) -> bool:
        return name in self.internal

    def column(self, name: str) -> Column:
        """The column that the user calls `name`."""
        return F.col(self.internal[name])

    def _near(self, name: str) -> str:
        """A remark on a column whose name differs in capitals or in blanks around it only."""
        for found in self.internal:
            if found.strip().lower() == name.strip().lower():
                return (
                    f"{found!r} differs in {'blanks' if found.strip() == name.strip() else 'capitals'} only; "
                )
        return ""

    def require(
        self, name: str, setting: str, allowed: tuple[type[T.DataType], ...], expected: str
    ) -> Column:
        """The column `name`, or an InputError that names the table, what it has and the setting to change."""
        if name not in self.internal:
            raise InputError(
                f"{self.label} has no column {name!r} (it has {', '.join(self.internal) or 'none'}); "
                f"{self._near(name)}name the right one in input.columns.{setting}"
            )
        found = self.types[name]
        if not isinstance(found, allowed):
            raise InputError(
                f"{self.label}.{name} is {found.simpleString()}, expected {expected}; cast it first"
            )
        return self.column(name)
