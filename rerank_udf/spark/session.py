"""The Spark session that a job runs in: the cluster's own, or a local one that behaves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pyspark
from pyspark.sql import SparkSession

from rerank_udf.errors import ConfigError

_JAVA_VERSION = re.compile(r'version "(?:1\.)?(\d+)')


def job_session(app_name: str) -> SparkSession:
    """The active session (a notebook's), the one `spark-submit` configured, or a local one.

    Raises ConfigError where a local session is needed and no Java that Spark takes is found.
    """
    active = SparkSession.getActiveSession()
    if active is not None:
        return checked_classic(active)
    builder = SparkSession.builder.appName(app_name).config("spark.ui.showConsoleProgress", "false")
    if _submitted():
        return checked_classic(builder.getOrCreate())
    _check_java()
    # Without this an environment that is not activated runs its workers in the system's Python.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
    quiet = resources.files("rerank_udf.spark") / "log4j2-local.properties"
    builder = builder.config("spark.driver.extraJavaOptions", f"-Dlog4j2.configurationFile={quiet}")
    if "MASTER" not in os.environ:
        # four attempts a task, as on a cluster: a worker that dies takes no other task along
        builder = builder.master("local[*,4]")
    return builder.config("spark.ui.enabled", "false").getOrCreate()


def checked_classic(spark: SparkSession) -> SparkSession:
    """The session. Raises ConfigError for one of Spark Connect, which has no SparkContext to run jobs by."""
    if is_connect(spark):
        raise ConfigError(
            "the job needs a classic Spark session, and this one is of Spark Connect (on Databricks: standard access "
            "mode or serverless, both without GPUs; take dedicated access mode); rerank() and the column function "
            "work here; on serverless only with a model in a volume that fits into 1 GB, and write its result there "
            "instead of persisting it"
        )
    return spark


def is_connect(spark: SparkSession) -> bool:
    """Whether it is a Spark Connect client's session."""
    return type(spark).__module__.startswith("pyspark.sql.connect")


def is_local(spark: SparkSession) -> bool:
    """Whether driver and executors are one machine."""
    return str(spark.sparkContext.master).startswith("local")


def slots(spark: SparkSession) -> int:
    """How many tasks run at once, as far as the session knows."""
    return max(1, spark.sparkContext.defaultParallelism)


def _submitted() -> bool:
    """Whether spark-submit (or a notebook server) started this process and so brought the configuration."""
    return "PYSPARK_GATEWAY_PORT" in os.environ or "SPARK_ENV_LOADED" in os.environ


def _check_java() -> None:
    needed = 17 if int(pyspark.__version__.split(".")[0]) >= 4 else 8
    home = os.environ.get("JAVA_HOME")
    java = Path(home, "bin", "java") if home else Path("java")
    try:
        told = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=60, check=False
        ).stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        told = str(error)
    found = _JAVA_VERSION.search(told)
    if found is None or int(found[1]) < needed:
        why = " ".join(told.split()) or "it says nothing"
        what = f"{java} is Java {found[1]}" if found else f"{java} does not run ({why:.200})"
        raise ConfigError(
            f"Spark needs Java {needed} or newer, and {what}; install it (Debian and Ubuntu: apt-get install "
            "openjdk-17-jre-headless; macOS: brew install openjdk@17) and set JAVA_HOME to its folder"
        )
