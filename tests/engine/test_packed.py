"""The packed forward against transformers' own modules: layer by layer, and its logits."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from model_folders import bert_config, make_batch, write_model, xlmr_config
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSequenceClassification

from rerank_udf.engine import forward as packed_forward
from rerank_udf.engine import kernels, packed, torch_runtime
from rerank_udf.engine.attention import Sequences, attend_equal_lengths
from rerank_udf.engine.backend import OutOfMemoryError, PackedBatch
from rerank_udf.engine.forward import embed, encode, last_layer
from rerank_udf.engine.packed import PackedBackend, check_attend, checked_kernel, to_device
from rerank_udf.engine.padded import PaddedBackend
from rerank_udf.errors import ModelError

CPU = torch.device("cpu")
ORDERS = {
    "one token": [1],
    "one row": [37],
    "equal": [12, 12, 12],
    "longest first": [120, 119, 90, 40, 40, 40, 7, 2, 1],
    "any order": [3, 90, 3, 64, 64, 1, 120],
}
CONFIGS = {
    "xlmr": xlmr_config(num_hidden_layers=3, layer_norm_eps=1e-3),
    "bert": bert_config(num_hidden_layers=3),
    "one layer": xlmr_config(num_hidden_layers=1),
    "camembert": xlmr_config(
        model_type="camembert", architectures=["CamembertForSequenceClassification"], num_attention_heads=1
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), CONFIGS[request.param])


def plain_outputs(folder: Path, batch: PackedBatch, dtype: torch.dtype = torch.float32) -> list[Any]:
    """transformers' outputs for each row alone, with its own positions and no padding."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
    model.eval()
    outputs = []
    for start, stop in zip(batch.offsets[:-1], batch.offsets[1:], strict=True):
        inputs = {"input_ids": torch.tensor(batch.token_ids[None, start:stop], dtype=torch.int64)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if batch.type_ids is not None:
            inputs["token_type_ids"] = torch.tensor(batch.type_ids[None, start:stop], dtype=torch.int64)
        with torch.inference_mode():
            outputs.append(model(**inputs, output_hidden_states=True))
    return outputs


def plain_logits(folder: Path, batch: PackedBatch) -> list[float]:
    return [float(output.logits) for output in plain_outputs(folder, batch)]


def logits(backend: Any, batch: PackedBatch) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = backend.finish([backend.start(batch)])
    return found


def backend_of(folder: Path, precision: str = "float32") -> PackedBackend:
    return PackedBackend(folder, precision=precision, device="cpu")


@pytest.mark.parametrize("lengths", ORDERS.values(), ids=ORDERS)
def test_every_layer_has_the_states_that_transformers_computes(folder: Path, lengths: list[int]) -> None:
    batch = make_batch(folder, lengths)
    expected = [output.hidden_states for output in plain_outputs(folder, batch)]
    backend = backend_of(folder)
    model = backend._model
    inputs, _ = to_device(batch, backend.architecture, CPU)

    def same(found: torch.Tensor, layer: int, tokens: slice) -> None:
        states = torch.cat([hidden[layer][0, tokens] for hidden in expected])
        torch.testing.assert_close(found, states, atol=2e-5, rtol=0)

    with torch.inference_mode():
        hidden = embed(model, inputs)
        same(hidden, 0, slice(None))
        for number, layer in enumerate(model.layers):
            hidden = encode(layer, hidden, inputs.sequences, attend_equal_lengths, model.heads)
            same(hidden, number + 1, slice(None))
        same(last_layer(model.last, hidden, inputs.sequences, model.heads), len(model.layers) + 1, slice(1))


@pytest.mark.parametrize("lengths", ORDERS.values(), ids=ORDERS)
def test_logits_in_float32_are_those_of_one_row_at_a_time(folder: Path, lengths: list[int]) -> None:
    batch = make_batch(folder, lengths)
    np.testing.assert_allclose(
        logits(backend_of(folder), batch), plain_logits(folder, batch), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_16_bits_are_as_near_as_transformers_own_in_the_same_precision(folder: Path, precision: str) -> None:
    """Rounding is random, so that one may be nearer by luck; twice as far it may not be."""
    batch = make_batch(folder, [120, 90, 64, 64, 40, 40, 40, 7, 2] * 4)
    exact = np.array(plain_logits(folder, batch))
    theirs = logits(PaddedBackend(folder, precision=precision, device="cpu"), batch)
    ours = logits(backend_of(folder, precision), batch)
    distance = np.sqrt(np.mean((theirs - exact) ** 2))
    assert 0 < np.sqrt(np.mean((ours - exact) ** 2)) < 2 * distance


def test_literal_pads_take_no_position_and_are_read(tmp_path: Path) -> None:
    folder = write_model(tmp_path, xlmr_config())
    ids = np.array([0, 5, 1, 6, 2, 2, 7, 1, 1, 8, 2, 0, 5, 6, 2, 2, 7, 8, 2], np.int32)
    batch = PackedBatch(ids, np.array([0, 11, 19]), None)
    found = logits(backend_of(folder), batch)
    np.testing.assert_allclose(found, plain_logits(folder, batch), atol=1e-5, rtol=0)
    assert abs(found[0] - found[1]) > 1e-3


def test_types_are_read_and_none_means_zero(tmp_path: Path) -> None:
    folder = write_model(tmp_path, bert_config())
    batch = make_batch(folder, [9, 5])
    backend = backend_of(folder)
    assert batch.type_ids is not None
    without = PackedBatch(batch.token_ids, batch.offsets, None)
    zeros = PackedBatch(batch.token_ids, batch.offsets, np.zeros_like(batch.type_ids))
    np.testing.assert_array_equal(logits(backend, without), logits(backend, zeros))
    assert np.abs(logits(backend, batch) - logits(backend, zeros)).min() > 1e-3


@pytest.mark.parametrize("config", [xlmr_config(), bert_config()], ids=["xlmr", "bert"])
def test_the_longest_sequence_that_has_positions_is_scored(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = write_model(tmp_path, config)
    backend = backend_of(folder)
    most = backend.architecture.most_tokens
    assert most == 512
    batch = make_batch(folder, [most, 3])
    batch.token_ids[batch.token_ids == config["pad_token_id"]] = 9  # each token takes a position
    np.testing.assert_allclose(logits(backend, batch), plain_logits(folder, batch), atol=1e-5, rtol=0)


def test_8192_tokens_are_scored(tmp_path: Path) -> None:
    config = xlmr_config(
        max_position_embeddings=8194, hidden_size=16, num_attention_heads=2, intermediate_size=32
    )
    folder = write_model(tmp_path, config)
    batch = make_batch(folder, [8192, 4097, 30])
    np.testing.assert_allclose(
        logits(backend_of(folder), batch), plain_logits(folder, batch), atol=1e-4, rtol=0
    )


def whole_last_layer(
    layer: packed_forward.Layer, hidden: torch.Tensor, sequences: Sequences, heads: int
) -> torch.Tensor:
    """The last layer as any other: keys, values and outputs of all tokens; then the first of each row."""
    whole = encode(layer, hidden, sequences, attend_equal_lengths, heads)
    return whole[sequences.cu_seqlens[:-1].long()]


@pytest.mark.parametrize("lengths", ORDERS.values(), ids=ORDERS)
def test_folding_keys_and_values_away_changes_nothing(folder: Path, lengths: list[int]) -> None:
    backend = backend_of(folder)
    inputs, _ = to_device(make_batch(folder, lengths), backend.architecture, CPU)
    layer, heads = backend._model.last, backend._model.heads
    hidden = torch.randn((sum(lengths), 32), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        folded = last_layer(layer, hidden, inputs.sequences, heads)
        whole = whole_last_layer(layer, hidden, inputs.sequences, heads)
    torch.testing.assert_close(folded, whole, atol=1e-5, rtol=0)


def with_padded_spans(sequences: Sequences) -> Sequences:
    """As on a GPU, which pads rows of similar lengths to one another where a CPU takes each length by itself."""
    padded = Sequences(sequences.cu_seqlens, sequences.lengths)
    vars(padded)["equal"] = padded.similar
    return padded


@pytest.mark.parametrize("lengths", ORDERS.values(), ids=ORDERS)
def test_padded_spans_give_what_equal_ones_give(folder: Path, lengths: list[int]) -> None:
    backend = backend_of(folder)
    inputs, _ = to_device(make_batch(folder, lengths), backend.architecture, CPU)
    hidden = torch.randn((sum(lengths), 32), generator=torch.Generator().manual_seed(0))
    expected = last_layer(backend._model.last, hidden, inputs.sequences, backend._model.heads)
    found = last_layer(backend._model.last, hidden, with_padded_spans(inputs.sequences), backend._model.heads)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_many_rows_in_parts_give_what_all_give_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backend_of(folder)
    batch = make_batch(folder, ORDERS["longest first"])
    expected = logits(backend, batch)
    monkeypatch.setattr(packed_forward, "ROWS_AT_ONCE", 2)
    np.testing.assert_allclose(logits(backend, batch), expected, atol=1e-6, rtol=0)


def test_a_row_that_overflows_spoils_no_other(tmp_path: Path) -> None:
    backend = backend_of(write_model(tmp_path, xlmr_config()))
    lengths = [8, 7, 6, 6]
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    sequences = with_padded_spans(Sequences(cu_seqlens, np.array(lengths)))
    assert len(sequences.equal) == 1
    hidden = torch.randn((sum(lengths), 32), generator=torch.Generator().manual_seed(0))
    hidden[8:15] = torch.inf
    found = last_layer(backend._model.last, hidden, sequences, backend._model.heads)
    assert found.isfinite().all(dim=1).tolist() == [True, False, True, True]


def test_batches_that_were_started_finish_in_one_piece(folder: Path) -> None:
    backend = backend_of(folder)
    batches = [make_batch(folder, lengths, seed) for seed, lengths in enumerate(ORDERS.values())]
    together = backend.finish([backend.start(batch) for batch in batches])
    assert together.dtype == np.float32
    np.testing.assert_array_equal(together, np.concatenate([logits(backend, batch) for batch in batches]))


def test_a_card_copies_back_on_a_stream_that_waits_for_what_is_fetched_alone(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []

    class Stream:
        def record_event(self) -> str:
            log.append("started")
            return f"event {log.count('started')}"

        def wait_event(self, event: str) -> None:
            log.append(f"wait for {event}")

    @contextlib.contextmanager
    def on(_stream: Stream) -> Iterator[None]:
        log.append("aside")
        yield
        log.append("back")

    backend = backend_of(tiny_bert)
    batches = [make_batch(tiny_bert, lengths) for lengths in ([5, 3], [9], [7, 7, 2])]
    expected = np.concatenate([logits(backend, batch) for batch in batches[:2]])
    monkeypatch.setattr(backend, "_back", Stream())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", on)
    join = torch.cat
    monkeypatch.setattr(torch, "cat", lambda tensors: log.append("join") or join(tensors))
    first, second, _ = [backend.start(batch) for batch in batches]
    log.clear()
    np.testing.assert_array_equal(backend.finish([first, second]), expected)
    assert log == ["aside", "wait for event 1", "wait for event 2", "join", "back"]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_the_last_layer_and_the_head_stay_in_float32(tmp_path: Path, precision: str) -> None:
    backend = backend_of(write_model(tmp_path, xlmr_config()), precision)
    model = backend._model
    assert {
        part.weight.dtype for part in (model.last.qkv, model.last.output_norm, model.dense, model.label)
    } == {torch.float32}
    assert {model.words.dtype, model.places.dtype, model.layers[0].qkv.weight.dtype} == {
        torch_runtime.DTYPES[precision]
    }
    assert backend.in_float32()._model.words.dtype == torch.float32


def test_what_overflows_in_float16_is_not_finite_and_finite_in_float32(tmp_path: Path) -> None:
    """Between the two matrices of a feed-forward part, values are 100,000 times larger than they need to be."""
    folder = write_model(tmp_path, xlmr_config())
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if "intermediate.dense" in name:
            weights[name] = weights[name] * 100_000
        elif name.endswith(".output.dense.weight") and "attention" not in name:
            weights[name] = weights[name] / 100_000
    save_file(weights, folder / "model.safetensors")
    batch = make_batch(folder, [9, 5])
    backend = backend_of(folder, "float16")
    assert not np.isfinite(logits(backend, batch)).any()
    np.testing.assert_allclose(
        logits(backend.in_float32(), batch), plain_logits(folder, batch), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nGPU 0 has"),
        MemoryError("no room"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported elsewhere"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_full_memory_is_told_from_other_errors(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    backend = backend_of(tiny_bert)
    monkeypatch.setattr(packed, "forward", failing(error))
    with pytest.raises(OutOfMemoryError, match=r"^[^\n]*$"):
        backend.start(make_batch(tiny_bert, [5]))


def test_an_error_of_the_device_is_raised_as_it_is(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backend_of(tiny_bert)
    monkeypatch.setattr(packed, "forward", failing(RuntimeError("CUDA error: device-side assert triggered")))
    with pytest.raises(RuntimeError, match="device-side assert"):
        backend.start(make_batch(tiny_bert, [5]))


def test_weights_that_do_not_fit_are_a_model_error(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "load_model", failing(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(ModelError, match=r"the weights of .* do not fit into the memory of cpu in float32"):
        backend_of(tiny_bert)


def failing(error: BaseException) -> Any:
    def fail(*_arguments: object, **_names: object) -> None:
        raise error

    return fail


# multiprocessors, hidden size → tokens that keep them all busy: H100, A100, A10 and T4 at 1,024; an H100 at 768 and 384
@pytest.mark.parametrize(
    ("multiprocessors", "hidden", "tokens"),
    [
        (132, 1024, 16896),
        (108, 1024, 13824),
        (72, 1024, 9216),
        (40, 1024, 5120),
        (132, 768, 22528),
        (132, 384, 45056),
        (132, 2048, 16896),
    ],
)
def test_the_token_budget_is_that_of_the_design(multiprocessors: int, hidden: int, tokens: int) -> None:
    assert torch_runtime.busy_tokens(multiprocessors, hidden) == tokens


def test_the_token_budget_fits_into_free_memory(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = backend_of(tiny_bert).architecture
    processors = type("Properties", (), {"multi_processor_count": 132})()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: processors)
    device = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (10**6, 10**9))
    budget = torch_runtime.token_budget(device, sizes, "float16")
    assert budget == int(0.9 * 10**6 / (1.25 * (2 * 32 + 2 * 64) * 2))
    assert torch_runtime.token_budget(device, sizes, "float32") == budget // 2
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (10**12, 10**12))
    assert torch_runtime.token_budget(device, sizes, "float16") == 128 * 132 * 32
    for threads, tokens in (("1", 2048), ("2", 4096), ("64", 16384)):
        monkeypatch.setenv("RERANK_UDF_THREADS", threads)
        assert torch_runtime.token_budget(CPU, sizes, "float16") == tokens


def test_predicted_memory_is_weights_and_tokens(tmp_path: Path) -> None:
    folder = write_model(tmp_path, xlmr_config())
    stored = load_file(folder / "model.safetensors")
    backend = backend_of(folder)
    types = 32 * 4  # the one type's row is part of the table of places
    assert backend.weight_bytes == sum(array.nbytes for array in stored.values()) - types
    assert backend.predicted_bytes(1000) - backend.predicted_bytes(0) == int(1000 * 1.25 * 2 * (32 + 64) * 4)


@pytest.fixture
def candidates(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Kernels of this test's own, tried in order before the public attention; the process's choice is forgotten."""
    found: dict[str, Any] = {}

    def choose(*_arguments: object) -> kernels.KernelChoice:
        return kernels.KernelChoice((*found, kernels.EQUAL_LENGTHS), {"another": "is elsewhere"})

    monkeypatch.setattr(packed, "_kernels", {})
    monkeypatch.setattr(packed, "_candidates", choose)
    monkeypatch.setattr(packed, "make_attend", lambda name: found[name])
    return found


def test_a_kernel_that_fails_or_deviates_gives_way_to_the_next(
    tiny_bert: Path, candidates: dict[str, Any]
) -> None:
    tried: list[str] = []

    def good(qkv: torch.Tensor, sequences: Sequences) -> torch.Tensor:
        tried.append("good")
        return attend_equal_lengths(qkv, sequences)

    def whole_batch(qkv: torch.Tensor, sequences: Sequences) -> torch.Tensor:
        """Attends across sequences, the mistake that matters most."""
        total = np.array([len(qkv)])
        return attend_equal_lengths(qkv, Sequences(torch.tensor([0, len(qkv)]), total))

    candidates["broken"] = failing(RuntimeError("no kernel image is available\nfor execution"))
    candidates["wrong"] = whole_batch
    candidates["lossy"] = lambda qkv, sequences: attend_equal_lengths(qkv.half(), sequences).to(qkv.dtype)
    candidates["nan"] = lambda qkv, sequences: attend_equal_lengths(qkv, sequences) * torch.nan
    candidates["narrow"] = lambda qkv, sequences: attend_equal_lengths(qkv, sequences)[:, :8]
    candidates["good"] = good
    candidates["never"] = failing(AssertionError("it was tried"))
    found = backend_of(tiny_bert).describe()
    assert found["kernel"] == "good"
    reasons = found["not_chosen"]
    assert reasons["another"] == "is elsewhere"
    assert reasons["broken"] == "no kernel image is available"
    assert reasons["wrong"].startswith("it deviates by ")
    assert reasons["lossy"].startswith("it deviates by ")
    assert reasons["nan"].startswith("it deviates by nan")
    assert reasons["narrow"].startswith("it gives torch.float32 (280, 8); expected torch.float32 (280, 32)")
    assert reasons["never"] == reasons["sdpa-equal-lengths"] == "good comes first"
    assert json.loads(json.dumps(found)) == found
    tried.clear()
    backend_of(tiny_bert)
    assert tried == [], "a process checks its kernel once"


def test_the_public_attention_is_left_where_nothing_works(
    tiny_bert: Path, candidates: dict[str, Any]
) -> None:
    candidates["broken"] = failing(ImportError("libcudart.so.12: cannot open shared object file"))
    backend = backend_of(tiny_bert, "bfloat16")
    assert backend.describe()["kernel"] == "sdpa-equal-lengths"
    batch = make_batch(tiny_bert, [9, 5])
    assert np.isfinite(logits(backend, batch)).all()


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_the_check_allows_for_rounding(precision: str) -> None:
    check_attend(attend_equal_lengths, 4, 64, torch_runtime.DTYPES[precision], CPU)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_full_memory_is_no_reason_for_another_kernel(
    tiny_bert: Path, candidates: dict[str, Any], error: Exception
) -> None:
    candidates["large"] = failing(error)
    with pytest.raises(ModelError, match="do not fit"):
        backend_of(tiny_bert)


def test_a_cpu_says_why_it_has_the_public_attention(tiny_bert: Path) -> None:
    architecture = backend_of(tiny_bert).architecture
    kernel = checked_kernel(architecture, "float32", CPU)
    assert kernel.name == "sdpa-equal-lengths"
    assert set(kernel.not_chosen.values()) == {"needs a CUDA device; this is cpu"}
