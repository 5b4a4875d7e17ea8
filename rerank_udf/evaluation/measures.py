"""ir-measures' names → measures, each once, and what is to be known of them before measuring."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Sequence

import ir_measures

from rerank_udf.errors import ConfigError

JUDGED_AT_10 = "Judged@10"
# At a cutoff these do not depend on what stands below it, so that a ranking may be cut before it is measured.
_CUT_SAFE = frozenset({"nDCG", "RR", "R", "P", "Success", "Judged", "AP"})


def parse_measures(names: Sequence[str]) -> list[ir_measures.Measure]:
    """The ir-measures measures of these names, each once.

    Raises ConfigError, which lists the known families, for a name that is unknown or that nothing installed
    here computes.
    """
    if isinstance(names, str) or not names:
        raise ConfigError(f"measures is {names!r}; a list such as ['nDCG@10', 'RR@10'] is expected.")
    return list(dict.fromkeys(_parse_measure(n) for n in names))


def _parse_measure(name: str) -> ir_measures.Measure:
    registry: dict[str, ir_measures.Measure] = ir_measures.measures.registry
    # ir_measures.parse_measure reads numbers with ast.Num, which Python 3.12 deprecates and 3.14 has not.
    simple = re.fullmatch(r"\s*(\w+)\s*(?:@\s*(\d+))?\s*", name)
    try:
        if simple:
            family, cutoff = simple.groups()
            measure = registry[family] if cutoff is None else registry[family] @ int(cutoff)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                measure = ir_measures.parse_measure(name)
        measure.validate_params()  # type: ignore[no-untyped-call]
    except (KeyError, NameError, ValueError, AssertionError, AttributeError, TypeError) as problem:
        raise ConfigError(_unknown_measure(name)) from problem
    if measure.params.get("cutoff", 1) < 1:
        raise ConfigError(f"The measure {name!r} has a cutoff below 1; it counts ranks, from 1.")
    if not ir_measures.DefaultPipeline.supports(measure):  # type: ignore[no-untyped-call]
        raise ConfigError(f"The measure {name!r} needs a package that is not installed (see ir-measur.es).")
    return measure


def _unknown_measure(name: str) -> str:
    registry: dict[str, ir_measures.Measure] = ir_measures.measures.registry
    families = sorted({str(m.NAME) for m in registry.values()}, key=str.lower)
    known = {alias.lower(): str(family.NAME) for alias, family in registry.items()}
    near = difflib.get_close_matches(re.split(r"[@(]", name)[0].strip().lower(), list(known), n=1)
    hint = f" Did you mean {known[near[0]]}?" if near else ""
    return (
        f"{name!r} is not a measure of ir-measures.{hint} A measure is a family, its parameters in brackets "
        "and a cutoff where it takes one: nDCG@10, RR@10, R@100, AP(rel=2). "
        f"The families are {', '.join(families)}."
    )


def is_judged(measure: str) -> bool:
    """Whether this is the rate of judged passages: of the qrels' making, not of the ranking's."""
    return measure.partition("@")[0] == "Judged"


def safe_cut(measures: Sequence[ir_measures.Measure]) -> int | None:
    """Below this position nothing changes a value of these measures; None where anything may."""
    safe = [
        m.NAME in _CUT_SAFE and "cutoff" in m.params and not m.params.get("judged_only") for m in measures
    ]
    if not all(safe):
        return None
    return max(int(m.params["cutoff"]) for m in measures)
