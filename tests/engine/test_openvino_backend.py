"""OpenVINO's graph against transformers' own modules, and int8 against float32."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from model_folders import bert_config, make_batch, write_model, xlmr_config

import rerank_udf
from rerank_udf.engine import load_scorer, openvino_backend, openvino_graph, resolve_scorer
from rerank_udf.engine.backend import Backend, PackedBatch
from rerank_udf.engine.calibration import demo_pairs, file_name
from rerank_udf.engine.int8 import Ranges, measure_ranges
from rerank_udf.engine.openvino_backend import OpenVinoBackend
from rerank_udf.engine.padded import PaddedBackend
from rerank_udf.engine.weights import read_weights

CONFIGS = {
    "xlmr": xlmr_config(num_hidden_layers=3, layer_norm_eps=1e-3),
    "bert": bert_config(num_hidden_layers=3),
    "one layer": xlmr_config(num_hidden_layers=1),
}
ORDERS = {
    "one token": [1],
    "equal": [12, 12, 12],
    "longest first": [120, 119, 90, 40, 40, 40, 7, 2, 1],
    "any order": [3, 90, 3, 64, 64, 1, 120],
}


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), CONFIGS[request.param])


def logits(backend: Backend, *batches: PackedBatch) -> npt.NDArray[np.float32]:
    return backend.finish([backend.start(batch) for batch in batches])


@pytest.mark.parametrize("lengths", ORDERS.values(), ids=ORDERS)
def test_float32_logits_are_those_of_transformers(folder: Path, lengths: list[int]) -> None:
    batch = make_batch(folder, lengths)
    expected = logits(PaddedBackend(folder, precision="float32", device="cpu"), batch)
    found = logits(OpenVinoBackend(folder, precision="float32"), batch)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("streams", "kept"), [(1, 2000), (2, 1000), (16, 125), (64, 64)])
def test_kernels_of_few_shapes_are_kept(
    folder: Path, streams: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO's own limit, 5,000 a stream, took 7 GB in a long run of mini on two cores."""
    asked = []
    original = openvino_graph.ov.Core.compile_model

    def compile_model(core: object, model: object, device: str, properties: dict[str, object]) -> object:
        asked.append(properties["CPU_RUNTIME_CACHE_CAPACITY"])
        return original(core, model, device, properties)

    monkeypatch.setattr(openvino_graph.ov.Core, "compile_model", compile_model)
    openvino_graph.compiled(openvino_graph.tail(read_weights(folder)), "f32", 1, streams=streams)
    assert asked == [kept]


def test_batches_under_way_at_once_keep_their_places(folder: Path) -> None:
    batches = [
        make_batch(folder, [length] * rows, length) for length, rows in ((50, 3), (9, 7), (33, 1), (9, 2))
    ]
    expected = logits(PaddedBackend(folder, precision="float32", device="cpu"), *batches)
    found = logits(OpenVinoBackend(folder, precision="float32"), *batches)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_several_threads_may_use_one_backend(folder: Path) -> None:
    backend = OpenVinoBackend(folder, precision="float32")
    batches = [make_batch(folder, [length] * 3, length) for length in (50, 9, 33, 20)]
    expected = [logits(backend, batch) for batch in batches]

    def again(batch: PackedBatch) -> list[npt.NDArray[np.float32]]:
        return [logits(backend, batch) for _ in range(30)]

    with ThreadPoolExecutor(len(batches)) as threads:
        for values, right in zip(threads.map(again, batches), expected, strict=True):
            assert all(np.array_equal(one, right) for one in values)


def test_bfloat16_is_off_by_rounding_only(folder: Path) -> None:
    batch = make_batch(folder, [100, 100, 60, 20, 5])
    expected = logits(PaddedBackend(folder, precision="float32", device="cpu"), batch)
    reference = logits(PaddedBackend(folder, precision="bfloat16", device="cpu"), batch)
    found = logits(OpenVinoBackend(folder, precision="bfloat16"), batch)
    allowed = 4 * np.abs(reference - expected).max() + 1e-3
    assert np.abs(found - expected).max() <= allowed


def test_ranges_are_those_of_the_layers_inputs(folder: Path) -> None:
    """The first layer's input is the embedding, whose ranges transformers' own embedding module shows."""
    weights = read_weights(folder)
    if len(weights.layers) == 1:
        pytest.skip("a single layer has nothing to quantise")
    batch = make_batch(folder, [40])
    from transformers import AutoModelForSequenceClassification

    from rerank_udf.engine.backend import place_ids, position_ids

    places = place_ids(batch, weights.architecture)
    found = measure_ranges(weights, [(batch.token_ids[None], places[None])], 1)
    again = Ranges.from_bytes(found.to_bytes())
    assert again.to_bytes() == found.to_bytes()

    import torch

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        states = model.base_model.embeddings(
            input_ids=torch.tensor(batch.token_ids[None], dtype=torch.int64),
            token_type_ids=torch.tensor(batch.type_ids[None], dtype=torch.int64),
            position_ids=torch.tensor(position_ids(batch, weights.architecture)[None], dtype=torch.int64),
        )[0].numpy()
    np.testing.assert_allclose(again.values["0.input"], [states.min(axis=0), states.max(axis=0)], atol=1e-5)
    assert len(again.values) == 4 * (len(weights.layers) - 1)


