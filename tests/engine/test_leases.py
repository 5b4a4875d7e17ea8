"""No two processes on one device: with real processes that compete, are killed, wait, fork and belong to two users."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rerank_udf.engine import leases
from rerank_udf.engine.leases import Device, assigned_device, fake_devices, lease_device, release_device
from rerank_udf.errors import ConfigError, DeviceBusyError

# Reads one request, takes a lease and tells which; then lives until its input ends. Asked to `fork`, it has a child
# that asks for the same.
PROCESS = """
import faulthandler, json, os, signal, sys, time
from rerank_udf.engine import leases
from rerank_udf.errors import RerankError

faulthandler.dump_traceback_later(120, exit=True)
request = json.loads(sys.stdin.readline())
while request.get("go") and not os.path.exists(request["go"]):
    time.sleep(0.005)
if user := request.get("user"):
    os.umask(0o077)
    os.setgid(user)
    os.setuid(user)
devices = leases.cuda_devices() if request.get("cuda") else leases.fake_devices()

def ask():
    wish = leases.assigned_device(devices, request.get("prefer", []))
    told = {"pid": os.getpid()}
    try:
        lease = leases.lease_device(devices, wish, wait_seconds=request.get("wait", 0), run=request.get("run", ""))
        told.update(device=lease.device.identity, name=lease.device.name, visible=os.getenv("CUDA_VISIBLE_DEVICES"))
    except RerankError as error:
        told.update(error=str(error))
    print(json.dumps(told), flush=True)

ask()
if request.get("fork") and not os.fork():
    ask()
    signal.pause()
