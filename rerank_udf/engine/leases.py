"""One process, one device: leases that all processes of a node respect.

A lease is a lock on a file named after the device's own id, in a folder that every process of the node sees. The
system frees it when the process ends, however it ends: nothing has to be cleaned up and nothing goes stale. Who holds
it is written beside it, for the message of whoever waits in vain, and decides nothing.

The lock is taken with flock itself. On another user's file in a folder with the sticky bit, `filelock` asks for more
than the kernel grants there (fs.protected_regular), or refuses; and this folder is for all users of a node.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import json
import logging
import os
import re
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rerank_udf.errors import ConfigError, DeviceBusyError

FOLDER_VARIABLE = "RERANK_UDF_LEASES"
FAKE_VARIABLE = "RERANK_UDF_FAKE_DEVICES"
VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"

# An idle Python worker keeps its device for a minute before Spark ends it.
WAIT_SECONDS = 120.0
_POLL_SECONDS = 0.2
# Not $TMPDIR: resource managers set it for each container or job, and there two executors of a node would never meet.
_PLACES = tuple(Path(parent) / "rerank_udf-leases" for parent in ("/tmp", "/var/tmp", "/dev/shm"))
_FOR_ALL = 0o1777
_RECORD_BYTES = 4096
_SHARED = f"set {FOLDER_VARIABLE} to a folder on a local disk that all processes of this node share"
_REMEDY = (
    "A process loads one model, on one device, and keeps both. Let no more tasks score at once on a node than it has "
    "devices: one GPU a task (conf/spark/ has the settings of each cluster manager; with a local master: local[number "
    "of GPUs]), and from Spark 4.1 on spark.python.factory.idleWorkerMaxPoolSize = GPUs of an executor. Or wait for "
    "the other job, or end it"
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """A device that this process may use.

    `identity`: the same for every process of the node: "GPU-<uuid>", "MIG-<uuid>" or "fake-<name>"; `name`: what
    torch calls it in this process, "cuda:1", or "cpu" for a pretend one; `aliases`: what a scheduler may call it;
    `visible`: what CUDA_VISIBLE_DEVICES has to be before CUDA starts in this process, None where it stays as it is.
    """

    identity: str
    name: str
    aliases: tuple[str, ...] = ()
    visible: str | None = None


@dataclass(frozen=True)
class Holder:
    """Who took a device, in its own words: `since` in seconds since 1970, `run` free text."""

    pid: int
    host: str
    uid: int
    since: float
    run: str

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.since))
        told = f"pid {self.pid} on {self.host} (uid {self.uid}, since {since}{', ' + self.run if self.run else ''})"
        return (
            f"{told}, which is not seen from here: in another container, or just gone"
            if self._unseen()
            else told
        )

    def _unseen(self) -> bool:
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False  # another user's
        return False


class Lease:
    """A device that is this process's own until `release`, or until the process ends."""

    def __init__(self, device: Device, descriptor: int, record: Path) -> None:
        self.device = device
        self._descriptor = descriptor
        self._record = record

    def release(self) -> None:
        """Give the device back. The record goes first, while nobody else can have written one in its place."""
        with contextlib.suppress(OSError):
            self._record.unlink()
        os.close(self._descriptor)

    def forget(self) -> None:
        """For a forked child: close its copy of the descriptor; the lock stays the parent's."""
        os.close(self._descriptor)


_held: Lease | None = None


def lease_device(
    candidates: Sequence[Device],
    preferred: Device | None = None,
    *,
    wait_seconds: float = WAIT_SECONDS,
    run: str = "",
) -> Lease:
    """This process's device among `candidates`: the one that it has, else `preferred`, else any that is free.

    A process has one lease at most: asked for other devices, it gives the old one back first. Where all are taken it
    waits up to `wait_seconds`. `run` is told to those who wait for it. Raises DeviceBusyError, which names the holder
    of each device, and ConfigError where leases cannot be kept on this node.
    """
    global _held
    if _held is not None and _held.device.identity in {device.identity for device in candidates}:
        return _held
    release_device()
    folder = lease_folder()
    order = sorted(candidates, key=lambda device: device != preferred)
    deadline = time.monotonic() + wait_seconds
    lease = _first_free(folder, order, run)
    if lease is None and wait_seconds > 0:
        _log.warning("waiting up to %.0f s for a device: %s", wait_seconds, _taken(folder, candidates))
    while lease is None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeviceBusyError(_all_taken(folder, candidates, wait_seconds))
        time.sleep(min(_POLL_SECONDS, left))
        lease = _first_free(folder, order, run)
    _held = lease
    _watch_forks()
    if lease.device.visible is not None:
        os.environ[VISIBLE_VARIABLE] = lease.device.visible
    return lease


