"""What a model's arithmetic amounts to, and how fast this machine multiplies matrices: speed as a share of the limit.

A reranker's time is the time of its matrix products, so tokens/s times FLOPs per token, over the rate at which the
same products run by themselves, says how much of the machine an engine uses.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rerank_udf.engine.torch_runtime import DTYPES, exact_products, torch_device
from rerank_udf.machine import task_threads
from rerank_udf.models.checkpoint import Architecture

SECONDS_PER_PRODUCT = 0.2
_CHUNK_SECONDS = 0.02
_INT8_PRODUCTS = 6  # an even number


def necessary_flops(architecture: Architecture, lengths: npt.ArrayLike) -> float:
    """Floating-point operations (a multiply-add is two) of the matrix products that some logits need.

    `lengths`: integers (n,), tokens of each sequence. Every layer but the last is counted in full: three
    projections, QKᵀ, AV, the output and both feed-forward products. Of the last only what the first token needs,
    with the products of its keys and values folded away: (W_kᵀ q)·x and W_v (Σ a x). Then the head. No padding,
    no norms, no embeddings.
    """
    tokens = np.asarray(lengths, dtype=np.float64)
    hidden, intermediate = float(architecture.hidden), float(architecture.intermediate)
    products = 4 * hidden**2 + 2 * hidden * intermediate  # multiply-adds of a token in one layer
    full = tokens * products + 2 * tokens**2 * hidden
    first = products + 2 * tokens * architecture.heads * hidden
    head = hidden**2 + hidden
    return float(2 * ((architecture.layers - 1) * full + first + head).sum())


def product_shapes(architecture: Architecture) -> tuple[tuple[int, int], ...]:
    """(columns in, columns out) of a layer's four products: QKV, output, both of the feed-forward part."""
    hidden, intermediate = architecture.hidden, architecture.intermediate
    return (hidden, 3 * hidden), (hidden, hidden), (hidden, intermediate), (intermediate, hidden)


def matrix_product_rate(precision: str, device: str, architecture: Architecture, rows: int = 1024) -> float:
    """FLOP/s at which this machine multiplies (rows, in) by (in, out) in the shapes of a layer of the model.

    For each shape the faster of torch and, on a CPU where it is installed, OpenVINO; measured now, for 0.2 s each
    after a warm-up, on `task_threads()` threads; the shapes count by their FLOPs. `precision`: "float32" (without
    TF32), "bfloat16", "float16" or "int8"; raises ValueError where no library here has it.
    """
    rates = product_rates(precision, device, architecture, rows)
    if not rates:
        raise ValueError(f"no library here multiplies matrices in {precision} on {device}")
    shapes = product_shapes(architecture)
    best = [max(by_shape[number] for by_shape in rates.values()) for number in range(len(shapes))]
    return _overall(shapes, best)


def product_rates(
    precision: str, device: str, architecture: Architecture, rows: int = 1024
) -> dict[str, tuple[float, ...]]:
    """Library → FLOP/s for each of `product_shapes`; see `matrix_product_rate`."""
    place = torch_device(device)
    makers: dict[str, Callable[[int, int], Callable[[], object]]] = {}
    if precision in DTYPES:
        makers["torch"] = lambda i, o: _torch_product(DTYPES[precision], place, rows, i, o)
    if place.type == "cpu" and precision != "float16" and importlib.util.find_spec("openvino"):
        makers["openvino"] = lambda i, o: (
            _openvino_int8_products(rows, i, o)
            if precision == "int8"
            else _openvino_product(precision, rows, i, o)
        )
    flops = 2.0 * rows * (_INT8_PRODUCTS if precision == "int8" else 1)
    finish = partial(torch.cuda.synchronize, place) if place.type == "cuda" else _nothing
    with _task_threads(), exact_products(), torch.inference_mode():
        return {
            library: tuple(
                flops * i * o / _seconds(make(i, o), finish) for i, o in product_shapes(architecture)
            )
            for library, make in makers.items()
        }


def _overall(shapes: tuple[tuple[int, int], ...], rates: list[float]) -> float:
    """One rate for products of several shapes: all their FLOPs over the time of all of them."""
    sizes = [float(i * o) for i, o in shapes]
    return sum(sizes) / sum(size / rate for size, rate in zip(sizes, rates, strict=True))


def _seconds(product: Callable[[], object], finish: Callable[[], object]) -> float:
    """Median seconds of a product, over runs long enough for the clock and for a queue on the device."""
    repeats = 1
    while _run(product, finish, repeats) < _CHUNK_SECONDS:  # also the warm-up
        repeats *= 2
    found: list[float] = []
    while sum(found) < SECONDS_PER_PRODUCT:
        found.append(_run(product, finish, repeats))
    return statistics.median(found) / repeats


def _run(product: Callable[[], object], finish: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        product()
    finish()
    return time.perf_counter() - start


def _torch_product(
    dtype: torch.dtype, device: torch.device, rows: int, columns: int, out: int
) -> Callable[[], object]:
    """A product as torch.nn.Linear computes it."""
    values = torch.randn(rows, columns, device=device).to(dtype)
    weights = torch.randn(out, columns, device=device).to(dtype)
    return lambda: torch.nn.functional.linear(values, weights)


def _openvino_product(precision: str, rows: int, columns: int, out: int) -> Callable[[], object]:
    """A product as a layer's graph computes it: its input comes, and its output goes, in the graph's own type."""
    import openvino
    from openvino import opset13

    narrow = precision == "bfloat16"
    values = opset13.parameter([rows, columns], openvino.Type.bf16 if narrow else openvino.Type.f32)
    weights = opset13.constant(_normal(out, columns))
    product = opset13.matmul(values, opset13.convert(weights, "bf16") if narrow else weights, False, True)
    return _compiled(openvino.Model([opset13.result(product)], [values]), "bf16" if narrow else "f32")


def _openvino_int8_products(rows: int, columns: int, out: int) -> Callable[[], object]:
    """`_INT8_PRODUCTS` products, to and fro: 8 bits between them, as between a layer's; float32 only at the ends."""
    import openvino
    from openvino import opset13

    generator = np.random.default_rng(0)
    values = last = opset13.parameter([rows, columns], openvino.Type.f32)
    low, high = np.float32(-2), np.float32(2)
    for _ in range(_INT8_PRODUCTS):
        integers = opset13.constant(generator.integers(-127, 128, (out, columns), dtype=np.int8))
        weights = opset13.multiply(opset13.convert(integers, "f32"), np.full((out, 1), 1e-4, np.float32))
        quantised = opset13.fake_quantize(last, low, high, low, high, 256)
        last = opset13.matmul(quantised, weights, False, True)
        columns, out = out, columns
    return _compiled(openvino.Model([opset13.result(last)], [values]), "f32")


def _compiled(model: Any, hint: str) -> Callable[[], object]:
    """The call that runs a graph of one input on the CPU, in one stream."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": task_threads(), "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    data = request.get_input_tensor().data
    normal = _normal(*data.shape)  # memory as it comes may hold numbers that a processor is slow in
    if data.dtype == np.float32:
        data[:] = normal
    else:  # bfloat16, which numpy lacks: the upper half of a float32's bits
        data.view(np.uint16)[:] = normal.view(np.uint32) >> 16
    return lambda: request.infer()


def _normal(rows: int, columns: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((rows, columns), dtype=np.float32)


@contextmanager
def _task_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(task_threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _nothing() -> None:
    """A CPU computes at once."""
