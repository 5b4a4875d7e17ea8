"""The benchmark's end of a worker process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rerank_udf

PEERS = Path(__file__).parents[1] / "peers"
_OUR_ROOT = str(Path(rerank_udf.__file__).parents[1])
_OURS_DECIDE = ("TOKENIZERS_PARALLELISM", "PYTHONPATH", "PYTHONHOME")


class WorkerFailedError(Exception):
    """A worker died, or could not do what it was told; the message is one line for the table."""


class Worker:
    """A process that has an engine loaded. Nothing is computed in it but between `ask` and its return."""

    def __init__(
        self,
        name: str,
        python: Path | None,
        script: str,
        threads: int,
        variables: Mapping[str, str],
        log: Path,
    ) -> None:
        self.name = name
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [str(python or sys.executable), str(PEERS / script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                env=worker_environment(threads, variables) | ({} if python else {"PYTHONPATH": _OUR_ROOT}),
            )

    def ask(self, action: str, **settings: Any) -> dict[str, Any]:
        """Send a command and wait for its answer. Raises WorkerFailedError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": action, **settings}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise WorkerFailedError(f"its process ended with {code} ({self._last_words()}); log: {self._log}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerFailedError(f"{answer['error']}; log: {self._log}")
        return answer

    def stop(self) -> None:
        """End the process; one that has died already is no error."""
        if self._process.poll() is None:
            assert self._process.stdin is not None
            try:
                self._process.stdin.write('{"do": "stop"}\n')
                self._process.stdin.close()
                self._process.wait(timeout=30)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()

    def _last_words(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:200] if lines else "it said nothing"


def worker_environment(threads: int, variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker: as many threads for every library, no downloads, nothing of this process's own.

    A variable that is given as "" is unset.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _OURS_DECIDE}
    kept.pop("RERANK_UDF_CPU_BACKEND", None)
    count = str(threads)
    fixed = {
        "BENCH_THREADS": count,
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "RAYON_NUM_THREADS": count,
        "RERANK_UDF_THREADS": count,
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return {name: value for name, value in (kept | fixed | dict(variables)).items() if value}
