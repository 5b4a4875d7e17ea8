"""Where a CPU's time goes: python benchmarks/cpu_profile.py --help

Runs the OpenVINO backend's graph of a model over rectangles of random tokens on one core, and adds up OpenVINO's own
clock by kind of node: linear layers, attention, everything else. Beside each time stand the operations that it needs
and their rate, to hold against the core's matrix-product rate, measured by the same run.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import click
import numpy as np
import openvino as ov
from rich.console import Console
from rich.table import Table
from side_by_side.shapes import SHAPES, model_folder

from rerank_udf.engine.openvino_graph import body
from rerank_udf.engine.rates import matrix_product_rate, product_shapes
from rerank_udf.engine.weights import read_weights
from rerank_udf.machine import processor_name
from rerank_udf.models.checkpoint import Architecture

_RUNS = 10
LINEAR, ATTENTION, OTHER = "linear layers, GELU", "attention", "LayerNorm, residuals, copies, embeddings"
_KINDS = {"FullyConnected": LINEAR, "Subgraph": ATTENTION}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--shape", type=click.Choice(list(SHAPES)), default="mini", help="Model with random weights.")
@click.option("--rows", default=8, help="Sequences of a rectangle.")
@click.option("--length", default=256, help="Tokens of a sequence.")
def main(shape: str, rows: int, length: int) -> None:
    """Print what one core's time goes to."""
    os.environ["RERANK_UDF_THREADS"] = "1"  # the rate is one core's too
    folder = model_folder(SHAPES[shape])
    weights = read_weights(folder)
    spent, seconds = profile(weights, rows, length)
    operations = operations_of(weights.architecture, rows, length)
    rate = matrix_product_rate("bfloat16", "cpu", weights.architecture)
    table = Table(title=f"{shape}, {rows} × {length} tokens, bfloat16, one core of {processor_name()}")
    for column in ("part", "ms", "of the time", "GFLOP", "GFLOP/s"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, milliseconds in sorted(spent.items(), key=lambda item: -item[1]):
        share = f"{milliseconds / sum(spent.values()):.1%}"
        needed = operations.get(part)
        figures = ("", "") if needed is None else (f"{needed:.1f}", f"{1000 * needed / milliseconds:.0f}")
        table.add_row(part, f"{milliseconds:.1f}", share, *figures)
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{rows * length / seconds:,.0f} tokens/s (median of {_RUNS}); the core's matrix-product rate on these layers: "
        f"{rate / 1e9:.0f} GFLOP/s"
    )


def profile(weights: Any, rows: int, length: int) -> tuple[dict[str, float], float]:
    """Milliseconds by part, and the seconds of a run of the graph over `rows` sequences of `length` tokens."""
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16",
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERF_COUNT": True,
    }
    network = ov.Core().compile_model(body(weights, half_tables=True), "CPU", settings)
    request = network.create_infer_request()
    token_ids = np.random.default_rng(0).integers(5, 1000, (rows, length)).astype(np.int32)
    inputs = [token_ids, np.tile(np.arange(2, length + 2, dtype=np.int32), (rows, 1))]
    runs: list[tuple[float, dict[str, float]]] = []
    for _ in range(_RUNS + 3):
        start = time.perf_counter()
        request.infer(inputs)
        runs.append((time.perf_counter() - start, _by_part(request)))
    runs = runs[3:]  # the first compile kernels for these sizes
    spent = {part: statistics.median(found.get(part, 0.0) for _, found in runs) for part in runs[0][1]}
    return spent, statistics.median(seconds for seconds, _ in runs)


def _by_part(request: Any) -> dict[str, float]:
    found: dict[str, float] = {}
    for node in request.get_profiling_info():
        if node.status == ov.ProfilingInfo.Status.EXECUTED:
            part = _KINDS.get(node.node_type, OTHER)
            found[part] = found.get(part, 0.0) + node.real_time.total_seconds() * 1000
    return found


def operations_of(architecture: Architecture, rows: int, length: int) -> dict[str, float]:
    """GFLOP of the graph's parts; the last layer has its attention alone, over states, for one query a sequence."""
    hidden, layers = architecture.hidden, architecture.layers - 1
    tokens = rows * length
    per_token = 2 * sum(columns * out for columns, out in product_shapes(architecture))
    attention = layers * 4 * length * hidden * tokens + 4 * architecture.heads * hidden * tokens
    return {LINEAR: layers * per_token * tokens / 1e9, ATTENTION: attention / 1e9}


if __name__ == "__main__":
    main()
