"""The work folder of a run: what it trains, and where it goes on."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rerank_udf.errors import ConfigError
from rerank_udf.training.settings import Schedule, TrainingConfig

_RUN_FILE, _STATE_FILE = "run.json", "trainer_state.json"
_TABLES = "tables"
# Of the settings: what a run that goes on may change
_FREE = {"output", "work", "card", "device", "max_tokens_per_batch"}


def claim(work: Path, config: TrainingConfig, tables: Mapping[str, str]) -> Path | None:
    """Take the folder for this run; returns the checkpoint that it goes on from, None where it begins.

    `tables`: a digest of each table. Raises ConfigError where the folder holds a run of other settings than how long,
    or one that has checkpoints on other tables, or that cannot be made so long (see `to_go_on_from`), or where there
    can be no such folder; nothing is written then.

    Steps, and how often is saved and measured, may change; the shape of the rate may not, since checkpoints were made
    under it.
    """
    own = config.model_dump(mode="json", by_alias=True, exclude=_FREE) | {_TABLES: dict(tables)}
    path = work / _RUN_FILE
    if path.is_file():
        _check_same(work, own, json.loads(path.read_text(encoding="utf-8")))
    elif found(work):
        raise ConfigError(f"{work} holds checkpoints of another program: give another work folder")
    start = to_go_on_from(work, config.schedule)
    try:
        work.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(own, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as problem:
        raise ConfigError(f"work: {work} cannot be written to ({problem}); give another folder") from problem
    return start


def _check_same(work: Path, own: dict[str, Any], other: dict[str, Any]) -> None:
    changed = sorted(key for key in own if key not in ("schedule", _TABLES) and own[key] != other.get(key))
    for key in ("lists_per_step", "warmup_steps", "decay"):
        if own["schedule"][key] != other["schedule"].get(key):
            changed.append(f"schedule.{key}")
    if changed:
        raise ConfigError(
            f"{work} holds a training run with another {', '.join(changed)}: give another work folder, or delete "
            "it to start anew"
        )
    before = other.get(_TABLES, {})
    tables = [name for name, digest in own[_TABLES].items() if digest != before.get(name)]
    # The other tables' digests are of rows by their numbers in these two
    texts = [name for name in tables if name.endswith((".queries", ".passages"))]
    if tables and found(work):
        raise ConfigError(
            f"{work} holds a training run that was begun on another {', '.join(texts or tables)}: bring back the rows "
            "of then, give another work folder, or delete it to start anew"
        )


def found(work: Path) -> dict[int, Path]:
    """Complete checkpoints by their step, in order."""
    folders = {
        int(match[1]): one for one in work.glob("checkpoint-*") if (match := re.search(r"-(\d+)$", one.name))
    }
    return {step: folders[step] for step in sorted(folders) if (folders[step] / _STATE_FILE).is_file()}


def to_go_on_from(work: Path, schedule: Schedule) -> Path | None:
    """The newest checkpoint that this schedule can be continued from; None in a folder without any.

    Any of a run that is as long; of a shorter one, what was saved before its rate fell; of a longer one the newest
    alone, if this schedule's rate is still constant there. Raises ConfigError where there is none such: what is there
    took hours.
    """
    saved = {step: (folder, _planned(folder)) for step, folder in found(work).items()}
    if not saved:
        return None
    newest = max(saved)
    plan = saved[newest][1]
    if plan > schedule.steps and newest > schedule.decay_begins:
        raise ConfigError(
            f"{work} holds step {newest:,} of a run of {plan:,}; the rate of one of {schedule.steps:,} falls from step "
            f"{schedule.decay_begins:,} on: set schedule.steps back, or give another work folder"
        )
    for step, (folder, steps) in sorted(saved.items(), reverse=True):
        constant_until = schedule.model_copy(update={"steps": steps}).decay_begins
        if steps == schedule.steps or step <= constant_until:
            return folder
    raise ConfigError(
        f"{work} holds no checkpoint from before the rate fell, only from step {min(saved):,} of {plan:,} on: a run of "
        f"{schedule.steps:,} cannot go on from there; set schedule.steps back, give another work folder, or delete it "
        "to start anew"
    )


def _planned(folder: Path) -> int:
    """The steps of the run that saved this checkpoint."""
    steps: int = json.loads((folder / _STATE_FILE).read_text(encoding="utf-8"))["max_steps"]
    return steps


def delete_after(start: Path) -> list[str]:
    """Delete the checkpoints that came after this one, which Trainer would take for newer than its own; their names."""
    folders = list(found(start.parent).values())
    later = folders[folders.index(start) + 1 :]
    for folder in later:
        shutil.rmtree(folder)
    return [folder.name for folder in later]


def to_keep(schedule: Schedule) -> int:
    """How many of the newest checkpoints: back to before the decay, so that the run can be prolonged."""
    every = schedule.save_every
    decaying = schedule.steps // every - schedule.decay_begins // every
    if schedule.steps % every:
        decaying += 1  # Trainer saves the last step too
    return max(schedule.average_last, decaying + 1)