sys.stdin.read()
"""


class Process:
    """A process of this node that asks for a lease."""

    def __init__(self, environment: dict[str, str], **request: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROCESS],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._write(json.dumps(request) + "\n")

    def _write(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def told(self) -> dict[str, Any]:
        """The next thing that it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read() if self.process.stderr else ""
        return dict(json.loads(line))

    def waits(self) -> str:
        """Comes back when it has found every device taken."""
        assert self.process.stderr is not None
        return self.process.stderr.readline()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    def end(self) -> None:
        """Let it end by itself, if it still lives."""
        with self.process:
            if self.process.stdin is not None and not self.process.stdin.closed:
                self.process.stdin.close()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A node of its own, with two pretend devices; what this process has leased is given back."""
    monkeypatch.setenv(leases.FOLDER_VARIABLE, str(tmp_path / "leases"))
    monkeypatch.setenv(leases.FAKE_VARIABLE, "0,1")
    monkeypatch.delenv(leases.VISIBLE_VARIABLE, raising=False)
    release_device()
    yield tmp_path / "leases"
    release_device()


@pytest.fixture
def start(node: Path) -> Iterator[Any]:
    """Start a process on the node; all of them have ended after the test."""
    started: list[Process] = []

    def starter(environment: dict[str, str] | None = None, **request: Any) -> Process:
        started.append(Process(environment or {}, **request))
        return started[-1]

    yield starter
    for process in started:
        process.end()


def take(*names: str, prefer: str | None = None, wait_seconds: float = 0.0, run: str = "") -> str:
    devices = [device for device in fake_devices() if not names or device.identity in names]
    wish = assigned_device(devices, [prefer] if prefer else [])
    return lease_device(devices, wish, wait_seconds=wait_seconds, run=run).device.identity


# --- competing ---


def test_of_six_processes_that_start_at_once_each_device_gets_one(start, node, tmp_path):
    devices = {leases.FAKE_VARIABLE: "0,1,2"}
    go = tmp_path / "go"
    processes = [start(environment=devices, go=str(go), prefer=["1"]) for _ in range(6)]
    go.touch()
    told = [process.told() for process in processes]
    holders = {answer["device"]: answer["pid"] for answer in told if "device" in answer}
    assert sorted(holders) == ["fake-0", "fake-1", "fake-2"]
    refused = [answer["error"] for answer in told if "error" in answer]
    assert len(refused) == 3
    # The folder was made by whoever was first, once, for every user, and nothing half-made is left.
    assert stat.S_IMODE(node.stat().st_mode) == 0o1777
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert sorted(path.name for path in node.glob("*.lock")) == ["fake-0.lock", "fake-1.lock", "fake-2.lock"]


def test_a_device_is_free_at_once_when_its_holder_is_killed(start):
    holder = start(prefer=["0"])
    assert holder.told()["device"] == "fake-0"
    with pytest.raises(DeviceBusyError):
        take("fake-0")
    holder.kill()
    assert take("fake-0") == "fake-0"


def test_waiting_ends_when_the_holder_ends(start):
    holder, waiter = start(prefer=["0"]), None
    assert holder.told()["device"] == "fake-0"
    waiter = start(environment={leases.FAKE_VARIABLE: "0"}, wait=120)
    assert f"fake-0 is held by pid {holder.process.pid} on {socket.gethostname()}" in waiter.waits()
    holder.end()
    assert waiter.told()["device"] == "fake-0"


def test_whoever_waits_in_vain_is_told_each_devices_holder_and_what_to_do(start):
    holders = [start(prefer=[name], run=f"wave {name} of nightly") for name in "01"]
    assert [holder.told()["device"] for holder in holders] == ["fake-0", "fake-1"]
    with pytest.raises(DeviceBusyError) as raised:
        take(wait_seconds=0.3)
    message = str(raised.value)
    for name, holder in enumerate(holders):
        assert f"fake-{name} is held by pid {holder.process.pid} on {socket.gethostname()}" in message
        assert f"wave {name} of nightly" in message
    assert f"pid {os.getpid()}" in message
    assert "idleWorkerMaxPoolSize" in message
    assert raised.value.exit_code == 1


# --- which device ---


def test_the_schedulers_wish_comes_first_and_any_free_device_second(start):
    first, second = start(prefer=["1"]), None
    assert first.told()["device"] == "fake-1"
    second = start(prefer=["1"])
    assert second.told()["device"] == "fake-0"


def test_a_process_keeps_its_device_whatever_the_next_task_is_given(node):
    assert take(prefer="1") == "fake-1"
    assert take(prefer="0") == "fake-1"


def test_another_plan_that_needs_another_device_gives_the_first_back(start):
    assert take("fake-0") == "fake-0"
    assert take("fake-1") == "fake-1"
    other = start(environment={leases.FAKE_VARIABLE: "0"})
    assert other.told()["device"] == "fake-0"


def test_a_forked_child_neither_has_nor_prolongs_its_parents_lease(start):
    parent = start(environment={leases.FAKE_VARIABLE: "0"}, fork=True)
    assert parent.told()["device"] == "fake-0"
    child = parent.told()
    try:
        assert f"fake-0 is held by pid {parent.process.pid}" in child["error"]
        with pytest.raises(DeviceBusyError):
            take("fake-0")
        parent.kill()
        assert Path(f"/proc/{child['pid']}").exists()
        assert take("fake-0") == "fake-0"
    finally:
        os.kill(child["pid"], signal.SIGKILL)


# --- records ---


def test_a_record_that_a_killed_process_left_misleads_nobody(start, node):
    first = start(prefer=["0"])
    first.told()
    first.kill()
    second = start(prefer=["0"])
    assert second.told()["device"] == "fake-0"
    # And one from another user, who was killed before that:
    left = json.loads((node / f"fake-0.{os.getuid()}.json").read_text())
    other = {**left, "uid": 12345, "pid": first.process.pid, "since": left["since"] - 60}
    (node / "fake-0.12345.json").write_text(json.dumps(other))
    with pytest.raises(DeviceBusyError) as raised:
        take("fake-0")
    assert f"held by pid {second.process.pid} on" in str(raised.value)
    assert str(first.process.pid) not in str(raised.value)


@pytest.mark.parametrize(
    "content", ["", "{", "[1, 2]", '{"pid": "x"}', "\x00" * 5000, '{"pid": {}, "host": 1}']
)
def test_a_record_may_hold_anything(start, node, content):
    start(prefer=["0"]).told()
    (node / f"fake-0.{os.getuid()}.json").write_text(content)
    with pytest.raises(DeviceBusyError, match="fake-0 is held by a process that left no record"):
        take("fake-0")


def test_a_holder_that_is_gone_or_in_another_container_is_said_to_be_unseen(start, node):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(60)
    start(prefer=["0"]).told()
    record = node / f"fake-0.{os.getuid()}.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "pid": ended.pid}))
    with pytest.raises(DeviceBusyError, match=f"pid {ended.pid} on .*not seen from here"):
        take("fake-0")
    record.write_text(json.dumps({**json.loads(record.read_text()), "host": "elsewhere\n\x1b[31m"}))
    with pytest.raises(DeviceBusyError, match=rf"pid {ended.pid} on elsewhere\[31m \(") as raised:
        take("fake-0")
    assert "not seen" not in str(raised.value)


def test_a_lease_that_is_given_back_leaves_no_record(node):
    before = time.time()
    take("fake-0", run="a run")
    (record,) = node.glob("*.json")
    told = json.loads(record.read_text())
    assert (told["pid"], told["host"], told["uid"]) == (os.getpid(), socket.gethostname(), os.getuid())
    assert before <= told["since"] <= time.time()
    assert told["run"] == "a run"
    release_device()
    assert list(node.glob("*.json")) == []


def test_the_file_of_a_lease_that_is_taken_is_as_new(node):
    node.mkdir()
    lock = node / "fake-0.lock"
    lock.touch()
    os.utime(lock, (1.0, 1.0))
    take("fake-0")
    assert lock.stat().st_mtime > 1.0  # what clears /tmp of old files leaves it


# --- the folder ---


def test_a_lock_file_that_was_swept_away_is_made_anew(node):
    assert take("fake-0") == "fake-0"
    release_device()
    (node / "fake-0.lock").unlink()
    assert take("fake-0") == "fake-0"
    assert (node / "fake-0.lock").exists()


def test_a_folder_that_cannot_be_made_is_named_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(leases.FOLDER_VARIABLE, str(tmp_path / "file" / "leases"))
    with pytest.raises(
        ConfigError, match=r"RERANK_UDF_LEASES is .*file/leases, which cannot be made or written here"
    ):
        leases.lease_folder()


def test_where_tmp_is_read_only_another_place_serves(tmp_path, monkeypatch):
    monkeypatch.delenv(leases.FOLDER_VARIABLE, raising=False)
    (tmp_path / "read-only").touch()  # nothing can be made below it, not even by root
    places = [tmp_path / "read-only" / "leases", tmp_path / "second" / "leases"]
    monkeypatch.setattr(leases, "_PLACES", tuple(places))
    assert leases.lease_folder() == places[1]
    monkeypatch.setattr(leases, "_PLACES", tuple(places[:1]))
    with pytest.raises(
        ConfigError, match=r"none of .*read-only/leases can be made and written here; set RERANK_UDF_LEASES"
    ):
        leases.lease_folder()


def test_a_link_in_the_place_of_a_lock_is_not_followed(node, tmp_path):
    node.mkdir()
    target = tmp_path / "somebody's file"
    target.write_text("theirs")
    (node / "fake-0.lock").symlink_to(target)
    with pytest.raises(ConfigError, match=r"fake-0\.lock cannot be opened"):
        take("fake-0")
    assert target.read_text() == "theirs"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be two other users")
def test_two_users_of_a_node_share_devices_and_folder(start):
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # pytest's own folders are closed to other users
        Path(place).chmod(0o1777)
        node = Path(place) / "leases"
        only = {leases.FAKE_VARIABLE: "0", leases.FOLDER_VARIABLE: str(node)}
        first = start(user=12001, environment=only)
        assert first.told()["device"] == "fake-0"
        assert (node.stat().st_uid, stat.S_IMODE(node.stat().st_mode)) == (12001, 0o1777)
        second = start(user=12002, environment=only)
        here = socket.gethostname()
        assert f"held by pid {first.process.pid} on {here} (uid 12001," in second.told()["error"]
        first.kill()  # its record stays, and is not the second user's to remove
        third = start(user=12002, environment=only)
        assert third.told()["device"] == "fake-0"
        fourth = start(user=12001, environment=only)
        assert f"held by pid {third.process.pid} on {here} (uid 12002," in fourth.told()["error"]


# --- devices ---


def test_pretend_devices_are_named_in_the_environment(monkeypatch):
    monkeypatch.setenv(leases.FAKE_VARIABLE, " 0, GPU-x,")
    assert fake_devices() == [Device("fake-0", "cpu", ("0",)), Device("fake-GPU-x", "cpu", ("GPU-x",))]
    monkeypatch.delenv(leases.FAKE_VARIABLE)
    assert fake_devices() == []


IDS = [f"{letter * 8}-0000-4000-8000-{letter * 12}" for letter in "abc"]
# What a driver answers for a node of three cards; it applies CUDA_VISIBLE_DEVICES, by numbers or ids, as the real one.
DRIVER = """
#include <stdlib.h>
#include <string.h>
static const char *ids[3] = {"GPU-%s", "GPU-%s", "GPU-%s"};
static int seen[3], count;
int cuInit(unsigned flags) {
    char *setting = getenv("CUDA_VISIBLE_DEVICES"), copy[1000], *entry;
    count = 0;
    if (!setting) { for (; count < 3; count++) seen[count] = count; return 0; }
    strncpy(copy, setting, 999);
    for (entry = strtok(copy, ","); entry; entry = strtok(0, ",")) {
        int found = -1;
        for (int n = 0; n < 3; n++) if (!strncmp(ids[n], entry, strlen(entry))) found = n;
        if (entry[0] >= '0' && entry[0] <= '2' && !entry[1]) found = entry[0] - '0';
        if (found < 0) break;
        seen[count++] = found;
    }
    return count ? 0 : 100;
}
int cuDeviceGetCount(int *answer) { *answer = count; return 0; }
int cuDeviceGet(int *answer, int number) { *answer = number; return number < count ? 0 : 101; }
int cuDeviceGetUuid_v2(unsigned char *octets, int number) {
    const char *text = ids[seen[number]] + 4;
    for (int n = 0; n < 16; n++) {
        char pair[3];
        if (*text == '-') text++;
        pair[0] = text[0]; pair[1] = text[1]; pair[2] = 0;
        octets[n] = (unsigned char) strtol(pair, 0, 16);
        text += 2;
    }
    return 0;
}
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which libcuda.so.1 is a node of three cards."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the pretend driver")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER % tuple(IDS))
    command = [compiler, "-shared", "-fPIC", "-o", folder / "libcuda.so.1", folder / "driver.c"]
    subprocess.run(command, check=True, timeout=120)
    return {"LD_LIBRARY_PATH": str(folder)}


