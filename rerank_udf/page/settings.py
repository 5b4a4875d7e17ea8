"""What it takes to repeat the run: settings, versions, machine, inputs, outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from rerank_udf.report import redacted


@dataclass(frozen=True)
class Listing:
    """A titled list of names and values, or a text as it is."""

    title: str
    rows: tuple[tuple[str, str], ...] = ()
    text: str = ""


def listings(report: Mapping[str, Any]) -> tuple[Listing, ...]:
    """Everything, secrets masked again in case the file was written by other hands."""
    versions = report.get("input_versions", {})
    inputs = {
        name: f"{place} (version {versions[name]})" if name in versions else str(place)
        for name, place in report["inputs"].items()
    }
    model = {name: value for name, value in report["model"].items() if not isinstance(value, Mapping)}
    found = (
        ("Inputs", inputs),
        ("Outputs", report["output"]),
        ("Model", {**model, **(report["model"].get("architecture") or {}), "model_key": report["model_key"]}),
        ("Digests", report["model"].get("digests")),
        ("Versions", report["versions"]),
        ("Machine", report["machine"]),
    )
    text = yaml.safe_dump(redacted(report["config"]), sort_keys=False, allow_unicode=True, width=100)
    return (
        *(Listing(title, _rows(values)) for title, values in found if values),
        Listing("Settings, resolved", text=text),
    )


def _rows(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((str(name), str(value)) for name, value in values.items() if value not in (None, ""))
