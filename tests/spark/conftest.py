"""One Spark session for the tests of this folder: two cores, few partitions, no UI, this Python for its workers."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
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


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    builder = SparkSession.builder.master("local[2]").appName("tests")
    settings = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.shuffle.partitions": "3",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.memory": "1g",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
        "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("warehouse")),
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
