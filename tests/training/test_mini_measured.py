"""What `make mini` measures of a model: its weight in a mixture, and what 8-bit blocks cost it."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from training_world import settings, write_tables

from rerank_udf.training.development import HeldOutList, held_out_lists, measure
from rerank_udf.training.lists import TrainingList
from rerank_udf.training.mini.blocks import cost_of_blocks
from rerank_udf.training.mini.fusion import by_weight
from rerank_udf.training.mini.judged import judged_lists, scored
from rerank_udf.training.settings import TrainingConfig
from rerank_udf.training.split import split
from rerank_udf.training.tables import read_tables

NONE = np.empty(0, np.float32)


def a_list(key, passages, right):
    texts = TrainingList("faq", key, passages, False, NONE, 32)
    return HeldOutList(f"faq {key}", key, texts, passages, [right], NONE)


def scores(*values):
    return np.array(values, np.float32)


def test_a_mixture_goes_from_the_first_stage_to_the_model():
    """In one list the model is right, in the other the first stage; and one list has no candidates."""
    lists = [a_list("a", ["x", "y"], "y"), a_list("b", ["x", "y"], "x"), a_list("c", [], "x")]
    model = [scores(-3, 5), scores(-3, 5), NONE]
    first = [scores(9, 1), scores(9, 1), NONE]
    table = by_weight(lists, model, first, ["a", "b", "c"])
    second = 1 / np.log2(3)
    assert table.loc["1.0"].tolist() == pytest.approx([1, second, 0])
    assert table.loc["0.0"].tolist() == pytest.approx([second, 1, 0])
    assert table.loc["0.6", "a"] == table.loc["0.4", "b"] == 1


@pytest.fixture
def config(tmp_path):
    write_tables(tmp_path)
    return TrainingConfig.model_validate(settings(tmp_path, "base"))


@pytest.fixture
def tables(config):
    return read_tables(config.sets[0])


def test_the_ends_of_the_mixture_are_the_development_figures(config, tables, tiny_xlmr):
    lists = held_out_lists(tables, split(tables, config.seed))
    scores = scored(tiny_xlmr, lists)
    found = measure(lists, lambda texts: scores, seed=0)
    rows = found.summary.query("documents == 'all' and measure == 'nDCG@10' and group == 'all'")
    means = rows.set_index("system")["mean"]
    read = judged_lists(config)
    table = by_weight(read.lists, scores, read.first, read.kinds)
    assert list(table.columns) == ["other language"]
    assert table.loc["0.0"].item() == pytest.approx(means["first"])
    assert table.loc["1.0"].item() == pytest.approx(means["model"])


def test_the_cost_of_blocks_is_told_by_language(config, tables, tiny_xlmr, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_xlmr, other)
    turned = {
        name: -tensor if name == "classifier.out_proj.weight" else tensor
        for name, tensor in load_file(other / "model.safetensors").items()
    }
    save_file(turned, other / "model.safetensors", metadata={"format": "pt"})
    lists = held_out_lists(tables, split(tables, config.seed))
    scores = {"before": scored(tiny_xlmr, lists), "after": scored(other, lists)}
    table = cost_of_blocks(judged_lists(config), **scores)
    langs = [one.relevant_ids[0][-2:] for one in lists]
    assert table["n"].to_dict() == {"all": len(lists)} | {lang: langs.count(lang) for lang in set(langs)}
    for column, own_scores in scores.items():
        found = [
            1 / np.log2(2 + int((values > values[one.passage_ids.index(one.relevant_ids[0])]).sum()))
            if one.relevant_ids[0] in one.passage_ids
            else 0.0
            for one, values in zip(lists, own_scores, strict=True)
        ]
        for lang in set(langs):
            mean = np.mean([value for value, own in zip(found, langs, strict=True) if own == lang])
            assert table.loc[lang, column] == pytest.approx(mean)
    assert (
        cost_of_blocks(judged_lists(config), scores["after"], scores["after"]).eval("before == after").all()
    )
