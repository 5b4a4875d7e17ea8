"""Which task scores on which device: sized by Spark where it can, leased by each worker in any case.

    on the driver     scoring_profile(spark)   a stage-level profile (one GPU a task), or the reason why not
    in each worker    placed(plan)             takes the lease, and says on which device to load

Spark gives a task an address, and a worker of the executor serves it, whichever is idle: the two do not stay together.
So the address is a wish, and the lease (rerank_udf.engine.leases) decides.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pyspark
from pyspark import TaskContext
from pyspark.errors import PySparkException
from pyspark.resource import ResourceProfile, ResourceProfileBuilder, TaskResourceRequests
from pyspark.sql import SparkSession

from rerank_udf.engine import ScorerPlan, leases
from rerank_udf.engine.capability import resolve_device
from rerank_udf.errors import ModelError
from rerank_udf.machine import has_told, task_threads, tell
from rerank_udf.models import ModelFiles
from rerank_udf.spark.session import slots

if TYPE_CHECKING:
    from rerank_udf.spark.scoring import Loadable

MASTER = "spark.master"
DYNAMIC_ALLOCATION = "spark.dynamicAllocation.enabled"
EXECUTOR_CORES = "spark.executor.cores"
EXECUTOR_GPUS = "spark.executor.resource.gpu.amount"
TASK_CPUS = "spark.task.cpus"
TASK_GPUS = "spark.task.resource.gpu.amount"
_DATABRICKS = "spark.databricks.clusterUsageTags.clusterId"
# A local property of scoring jobs: cores of each task, where Spark's own number is not that
TASK_CORES = "rerank_udf.task.cores"
_THREADS = "RERANK_UDF_THREADS"
_GPU = "gpu"
_FIRST_WITH_PROFILE = (4, 0)
# Where an executor without spark.executor.cores takes all cores of its worker; YARN and Kubernetes give it one.
_ALL_CORES = ("spark://", "local-cluster")
_SIZE_ALL = f"tasks of all stages are sized alike, by {TASK_GPUS}"


# --- on the driver ---


def scoring_profile(spark: SparkSession) -> tuple[ResourceProfile | None, str]:
    """The profile for `mapInArrow(profile=)`, one GPU a task, where this cluster takes one; and a sentence on it.

    Decided from settings alone. Trying is no way to find out: with dynamic allocation on, a task profile that asks
    for a GPU ends the whole SparkContext.
    """
    version = min(_version(spark.version), _version(pyspark.__version__))
    cpus, reason = task_cpus(_settings(spark), version)
    if cpus is None:
        return None, reason
    requests = TaskResourceRequests().cpus(cpus).resource(_GPU, 1)
    return ResourceProfileBuilder().require(requests).build, reason


def task_cpus(settings: Mapping[str, str], version: tuple[int, int]) -> tuple[int | None, str]:
    """Cores of a scoring task that takes one GPU, so that all GPUs of an executor are busy; None for no profile.

    `settings`: the session's, by name; `version`: Spark's. The sentence says what was decided and why.
    """
    against = _against_profile(settings, version)
    if against is not None:
        return None, f"no stage-level profile for scoring: {against}"
    gpus, given = _amount(settings, EXECUTOR_GPUS), settings.get(EXECUTOR_CORES)
    if given is None and settings[MASTER].startswith(_ALL_CORES):
        cpus = int(settings.get(TASK_CPUS, 1))
        return cpus, (
            f"a scoring task takes 1 GPU and {cpus} of its executor's cores, by a stage-level profile; set "
            f"{EXECUTOR_CORES}, and the tasks of an executor share all of its cores"
        )
    cores = int(given or 1)
    cpus = max(1, int(cores // gpus))
    short = f", and {gpus - cores:g} GPUs lie idle: raise {EXECUTOR_CORES}" if cores < gpus else ""
    return cpus, (
        f"a scoring task takes 1 of its executor's {gpus:g} GPUs and {cpus} of its {cores} cores, by a stage-level "
        f"profile{short}"
    )


def _against_profile(settings: Mapping[str, str], version: tuple[int, int]) -> str | None:
    """The first reason against a profile, or None."""
    master = settings.get(MASTER, "")
    if _DATABRICKS in settings:
        return f"Databricks documents none; {_SIZE_ALL}"
    if _is_local(master):
        return "a local master has no executors; each worker leases a device: run no more tasks than devices"
    if not master.startswith((*_ALL_CORES, "k8s://")) and master != "yarn":
        return f"the master ({master or 'unknown'}) is neither standalone, YARN nor Kubernetes; {_SIZE_ALL}"
    if not _amount(settings, EXECUTOR_GPUS):
        return f"executors have no GPUs that Spark knows of ({EXECUTOR_GPUS} is not set); tasks are sized by cores"
    if version < _FIRST_WITH_PROFILE:
        return f"mapInArrow takes one from Spark 4.0 on, and this is {version[0]}.{version[1]}; {_SIZE_ALL}"
    if settings.get(DYNAMIC_ALLOCATION, "false").lower() == "true":
        return f"{DYNAMIC_ALLOCATION} is on, and would want executors of their own for it; {_SIZE_ALL}"
    if _amount(settings, TASK_GPUS) == 1:
        return f"every task takes one GPU already ({TASK_GPUS} is 1)"
    return None


def _is_local(master: str) -> bool:
    return master.startswith("local") and not master.startswith("local-cluster")


def _amount(settings: Mapping[str, str], name: str) -> float:
    return float(settings.get(name) or 0)


def _settings(spark: SparkSession) -> dict[str, str]:
    """What the session says of its own size."""
    names = (MASTER, DYNAMIC_ALLOCATION, EXECUTOR_CORES, EXECUTOR_GPUS, TASK_CPUS, TASK_GPUS, _DATABRICKS)
    found = {name: _setting(spark, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _setting(spark: SparkSession, name: str) -> str | None:
    try:
        return spark.conf.get(name, None)
    except PySparkException:  # a managed service that does not tell
        return None


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def scoring_slots(spark: SparkSession, profile: ResourceProfile | None) -> int:
    """How many scoring tasks run at once, as far as the session knows; `profile` as `scoring_profile` gave it."""
    return gpu_slots(slots(spark), _settings(spark), profile is not None)


def gpu_slots(cores_in_all: int, settings: Mapping[str, str], profiled: bool) -> int:
    """Tasks at once on so many cores, where each takes a GPU: by a profile, else as many as `settings` say."""
    gpus, cores = _amount(settings, EXECUTOR_GPUS), _amount(settings, EXECUTOR_CORES)
    each = 1.0 if profiled else _amount(settings, TASK_GPUS)
    if not gpus or not cores or not each:
        return cores_in_all
    return max(1, min(cores_in_all, int(cores_in_all / cores * gpus / each)))


def most_local_tasks(spark: SparkSession, plan: Loadable) -> int | None:
    """With a local master: how many tasks may score `plan` at once, its devices; None where nothing limits them.

    There Spark runs a task on every core, and knows nothing of devices: lay out no more partitions than this.
    """
    if not _is_local(_setting(spark, MASTER) or ""):
        return None
    return len(_devices(plan, ())) or None


# --- in a worker ---


def placed(plan: Loadable) -> tuple[Loadable, str | None]:
    """`plan` as this worker loads it, and the device that it leased for it; (plan, None) where none is needed.

    The lease is the process's until it ends or loads for another device. Raises what `lease_device` raises, ModelError
    for a device that is not here.
    """
    context = TaskContext.get()
    _use_task_cores(context)
    addresses = assigned_addresses(context)
    devices = _devices(plan, addresses)
    if not devices:
        leases.release_device()
        return plan, None
    run = context.getLocalProperty("spark.job.description") if context is not None else None
    lease = leases.lease_device(devices, leases.assigned_device(devices, addresses), run=run or "")
    here = lease.device
    return (_on(plan, here.name) if here.name != "cpu" else plan), here.identity


def assigned_addresses(context: TaskContext | None) -> tuple[str, ...]:
    """The GPUs that Spark gave this task, by its own addresses; none where it gives none."""
    gpus = context.resources().get(_GPU) if context is not None else None
    return tuple(gpus.addresses) if gpus is not None else ()


def _use_task_cores(context: TaskContext | None) -> None:
    """Let the engine use the cores that a profile, or a local job, gave the task.

    OMP_NUM_THREADS is spark.task.cpus all the same. What the environment says is left alone, but for what this told an
    earlier task.
    """
    if context is None:
        return
    cores = max(context.cpus(), int(context.getLocalProperty(TASK_CORES) or 0))
    if has_told(_THREADS) or cores > task_threads():
        tell(_THREADS, str(cores))


def _devices(plan: Loadable, addresses: Sequence[str]) -> list[leases.Device]:
    """The devices that `plan` may be loaded on here, of which a process needs one to itself; none for a CPU."""
    device = _device_setting(plan)
    if resolve_device(device) == "cpu":
        return leases.fake_devices()
    devices = leases.cuda_devices(addresses)
    if device == "auto" and not _torch_uses_cuda(devices):
        return leases.fake_devices()
    if not devices or device in ("auto", "cuda"):
        return devices
    named = [found for found in devices if found.name == device]
    if not named:
        known = ", ".join(found.name for found in devices)
        raise ModelError(f"device is {device}, but this process sees {known} only; use one of them, or auto")
    return named


def _device_setting(plan: Loadable) -> str:
    """ "auto", "cuda", "cuda:N" or "cpu": what the plan asks for, "cpu" where it would not use a card."""
    from rerank_udf.spark.scoring import LoadedOnExecutor  # which imports this module

    if isinstance(plan, ScorerPlan):
        return _unless_for_cpu(plan.files, plan.precision, plan.device)
    if isinstance(plan, LoadedOnExecutor):
        settings = plan.settings
        return _unless_for_cpu(plan.model, settings.get("precision", "auto"), settings.get("device", "auto"))
    return "cpu"


def _unless_for_cpu(model: ModelFiles | str, precision: str, device: str) -> str:
    hashed = isinstance(model, ModelFiles) and model.architecture is None
    return "cpu" if hashed or precision == "int8" else device


def _torch_uses_cuda(devices: Sequence[leases.Device]) -> bool:
    """Whether torch is built for the card that is here. Asking starts CUDA: not before a MIG instance was chosen."""
    if any(device.visible is not None for device in devices):
        return True
    if importlib.util.find_spec("torch") is None:
        return False
    from rerank_udf.engine.torch_runtime import torch_device

    return torch_device("auto").type == "cuda"


def _on(plan: Loadable, device: str) -> Loadable:
    """The same plan for one device."""
    if isinstance(plan, ScorerPlan):
        return replace(plan, device=device)
    from rerank_udf.spark.scoring import LoadedOnExecutor  # which imports this module

    assert isinstance(plan, LoadedOnExecutor)
    return replace(plan, settings={**plan.settings, "device": device})
