"""What the built wheel carries: the package and what it reads of its own, and no weights."""

from __future__ import annotations

import zipfile
from pathlib import Path

from standalone import REPOSITORY

LEFT_OUT = ("rerank_udf/weights/", "rerank_udf/demo/source/")


def test_the_wheel_has_every_file_of_the_package_but_weights_and_the_demo_tables_sources(
    wheel_archive: Path,
) -> None:
    here = [path.relative_to(REPOSITORY) for path in (REPOSITORY / "rerank_udf").rglob("*") if path.is_file()]
    files = {str(path) for path in here if "__pycache__" not in path.parts}
    left_out = {name for name in files if name.startswith(LEFT_OUT)}
    assert any(name.endswith(".safetensors") for name in left_out)
    with zipfile.ZipFile(wheel_archive) as wheel:
        carried = {entry.filename for entry in wheel.infolist() if entry.filename.startswith("rerank_udf/")}
    assert carried == files - left_out
    assert wheel_archive.stat().st_size < 2 << 20