@pytest.mark.slow
def test_int8_keeps_the_order_of_real_texts() -> None:
    """On mini's real weights; calibrated by the first call, kept and read by the next."""
    from scipy.stats import kendalltau

    plan = resolve_scorer("mini", precision="int8", device="cpu")
    assert resolve_scorer("mini", precision="int8", device="cpu").model_key == plan.model_key
    assert resolve_scorer("mini", precision="bfloat16", device="cpu").model_key != plan.model_key
    queries, passages = demo_pairs(120)
    exact = load_scorer("mini", precision="float32", device="cpu").logits(queries, passages)
    scorer = plan.load()
    found = scorer.logits(queries, passages)
    assert scorer.describe()["backend"] == "openvino"
    assert kendalltau(exact, found).statistic >= 0.9


def test_other_ranges_are_another_model_key() -> None:
    from dataclasses import replace

    plan = resolve_scorer("mini", precision="int8", device="cpu")
    assert plan.ranges is not None
    ranges = Ranges.from_bytes(plan.ranges)
    wider = Ranges({name: values * np.float32(1.01) for name, values in ranges.values.items()})
    assert replace(plan, ranges=wider.to_bytes()).model_key != plan.model_key


def test_calibration_is_kept_beside_the_model(tiny_bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    before = sorted(path.name for path in folder.iterdir())
    look = resolve_scorer(str(folder), precision="int8", device="cpu", max_length=64, calibrate=False)
    assert sorted(path.name for path in folder.iterdir()) == before
    plan = resolve_scorer(str(folder), precision="int8", device="cpu", max_length=64)
    assert plan.model_key != look.model_key
    looked_again = resolve_scorer(str(folder), precision="int8", device="cpu", max_length=64, calibrate=False)
    assert looked_again.model_key == plan.model_key
    assert (folder / file_name(plan.files)).read_bytes() == plan.ranges
    (folder / file_name(plan.files)).write_bytes(Ranges.from_bytes(plan.ranges or b"").to_bytes())
    assert (
        resolve_scorer(str(folder), precision="int8", device="cpu", max_length=64).model_key == plan.model_key
    )


def test_other_weights_in_the_same_folder_are_calibrated_anew(tiny_bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    settings = {"precision": "int8", "device": "cpu", "max_length": 64}
    before = resolve_scorer(str(folder), **settings).ranges
    write_model(folder, json.loads((folder / "config.json").read_text()), seed=1)
    assert resolve_scorer(str(folder), **settings).ranges != before


def test_torch_can_be_asked_for_and_scores_the_same(monkeypatch: pytest.MonkeyPatch, tiny_bert: Path) -> None:
    settings = {"precision": "float32", "device": "cpu", "max_length": 64}
    openvino_scorer = load_scorer(str(tiny_bert), **settings)
    monkeypatch.setenv("RERANK_UDF_CPU_BACKEND", "torch")
    torch_scorer = load_scorer(str(tiny_bert), **settings)
    assert [s.describe()["backend"] for s in (torch_scorer, openvino_scorer)] == ["torch-packed", "openvino"]
    pairs = ["what is it", "why", "what is it"], ["an answer", "", "a much longer answer " * 9]
    np.testing.assert_allclose(openvino_scorer.logits(*pairs), torch_scorer.logits(*pairs), atol=1e-5)


def test_the_texts_of_the_calibration_are_found_in_a_zip_of_the_package_too(tmp_path):
    """As `--py-files` ships it."""
    package = Path(rerank_udf.__file__).parent
    shutil.make_archive(str(tmp_path / "shipped"), "zip", package.parent, package.name)
    program = (
        "import rerank_udf; from rerank_udf.engine.calibration import demo_pairs; "
        "print(rerank_udf.__file__); print(len(demo_pairs(3)[0]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "shipped.zip")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "shipped.zip" in found.stdout
    assert found.stdout.split()[-1] == "3"


_NARROW = """
import resource, sys
import numpy as np
from pathlib import Path
from rerank_udf.engine.backend import OutOfMemoryError, PackedBatch
from rerank_udf.engine.openvino_backend import OpenVinoBackend
backend = OpenVinoBackend(Path(sys.argv[1]), precision="float32")
def rows(count, length):
    return PackedBatch(np.full(count * length, 7, np.int32), np.arange(count + 1) * length, None)
def score(*batches):
    return backend.finish([backend.start(batch) for batch in batches])
before = score(rows(3, 9))
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20),) * 2)
small, wide = backend.start(rows(3, 9)), None
try:
    wide = backend.start(rows(30_000, 60))
    backend.finish([small, wide])
except OutOfMemoryError as error:
    print("full:", error)
print("kept:", np.array_equal(backend.finish([small]), before))
try:
    if wide is not None:
        backend.finish([wide])
except OutOfMemoryError:
    print("lost")
print("again:", np.array_equal(score(rows(3, 9)), before))
"""


def test_memory_that_was_full_once_does_not_stay_so(folder, tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", _NARROW, str(folder)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[0].startswith("full: "), found.stdout
    assert {"kept: True", "again: True"} <= set(lines)


def test_what_goes_wrong_in_openvinos_own_thread_is_raised_in_ours():
    class Request:
        def get_output_tensor(self, place: int) -> None:
            raise MemoryError(f"no room for output {place}")

    started = openvino_backend._Started([None])
    openvino_backend._keep(Request(), (started, 0))
    with pytest.raises(MemoryError, match="no room for output 0"):
        openvino_backend._computed(started.parts[0])
