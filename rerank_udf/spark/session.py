"""The Spark session that a job runs in: the cluster's own, or a local one that behaves."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from types import FrameType

import pyspark
from pyspark import SparkContext
from pyspark.sql import SparkSession

from rerank_udf.errors import ConfigError
from rerank_udf.lake.failures import innermost_cause
from rerank_udf.machine import write_refusal

_VARIABLES = ("MASTER", "SPARK_HOME", "SPARK_CONF_DIR", "SPARK_LOCAL_DIRS", "PYSPARK_SUBMIT_ARGS")
_MASTERS = ("local", "spark://", "yarn", "k8s://", "mesos://")
_CORE = re.compile(r"-(\d+\.\d+)\.[\w.-]+\.jar$")
_JAVA_VERSION = re.compile(r'version "(?:1\.)?(\d+)')


def job_session(app_name: str) -> SparkSession:
    """The active session (a notebook's), the one `spark-submit` configured, or a local one.

    Raises ConfigError where a local session is needed and cannot be started as the environment has it: no Java that
    Spark takes, say.
    """
    active = SparkSession.getActiveSession()
    if active is not None:
        return checked_classic(active)
    builder = SparkSession.builder.appName(app_name).config("spark.ui.showConsoleProgress", "false")
    if _submitted():
        return checked_classic(builder.getOrCreate())
    _check_java()
    _check_variables()
    if os.environ.get("LC_ALL") in ("C", "POSIX"):
        os.environ["LC_ALL"] = "C.UTF-8"  # else Java finds no file with a letter beyond ASCII in its name
    # Without this an environment that is not activated runs its workers in the system's Python.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
    if not os.environ.get("RERANK_UDF_DEBUG"):
        quiet = resources.files("rerank_udf.spark") / "log4j2-local.properties"
        builder = builder.config("spark.driver.extraJavaOptions", f"-Dlog4j2.configurationFile={quiet}")
    if "MASTER" not in os.environ:
        # four attempts a task, as on a cluster: a worker that dies takes no other task along
        builder = builder.master("local[*,4]")
    try:
        with _interrupted_when_there_is_a_gateway():
            return builder.config("spark.ui.enabled", "false").getOrCreate()
    except Exception as error:
        raise ConfigError(f"Spark does not start here: {innermost_cause(error)}{_variables_set()}") from error


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


@contextmanager
def _interrupted_when_there_is_a_gateway() -> Iterator[None]:
    """Hold Ctrl-C back until PySpark has its JVM's answer.

    Interrupted before, PySpark deletes the file that the JVM is to answer in, and the JVM stays for good.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # interrupts are not for this thread, or ignored (in the background of a shell)
        return
    held: list[FrameType | None] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(frame)
        if SparkContext._gateway is not None:
            before(number, frame)

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        raise KeyboardInterrupt


def _check_variables() -> None:
    """Raise ConfigError for variables of the environment that would end in a stack of Java's, or hang."""
    home = os.environ.get("SPARK_HOME")
    if home is not None:
        _check_spark_home(Path(home))
    master = os.environ.get("MASTER")
    if master is not None and not master.startswith(_MASTERS):
        raise ConfigError(
            f"MASTER is {master!r}, and a master is local, local[4], spark://host:7077, yarn or k8s://…; unset it to "
            "run on this machine"
        )
    for name in ("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON"):
        python = os.environ.get(name)
        if python is not None and shutil.which(python) is None:
            raise ConfigError(
                f"{name} is {python!r}, and there is no such program; unset it, or name a Python"
            )
    folders = [name for name in os.environ.get("SPARK_LOCAL_DIRS", "").split(",") if name]
    refused = [why for name in folders if (why := write_refusal(Path(name).absolute()))]
    if folders and len(refused) == len(folders):
        raise ConfigError(
            f"SPARK_LOCAL_DIRS: nothing can be written in {refused[0]}; unset it, or name other folders"
        )


def _check_spark_home(home: Path) -> None:
    if not (home / "bin" / "spark-submit").is_file():
        raise ConfigError(
            f"SPARK_HOME is {str(home)!r}, and has no bin/spark-submit in it; unset it: pyspark brings its own Spark"
        )
    own = ".".join(pyspark.__version__.split(".")[:2])
    there = {core[1] for jar in home.glob("jars/spark-core_*") if (core := _CORE.search(jar.name))}
    if there and own not in there:
        raise ConfigError(
            f"SPARK_HOME is {str(home)!r}, which holds Spark {', '.join(sorted(there))}, and pyspark is "
            f"{pyspark.__version__}; unset it, or install the pyspark that fits"
        )


def _variables_set() -> str:
    """The names of those that decide how Spark starts, for an error; their values may be secrets."""
    found = [name for name in _VARIABLES if name in os.environ]
    return f" ({', '.join(found)} set in the environment)" if found else ""


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
