"""The work folder of a run: what it trains, and where it goes on."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from rerank_udf.errors import ConfigError
from rerank_udf.training.settings import Schedule, TrainingConfig

_RUN_FILE = "run.json"
# Of the settings: what a run that goes on may change
_FREE = {"output", "work", "card", "device", "max_tokens_per_batch"}


def claim(work: Path, config: TrainingConfig) -> None:
    """Take the folder for this run. Raises ConfigError where it holds a run of other settings than how long.

    Steps, and how often is saved and measured, may change; the shape of the rate may not, since checkpoints were made
    under it.
    """
    own = config.model_dump(mode="json", by_alias=True, exclude=_FREE)
    path = work / _RUN_FILE
    if path.is_file():
        other = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(key for key in own if key != "schedule" and own[key] != other.get(key))
        for key in ("lists_per_step", "warmup_steps", "decay"):
            if own["schedule"][key] != other["schedule"].get(key):
                changed.append(f"schedule.{key}")
        if changed:
            raise ConfigError(
                f"{work} holds a training run with another {', '.join(changed)}: give another work folder, or delete "
                "it to start anew"
            )
    elif found(work):
        raise ConfigError(f"{work} holds checkpoints of another program: give another work folder")
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(own, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def found(work: Path) -> dict[int, Path]:
    """Complete checkpoints by their step, in order."""
    folders = {
        int(match[1]): one for one in work.glob("checkpoint-*") if (match := re.search(r"-(\d+)$", one.name))
    }
    return {
        step: folders[step] for step in sorted(folders) if (folders[step] / "trainer_state.json").is_file()
    }


def to_go_on_from(work: Path, schedule: Schedule) -> Path | None:
    """The newest checkpoint that this schedule can be continued from; later ones are deleted.

    One that was saved while another, shorter schedule's rate was falling is not.
    """
    chosen = None
    for step, folder in found(work).items():
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        planned = schedule.model_copy(update={"steps": state["max_steps"]})
        if step > schedule.steps or (state["max_steps"] != schedule.steps and step > planned.decay_begins):
            shutil.rmtree(folder)
        else:
            chosen = folder
    return chosen


def to_keep(schedule: Schedule) -> int:
    """How many of the newest checkpoints: back to before the decay, so that the run can be prolonged."""
    decaying = -(-(schedule.steps - schedule.decay_begins) // schedule.save_every)
    return max(schedule.average_last, decaying + 1)
