"""A real Spark standalone cluster on this machine's loopback, and the built wheel that is submitted to it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job_processes import Job, wait_until

REPOSITORY = Path(__file__).parents[2]
DISCOVERY = REPOSITORY / "conf/spark/gpu_discovery.sh"
PROPERTIES = REPOSITORY / "conf/spark/standalone.conf"
# The one compiler comes with a cache of 48 MB, which Delta, Iceberg and S3 fill; then all runs interpreted.
JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=256m"
# As small as it goes: several JVMs share a test machine's two cores.
_SMALL = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "1g",
    "spark.executor.memory": "640m",
    "spark.sql.shuffle.partitions": "2",
    "spark.driver.extraJavaOptions": JAVA_OPTIONS,
    "spark.executor.extraJavaOptions": JAVA_OPTIONS,
}
_LOGGING = """\
rootLogger.level = {level}
rootLogger.appenderRef.console.ref = console
appender.console.type = Console
appender.console.name = console
appender.console.target = SYSTEM_ERR
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{{HH:mm:ss.SSS}} %p %c{{1}}: %m%n%ex
"""


def spark_home() -> Path:
    """The folder of the pip-installed pyspark, which holds a whole Spark."""
    spec = importlib.util.find_spec("pyspark")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def spark_version() -> tuple[int, int]:
    """Of the installed pyspark."""
    major, minor = importlib.metadata.version("pyspark").split(".")[:2]
    return int(major), int(minor)


def write_conf(folder: Path, settings: Mapping[str, str], level: str = "warn") -> Path:
    """A SPARK_CONF_DIR: small processes, these settings, logs on standard error."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{name} {value}\n" for name, value in {**_SMALL, **settings}.items()]
    (folder / "spark-defaults.conf").write_text("".join(lines))
    (folder / "log4j2.properties").write_text(_LOGGING.format(level=level))
    return folder


def environment(conf: Path, **more: str) -> dict[str, str]:
    """This process's environment without what it says of Spark, and with `conf`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPARK_", "PYSPARK_"))}
    own = {
        "SPARK_CONF_DIR": str(conf),
        "SPARK_HOME": str(spark_home()),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_LOCAL_DIRS": str(conf.parent / "spark-local"),
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
    }
    return {**kept, **own, **more}


# --- the wheel ---


def build_wheel(folder: Path) -> Path:
    """What `make wheel` builds, from a copy of the sources, so that the checkout stays as it is."""
    sources = folder / "sources"
    sources.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, sources)
    shutil.copytree(REPOSITORY / "rerank_udf", sources / "rerank_udf", ignore=lambda *_: ["__pycache__"])
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(sources),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def bare_python(folder: Path) -> Path:
    """An interpreter with every package of this environment but rerank_udf: that comes by the wheel, or not at all."""
    venv.create(folder, symlinks=True, with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "rerank" not in entry.name and not (packages / entry.name).exists():
            (packages / entry.name).symlink_to(entry)
    return folder / "bin/python"


# --- the cluster ---


@dataclass(frozen=True)
class Host:
    """What one worker offers: cores, memory in MB, and the addresses of its GPUs."""

    cores: int = 1
    memory: int = 1024
    devices: str = ""


@dataclass(frozen=True)
class Cluster:
    """A running master with its workers; `workers` also hold the executors they have started."""

    url: str
    master: Job
    workers: Sequence[Job]
    folder: Path

    def find(self, *kinds: str) -> list[Any]:
        """The processes of these kinds on all hosts."""
        return [process for worker in self.workers for process in worker.find(*kinds)]


@contextmanager
def standalone(folder: Path, hosts: Sequence[Host], settings: Mapping[str, str]) -> Iterator[Cluster]:
    """A master and one worker a host, all on 127.0.0.1; every process of them is gone afterwards.

    `settings` are the workers' and the master's Spark properties.
    """
    with ExitStack() as running:
        conf = write_conf(folder / "conf", settings, level="info")
        around = environment(conf, SPARK_DAEMON_MEMORY="256m")
        spark_class = spark_home() / "bin/spark-class"
        command = [spark_class, "org.apache.spark.deploy.master.Master", "--host", "127.0.0.1"]
        master = running.enter_context(
            Job([*command, "--port", 0, "--webui-port", 0], folder, around, "master")
        )
        url = wait_until(lambda: _told(master, r"Starting Spark master at (spark://\S+)"), "a master", master)
        workers = []
        for number, host in enumerate(hosts):
            job = Job(*_worker(spark_class, folder / f"host{number}", host, url, around), "worker")
            workers.append(running.enter_context(job))
        for worker in workers:
            wait_until(
                lambda job=worker: _told(job, "(Successfully registered) with master"), "a worker", worker
            )
        yield Cluster(url, master, workers, folder)


def _worker(
    spark_class: Path, folder: Path, host: Host, url: str, around: Mapping[str, str]
) -> tuple[list[Any], Path, dict[str, str]]:
    """Command, folder and environment of a worker."""
    own = dict(around) | {"SPARK_LOCAL_DIRS": str(folder / "local")}
    properties = folder / "worker.properties"
    folder.mkdir(parents=True)
    lines = Path(around["SPARK_CONF_DIR"], "spark-defaults.conf").read_text()
    if host.devices:
        own["RERANK_UDF_FAKE_DEVICES"] = host.devices
        lines += f"spark.worker.resource.gpu.amount {len(host.devices.split(','))}\n"
        lines += f"spark.worker.resource.gpu.discoveryScript {DISCOVERY}\n"
    properties.write_text(lines)
    command = [spark_class, "org.apache.spark.deploy.worker.Worker", "--host", "127.0.0.1", "--port", 0]
    command += ["--webui-port", 0, "--cores", host.cores, "--memory", f"{host.memory}m"]
    return [*command, "--work-dir", folder / "work", "--properties-file", properties, url], folder, own


def _told(job: Job, pattern: str) -> str | None:
    found = re.search(pattern, job.err.read_text(errors="replace"))
    return found and found[1]


def submission(
    master: str, python: Path, archive: Path, settings: Mapping[str, str], properties: Path | None = None
) -> list[Any]:
    """The command before the job's own options: spark-submit with the wheel, for this interpreter everywhere.

    `properties`: a file of conf/spark/, which `settings` overrule.
    """
    command: list[Any] = [spark_home() / "bin/spark-submit", "--master", master, "--py-files", archive]
    if properties is not None:
        command += ["--properties-file", properties]
    interpreter = {"spark.pyspark.python": str(python), "spark.pyspark.driver.python": str(python)}
    for name, value in {**_SMALL, **interpreter, **settings}.items():
        command += ["--conf", f"{name}={value}"]
    return [*command, REPOSITORY / "jobs/rerank.py"]
