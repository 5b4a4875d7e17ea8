"""Progress: a bar on a terminal, plain lines elsewhere, and never in the way."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from rerank_udf.spark import progress
from rerank_udf.spark.progress import ScoringProgress


def shown(spark, monkeypatch, console: Console) -> None:
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.05)
    monkeypatch.setattr(progress, "_TERMINAL_SECONDS", 0.05)
    watch = ScoringProgress(spark, 1000, console)
    with watch.shown():
        for _ in range(3):
            watch.pairs.add(100)
            watch.tokens.add(2500)
            time.sleep(0.12)


def test_plain_lines_where_there_is_no_terminal(spark, monkeypatch):
    out = io.StringIO()
    shown(spark, monkeypatch, Console(file=out, width=100))
    lines = out.getvalue().splitlines()
    assert lines
    assert all(line.startswith("scoring ") and " of 1,000 pairs" in line for line in lines)
    assert any("tokens/s" in line and "left" in line for line in lines)
    assert len(lines) == len(set(lines))


def test_a_bar_on_a_terminal_goes_when_it_is_done(spark, monkeypatch):
    out = io.StringIO()
    shown(spark, monkeypatch, Console(file=out, width=100, force_terminal=True))
    assert "of 1,000 pairs" in out.getvalue()


def test_what_fails_while_it_is_shown_comes_through(spark):
    watch = ScoringProgress(spark, 0, Console(file=io.StringIO()))
    with pytest.raises(KeyError), watch.shown():
        raise KeyError
