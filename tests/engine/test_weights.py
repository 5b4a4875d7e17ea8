"""Weights as arrays, against what transformers and torch read from the same files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_folders import bert_config, write_model, xlmr_config
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch
from transformers import AutoModelForSequenceClassification

from rerank_udf.engine.weights import ModelWeights, read_weights
from rerank_udf.errors import ModelError
from rerank_udf.models.checkpoint import read_architecture


@pytest.fixture(params=[xlmr_config, bert_config], ids=["xlmr", "bert"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_model(tmp_path, request.param())


def module_of(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)


def assert_linear(found: Any, module: Any) -> None:
    np.testing.assert_array_equal(found.weight, module.weight.detach().numpy())
    np.testing.assert_array_equal(found.bias, module.bias.detach().numpy())


def test_every_array_is_where_transformers_has_it(folder: Path) -> None:
    weights, model = read_weights(folder), module_of(folder)
    embeddings = model.base_model.embeddings
    for name in ("word_embeddings", "position_embeddings"):
        np.testing.assert_array_equal(
            getattr(weights, name), getattr(embeddings, name).weight.detach().numpy()
        )
    np.testing.assert_array_equal(
        weights.type_embeddings, embeddings.token_type_embeddings.weight.detach().numpy()
    )
    assert_linear(weights.embedding_norm, embeddings.LayerNorm)
    assert len(weights.layers) == len(model.base_model.encoder.layer)
    for layer, module in zip(weights.layers, model.base_model.encoder.layer, strict=True):
        attention = module.attention
        for part in ("query", "key", "value"):
            assert_linear(getattr(layer, part), getattr(attention.self, part))
        assert_linear(layer.attention_output, attention.output.dense)
        assert_linear(layer.attention_norm, attention.output.LayerNorm)
        assert_linear(layer.intermediate, module.intermediate.dense)
        assert_linear(layer.output, module.output.dense)
        assert_linear(layer.output_norm, module.output.LayerNorm)
    is_bert = weights.architecture.model_type == "bert"
    assert_linear(weights.dense, model.base_model.pooler.dense if is_bert else model.classifier.dense)
    assert_linear(weights.label, model.classifier if is_bert else model.classifier.out_proj)


def test_the_fused_product_gives_query_key_and_value_side_by_side(folder: Path) -> None:
    layer = read_weights(folder).layers[1]
    states = np.random.default_rng(0).standard_normal((5, 32), dtype=np.float32)
    apart = [states @ part.weight.T + part.bias for part in (layer.query, layer.key, layer.value)]
    np.testing.assert_allclose(
        states @ layer.qkv.weight.T + layer.qkv.bias, np.hstack(apart), rtol=0, atol=1e-5
    )


def test_a_place_is_the_sum_of_its_type_and_position(folder: Path) -> None:
    weights = read_weights(folder)
    types, positions = len(weights.type_embeddings), len(weights.position_embeddings)
    assert weights.place_embeddings.shape == (types * positions, 32)
    for token_type, position in ((0, 0), (types - 1, 7), (types - 1, positions - 1)):
        expected = weights.type_embeddings[token_type] + weights.position_embeddings[position]
        np.testing.assert_array_equal(weights.place_embeddings[token_type * positions + position], expected)


def every_array(weights: ModelWeights) -> list[np.ndarray[Any, Any]]:
    arrays = [weights.word_embeddings, weights.position_embeddings, weights.type_embeddings]
    parts = [weights.embedding_norm, weights.dense, weights.label]
    for layer in weights.layers:
        parts += [layer.qkv, layer.attention_output, layer.attention_norm]
        parts += [layer.intermediate, layer.output, layer.output_norm]
    return arrays + [array for part in parts for array in (part.weight, part.bias)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_become_float32_as_torch_makes_them(folder: Path, dtype: torch.dtype) -> None:
    stored = {name: torch.tensor(values).to(dtype) for name, values in saved(folder).items()}
    save_torch(stored, folder / "model.safetensors")
    found = read_weights(folder)
    save_torch({name: values.float() for name, values in stored.items()}, folder / "model.safetensors")
    for array, expected in zip(every_array(found), every_array(read_weights(folder)), strict=True):
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected)


def test_special_values_of_bfloat16_survive(folder: Path) -> None:
    stored = {name: torch.tensor(values).to(torch.bfloat16) for name, values in saved(folder).items()}
    name = next(name for name in stored if name.endswith("position_embeddings.weight"))
    special = torch.tensor([torch.inf, -torch.inf, -0.0, 2.0**-133, 3.3e38, -1.5], dtype=torch.bfloat16)
    stored[name][0, :6] = special
    save_torch(stored, folder / "model.safetensors")
    row = read_weights(folder).position_embeddings[0, :6]
    np.testing.assert_array_equal(row, special.float().numpy())
    assert np.signbit(row[2])


def test_float32_is_mapped_not_copied(folder: Path) -> None:
    words = read_weights(folder).word_embeddings
    assert words.base is not None
    assert not words.flags.writeable
    assert words.flags.aligned


def test_shards_are_one_model(folder: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    module_of(folder).save_pretrained(shards, max_shard_size="40KB")
    assert len(list(shards.glob("model-*.safetensors"))) > 1
    for array, expected in zip(
        every_array(read_weights(shards)), every_array(read_weights(folder)), strict=True
    ):
        np.testing.assert_array_equal(array, expected)


def test_tensors_that_no_score_needs_may_have_any_type(tmp_path: Path) -> None:
    folder = write_model(tmp_path, bert_config())
    extra = {"bert.embeddings.position_ids": np.arange(512, dtype=np.int64)[None]}
    save_file(saved(folder) | extra, folder / "model.safetensors")
    assert len(read_weights(folder).layers) == 2


def test_a_missing_tensor_is_named(folder: Path) -> None:
    weights = saved(folder)
    name = next(name for name in weights if name.endswith("layer.1.output.dense.bias"))
    del weights[name]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match=f"lacks the tensor {name}"):
        read_weights(folder)


def test_integers_are_no_weights(folder: Path) -> None:
    weights = saved(folder)
    name = next(name for name in weights if name.endswith("layer.0.output.dense.weight"))
    save_file(weights | {name: weights[name].astype(np.int8)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=f"{name} is stored as I8; expected one of F32, F16, BF16, F64"):
        read_weights(folder)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "relu", None])
def test_only_the_exact_gelu_is_computed(tmp_path: Path, activation: str | None) -> None:
    folder = write_model(tmp_path, xlmr_config(hidden_act=activation))
    with pytest.raises(ModelError, match=rf"has the activation {activation!r}"):
        read_architecture(json.loads((folder / "config.json").read_text()), "it")  # the driver's check
    with pytest.raises(ModelError, match=rf"has the activation {activation!r}.*expected \"gelu\""):
        read_weights(folder)


@pytest.mark.parametrize("eps", [0, -1e-5, "1e-5", True, None])
def test_an_eps_that_is_none_is_an_error(tmp_path: Path, eps: Any) -> None:
    folder = write_model(tmp_path, xlmr_config(layer_norm_eps=eps))
    with pytest.raises(ModelError, match="has layer_norm_eps"):
        read_weights(folder)


def test_what_config_does_not_say_is_as_in_transformers(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["layer_norm_eps"], config["hidden_act"]
    path.write_text(json.dumps(config))
    assert read_weights(folder).layer_norm_eps == module_of(folder).config.layer_norm_eps == 1e-12


def test_no_torch_is_needed(tmp_path: Path) -> None:
    folder = write_model(tmp_path, xlmr_config())
    code = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path\n"
        "from rerank_udf.engine.weights import read_weights\n"
        f"print(len(read_weights(Path({str(folder)!r})).layers))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2"


def saved(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")
