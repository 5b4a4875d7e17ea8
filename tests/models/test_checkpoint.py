from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import bert_config, random_tensors, tensor_layout, xlmr_config
from safetensors.numpy import save_file

from rerank_udf.errors import ModelError
from rerank_udf.models import checkpoint

CONFIGS = {
    "xlm-roberta": xlmr_config(),
    "roberta": xlmr_config(model_type="roberta"),
    "camembert": xlmr_config(model_type="camembert"),
    "bert": bert_config(),
}


def architecture(config: dict[str, Any]) -> checkpoint.Architecture:
    return checkpoint.read_architecture(config, "it")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_tensors_are_those_that_transformers_names(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(**CONFIGS[name])
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert architecture(CONFIGS[name]).tensors() == shapes == tensor_layout(CONFIGS[name])


def test_the_longest_sequence_leaves_out_the_rows_before_xlm_rs_first_position() -> None:
    assert architecture(xlmr_config(max_position_embeddings=514)).most_tokens == 512
    assert architecture(bert_config(max_position_embeddings=512)).most_tokens == 512


def test_a_length_over_the_positions_is_refused() -> None:
    checkpoint.check_length(architecture(xlmr_config()), 512, "it")
    with pytest.raises(
        ModelError, match="max_length is 513, but it has positions for 512 tokens: set max_length to 512"
    ):
        checkpoint.check_length(architecture(xlmr_config()), 513, "it")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
            "it is of type 'qwen2'; expected a cross-enc",
        ),
        ({}, "it is of type None"),
        (xlmr_config(architectures=["XLMRobertaModel"]), "it is a XLMRobertaModel, not a cross-encoder"),
        (bert_config(architectures=["BertForMaskedLM"]), "it is a BertForMaskedLM, not a cross-encoder"),
        (bert_config(is_decoder=True), "it is a decoder or has relative positions"),
        (bert_config(position_embedding_type="relative_key"), "it is a decoder or has relative positions"),
        (xlmr_config(hidden_size=None), "it has a config.json without a usable"),
        ({"model_type": "bert"}, "it has a config.json without a usable 'vocab_size'"),
    ],
)
def test_what_is_no_cross_encoder_is_refused(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        architecture(config)


def changed(config: dict[str, Any], **changes: tuple[int, ...] | None) -> dict[str, tuple[int, ...]]:
    shapes = tensor_layout(config) | {
        name.replace("__", "."): shape for name, shape in changes.items() if shape
    }
    return {
        name: shape
        for name, shape in shapes.items()
        if name.replace(".", "__") not in changes or changes[name.replace(".", "__")]
    }


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"classifier__dense__bias": None},
            r"it lacks the tensor classifier\.dense\.bias that its config\.json asks for",
        ),
        (
            {"lm_head__weight": (3, 4)},
            r"it has the tensor lm_head\.weight that a xlm-roberta classifier does not use",
        ),
        (
            {"roberta__encoder__layer__0__output__dense__weight": (32, 65)},
            r"output\.dense\.weight is 32 x 65 where config\.json asks for 32 x 64",
        ),
        (
            {"classifier__out_proj__weight": (3, 32)},
            r"it has 3 labels \(classifier\.out_proj\.weight is 3 x 32\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        checkpoint.check_tensors(architecture(xlmr_config()), changed(xlmr_config(), **changes), "it")


def test_many_missing_tensors_are_counted_and_some_named() -> None:
    shapes = {name: shape for name, shape in tensor_layout(bert_config()).items() if ".layer.1." not in name}
    with pytest.raises(
        ModelError, match=r"it lacks 16 tensors, bert\.encoder\.layer\.1\..* and 11 more that"
    ):
        checkpoint.check_tensors(architecture(bert_config()), shapes, "it")


def test_an_encoder_without_a_head_is_told_from_a_broken_file() -> None:
    shapes = {name: shape for name, shape in tensor_layout(xlmr_config()).items() if "classifier" not in name}
    with pytest.raises(ModelError, match="it has no classification head"):
        checkpoint.check_tensors(architecture(xlmr_config(architectures=None)), shapes, "it")


def test_the_position_buffer_and_an_unused_pooler_are_no_surprise() -> None:
    extra = {"roberta.embeddings.position_ids": (1, 514), "roberta.pooler.dense.weight": (32, 32)}
    checkpoint.check_tensors(architecture(xlmr_config()), tensor_layout(xlmr_config()) | extra, "it")
    shapes = tensor_layout(bert_config())
    del shapes["bert.pooler.dense.weight"]  # used, in BERT
    with pytest.raises(ModelError, match=r"bert\.pooler\.dense\.weight"):
        checkpoint.check_tensors(architecture(bert_config()), shapes, "it")


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([], "it has no config.json"),
        (["config.json", "tokenizer.json"], "it has no weights: expected model.safetensors, or shards"),
        (
            ["config.json", "pytorch_model.bin"],
            "it has its weights only as pytorch_model.bin, which can run code",
        ),
        (
            ["config.json", "model.safetensors"],
            "it has no tokenizer: expected tokenizer.json or sentencepiece",
        ),
    ],
)
def test_files_that_are_absent_are_named(files: list[str], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        checkpoint.needed_files(files, "it")


def test_safetensors_are_taken_before_pickles_and_one_file_before_shards() -> None:
    files = [
        "config.json",
        "tokenizer.json",
        "pytorch_model.bin",
        "model.safetensors",
        "model.safetensors.index.json",
    ]
    assert checkpoint.needed_files(files, "it") == ["config.json", "tokenizer.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["../secret.safetensors", "weights.bin", "a/b.safetensors"])
def test_an_index_cannot_point_elsewhere(name: str) -> None:
    with pytest.raises(ModelError, match="expected safetensors files beside it"):
        checkpoint.shard_names({"weight_map": {"a": name}}, "it")
    with pytest.raises(ModelError, match="has no weight_map"):
        checkpoint.shard_names({}, "it")


def test_shapes_are_read_from_the_header(tmp_path: Path) -> None:
    tensors = random_tensors(bert_config())
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    expected = {name: tensor.shape for name, tensor in tensors.items()}
    assert checkpoint.tensor_shapes([tmp_path / "a.safetensors"]) == expected


@pytest.mark.parametrize("damage", ["cut", "longer", "no header", "huge header", "empty"])
def test_a_damaged_safetensors_file_is_a_model_error(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": np.zeros(100, np.float32)}, path)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut": whole[:-1],
            "longer": whole + b"x",
            "no header": whole[:8] + b"x" * (len(whole) - 8),
            "huge header": b"\xff" * 8 + whole[8:],
            "empty": b"",
        }[damage]
    )
    with pytest.raises(ModelError, match="is not a whole safetensors file"):
        checkpoint.tensor_shapes([path])


def test_a_vocabulary_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 6}}, "added_tokens": [{"id": 9}]}))
    assert checkpoint.tokenizer_ids(path) == 10
    checkpoint.check_vocabulary(architecture(xlmr_config(vocab_size=10)), 10, "it")
    with pytest.raises(
        ModelError, match="it: the tokenizer gives ids up to 10, but the embedding has 10 rows"
    ):
        checkpoint.check_vocabulary(architecture(xlmr_config(vocab_size=10)), 11, "it")


def test_the_size_of_a_real_vocabulary(xlmr_tokenizer: Path) -> None:
    assert checkpoint.tokenizer_ids(xlmr_tokenizer) == 250002


@pytest.mark.parametrize("content", ["{}", "[]", "no json", '{"model": {"vocab": 3}}'])
def test_a_tokenizer_file_without_a_vocabulary_is_a_model_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        checkpoint.tokenizer_ids(tmp_path / "tokenizer.json")