def test_a_card_is_one_device_whatever_number_or_name_a_process_has_for_it(start, driver):
    by_number = start(environment={**driver, "CUDA_VISIBLE_DEVICES": "2,1"}, cuda=True, prefer=["1"])
    told = by_number.told()
    assert (told["device"], told["name"], told["visible"]) == (f"GPU-{IDS[1]}", "cuda:1", "2,1")
    by_id = start(environment={**driver, "CUDA_VISIBLE_DEVICES": f"GPU-{IDS[1]}"}, cuda=True)
    assert f"GPU-{IDS[1]} is held by pid {by_number.process.pid}" in by_id.told()["error"]
    of_all = start(environment=driver, cuda=True, prefer=["1"])  # number 1 is taken: another
    assert of_all.told()["device"] == f"GPU-{IDS[0]}"
    last = start(environment=driver, cuda=True, prefer=[f"GPU-{IDS[2]}"])
    assert (answer := last.told())["device"] == f"GPU-{IDS[2]}"
    assert answer["name"] == "cuda:2"
    assert "no device became free" in start(environment=driver, cuda=True).told()["error"]


def test_without_a_driver_or_a_card_there_is_no_device(driver, tmp_path):
    code = "from rerank_udf.engine.leases import cuda_devices; print(cuda_devices())"
    hidden = {**os.environ, **driver, "CUDA_VISIBLE_DEVICES": "-1"}
    assert subprocess.check_output([sys.executable, "-c", code], env=hidden, text=True, timeout=60) == "[]\n"
    broken = tmp_path / "libcuda.so.1"
    broken.write_text("no library")
    absent = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    assert subprocess.check_output([sys.executable, "-c", code], env=absent, text=True, timeout=60) == "[]\n"


def test_a_mig_instance_is_chosen_before_cuda_starts(start, driver):
    instances = [f"MIG-{name}" for name in IDS[:2]]
    setting = {"CUDA_VISIBLE_DEVICES": ",".join(instances)}
    first = start(environment=setting, cuda=True, prefer=[instances[1]])
    told = first.told()
    assert (told["device"], told["name"], told["visible"]) == (instances[1], "cuda:0", instances[1])
    second = start(environment=setting, cuda=True, prefer=[instances[1]])
    assert second.told()["visible"] == instances[0]
    # One that the driver itself shows to a process is the same device, though it is told as a GPU there.
    whole = start(environment={**driver, "CUDA_VISIBLE_DEVICES": f"GPU-{IDS[0]}"}, cuda=True)
    assert f"held by pid {second.process.pid}" in whole.told()["error"]
