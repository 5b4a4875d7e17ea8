"""Numbers as the page shows them."""

from __future__ import annotations

import math
import re

NOTHING = "–"


def short(value: float | None, decimals: int = 3, *, sign: bool = False) -> str:
    """.712 rather than 0.712, as the field's tables have it; a dash where there is no number."""
    if value is None or not math.isfinite(value):
        return NOTHING
    text = f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"
    return re.sub(r"^([+-]?)0(?=\.)", r"\1", text).replace("-", "−")


def p_value(value: float | None) -> str:
    """.014, or <.001."""
    return "<.001" if value is not None and value < 0.001 else short(value)


def percent(part: float, whole: float) -> str:
    """12.3 %; <0.1 % of what is there at all; a dash of nothing. The space does not break."""
    if not whole:
        return NOTHING
    share = 100.0 * part / whole
    if share in (0.0, 100.0):
        return f"{share:.0f}\u00a0%"
    if share < 0.05 or share > 99.95:
        return "<0.1\u00a0%" if share < 50.0 else ">99.9\u00a0%"
    return f"{share:.1f}\u00a0%"


def compact(value: float) -> str:
    """950, 1.2k, 34M: for the axis of a chart."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return plain(value)


def plain(value: float) -> str:
    """A number with no more digits than it has, and a real minus."""
    return f"{value:.4g}".replace("-", "−")


def seconds_text(seconds: float) -> str:
    """0.4 s, 12 s, 3:15, 1:02:03."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, last = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{last:02}" if hours else f"{minutes}:{last:02}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """1 pair, 2 pairs, 1,200 pairs."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
