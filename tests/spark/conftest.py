"""One Spark session for the tests of this folder: two cores, few partitions, no UI, this Python for its workers."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable

pyspark = pytest.importorskip("pyspark", reason="pyspark is not installed (make setup installs it)")
from pyspark.sql import SparkSession  # noqa: E402 - the workers' Python has to be set first
from tables_of import settings_of  # noqa: E402

# What PySpark itself warns of, and a test of ours cannot help: sockets of its gateway that Python closes at exit, and
# version numbers that 3.5 compares with distutils.
_OF_PYSPARK = ("ignore:unclosed <socket:ResourceWarning", "ignore:distutils Version:DeprecationWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            for warning in _OF_PYSPARK:
                item.add_marker(pytest.mark.filterwarnings(warning))


JARS = Path(os.environ.get("RERANK_UDF_JARS", Path(__file__).parents[3] / "shared" / "jars"))
_LINE = ".".join(pyspark.__version__.split(".")[:2])
_EXTENSIONS = {
    "delta": "io.delta.sql.DeltaSparkSessionExtension",
    "iceberg": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
}


def jars_of(lake_format: str) -> list[Path]:
    """The jars of a lake format for this line of pyspark; none where there are none."""
    return sorted((JARS / f"{lake_format}-{_LINE}").glob("*.jar"))


def _lake_settings(warehouse: Path) -> dict[str, str]:
    """Delta as Spark's own catalog and an Iceberg catalog `ice` of folders, as far as their jars are there."""
    found = [lake_format for lake_format in _EXTENSIONS if jars_of(lake_format)]
    if not found:
        return {}
    settings = {
        "spark.jars": ",".join(str(jar) for lake_format in found for jar in jars_of(lake_format)),
        "spark.sql.extensions": ",".join(_EXTENSIONS[lake_format] for lake_format in found),
    }
    if "delta" in found:
        settings["spark.sql.catalog.spark_catalog"] = "org.apache.spark.sql.delta.catalog.DeltaCatalog"
        settings["spark.databricks.delta.snapshotPartitions"] = "2"  # 50 tasks for each small log otherwise
    if "iceberg" in found:
        settings["spark.sql.catalog.ice"] = "org.apache.iceberg.spark.SparkCatalog"
        settings["spark.sql.catalog.ice.type"] = "hadoop"
        settings["spark.sql.catalog.ice.warehouse"] = str(warehouse)
    return settings


@pytest.fixture(scope="session")
def lake_formats(spark: SparkSession) -> Callable[[str], None]:
    """Call it with the lake format that a test needs: the test is skipped where this Spark has none."""

    def need(lake_format: str) -> None:
        if not jars_of(lake_format):
            pytest.skip(
                f"no {lake_format} jars for pyspark {_LINE} in {JARS} (RERANK_UDF_JARS names the folder)"
            )

    return need


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    builder = SparkSession.builder.master("local[2]").appName("tests")
    settings = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.shuffle.partitions": "3",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.memory": "1g",
        # The one compiler comes with a cache of 48 MB, which Delta and Iceberg fill; then all runs interpreted.
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=256m",
        "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("warehouse")),
        **_lake_settings(tmp_path_factory.mktemp("ice")),
    }
    for name, value in settings.items():
        builder = builder.config(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        session = builder.getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()


@pytest.fixture
def session_settings(spark: SparkSession) -> Iterator[SparkSession]:
    """The session, with every setting that a test changes put back afterwards."""
    before = settings_of(spark)
    yield spark
    for name, value in settings_of(spark).items():
        if name not in before:
            spark.conf.unset(name)
        elif before[name] != value:
            spark.conf.set(name, before[name])