def release_device() -> None:
    """Give back the device of this process, if it has one. Its model must be gone by then."""
    global _held
    if _held is not None:
        lease, _held = _held, None
        lease.release()


@functools.cache
def _watch_forks() -> None:
    """A lock lives until the last copy of its descriptor is closed: a child's copy would outlive its parent."""
    os.register_at_fork(after_in_child=_forget)


def _forget() -> None:
    global _held
    if _held is not None:
        lease, _held = _held, None
        lease.forget()


# --- locks ---


def lease_folder() -> Path:
    """The node's folder of leases: $RERANK_UDF_LEASES, else the first of /tmp, /var/tmp and /dev/shm that serves.

    Every user of the node may add to it, and none may remove another's files. Raises ConfigError where there is none.
    """
    wanted = os.environ.get(FOLDER_VARIABLE)
    for place in _PLACES if wanted is None else (Path(wanted).expanduser().absolute(),):
        _make_for_all(place)
        if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
            return place
    if wanted is not None:
        raise ConfigError(f"{FOLDER_VARIABLE} is {wanted}, which cannot be made or written here; {_SHARED}")
    places = ", ".join(map(str, _PLACES))
    raise ConfigError(
        f"device leases need a folder, and none of {places} can be made and written here; {_SHARED}"
    )


def _make_for_all(place: Path) -> None:
    """Make the folder, and its permissions in the same step: another user may come between a mkdir and a chmod."""
    if place.exists():
        return
    with contextlib.suppress(OSError):  # another was faster, or nothing may be written here: the caller looks
        place.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
        made.chmod(_FOR_ALL)
        try:
            made.rename(place)
        except OSError:
            made.rmdir()


def _first_free(folder: Path, devices: Sequence[Device], run: str) -> Lease | None:
    for device in devices:
        descriptor = _locked(folder / f"{_file_name(device)}.lock")
        if descriptor is not None:
            return Lease(device, descriptor, _write_record(folder, device, run))
    return None


