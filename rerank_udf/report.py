"""What a run did: run_report.json and the short table that ends a run."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

from rich.table import Table
from rich.text import Text

from rerank_udf.machine import processor_name

_REPORTED_PACKAGES = (
    "rerank-udf",
    "pyspark",
    "pyarrow",
    "tokenizers",
    "torch",
    "transformers",
    "numpy",
    "pandas",
)
_SECRET = re.compile(
    r"secret|passw(or)?d|pwd|token\b|(access|account|api|private|shared).?key|encryption.*key|credential|sas|"
    r"signature|\bsig\b",
    re.IGNORECASE,
)


@dataclass
class RunReport:
    """Everything in run_report.json; pairs_in = ranked + sum(cut) + sum(rejects), always."""

    run_id: str
    command: str
    started_at: str
    config: dict[str, Any]
    inputs: dict[str, str]
    seed: int
    input_versions: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    model_key: str = ""
    queries_without_candidates: int = 0
    pairs_in: int = 0
    pairs_distinct: int = 0
    pairs_scored: int = 0
    pairs_reused: int = 0
    ranked: int = 0
    cut: dict[str, int] = field(default_factory=dict)
    rejects: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    pairs_truncated: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    tokens_per_second: float = 0.0
    models_loaded: int = 0
    devices: list[str] = field(default_factory=list)
    placement: str = ""
    store: dict[str, Any] = field(default_factory=dict)
    waves: list[dict[str, Any]] = field(default_factory=list)
    output: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    evaluation: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the wall-clock seconds of the block to `seconds[name]`."""
        begun = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + perf_counter() - begun, 3)

    def rejected(self) -> int:
        """Rows that are in the rejects table."""
        return sum(self.rejects.values())

    def unaccounted(self) -> int:
        """Input rows that are neither ranked, cut nor rejected; anything but 0 is a defect of ours."""
        return self.pairs_in - self.ranked - sum(self.cut.values()) - self.rejected()

    def to_json(self) -> str:
        """The report as indented JSON with a final newline; secrets in the configuration are masked."""
        facts = asdict(self)
        facts["config"], facts["command"] = redacted(facts["config"]), redacted_command(facts["command"])
        return json.dumps(facts, indent=2, ensure_ascii=False, default=str) + "\n"

    def table(self) -> Table:
        """The run's end on a terminal: pairs, cuts, rejects, time, speed, where the output is."""
        table = Table(show_header=False, box=None, pad_edge=False)
        table.add_column()
        table.add_column(overflow="fold")
        for name, value in self._lines():
            table.add_row(name, Text(value))
        return table

    def _lines(self) -> Iterator[tuple[str, str]]:
        pairs = f"{self.pairs_in:,} in · {self.pairs_distinct:,} distinct · {self.pairs_scored:,} scored"
        yield "pairs", f"{pairs} · {self.pairs_reused:,} reused"
        yield "ranked", f"{self.ranked:,}"
        if self.cut:
            yield "cut", _counted(self.cut)
        yield "rejects", _counted(self.rejects) if self.rejects else "0"
        yield "tokens", f"{self.tokens:,} · {self.pairs_truncated:,} pairs truncated"
        phases = " + ".join(f"{name} {clock(seconds)}" for name, seconds in self.seconds.items())
        yield (
            "time",
            f"{clock(sum(self.seconds.values()))} ({phases}) · {self.tokens_per_second:,.0f} tokens/s",
        )
        yield (
            "model",
            f"{self.model.get('name')} · {self.model.get('precision')} · loaded {self.models_loaded} ×",
        )
        if self.store:
            yield (
                "store",
                f"{self.store['place']} · {len(self.waves)} waves · {self.store['adopted']:,} adopted",
            )
        yield from self.output.items()


def new_report(
    run_id: str, command: str, config: Mapping[str, Any], inputs: dict[str, str], seed: int
) -> RunReport:
    """A report with the time, versions and machine of this process filled in."""
    return RunReport(
        run_id=run_id,
        command=command,
        started_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        config=dict(config),
        inputs=inputs,
        seed=seed,
        versions=installed_versions(),
        machine={
            "host": platform.node(),
            "system": platform.platform(),
            "processor": processor_name(),
            "cores": os.cpu_count(),
        },
    )


def installed_versions() -> dict[str, str]:
    """Python's version and those of the packages that can change a result or a speed."""
    found = {"python": sys.version.split()[0]}
    for name in _REPORTED_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def redacted(value: Any) -> Any:
    """`value` with every mapping entry whose name speaks of a secret replaced by ***."""
    if isinstance(value, Mapping):
        return {k: "***" if _SECRET.search(str(k)) and v else redacted(v) for k, v in value.items()}
    if isinstance(value, list):
        return [redacted(item) for item in value]
    return value


def redacted_command(command: str) -> str:
    """A shell command with the value of every `key=value` word masked that speaks of a secret, in key or value."""
    words = []
    try:
        given = shlex.split(command)
    except ValueError:  # a notebook's own words, with an open quote
        given = command.split()
    for word in given:
        option, setting = ("--set=", word[6:]) if word.startswith("--set=") else ("", word)
        key, _, value = setting.partition("=")
        words.append(f"{option}{key}=***" if value and _is_secret(key, value) else word)
    return shlex.join(words)


def _is_secret(key: str, value: str) -> bool:
    """By its name, or, where the value is a mapping, by a name in that."""
    return bool(_SECRET.search(key) or ("{" in value and _SECRET.search(value)))


def clock(seconds: float) -> str:
    """3.2 → 0:03, 75 → 1:15, 3700 → 1:01:40."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, last = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{last:02}" if hours else f"{minutes}:{last:02}"


def _counted(by_reason: Mapping[str, int]) -> str:
    parts = [f"{reason} {count:,}" for reason, count in sorted(by_reason.items(), key=lambda item: -item[1])]
    return f"{sum(by_reason.values()):,} ({', '.join(parts)})"
