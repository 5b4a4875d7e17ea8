"""A report for people: rich renderables, no measuring."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rerank_udf.engine.doctor.report import (
    ClusterReport,
    DeviceFacts,
    DoctorReport,
    Exactness,
    Speed,
    TokenizerSpeed,
)

_SMALL_SHARE = 0.1
_LEGEND = (
    "Δ: to the logits of transformers in float32. theirs: rms Δ of transformers in the same 16 bits.\n"
    "τ: Kendall's, the mean over queries."
)


def show(report: DoctorReport | ClusterReport) -> RenderableType:
    """A report for a console: of one device in full, of a cluster one line a device; the verdict last."""
    return _cluster(report) if isinstance(report, ClusterReport) else _machine(report)


def _machine(report: DoctorReport) -> RenderableType:
    return Group(_facts(report), Text(), *_checks(report), _measurements(report), Text(), verdict(report))


def _facts(report: DoctorReport) -> Table:
    model, device = report.model, report.device
    revision = f" at {model['revision'][:12]}" if model["revision"] else ""
    limits = f"cut at {model['max_length']:,} of {model['most_tokens']:,} tokens"
    shape = f"{model['layers']} × {model['hidden']} · {limits} · {model['precision']}"
    rows = [
        ("model", f"{model['name']}{revision} · {shape}"),
        ("device", f"{device.device} · {device.name}"),
        ("", " · ".join(_device_details(device))),
    ]
    if report.backend:
        rows.append(("backend", " · ".join(_backend_details(report.backend))))
        not_chosen = _by_reason(report.backend.get("not_chosen") or {})
        rows += [("", f"not {', '.join(names)}: {reason}") for reason, names in not_chosen.items()]
    rows.append(("versions", "  ".join(f"{name} {found}" for name, found in report.versions.items())))
    return _grid(rows)


def _device_details(device: DeviceFacts) -> Iterable[str]:
    yield device.capability or "unknown capability"
    if device.memory_total_bytes is not None and device.memory_free_bytes is not None:
        yield f"{_gib(device.memory_free_bytes)} of {_gib(device.memory_total_bytes)} free"
    yield f"{device.threads} thread{'s' if device.threads > 1 else ''}"
    if device.driver:
        yield f"driver {device.driver}"
    if device.cuda:
        yield f"CUDA {device.cuda}"


def _backend_details(backend: dict[str, Any]) -> Iterable[str]:
    yield str(backend["backend"])
    if backend.get("kernel"):
        yield f"attention {backend['kernel']}"
    yield f"{backend['max_tokens_per_batch']:,} tokens a batch"


def _by_reason(not_chosen: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, reason in not_chosen.items():
        found.setdefault(reason, []).append(name)
    return found


def _checks(report: DoctorReport) -> Iterable[RenderableType]:
    if not report.exactness:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    table.add_column("against transformers")
    table.add_column("precision", no_wrap=True)
    for heading in ("max |Δ|", "allowed", "rms Δ", "theirs", "τ"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for check in report.exactness:
        table.add_row(*_check_row(check))
    yield table
    yield Text(_LEGEND, "dim")
    yield Text()


def _check_row(check: Exactness) -> list[str | Text]:
    sign = Text("wrong", "bold red") if check.failure else Text("ok", "green")
    if not check.judged and not check.failure:
        sign = Text("–")
    return [
        check.inputs,
        check.precision,
        _short(check.largest),
        _short(check.allowed),
        _short(check.rms),
        _short(check.expected_rms),
        "" if check.kendall_tau is None else f"{check.kendall_tau:.4f}".removeprefix("0"),
        sign,
    ]


def _measurements(report: DoctorReport) -> Table:
    rows = []
    if report.exactness:
        lost = ", ".join(_not_finite(check) for check in report.exactness if check.not_finite)
        rows.append(("not finite", lost or "none"))
    if report.speed:
        rate = f"{_flops(report.speed.product_rate)} at {report.speed.rows:,} rows"
        rows.append(("speed", _speed(report.speed)))
        rows.append(("", f"{report.speed.share:.0%} of this device's own matrix products: {rate}"))
    if report.memory:
        predicted = report.memory.predicted_bytes
        said = f", predicted {_gib(predicted)}" if predicted is not None else ""
        peak = "unknown" if report.memory.peak_bytes is None else _gib(report.memory.peak_bytes)
        rows.append(("memory", f"peak {peak}{said} ({report.memory.measured})"))
    if report.tokenizer:
        core = f"{report.tokenizer.tokens_per_second_per_core:,.0f} tokens/s a core"
        rows.append(("tokeniser", f"{core}; keeping this device busy takes {_cores(report.tokenizer)}"))
    return _grid(rows)


def _cores(tokenizer: TokenizerSpeed) -> str:
    """How many cores tokenise as fast as the device scores, by how many pairs share a passage."""
    needed = {pairs: cores for pairs, cores in tokenizer.cores_needed.items() if cores >= _SMALL_SHARE}
    if not needed:
        return f"under {_SMALL_SHARE} of a core"
    told = " or ".join(f"{cores:.1f} ({pairs})" for pairs, cores in needed.items())
    return f"{told} cores (pairs that share a passage)"


def verdict(report: DoctorReport) -> Text:
    """The last lines: fit, or what is wrong."""
    if report.passed:
        note = f"\n{report.device.remedy}" if report.device.remedy else ""
        return Text(f"✓ {report.device.device} is fit to score ({report.seconds:.0f} s){note}", "green")
    return Text("\n".join(f"✗ {failure}" for failure in report.failures), "bold red")


def _not_finite(check: Exactness) -> str:
    where = f"{check.precision} ({check.inputs})"
    return f"{check.not_finite} of {check.sequences} logits in {where}: a job scores them again in float32"


def _speed(speed: Speed) -> str:
    return (
        f"{speed.tokens_per_second:,.0f} tokens/s on {speed.sequences:,} sequences, {speed.mean_tokens:.0f} tokens "
        "in the mean"
    )


def _grid(rows: Iterable[tuple[str, str]]) -> Table:
    """Names and what is said of each; as Text, since a name or message may hold brackets that are no markup."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _flops(rate: float) -> str:
    return f"{rate / 1e12:.1f} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.0f} GFLOP/s"


def _cluster(found: ClusterReport) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for heading in ("host", "device", "kernel", "precision"):
        table.add_column(heading)
    for heading in ("max |Δ|", "tokens/s", "share", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for report in found.reports:
        table.add_row(*_device_row(report))
    last = [Text(f"✗ {failure}", "bold red") for failure in found.failures]
    if found.passed:
        last = [Text("✓ every device that was examined is fit to score", "green")]
        last += [
            Text(f"{report.host}: {report.device.remedy}") for report in found.reports if report.device.remedy
        ]
    return Group(table, Text(), Text(found.coverage), *last)


def _device_row(report: DoctorReport) -> list[str | Text]:
    own = [check for check in report.exactness if check.precision == report.model["precision"]]
    speed, memory = report.speed, report.memory
    return [
        Text(report.host),
        Text(f"{report.device.device} {report.device.name}"),
        str(report.backend.get("kernel") or report.backend.get("backend") or ""),
        report.model["precision"],
        _short(max((check.largest for check in own), default=None)),
        f"{speed.tokens_per_second:,.0f}" if speed else "",
        f"{speed.share:.0%}" if speed else "",
        _gib(memory.peak_bytes) if memory and memory.peak_bytes is not None else "",
        Text("ok", "green") if report.passed else Text("wrong", "bold red"),
    ]
