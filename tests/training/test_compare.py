"""The mean of two models, against numpy's; and what is asked for wrongly."""

import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from rerank_udf import load_scorer
from rerank_udf.training.mini.compare import main, mean_of


@pytest.fixture
def two(tiny_xlmr, tmp_path):
    """A model and another of its shape."""
    other = tmp_path / "other"
    shutil.copytree(tiny_xlmr, other)
    rng = np.random.default_rng(0)
    moved = {
        name: (tensor + rng.normal(scale=0.1, size=tensor.shape)).astype(np.float32)
        for name, tensor in load_file(other / "model.safetensors").items()
    }
    save_file(moved, other / "model.safetensors", metadata={"format": "pt"})
    return tiny_xlmr, other


def test_the_mean_lies_between_the_models_and_scores(two, tmp_path):
    folder = mean_of(two, tmp_path / "mean")
    first, second, mean = (load_file(one / "model.safetensors") for one in (*two, folder))
    assert mean.keys() == first.keys()
    for name, tensor in mean.items():
        halfway = np.stack([first[name], second[name]]).astype(np.float64).mean(0)
        np.testing.assert_allclose(tensor, halfway, rtol=1e-3, atol=1e-4, err_msg=name)
    scores = [load_scorer(str(one)).logits(["the red fish"], ["the bird is red"]) for one in (*two, folder)]
    assert len({float(one[0]) for one in scores}) == 3


def test_a_mean_of_one_is_refused_in_a_sentence(two, tmp_path):
    arguments = ["--work", str(tmp_path), "--mean", f"half={two[0]}", str(two[0])]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert result.stderr == "compare: --mean NAME=FOLDER,FOLDER takes two folders or more\n"
