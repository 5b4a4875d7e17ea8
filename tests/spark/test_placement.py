"""One GPU, one task, one process: what is decided, what Spark makes of it, and the settings that go with it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from counting_scorer import CountingPlan
from pyspark.sql import SparkSession

from rerank_udf.engine import leases, resolve_scorer
from rerank_udf.engine.leases import Device
from rerank_udf.errors import ModelError
from rerank_udf.machine import task_threads
from rerank_udf.models import resolve_model
from rerank_udf.spark import placement
from rerank_udf.spark.placement import (
    gpu_slots,
    most_local_tasks,
    placed,
    scoring_profile,
    scoring_slots,
    task_cpus,
)
from rerank_udf.spark.scoring import LoadedOnExecutor

REPOSITORY = Path(__file__).parents[2]
CONF = REPOSITORY / "conf" / "spark"
DISCOVERY = CONF / "gpu_discovery.sh"
FILES = ("local", "standalone", "yarn", "kubernetes", "databricks")

# --- the stage-level profile ---

GPUS = {"spark.executor.resource.gpu.amount": "2", "spark.executor.cores": "8"}
MASTERS = ("spark://host:7077", "yarn", "k8s://https://host:6443", "local-cluster[2,8,1024]")


@pytest.mark.parametrize("master", MASTERS)
def test_a_scoring_task_takes_one_gpu_and_its_share_of_the_cores(master):
    assert task_cpus({"spark.master": master, **GPUS}, (4, 0)) == (
        4,
        "a scoring task takes 1 of its executor's 2 GPUs and 4 of its 8 cores, by a stage-level profile",
    )


@pytest.mark.parametrize(
    ("settings", "cpus", "told"),
    [
        ({"spark.executor.cores": "7"}, 3, "3 of its 7 cores"),
        ({"spark.executor.cores": "1"}, 1, "1 GPUs lie idle: raise spark.executor.cores"),
        ({"spark.task.resource.gpu.amount": "0.125"}, 4, "4 of its 8 cores"),
        ({"spark.task.resource.gpu.amount": "2"}, 4, "4 of its 8 cores"),
        ({"spark.dynamicAllocation.enabled": "false"}, 4, "4 of its 8 cores"),
    ],
)
def test_cores_and_other_amounts(settings, cpus, told):
    decided = task_cpus({"spark.master": "yarn", **GPUS, **settings}, (4, 1))
    assert decided[0] == cpus
    assert told in decided[1]


def test_unknown_cores():
    gpus = {"spark.executor.resource.gpu.amount": "2"}
    # Standalone: all cores of a worker, however many; YARN and Kubernetes: one
    alone = {"spark.master": "spark://host:7077", "spark.task.cpus": "2", **gpus}
    cpus, reason = task_cpus(alone, (4, 1))
    assert (cpus, "set spark.executor.cores" in reason) == (2, True)
    assert task_cpus({"spark.master": "yarn", **gpus}, (4, 1))[0] == 1


@pytest.mark.parametrize(
    ("settings", "version", "reason"),
    [
        ({"spark.master": "local[4]"}, (4, 1), "a local master has no executors"),
        ({"spark.master": "mesos://host"}, (4, 1), r"the master \(mesos://host\) is neither"),
        ({"spark.executor.resource.gpu.amount": "0"}, (4, 1), "executors have no GPUs that Spark knows of"),
        ({}, (3, 5), "mapInArrow takes one from Spark 4.0 on, and this is 3.5"),
        ({"spark.dynamicAllocation.enabled": "TRUE"}, (4, 3), "spark.dynamicAllocation.enabled is on"),
        ({"spark.task.resource.gpu.amount": "1"}, (4, 1), "every task takes one GPU already"),
        ({"spark.databricks.clusterUsageTags.clusterId": "0"}, (4, 0), "Databricks documents none"),
    ],
)
def test_where_there_is_no_profile_the_reason_is_told(settings, version, reason):
    cpus, sentence = task_cpus({"spark.master": "spark://host:7077", **GPUS, **settings}, version)
    assert cpus is None
    assert re.match(f"no stage-level profile for scoring: {reason}", sentence)


def test_a_local_session_has_none(spark):
    profile, reason = scoring_profile(spark)
    assert profile is None
    assert "local master" in reason
    assert scoring_slots(spark, None) == 2


@pytest.mark.parametrize(
    ("settings", "profiled", "at_once"),
    [
        (GPUS, True, 8),  # four executors of eight cores, two GPUs each
        (GPUS, False, 32),  # tasks take no GPU at all
        ({**GPUS, "spark.task.resource.gpu.amount": "1"}, False, 8),
        ({**GPUS, "spark.task.resource.gpu.amount": "0.125"}, False, 32),
        ({"spark.executor.resource.gpu.amount": "2"}, True, 32),  # of unknown size
        ({}, False, 32),
    ],
)
def test_how_many_tasks_score_at_once_on_32_cores(settings, profiled, at_once):
    assert gpu_slots(32, settings, profiled) == at_once


# --- the lease of a worker ---


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A node of its own with two pretend devices, and this process as one of its workers."""
    monkeypatch.setenv(leases.FOLDER_VARIABLE, str(tmp_path / "leases"))
    monkeypatch.setenv(leases.FAKE_VARIABLE, "0,1")
    monkeypatch.delenv(leases.VISIBLE_VARIABLE, raising=False)
    leases.release_device()
    yield tmp_path / "leases"
    leases.release_device()


