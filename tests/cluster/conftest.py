"""What the tests on clusters share: the wheel, built once."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from standalone import build_wheel

pytest.importorskip("pyspark", reason="pyspark is not installed (make setup installs it)")


@pytest.fixture(scope="session", autouse=True)
def cleans_up_when_terminated() -> Iterator[None]:
    """SIGTERM ends the tests as Ctrl-C does: mounted disks and clusters are cleared away."""
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", returncode=143))
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def wheel_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel under a name that --py-files takes: executors import from .zip, .egg and .py, and from no .whl."""
    wheel = build_wheel(tmp_path_factory.mktemp("wheel"))
    return Path(shutil.copy(wheel, wheel.with_name(f"{wheel.stem}.zip")))
