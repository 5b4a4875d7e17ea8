"""What only a card can show: each attention kernel's numbers, a full memory, and a host that never waits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from rerank_udf.engine import kernels, load_scorer, resolve_scorer
from rerank_udf.engine.attention import NotUsableError, make_attend
from rerank_udf.engine.doctor import examine
from rerank_udf.engine.doctor.exactness import Inputs, judge, logits_of
from rerank_udf.engine.doctor.samples import check_lengths, random_sequences, write_long_model
from rerank_udf.engine.packed import Kernel, PackedBackend
from rerank_udf.engine.padded import PaddedBackend
from rerank_udf.models.checkpoint import Architecture, read_architecture, read_json

HEAD_WIDTHS = (32, 64, 128)
QUERIES = ["how long does a refund take?", "日本の首都は？", "capital of france <pad> [MASK]"]
PASSAGES = [
    "Refunds take five days. " * 60,
    "",
    "パリはフランスの首都です。",
    "five <pad> days </s> in paris",
]


@pytest.fixture(scope="module", params=HEAD_WIDTHS)
def long_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model for 8,192 tokens, with heads of each width."""
    folder = tmp_path_factory.mktemp(f"long-{request.param}")
    write_long_model(
        folder, Architecture("xlm-roberta", 100, 2 * request.param, 2, 2, 4 * request.param, 514, 1, 1)
    )
    return folder


def all_lengths(folder: Path) -> Inputs:
    architecture = read_architecture(read_json(folder / "config.json"), "long")
    return Inputs("random ids", random_sequences(architecture, check_lengths(2, architecture.most_tokens)))


def usable_kernels(precision: str, head_width: int) -> list[str]:
    choice = kernels.choose_kernels(
        "cuda",
        torch.cuda.get_device_capability(),
        precision,
        str(torch.__version__),
        kernels.installed_packages(),
        head_dim=head_width,
    )
    return list(choice.chosen)


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kernel", kernels.PREFERENCE)
def test_each_kernel_that_runs_here_gives_transformers_logits_from_2_to_8192_tokens(
    long_model: Path, kernel: str, precision: str
) -> None:
    backend = PackedBackend(long_model, precision=precision, device="cuda")
    sizes = backend.architecture
    if kernel not in usable_kernels(precision, sizes.hidden // sizes.heads):
        pytest.skip(f"{kernel} is not for this card, torch and precision")
    try:
        backend.kernel = Kernel(kernel, make_attend(kernel), {})
    except NotUsableError as error:
        pytest.skip(str(error))
    given = all_lengths(long_model)
    float32 = logits_of(PaddedBackend(long_model, precision="float32", device="cuda"), given.batch)
    same_bits = logits_of(PaddedBackend(long_model, precision=precision, device="cuda"), given.batch)
    found = judge(given, precision, logits_of(backend, given.batch), float32, same_bits)
    assert found.failure is None
    assert found.not_finite == 0


@pytest.mark.parametrize("tokens_per_batch", [1, 700, 1_000_000])
def test_logits_in_float32_are_the_processors(tiny_xlmr: Path, tokens_per_batch: int) -> None:
    queries, passages = zip(*((q, p) for q in QUERIES for p in PASSAGES), strict=True)
    logits = [
        load_scorer(
            tiny_xlmr, precision="float32", device=device, max_tokens_per_batch=tokens_per_batch
        ).logits(queries, passages)
        for device in ("cuda", "cpu")
    ]
    np.testing.assert_allclose(*logits, atol=1e-4, rtol=0)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Room for the small model's 32 MB and some ten thousand tokens beside it."""
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (80 << 20)) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_full_memory_halves_the_batches_and_loses_nothing(tiny_xlmr: Path, little_memory: None) -> None:
    queries = [f"{QUERIES[0]} {number}" for number in range(600)]
    passages = [PASSAGES[0] + str(number) for number in range(600)]
    settings = {"precision": "float32", "max_length": 512}
    scorer = load_scorer(tiny_xlmr, device="cuda", max_tokens_per_batch=1_000_000, **settings)
    logits = scorer.logits(queries, passages)
    assert scorer.describe()["out_of_memory_halvings"] > 0
    expected = load_scorer(tiny_xlmr, device="cpu", **settings).logits(queries[:40], passages[:40])
    np.testing.assert_allclose(logits[:40], expected, atol=1e-4, rtol=0)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_host_waits_for_nothing_between_two_batches(tiny_xlmr: Path, precision: str) -> None:
    backend = PackedBackend(tiny_xlmr, precision=precision, device="cuda")
    batch = random_sequences(backend.architecture, [300, 300, 41, 7, 2])
    expected = backend.finish([backend.start(batch)])  # also loads the kernels, which may wait
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        started = [backend.start(batch) for _ in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    np.testing.assert_allclose(backend.finish(started), np.tile(expected, 3), atol=1e-5)


def test_the_next_batch_is_not_waited_for(tiny_xlmr: Path) -> None:
    """The device is kept busy before the second batch, longer each time: once the first must have come back by then.

    A host that was slow may find the second one done too. If the first one waited for it, it always would be.
    """
    backend = PackedBackend(tiny_xlmr, precision="float32", device="cuda")
    batches = [random_sequences(backend.architecture, lengths) for lengths in ([300, 41, 7], [200, 5])]
    expected = [backend.finish([backend.start(batch)]) for batch in batches]
    for cycles in (10**9, 10**10, 5 * 10**10):  # half a second, and up to half a minute
        first = backend.start(batches[0])
        torch.cuda._sleep(cycles)
        second = backend.start(batches[1])
        found = backend.finish([first])
        assert second.done is not None
        overtaken = not second.done.query()
        np.testing.assert_allclose(found, expected[0], atol=1e-5)
        np.testing.assert_allclose(backend.finish([second]), expected[1], atol=1e-5)
        if overtaken:
            return
    pytest.fail("the first batch came back only when the second was done")


def test_a_stream_in_many_parts_has_the_processors_logits(
    tiny_xlmr: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part's logits are read while the next part computes, and takes what memory it finds free."""
    monkeypatch.setattr("rerank_udf.packing.FIRST_PAIRS", 4)
    monkeypatch.setattr("rerank_udf.packing.MOST_PART_PAIRS", 16)
    windows = [
        (
            [f"{QUERIES[0]} {n % 7}" for n in range(pairs)],
            [f"{PASSAGES[0][: 9 * n]} {n}" for n in range(pairs)],
        )
        for pairs in (150, 1, 90, 0, 200)
    ]
    card, processor = (
        load_scorer(tiny_xlmr, precision="float32", device=device, max_tokens_per_batch=2000)
        for device in ("cuda", "cpu")
    )
    for found, expected in zip(card.stream(windows), processor.stream(windows), strict=True):
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4, rtol=0)
        np.testing.assert_array_equal(found.tokens, expected.tokens)


def test_the_doctor_finds_this_card_fit(tiny_xlmr: Path) -> None:
    report = examine(resolve_scorer(tiny_xlmr, precision="float16", device="cuda"))
    assert report.passed, report.failures
    assert report.backend["kernel"] in usable_kernels("float16", 8)
    assert report.memory is not None
    assert report.memory.peak_bytes is not None
    assert report.memory.peak_bytes > 0