def test_a_plan_for_the_cpu_needs_no_lease_unless_devices_are_pretended(node, hash_model, monkeypatch):
    plan = resolve_scorer(hash_model)
    assert placed(plan) == (plan, "fake-0")
    assert [path.name for path in node.glob("*.lock")] == ["fake-0.lock"]
    monkeypatch.delenv(leases.FAKE_VARIABLE)
    assert placed(plan) == (plan, None)
    assert list(node.glob("*.json")) == []  # and the process gave the other back
    counting = CountingPlan(str(hash_model), str(node))
    assert placed(counting) == (counting, None)


def test_most_tasks_of_a_local_master_are_its_devices(spark, node, hash_model, monkeypatch):
    plan = resolve_scorer(hash_model)
    assert most_local_tasks(spark, plan) == 2
    monkeypatch.delenv(leases.FAKE_VARIABLE)
    assert most_local_tasks(spark, plan) is None


def test_a_task_has_the_cores_that_its_job_says_and_a_users_own_number_stands(monkeypatch):
    for name in ("RERANK_UDF_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # spark.task.cpus
    monkeypatch.setattr("rerank_udf.machine._told", {})
    told = []
    for cpus, of_job in ((1, None), (1, "6"), (8, "2"), (1, None)):
        context = SimpleNamespace(
            cpus=lambda cpus=cpus: cpus, getLocalProperty=lambda name, of_job=of_job: of_job
        )
        placement._use_task_cores(context)
        told.append(task_threads())
    assert told == [1, 6, 8, 1]
    monkeypatch.setattr("rerank_udf.machine._told", {})
    monkeypatch.setenv("RERANK_UDF_THREADS", "3")
    placement._use_task_cores(context)
    assert task_threads() == 3


CARDS = [Device("GPU-a", "cuda:0", ("4",)), Device("GPU-b", "cuda:1", ("5",))]


@pytest.fixture
def two_cards(node, monkeypatch) -> None:
    """This process sees two cards; there is none here, so what the driver would answer is given."""
    monkeypatch.setattr(leases, "cuda_devices", lambda assigned: CARDS)
    monkeypatch.setattr(placement, "assigned_addresses", lambda context: ("5",))


@pytest.mark.usefixtures("two_cards")
def test_a_plan_is_loaded_on_the_card_that_was_leased(tiny_bert):
    plan = resolve_scorer(tiny_bert, max_length=32, precision="float32", device="cuda")
    here, device = placed(plan)
    assert (here.device, device) == ("cuda:1", "GPU-b")
    assert here.model_key == plan.model_key
    first = resolve_scorer(tiny_bert, max_length=32, precision="float32", device="cuda:0")
    assert placed(first) == (first, "GPU-a")
    beyond = resolve_scorer(tiny_bert, max_length=32, precision="float32", device="cuda:2")
    with pytest.raises(ModelError, match="device is cuda:2, but this process sees cuda:0, cuda:1 only"):
        placed(beyond)


@pytest.mark.usefixtures("two_cards")
def test_a_plan_that_executors_resolve_is_loaded_on_the_card_too(tiny_bert, hash_model, monkeypatch):
    plan = LoadedOnExecutor(str(tiny_bert), {"max_length": 32, "device": "cuda"})
    here, device = placed(plan)
    assert device == "GPU-b"
    assert here == LoadedOnExecutor(str(tiny_bert), {"max_length": 32, "device": "cuda:1"})
    monkeypatch.delenv(leases.FAKE_VARIABLE)
    for needs_none in (
        LoadedOnExecutor(resolve_model(hash_model), {"device": "cuda"}),
        LoadedOnExecutor(str(tiny_bert), {"precision": "int8"}),
        LoadedOnExecutor(str(tiny_bert), {"device": "cpu"}),
    ):
        assert placed(needs_none) == (needs_none, None)


@pytest.mark.usefixtures("two_cards")
def test_a_torch_without_cuda_needs_no_card(tiny_bert, monkeypatch):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this torch uses its card")
    monkeypatch.setattr(placement, "resolve_device", lambda device: "cuda")  # as where /dev/nvidia0 is
    monkeypatch.delenv(leases.FAKE_VARIABLE)
    plan = resolve_scorer(tiny_bert, max_length=32, precision="float32", device="auto")
    assert placed(plan) == (plan, None)


# --- a real cluster ---

DRIVER = """
import json, os, pickle, signal, sys, time
from pathlib import Path
import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import SparkSession
from rerank_udf.engine import resolve_scorer
from rerank_udf.machine import task_threads
from rerank_udf.spark.placement import assigned_addresses, placed, scoring_profile

folder, script, model = sys.argv[1:]
builder = SparkSession.builder.master("local-cluster[2,4,768]").appName("placement")
for name, value in {
    "spark.ui.enabled": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.executor.memory": "768m",
    "spark.executor.cores": "4",
    "spark.executor.resource.gpu.amount": "2",
    "spark.worker.resource.gpu.amount": "2",
    "spark.worker.resource.gpu.discoveryScript": script,
    "spark.executorEnv.RERANK_UDF_FAKE_DEVICES": "0,1,2,3",
    "spark.executorEnv.RERANK_UDF_LEASES": folder + "/leases",
    "spark.executor.extraJavaOptions": "-XX:TieredStopAtLevel=1",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
}.items():
    builder = builder.config(name, value)
spark = builder.getOrCreate()
profile, reason = scoring_profile(spark)
plan = resolve_scorer(model)

def score(batches):
    for _ in batches:
        context = TaskContext.get()
        number, attempt = context.partitionId(), context.attemptNumber()
        _, device = placed(plan)
        if number == 0 and attempt == 0:
            Path(folder, "killed").write_text(device)
            os.kill(os.getpid(), signal.SIGKILL)
        Path(folder, f"at-{number}").touch()
        until = time.monotonic() + 100
        while len(list(Path(folder).glob("at-*"))) < 4 and time.monotonic() < until:
            time.sleep(0.05)  # all four at once
        told = {
            "partition": number,
            "pid": os.getpid(),
            "device": device,
            "addresses": list(assigned_addresses(context)),
            "cores": context.cpus(),
            "threads": task_threads(),
            "parent": os.getppid(),
        }
        yield pa.RecordBatch.from_arrays([pa.array([json.dumps(told)])], ["told"])

frame = spark.range(0, 400, numPartitions=3).repartition(4, "id")
frame.mapInArrow(score, "told string", profile=profile).write.text(folder + "/told")
Path(folder, "reason").write_text(reason)
spark.stop()
"""


@pytest.mark.cluster
@pytest.mark.slow
def test_on_a_cluster_each_of_four_tasks_has_a_device_even_after_a_worker_was_killed(
    spark: SparkSession, tmp_path: Path, hash_model: Path
):
    """Two executors of two GPUs, both told of the same two addresses, on a node of four devices."""
    if int(spark.version.split(".")[0]) < 4:
        pytest.skip("stage-level profiles for mapInArrow are of Spark 4")
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    around = {
        name: value for name, value in os.environ.items() if not name.startswith(("SPARK_", "PYSPARK_"))
    }
    own = {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1", leases.FAKE_VARIABLE: "0,1"}
    import pyspark

    own["SPARK_HOME"] = str(Path(pyspark.__file__).parent)
    command = [sys.executable, str(script), str(tmp_path), str(DISCOVERY), str(hash_model)]
    done = subprocess.run(
        command, env=around | own, capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-4000:]
    reason = (tmp_path / "reason").read_text()
    assert reason.startswith("a scoring task takes 1 of its executor's 2 GPUs and 2 of its 4 cores")
    told = [json.loads(file.read_text()) for file in (tmp_path / "told").glob("part-*")]
    assert sorted(task["partition"] for task in told) == [0, 1, 2, 3]
    assert {task["device"] for task in told} == {f"fake-{name}" for name in range(4)}
    assert len({task["pid"] for task in told}) == 4
    assert {len(task["addresses"]) for task in told} == {1}
    assert len({task["parent"] for task in told}) == 2
    for parent in {task["parent"] for task in told}:
        assert sorted(t["addresses"][0] for t in told if t["parent"] == parent) == ["0", "1"]
    assert {(task["cores"], task["threads"]) for task in told} == {(2, 2)}
    assert (tmp_path / "killed").read_text().startswith("fake-")


# --- the discovery script ---


def discovered(
    tmp_path: Path, nvidia_smi: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The script's run, on a node with this nvidia-smi, or none."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "env", "awk", "uname", "cat"):
        (tools / name).symlink_to(str(shutil.which(name)))
    if nvidia_smi is not None:
        (tools / "nvidia-smi").write_text(nvidia_smi)
        (tools / "nvidia-smi").chmod(0o755)
    around = {"PATH": str(tools), **environment}
    return subprocess.run([DISCOVERY], env=around, capture_output=True, text=True, timeout=60, check=False)


# As nvidia-smi -L prints them (NVIDIA's MIG User Guide): a whole GPU, then one that is cut in two
CARDS_LISTED = """#!/bin/sh
test "$1" = -L || exit 2
cat <<'END'
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-6d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 3g.20gb     Device  0: (UUID: MIG-c7384736-a75d-5afc-978f-d2f1294409fd)
  MIG 3g.20gb     Device  1: (UUID: MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d)
END
"""
INSTANCES = ["MIG-c7384736-a75d-5afc-978f-d2f1294409fd", "MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d"]


@pytest.mark.parametrize(
    ("environment", "addresses"),
    [
        ({}, ["0", *INSTANCES]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a, GPU-b"}, ["GPU-a", "GPU-b"]),
        ({"CUDA_VISIBLE_DEVICES": "1", leases.FAKE_VARIABLE: "7,8"}, ["7", "8"]),
    ],
)
def test_the_script_tells_what_spark_wants_to_hear(spark, tmp_path, environment, addresses):
    done = discovered(tmp_path, CARDS_LISTED, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    # By Spark's own reader
    told = spark._jvm.org.apache.spark.resource.ResourceInformation.parseJson(done.stdout)  # type: ignore[union-attr]
    assert (told.name(), list(told.addresses())) == ("gpu", addresses)


@pytest.mark.parametrize(
    ("nvidia_smi", "environment", "said"),
    [
        (None, {}, "there is no nvidia-smi on"),
        ("#!/bin/sh\necho No devices were found\nexit 6\n", {}, "No devices were found"),
        ("#!/bin/sh\n", {}, "no GPU is named or listed on"),
        (CARDS_LISTED, {"CUDA_VISIBLE_DEVICES": "-1"}, "hides every GPU"),
        (CARDS_LISTED, {"CUDA_VISIBLE_DEVICES": ""}, "hides every GPU"),
    ],
)
def test_without_gpus_the_script_fails_with_a_sentence_and_prints_nothing(
    tmp_path, nvidia_smi, environment, said
):
    done = discovered(tmp_path, nvidia_smi, **environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("gpu_discovery.sh: ")
    assert said in done.stderr


# --- the properties ---

_SETTING = re.compile(r"(#?)(spark\.\S+)\s+(\S.*)")


def settings_of_file(name: str, offered: bool = False) -> dict[str, str]:
    """The settings in a file; with those that it offers behind a comment sign, if asked."""
    lines = (CONF / f"{name}.conf").read_text(encoding="utf-8").splitlines()
    found = [match for line in lines if (match := _SETTING.fullmatch(line)) is not None]
    return {match[2]: match[3] for match in found if offered or not match[1]}


@pytest.fixture(scope="module")
def jvm(spark: SparkSession) -> Any:
    """The JVM, in which all settings of all parts of Spark have been registered."""
    for part in (
        *("internal.config.package$", "internal.config.Python$", "sql.internal.SQLConf$"),
        *("sql.internal.StaticSQLConf$", "deploy.k8s.Config$", "deploy.yarn.config.package$"),
    ):
        spark._jvm.java.lang.Class.forName(f"org.apache.spark.{part}")  # type: ignore[union-attr]
    return spark._jvm


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_what_javas_properties_read(jvm, name):
    properties = jvm.java.util.Properties()
    reader = jvm.java.io.FileReader(str(CONF / f"{name}.conf"))
    properties.load(reader)
    reader.close()
    read = {key: str(properties.getProperty(key)) for key in properties.stringPropertyNames()}
    assert read == settings_of_file(name)
    assert all(key.startswith("spark.") for key in read)


@pytest.mark.parametrize("name", FILES)
def test_every_setting_has_its_reason_above_it(name):
    text = (CONF / f"{name}.conf").read_text(encoding="utf-8")
    for paragraph in text.split("\n\n"):
        first = paragraph.splitlines()[0]
        assert re.match(r"# \S", first), f"{first!r} has no reason"
    lines = text.splitlines()
    assert len([line for line in lines if line.startswith("spark.")]) == len(settings_of_file(name))
    assert max(map(len, (line for line in lines if line.startswith("#")))) <= 120


# What is read by prefix, or by hand, and so is in no registry of settings.
UNREGISTERED = {
    "spark.master": "SparkConf's own",
}


def knows(jvm: Any, key: str, value: str) -> bool:
    """Whether Spark, or what it hands the setting to, knows the key; raises where the value is none for it."""
    entry = jvm.org.apache.spark.internal.config.ConfigEntry.findEntry(key)
    if entry is not None:
        jvm.org.apache.spark.SparkConf(False).set(key, value).get(entry)
        return True
    for component in ("spark.executor", "spark.task"):
        gpu = jvm.org.apache.spark.resource.ResourceID(component, "gpu")
        if key in (gpu.amountConf(), gpu.discoveryScriptConf(), gpu.vendorConf()):
            return True
    if key.startswith("spark.hadoop."):  # given to Hadoop, whose defaults name what it knows
        return jvm.org.apache.hadoop.conf.Configuration().get(key.removeprefix("spark.hadoop.")) is not None
    for environment in ("spark.executorEnv.", "spark.yarn.appMasterEnv.", "spark.kubernetes.driverEnv."):
        if key.startswith(environment):
            return is_read(key.removeprefix(environment))
    return key in UNREGISTERED


def is_read(variable: str) -> bool:
    """Whether this package reads the variable, or one of the libraries below it does."""
    if not variable.startswith("RERANK_UDF_"):
        return variable in ("HF_HOME", "TOKENIZERS_PARALLELISM", "CUDA_DEVICE_ORDER")
    sources = (file.read_text(encoding="utf-8") for file in (REPOSITORY / "rerank_udf").rglob("*.py"))
    return any(re.search(rf"\b{variable}\b", source) for source in sources)


@pytest.mark.parametrize("name", FILES)
def test_spark_knows_every_setting_and_takes_its_value(spark, jvm, name):
    if not spark.version.startswith("4.1"):
        pytest.skip("the files are checked with the settings of Spark 4.1")
    volumes = "spark.kubernetes.executor.volumes."
    settings = settings_of_file(name, offered=True)
    assert [k for k, v in settings.items() if not k.startswith(volumes) and not knows(jvm, k, v)] == []
    conf = jvm.org.apache.spark.SparkConf(False)
    for key, value in settings.items():
        conf.set(key, value)
    mounted = jvm.org.apache.spark.deploy.k8s.KubernetesVolumeUtils.parseVolumesWithPrefix(conf, volumes)
    assert mounted.size() == (2 if name == "kubernetes" else 0)  # one set, one offered in its place


def test_an_invented_setting_would_be_noticed(jvm):
    assert not knows(jvm, "spark.python.factory.idleWorkerPoolSize", "1")
    assert not knows(jvm, "spark.hadoop.fs.s3a.committer.nome", "file")
    assert not knows(jvm, "spark.executorEnv.RERANK_UDF_LEASE", "/tmp")
    assert not knows(jvm, "spark.kubernetes.driverEnv.HF_HOMES", "/tmp")
    with pytest.raises(Exception, match=r"spark\.task\.maxFailures"):
        knows(jvm, "spark.task.maxFailures", "four")


@pytest.mark.parametrize("name", FILES)
def test_the_files_agree_with_one_another_and_with_the_code(name):
    settings = settings_of_file(name)
    assert settings["spark.speculation"] == "false"
    if name == "local":
        assert re.fullmatch(r"local\[\*,4\]", settings["spark.master"])
        return
    assert settings["spark.task.maxFailures"] == "4"
    assert settings["spark.decommission.enabled"] == "true"
    if name == "databricks":
        assert settings["spark.task.resource.gpu.amount"] == "1"
        return
    gpus = settings["spark.executor.resource.gpu.amount"]
    assert settings["spark.python.factory.idleWorkerMaxPoolSize"] == gpus
    masters = {"standalone": "spark://host:7077", "yarn": "yarn", "kubernetes": "k8s://https://host"}
    cpus, _ = task_cpus({"spark.master": masters[name], **settings}, (4, 1))
    assert cpus == int(settings["spark.executor.cores"]) // int(gpus)
    assert "spark.executor.pyspark.memory" not in settings


def test_what_the_files_fetch_as_they_stand():
    fetched = {name: settings_of_file(name) for name in FILES}
    assert fetched["yarn"]["spark.yarn.dist.archives"].endswith("/environment.tar.gz#environment")  # no model
    assert not [name for name in FILES if "spark.archives" in fetched[name]]


def test_a_model_packed_as_the_readme_says_is_found_where_spark_unpacks_it(tmp_path, hash_model, monkeypatch):
    (command,) = re.findall(r"^(tar .+ model\.tar\.gz \.) ", (CONF / "README.md").read_text(), re.MULTILINE)
    snapshot = tmp_path / "snapshot"  # of links, as in the hub's own cache
    snapshot.mkdir()
    for file in hash_model.iterdir():
        (snapshot / file.name).symlink_to(file)
    subprocess.run(command.replace("FOLDER", str(snapshot)).split(), cwd=tmp_path, check=True, timeout=60)
    worker = tmp_path / "worker"
    (worker / "model").mkdir(parents=True)  # the name behind the #
    unpack = ["tar", "-xzf", str(tmp_path / "model.tar.gz")]
    subprocess.run(unpack, cwd=worker / "model", check=True, timeout=60)
    monkeypatch.chdir(worker)
    assert resolve_model("./model").digests == resolve_model(hash_model).digests


def test_the_command_lines_name_the_settings_where_the_driver_looks():
    rows = dict(
        re.findall(r"^\| (YARN|Kubernetes) \| `(.+)` \|$", (CONF / "README.md").read_text(), re.MULTILINE)
    )
    yarn, kubernetes = (rows[name].split() for name in ("YARN", "Kubernetes"))
    sent = {Path(file).name for file in yarn[yarn.index("--files") + 1].split(",")}
    assert yarn[yarn.index("--config") + 1] in sent
    assert kubernetes[kubernetes.index("--config") + 1].startswith("/opt/rerank_udf/conf/")
