from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
from model_folders import bert_config, random_tensors, write_model
from safetensors.numpy import load_file, save_file

from rerank_udf import models
from rerank_udf.errors import ConfigError, ModelError
from rerank_udf.models import cache, local_folder, resolve_model
from rerank_udf.models.cache import file_digest


@pytest.fixture
def folder(tiny_bert: Path, tmp_path: Path) -> Path:
    """A copy of tiny_bert to damage."""
    return shutil.copytree(tiny_bert, tmp_path / "model")


def test_a_folder_is_resolved_to_the_digests_of_what_scoring_reads(folder: Path) -> None:
    (folder / "README.md").write_text("not read")
    files = resolve_model(folder)
    names = ("config.json", "model.safetensors", "tokenizer.json")
    assert files.digests == {name: file_digest(folder / name) for name in names}
    assert (files.source, files.location, files.revision) == ("folder", str(folder), None)
    assert pickle.loads(pickle.dumps(files)) == files
    assert local_folder(files) == folder


def test_a_hash_folder_needs_nothing_but_its_config(hash_model: Path) -> None:
    files = resolve_model(str(hash_model))
    assert list(files.digests) == ["config.json"]
    assert files.architecture is None
    assert local_folder(files) == hash_model


def test_a_path_may_be_relative_or_a_file_uri(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert resolve_model("model").location == str(folder)
    assert resolve_model("./model").location == str(folder)
    assert resolve_model(folder.as_uri()).location == str(folder)


def test_a_shipped_folder_is_found_where_spark_puts_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = resolve_model("model")
    for place in ("worker", "files"):
        (tmp_path / place).mkdir()
    folder.rename(tmp_path / "worker" / "model")
    monkeypatch.chdir(tmp_path / "worker")  # --archives: the Python worker's own folder
    assert local_folder(files) == tmp_path / "worker" / "model"
    (tmp_path / "worker" / "model").rename(tmp_path / "files" / "model")
    monkeypatch.syspath_prepend(tmp_path / "files")  # --files: a folder on sys.path
    assert local_folder(files) == tmp_path / "files" / "model"


def test_a_folder_that_is_not_on_the_node_is_a_model_error(folder: Path) -> None:
    files = resolve_model(folder)
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match=r"is not on this node: mount it .* or ship it"):
        local_folder(files)


def test_a_file_that_differs_from_the_drivers_is_a_model_error(folder: Path) -> None:
    files = resolve_model(folder)
    save_file(
        random_tensors(bert_config(vocab_size=files.architecture.vocabulary), seed=1),
        folder / "model.safetensors",
    )
    os.utime(folder / "model.safetensors", ns=(1, 1))
    with pytest.raises(
        ModelError, match=r"model\.safetensors has sha256 .* on this node, but the driver found"
    ):
        local_folder(files)


def test_a_file_that_is_absent_on_the_node_is_named(folder: Path) -> None:
    files = resolve_model(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"lacks tokenizer\.json on this node"):
        local_folder(files)


def test_a_node_reads_the_weights_for_their_digest_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = resolve_model(folder)
    monkeypatch.setattr(cache, "file_digest", lambda path: pytest.fail("read again"))
    assert local_folder(files) == folder


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("/no/such/folder", "there is no model folder /no/such/folder here"),
        ("./no-such-folder", "there is no model folder no-such-folder here"),
        ("a/b/c", "there is no model folder a/b/c here"),
        (Path("no-such-folder"), "there is no model folder no-such-folder here"),
        ("s3://bucket/model", "is a URI; expected a hub id or a folder: mount it, or ship it"),
        ("dbfs:/models/one", "is a URI"),
    ],
)
def test_a_model_that_is_not_there_is_a_model_error(name: str | Path, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        resolve_model(name)


def test_a_hub_id_without_a_revision_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="as a hub id it needs a revision"):
        resolve_model("BAAI/bge-reranker-v2-m3")


def test_a_revision_without_a_hub_id_is_a_configuration_error(folder: Path) -> None:
    for name in (str(folder), "mini"):
        with pytest.raises(ConfigError, match="only a hub id has revisions"):
            resolve_model(name, "main")


def test_a_folder_without_a_config_says_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the folder .* has no config\.json: expected a model folder"):
        resolve_model(tmp_path)


def test_a_broken_config_is_a_model_error(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read as JSON"):
        resolve_model(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"has its weights only as pytorch_model\.bin"):
        resolve_model(folder)


def test_no_weights_are_a_model_error(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        resolve_model(folder)


def test_a_missing_and_an_extra_tensor_are_named_on_the_driver(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    bias = weights.pop("classifier.bias")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"lacks the tensor classifier\.bias"):
        resolve_model(folder)
    save_file(weights | {"classifier.bias": bias, "cls.predictions.bias": bias}, folder / "model.safetensors")
    with pytest.raises(
        ModelError, match=r"has the tensor cls\.predictions\.bias that a bert classifier does not use"
    ):
        resolve_model(folder)


def test_a_tokenizer_of_another_model_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    write_model(tmp_path, bert_config(vocab_size=50))
    shutil.copy(tiny_bert / "tokenizer.json", tmp_path)
    with pytest.raises(ModelError, match=r"the tokenizer gives ids up to \d+, but the embedding has 50 rows"):
        resolve_model(tmp_path)


def split_into_shards(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    places = {}
    for number, half in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in half}, folder / file)
        places |= dict.fromkeys(half, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_shards_are_resolved_with_their_index(folder: Path) -> None:
    split_into_shards(folder)
    files = resolve_model(folder)
    assert sorted(files.digests) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    assert local_folder(files) == folder


def test_a_missing_shard_is_named(folder: Path) -> None:
    split_into_shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"names model-00002-of-00002\.safetensors, which are not there"):
        resolve_model(folder)


def test_a_converted_tokenizer_is_part_of_the_digests(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted = folder.parent / "converted.json"
    (folder / "tokenizer.json").rename(converted)
    (folder / "sentencepiece.bpe.model").write_bytes(b"stands for one")
    monkeypatch.setattr(models, "converted_tokenizer", lambda source: (converted, file_digest(converted)))
    files = resolve_model(folder)
    assert files.digests["tokenizer.json"] == file_digest(converted)
    assert files.digests["sentencepiece.bpe.model"] == file_digest(folder / "sentencepiece.bpe.model")
    assert local_folder(files) == folder
    monkeypatch.setattr(models, "converted_tokenizer", lambda source: (converted, "0" * 64))
    with pytest.raises(ModelError, match="run the same version of rerank_udf on every node"):
        local_folder(files)
