"""Pairs done, tokens/s and time left, while the scoring job runs.

Tasks add what they have scored to two accumulators; a retried task adds twice, so these numbers serve the eye only and
the report counts the scored files instead.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from pyspark.sql import SparkSession
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from rerank_udf.report import clock

_TERMINAL_SECONDS = 0.5
_PLAIN_SECONDS = 10.0


class ScoringProgress:
    """Counts that tasks add to and a thread shows: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, spark: SparkSession, total_pairs: int, console: Console) -> None:
        self.total = total_pairs
        self.console = console
        self.pairs: Any = spark.sparkContext.accumulator(0)
        self.tokens: Any = spark.sparkContext.accumulator(0)
        self._begun = monotonic()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show progress while the block runs."""
        stop = threading.Event()
        show = self._bar if self.console.is_terminal else self._lines
        thread = threading.Thread(target=show, args=(stop,), name="scoring-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _lines(self, stop: threading.Event) -> None:
        shown = -1
        while not stop.wait(_PLAIN_SECONDS):
            if self.pairs.value != shown:
                shown = self.pairs.value
                self.console.print(f"scoring {self._text()}", highlight=False)

    def _bar(self, stop: threading.Event) -> None:
        columns = (TextColumn("scoring"), BarColumn(), TextColumn("{task.fields[text]}"), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task("scoring", total=max(1, self.total), text=self._text())
            while not stop.wait(_TERMINAL_SECONDS):
                progress.update(task, completed=min(self.pairs.value, self.total), text=self._text())

    def _text(self) -> str:
        done, seconds = self.pairs.value, monotonic() - self._begun
        if not done:
            return f"0 of {self.total:,} pairs"
        left = clock(seconds * max(0, self.total - done) / done)
        return f"{done:,} of {self.total:,} pairs · {self.tokens.value / seconds:,.0f} tokens/s · {left} left"