def _file_name(device: Device) -> str:
    """One name for one device, whether a process knows it as a GPU or as the MIG instance that it is."""
    bare = re.sub(r"^(GPU|MIG)-(?=[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$)", "", device.identity)
    return re.sub(r"[^A-Za-z0-9_.-]", "-", bare)


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock on `path`; None where another process holds it, or this user may not have it.

    Raises ConfigError where the file system has no such locks, or another thing than a lock file is in its place.
    """
    while True:
        try:
            descriptor = _opened(path)
        except PermissionError:
            return None
        except OSError as error:
            raise ConfigError(f"{path} cannot be opened ({error.strerror}); {_SHARED}") from error
        if descriptor is not None and _lock(path, descriptor):
            if _is_still(path, descriptor):
                return descriptor
            os.close(descriptor)  # swept away before it was locked: once more
        elif descriptor is not None:
            os.close(descriptor)
            return None


def _opened(path: Path) -> int | None:
    """The lock file, made where there is none; None where another process has just made it.

    Without O_CREAT where it exists, since the kernel may forbid that on another user's file in a sticky folder. Never
    through a link; and nothing is ever written into it.
    """
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, os.O_RDWR | flags)
    except FileNotFoundError:
        pass
    except PermissionError:
        return os.open(path, os.O_RDONLY | flags)  # enough for a lock on a local file system
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o666)
    except FileExistsError:
        return None
    os.fchmod(descriptor, 0o666)  # whatever the umask
    return descriptor


def _lock(path: Path, descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        os.close(descriptor)
        raise ConfigError(f"{path} cannot be locked ({error.strerror}); {_SHARED}") from error
    with contextlib.suppress(OSError):
        os.utime(descriptor)  # what sweeps /tmp by age leaves it alone
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


# --- records: who holds what, for messages ---


def _write_record(folder: Path, device: Device, run: str) -> Path:
    """Say who took the device. One file a user, since in a sticky folder nobody can replace another's."""
    record = folder / f"{_file_name(device)}.{os.getuid()}.json"
    holder = Holder(os.getpid(), socket.gethostname(), os.getuid(), time.time(), run[:200])
    with contextlib.suppress(OSError):  # a full disk, say: the lease holds all the same
        handle, temporary = tempfile.mkstemp(prefix=f".{record.name}.", dir=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(json.dumps(asdict(holder)))
            Path(temporary).rename(record)
        except OSError:
            Path(temporary).unlink()
    return record


def _taken(folder: Path, devices: Sequence[Device]) -> str:
    return "; ".join(f"{device.identity} is held by {_holder(folder, device)}" for device in devices)


def _all_taken(folder: Path, devices: Sequence[Device], waited: float) -> str:
    asker = f"pid {os.getpid()} on {socket.gethostname()}"
    return f"no device became free for {asker} within {waited:.0f} s: {_taken(folder, devices)}. {_REMEDY}"


def _holder(folder: Path, device: Device) -> Holder | str:
    """Whoever was the last to say that it took the device: a holder that was killed could not take its record back."""
    found = sorted(_records(folder, device), key=lambda holder: holder.since)
    return found[-1] if found else f"a process that left no record in {folder}"


def _records(folder: Path, device: Device) -> Iterator[Holder]:
    for path in folder.glob(f"{_file_name(device)}.*.json"):
        with contextlib.suppress(
            OSError, ValueError, TypeError, KeyError
        ):  # another user's file may hold anything
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                told = json.loads(file.read(_RECORD_BYTES))
            host, run = _printable(told["host"]), _printable(told["run"])
            yield Holder(int(told["pid"]), host, int(told["uid"]), float(told["since"]), run)


def _printable(text: Any) -> str:
    return "".join(letter for letter in str(text) if letter.isprintable())


# --- devices ---


def fake_devices() -> list[Device]:
    """Pretend devices, by which the tests of placement do without a card: RERANK_UDF_FAKE_DEVICES="0,1"."""
    names = [name.strip() for name in os.environ.get(FAKE_VARIABLE, "").split(",")]
    return [Device(f"fake-{name}", "cpu", (name,)) for name in names if name]


def cuda_devices(assigned: Sequence[str] = ()) -> list[Device]:
    """The CUDA devices that this process may use, in CUDA's own order; empty where CUDA cannot start.

    `assigned`: what the scheduler calls those of the task. MIG instances are taken from CUDA_VISIBLE_DEVICES, else
    from `assigned`: a process can use one of them only, and has to say which before CUDA starts.
    """
    setting = os.environ.get(VISIBLE_VARIABLE)
    entries = [] if setting is None else [entry.strip() for entry in setting.split(",")]
    instances = [entry for entry in entries or assigned if entry.startswith("MIG-")]
    if instances:
        return [Device(entry, "cuda:0", (entry,), visible=entry) for entry in instances]
    names = dict(enumerate(entries))
    return [
        Device(identity, f"cuda:{number}", (names.get(number, str(number)),))
        for number, identity in enumerate(_driver_ids())
    ]


def assigned_device(devices: Sequence[Device], addresses: Sequence[str]) -> Device | None:
    """The first of `devices` that one of the scheduler's `addresses` means: an id, or a number."""
    for address in addresses:
        for device in devices:
            if address == device.identity or address in device.aliases:
                return device
    return None


def _driver_ids() -> list[str]:
    """The ids of this process's CUDA devices, at the numbers that torch has for them.

    Asked of the driver's own library, which applies CUDA_VISIBLE_DEVICES (numbers or ids) and CUDA_DEVICE_ORDER as it
    will for torch, and makes no context on any device.
    """
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")  # as torch does before it starts CUDA
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int()
        _call(driver.cuInit, 0)
        _call(driver.cuDeviceGetCount, ctypes.byref(count))
        return [f"GPU-{_driver_id(driver, number)}" for number in range(count.value)]
    except OSError as error:
        _log.info("CUDA cannot start here: %s", error)
        return []


def _driver_id(driver: ctypes.CDLL, number: int) -> uuid.UUID:
    handle = ctypes.c_int()
    octets = (ctypes.c_ubyte * 16)()
    _call(driver.cuDeviceGet, ctypes.byref(handle), number)
    # The second version tells a MIG instance's own id; drivers before 11.4 have the first alone
    _call(getattr(driver, "cuDeviceGetUuid_v2", None) or driver.cuDeviceGetUuid, octets, handle)
    return uuid.UUID(bytes=bytes(octets))


def _call(function: Any, *arguments: Any) -> None:
    status = function(*arguments)
    if status:
        raise OSError(f"{function.__name__} gave CUDA error {status}")
