"""Tables by name: what a name means in SQL, and what already stands under it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pyspark.sql import SparkSession
from pyspark.sql import types as T

from rerank_udf import tables

VIEW = "view"
_SESSION_CATALOG = "spark_catalog"
_MAKES_SCHEMAS = re.compile(r"^(hadoop|jdbc)$|\.(Hadoop|Jdbc)Catalog$", re.IGNORECASE)
_DETAILS = "# Detailed Table Information"


def quoted_table(name: str) -> str:
    """A table's name as SQL takes it, each part in back-quotes; raises ConfigError where it is no table's name."""
    return quoted_parts(tables.table_parts(name))


def quoted_parts(parts: Sequence[str]) -> str:
    """The same from its parts."""
    return ".".join(tables.quoted(part) for part in parts)


def full_parts(spark: SparkSession, name: str) -> list[str]:
    """Catalog, schema (one or more parts) and table, whatever of it the session has to add.

    Spark's own rule: the first part is a catalog where one of this name is configured. Unity's are not configured one
    by one, so of three parts under Spark's session catalog (whose schemas have one part) the first is one too.
    """
    parts = tables.table_parts(name)
    current = spark.catalog.currentCatalog()
    if len(parts) == 1:
        return [current, spark.catalog.currentDatabase(), *parts]
    known = parts[0] == _SESSION_CATALOG or spark.conf.get(f"spark.sql.catalog.{parts[0]}", None) is not None
    if known or (len(parts) > 2 and current == _SESSION_CATALOG):
        return parts
    return [current, *parts]


def provider_of(spark: SparkSession, name: str) -> str | None:
    """The format of the table of this name (delta, iceberg, parquet, hive, …); `view`, or None where there is none."""
    if not spark.catalog.tableExists(quoted_table(name)):
        return None
    rows = spark.sql(f"describe table extended {quoted_table(name)}").collect()
    headings = [row["col_name"] for row in rows]
    if _DETAILS not in headings:  # a temporary view
        return VIEW
    details = {row["col_name"]: row["data_type"] for row in rows[headings.index(_DETAILS) + 1 :]}
    return VIEW if details.get("Type") == "VIEW" else str(details.get("Provider", "unknown")).lower()


def missing_schema(spark: SparkSession, name: str) -> str | None:
    """The schema of a table's name, quoted for SQL, where a table could not be made for want of it; None otherwise.

    Iceberg's catalogs of folders and of JDBC make theirs with the first table.
    """
    catalog, *schema, _ = full_parts(spark, name)
    setting = f"spark.sql.catalog.{catalog}"
    kinds = (spark.conf.get(f"{setting}.{one}", None) or "" for one in ("type", "catalog-impl"))
    if any(_MAKES_SCHEMAS.search(kind) for kind in kinds):
        return None
    full = quoted_parts([catalog, *schema])
    return None if spark.catalog.databaseExists(full) else full


def first_difference(rows: Mapping[str, str], table: Mapping[str, str]) -> tuple[str, str] | None:
    """The first column (name → type in both) that keeps rows out of a table, and why; None where none does."""
    for name in [*rows, *table]:
        if name not in table:
            return name, "the table does not have it"
        if name not in rows:
            return name, "only the table has it"
        if rows[name] != table[name]:
            return name, f"{table[name]} in the table, {rows[name]} in the rows"
    return None


def types_of(schema: T.StructType) -> dict[str, str]:
    """Column → type; whether nulls are allowed is left out, since a table may be stricter or laxer than a plan."""
    return {field.name: field.dataType.simpleString() for field in schema.fields}
