"""Training on a card: the same steps as on a processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file
from training_world import settings, write_tables

from rerank_udf.training.settings import TrainingConfig
from rerank_udf.training.train import train


def trained(folder: Path, base: Path, device: str, precision: str) -> dict[str, np.ndarray]:
    folder.mkdir()
    write_tables(folder)
    given = settings(folder, base, device=device, precision=precision)
    given["schedule"] |= {"save_every": 6}
    model = train(TrainingConfig.model_validate(given), Console(quiet=True))
    return load_file(model / "model.safetensors")


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 5e-3)])
def test_a_card_and_a_processor_come_to_the_same_weights(
    tiny_xlmr: Path, tmp_path: Path, precision: str, tolerance: float
) -> None:
    here = trained(tmp_path / "cpu", tiny_xlmr, "cpu", "float32")
    there = trained(tmp_path / "cuda", tiny_xlmr, "cuda", precision)
    before = load_file(tiny_xlmr / "model.safetensors")
    assert here.keys() == there.keys()
    name = "roberta.encoder.layer.0.output.dense.weight"
    moved = float(np.abs(here[name] - before[name].astype(np.float32)).max())
    assert moved > 1e-3
    for name, one in here.items():
        if name.endswith("key.bias"):
            continue  # softmax does not see it: its gradient is rounding, which AdamW makes steps of
        np.testing.assert_allclose(there[name], one, atol=tolerance, rtol=0, err_msg=name)
