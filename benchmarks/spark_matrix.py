"""The Spark tests on other versions of pyspark: python benchmarks/spark_matrix.py [VERSION ...] [-- PYTEST ARGUMENTS]

    python benchmarks/spark_matrix.py                       # 3.5, 4.0, 4.1, 4.3: the tests of job, store and transform
    python benchmarks/spark_matrix.py 3.5.9 -- tests/spark -m "not slow"

Each version is installed beside the environment that runs this command (some 450 MB each, kept under build/), and comes
before it on the path: everything else is the same. Delta and Iceberg tests run where jars for that line are there
(RERANK_UDF_JARS), and are skipped elsewhere.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSIONS = ("3.5.9", "4.0.5", "4.1.4", "4.3.0")
TESTS = (
    "tests/spark/test_resume.py",
    "tests/spark/test_staging.py",
    "tests/spark/test_store.py",
    "tests/spark/test_pipeline.py",
    "tests/spark/test_transform.py",
    "tests/spark/test_udf.py",
    "tests/spark/test_evaluate_tables.py",
    "tests/spark/test_assess.py",
    "tests/spark/test_lake.py",
    "tests/spark/test_text_sources.py",
    "tests/spark/test_notes.py",
    "tests/spark/test_waves.py",
    "tests/spark/test_placement.py",
)
_SUMMARY = re.compile(r"^=*\s*(\d+ (?:passed|failed|error|skipped|deselected).*?)\s*=*$")


def main(arguments: list[str]) -> int:
    """Run the tests on each version; 1 where one fails."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    versions, tests = arguments[:split] or VERSIONS, arguments[split + 1 :] or TESTS
    if "-h" in versions or "--help" in versions:
        print(__doc__)
        return 0
    ends = {version: run(version, tests) for version in versions}
    print()
    for version, (code, summary) in ends.items():
        print(f"pyspark {version:8} {'passes' if code == 0 else 'FAILS ':7} {summary}")
    return 1 if any(code for code, _ in ends.values()) else 0


def run(version: str, tests: tuple[str, ...] | list[str]) -> tuple[int, str]:
    """Exit code and last line of pytest with that pyspark."""
    print(f"=== pyspark {version}", flush=True)
    folder = installed(version)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    around = {name: value for name, value in os.environ.items() if name != "SPARK_HOME"}
    around |= {"PYTHONPATH": os.pathsep.join(paths), "SPARK_HOME": str(folder / "pyspark")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.Popen(command, cwd=ROOT, env=around, stdout=subprocess.PIPE, text=True)
    assert done.stdout is not None
    summary = ""
    for line in done.stdout:
        print(line, end="", flush=True)
        found = _SUMMARY.match(line.strip())
        summary = found[1] if found else summary
    return done.wait(), summary


def installed(version: str) -> Path:
    """The folder with that pyspark, installed on first use."""
    folder = ROOT / "build" / f"pyspark-{version}"
    if not (folder / "pyspark").exists():
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--target",
            str(folder),
            f"pyspark=={version}",
        ]
        subprocess.run(command, check=True)
    return folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
