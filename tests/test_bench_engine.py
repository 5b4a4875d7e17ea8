"""benchmarks/bench_engine.py: its arithmetic on plain numbers, its adapters on a server here, and one small run."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import kendalltau

from rerank_udf.engine.rates import necessary_flops
from rerank_udf.engine.weights import read_weights

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "peers")]

import bench_engine  # noqa: E402
import cpu_profile  # noqa: E402
import http_peer  # noqa: E402
import worker  # noqa: E402
from side_by_side import environments, pairs, rounds, show  # noqa: E402
from side_by_side.client import Worker, WorkerFailedError, worker_environment  # noqa: E402
from side_by_side.engines import ENGINES, UnknownEngineError, chosen, why_not  # noqa: E402
from side_by_side.statistics import (  # noqa: E402
    Lane,
    Spread,
    kendall_tau,
    logit_errors,
    padding_share,
    ratio,
    rows_of,
    share_of_rate,
)


def lane(engine: str, seconds: list[float], **changes: Any) -> Lane:
    facts: dict[str, Any] = {
        "title": engine,
        "precision": "bfloat16",
        "ours": engine.startswith("ours"),
        "batch": "own",
        "batch_size": None,
        "sample": "all",
        "pairs": 10,
        "tokens": 1000,
        "ids_seconds": [],
    }
    return Lane(engine=engine, seconds=seconds, **(facts | changes))


def test_a_spread_is_the_median_with_the_ends() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    with pytest.raises(ValueError, match="no counted round"):
        Spread.of([])


def test_a_ratio_is_taken_round_by_round() -> None:
    # The machine was half as fast in round 2, for both: the ratio of medians would hide that it changed nothing
    assert ratio([1.0, 2.0, 1.0], [3.0, 6.0, 4.0]) == Spread(3.0, 3.0, 4.0)
    assert ratio([], [1.0]) is None
    with pytest.raises(ValueError, match="argument 2 is longer"):
        ratio([1.0], [1.0, 2.0])


def test_rows_are_sorted_and_held_against_ours_on_the_same_pairs() -> None:
    lanes = [
        lane("ours", [1.0, 1.0]),
        lane("ours", [0.5, 0.5], sample="fewer", tokens=100, pairs=1),
        lane("fast", [2.0, 4.0]),
        lane("slow", [5.0, 5.0], sample="fewer", tokens=100, pairs=1),
    ]
    rows = {
        (row.lane.engine, row.lane.sample): row
        for row in rows_of(lanes, {"all": 8.0, "fewer": 2.0}, [10.0, 20.0], "ours")
    }
    assert [row.lane.engine for row in rows.values()] == ["ours", "fast", "ours", "slow"]
    assert rows["fast", "all"].ratio == Spread(3.0, 2.0, 4.0)
    assert rows["slow", "fewer"].ratio == Spread(10.0, 10.0, 10.0)
    assert rows["ours", "all"].ratio is None
    assert rows["fast", "all"].tokens_per_second == Spread(375.0, 250.0, 500.0)
    assert rows["slow", "fewer"].pairs_per_second.median == 0.2
    assert rows["ours", "all"].share == Spread(pytest.approx(0.6), 0.4, 0.8)
    assert rows["slow", "fewer"].share == Spread(pytest.approx(0.03), 0.02, 0.04)


def test_an_engine_with_a_counterpart_is_held_against_it_where_it_ran() -> None:
    int8 = lane("openvino-int8", [6.0], counterpart="ours-int8")
    both = rows_of([lane("ours", [3.0]), lane("ours-int8", [2.0]), int8], {}, [], "ours")
    assert {row.lane.engine: row.ratio for row in both} == {
        "ours": None,
        "ours-int8": Spread(*[pytest.approx(2 / 3)] * 3),
        "openvino-int8": Spread(3.0, 3.0, 3.0),
    }
    (alone, _) = sorted(rows_of([lane("ours", [3.0]), int8], {}, [], "ours"), key=lambda row: row.lane.ours)
    assert alone.ratio == Spread(2.0, 2.0, 2.0)


def test_shares() -> None:
    assert padding_share(75, 100) == 0.25
    assert padding_share(75, None) is None
    assert share_of_rate(None, [1.0], [1.0]) is None
    assert share_of_rate(6.0, [2.0], [4.0]) == Spread(0.75, 0.75, 0.75)


def test_kendalls_tau_is_scipys() -> None:
    generator = np.random.default_rng(0)
    left = generator.standard_normal(60).round(1)
    right = (left + generator.standard_normal(60)).round(1)  # with ties
    assert kendall_tau(left, right) == pytest.approx(kendalltau(left, right).statistic)
    assert kendall_tau(left, np.zeros(60)) is None


def test_errors_are_those_of_logit_and_of_score() -> None:
    by_logit, by_score, tau = logit_errors(np.array([0.0, 2.0, 30.0]), np.array([0.0, 1.5, 31.0]))
    assert by_logit == 1.0
    assert by_score == pytest.approx(1 / (1 + np.exp(-2)) - 1 / (1 + np.exp(-1.5)))
    assert tau == 1.0
    with pytest.raises(ValueError, match="reference"):
        logit_errors(np.zeros(3), np.zeros(2))


def test_a_sample_of_neighbours_pads_as_the_whole_does() -> None:
    lengths = np.random.default_rng(0).integers(20, 513, 3000).astype(np.int64)
    rows = pairs.runs_of_neighbours(lengths, 512, 64)
    assert len(rows) == len(set(rows.tolist())) == 512
    assert (np.diff(rows) > 0).all()
    assert lengths[rows].mean() == pytest.approx(lengths.mean(), rel=0.05)

    def padding(sample: np.ndarray[Any, Any]) -> float:
        batches = worker.sorted_batches(sample.tolist(), 32)
        computed = sum(len(batch) * max(sample[row] for row in batch) for batch in batches)
        return 1 - sample.sum() / computed

    assert padding(lengths[rows]) == pytest.approx(padding(lengths), abs=0.005)
    thinned = np.random.default_rng(1).choice(lengths, 512, replace=False)
    assert padding(thinned) > 2 * padding(lengths), (
        "the test would not tell a sample of neighbours from any other"
    )


@pytest.mark.parametrize("count", [512, 384, 128, 64])
@pytest.mark.parametrize("seed", range(8))
def test_a_sample_of_nearly_all_is_whole(count: int, seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(20, 513, count + 1).astype(np.int64)
    assert len(set(pairs.runs_of_neighbours(lengths, count, 64, seed).tolist())) == count


def test_all_pairs_are_their_own_sample() -> None:
    np.testing.assert_array_equal(pairs.runs_of_neighbours(np.array([5, 3, 4]), 3, 2), [0, 1, 2])


@pytest.fixture
def demo_texts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RERANK_UDF_DATA", str(tmp_path / "nothing"))


@pytest.mark.usefixtures("demo_texts")
@pytest.mark.parametrize(
    ("lengths", "least", "most"), [("xquad", 10, 512), ("short", 10, 80), ("long", 250, 1020)]
)
def test_pairs_of_each_length(
    tiny_xlmr: Path, monkeypatch: pytest.MonkeyPatch, lengths: str, least: int, most: int
) -> None:
    monkeypatch.setattr(pairs, "LONG_TOKENS", (256, 1016))  # the tiny model has positions for 1,024 tokens
    monkeypatch.setitem(pairs.MAX_LENGTH, "long", 1024)
    made = pairs.make_pairs(lengths, 30, tiny_xlmr)
    assert "demo corpus" in made.source
    assert made.pairs == pairs.make_pairs(lengths, 30, tiny_xlmr).pairs
    assert made.pairs != pairs.make_pairs(lengths, 30, tiny_xlmr, seed=1).pairs
    assert least <= made.lengths.min() <= made.lengths.max() <= most
    if lengths == "long":
        assert made.lengths.max() > 900


@pytest.mark.usefixtures("demo_texts")
def test_more_pairs_than_there_are_is_said(tiny_xlmr: Path) -> None:
    with pytest.raises(ValueError, match="not 90,000"):
        pairs.make_pairs("xquad", 90_000, tiny_xlmr)


def test_queries_come_whole_and_languages_in_turn() -> None:
    corpora = [
        pairs.Corpus({"a": "A", "b": "B"}, {"p": "P", "q": "Q"}, {"a": ["p", "q"], "b": ["q"]}),
        pairs.Corpus({"c": "C"}, {"r": "R"}, {"c": ["r"]}),
    ]
    found = list(pairs.candidate_pairs(corpora, 0))
    assert sorted(found) == [("A", "P"), ("A", "Q"), ("B", "Q"), ("C", "R")]
    queries = [query for query, _ in found]
    assert queries.index("C") < len(queries) - 1 or queries[0] == "C"
    assert sum(one != other for one, other in pairwise(queries)) == 2


def test_the_search_climbs_to_the_fastest_size() -> None:
    seconds = {1: 9.0, 2: 5.0, 4: 3.0, 8: 4.0, 16: 6.0, 32: 1.0, 64: 1.0, 128: 1.0}
    assert rounds.search_batch_size(seconds.__getitem__) == {2: 5.0, 4: 3.0, 8: 4.0, 16: 6.0}


def test_a_size_that_does_not_fit_is_never_the_best() -> None:
    def seconds(size: int) -> float:
        if size > 8:
            raise WorkerFailedError("out of memory")
        return 1.0 / size

    assert rounds.search_batch_size(seconds) == {4: 0.25, 8: 0.125, 16: float("inf")}


@pytest.mark.parametrize(
    ("device", "first", "best"), [("cpu", 8, 128), ("cuda", 32, 512), ("cuda:1", 32, 512)]
)
def test_a_card_is_offered_larger_batches_out_of_more_pairs(
    tmp_path: Path, device: str, first: int, best: int
) -> None:
    """The larger the faster, here: the search ends with the largest size, of which the sample holds several."""
    tried: list[int] = []

    class Process:
        def ask(self, action: str, *, pairs: str, batch_size: int) -> dict[str, float]:
            tried.append(batch_size)
            return {"seconds": 1.0 / batch_size}

    plan: Any = SimpleNamespace(device=device, fixed_batches={})
    found: Any = SimpleNamespace(engine=ENGINES["st"], worker=Process(), searched={})
    assert rounds.best_batch(found, plan, tmp_path) == best
    assert (tried[0], max(tried)) == (first, best)
    assert bench_engine.search_pairs("all", device) >= 3 * rounds.batch_sizes(device)[-1]


@pytest.mark.parametrize(
    ("device", "card"), [("cuda:1", "cuda:1"), ("cuda", "cuda"), ("cpu", None), (None, None)]
)
def test_the_peak_is_that_of_the_card_with_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str | None, card: str | None
) -> None:
    asked: list[tuple[str, str | None]] = []

    class Cuda:
        def is_initialized(self) -> bool:
            return True

        def empty_cache(self) -> None:
            pass

        def reset_peak_memory_stats(self, device: str | None = None) -> None:
            asked.append(("reset", device))

        def max_memory_allocated(self, device: str | None = None) -> int:
            asked.append(("peak", device))
            return 7

    class Peer:
        def load(self, settings: dict[str, Any]) -> dict[str, Any]:
            return {}

        def score(self, pairs: Any, batch_size: int | None) -> worker.Scored:
            return worker.Scored(np.zeros(1, np.float32))

    (tmp_path / "pairs.json").write_text('[["a", "b"]]')
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=Cuda()))
    commands = [{"do": "load", "device": device}, {"do": "run", "pairs": str(tmp_path / "pairs.json")}]
    told = served(Peer(), commands if device else commands[1:], monkeypatch)
    assert told[-1]["peak_device_bytes"] == 7
    assert asked == [("reset", card), ("peak", card)]


def served(
    peer: Any, commands: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    """A worker's answers to some commands, in this process; its standard output stays as it is."""
    answers = io.StringIO()
    monkeypatch.setattr(worker, "use_cores", lambda: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(map(json.dumps, commands))))
    monkeypatch.setattr(worker.os, "dup", lambda _number: 1)
    monkeypatch.setattr(worker.os, "dup2", lambda _one, _other: None)
    monkeypatch.setattr(worker.os, "fdopen", lambda *_arguments, **_named: answers)
    worker.serve(peer)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_names_choose_engines_in_their_order() -> None:
    assert [engine.name for engine in chosen("st, ours,st", "cpu")] == ["st", "ours"]
    assert len(chosen("all", "cpu")) == len(ENGINES)
    assert {engine.name for engine in chosen("default", "cuda:1")} >= {"ours", "st", "flag", "tei"}
    with pytest.raises(UnknownEngineError, match="no engine 'sst'"):
        chosen("ours,sst", "cpu")


@pytest.mark.parametrize(
    ("name", "device", "precision", "why"),
    [
        ("openvino", "cuda", "float16", "runs on cpu only"),
        ("tei", "cuda", "float16", "--url tei="),
        ("st-best", "cpu", "float32", "default's row"),
        ("st-best", "cpu", "bfloat16", None),
        ("infinity", "cpu", "bfloat16", None),
    ],
)
def test_what_cannot_run_says_why(name: str, device: str, precision: str, why: str | None) -> None:
    found = why_not(ENGINES[name], device, precision, {"infinity": "http://localhost"})
    assert found is None if why is None else why in str(found)


def test_every_engine_has_its_worker_and_exact_pins() -> None:
    for engine in ENGINES.values():
        assert (BENCHMARKS / "peers" / engine.worker).is_file()
        for pin in engine.environment.pins if engine.environment else ():
            name, equals, version = pin.partition("==")
            assert name, pin
            assert equals, pin
            assert version, pin
            assert name.lower() not in ("torch", "torchvision"), "torch is linked, never resolved"


def test_torch_is_linked_with_what_cuda_needs_and_nothing_else(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "venv" / "lib" / "python3.11" / "site-packages"
    for name in ("torch", "torch-2.13.0.dist-info", "nvidia", "triton", "transformers", "torchvision"):
        (source / name).mkdir(parents=True)
    target.mkdir(parents=True)
    environments.link_torch(source, tmp_path / "venv" / "bin" / "python")
    assert sorted(path.name for path in target.iterdir()) == [
        "nvidia",
        "torch",
        "torch-2.13.0.dist-info",
        "triton",
    ]
    assert (target / "torch").resolve() == source / "torch"


def test_every_library_gets_the_same_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERANK_UDF_CPU_BACKEND", "torch")
    found = worker_environment(3, {"RAYON_NUM_THREADS": "", "EXTRA": "1"})
    assert {found[name] for name in ("OMP_NUM_THREADS", "RERANK_UDF_THREADS", "BENCH_THREADS")} == {"3"}
    assert "RAYON_NUM_THREADS" not in found
    assert "RERANK_UDF_CPU_BACKEND" not in found
    assert found["EXTRA"] == "1"


def test_a_worker_that_dies_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dies.py").write_text("import sys; sys.exit('no such library')")
    monkeypatch.setattr("side_by_side.client.PEERS", tmp_path)
    dying = Worker("dies", None, "dies.py", 1, {}, tmp_path / "dies.log")
    with pytest.raises(WorkerFailedError, match=r"ended with 1 \(no such library\)"):
        dying.ask("load")
    dying.stop()


ANSWERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "tei": lambda body: [
        {"index": place, "score": float(len(text))}
        for place, text in sorted(enumerate(body["texts"]), key=lambda item: -len(item[1]))
    ],
    "infinity": lambda body: {
        "object": "rerank",
        "results": [
            {"index": place, "relevance_score": float(len(text)), "document": None}
            for place, text in reversed(list(enumerate(body["documents"])))
        ],
    },
    "vllm": lambda body: {
        "object": "list",
        "data": [
            {"index": place, "object": "score", "score": float(len(text))}
            for place, text in enumerate(body["text_2"])
        ],
    },
}
RAW = {"tei": "raw_scores", "infinity": "raw_scores", "vllm": "use_activation"}


@pytest.fixture
def reranking_server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Scores a passage by its length, in each server's own form; keeps what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(200 if self.path.endswith("/info") else 404, {"version": "1.2.3"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            _, kind, path = self.path.split("/")
            known = {"tei": "rerank", "infinity": "rerank", "vllm": "score"}[kind] == path
            self._answer(200 if known else 404, ANSWERS[kind](body) if known else {})

        def _answer(self, status: int, content: Any) -> None:
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("kind", ["tei", "infinity", "vllm"])
def test_servers_are_asked_for_raw_logits_of_one_query_at_a_time(
    kind: str, reranking_server: tuple[str, list[dict[str, Any]]]
) -> None:
    url, asked = reranking_server
    peer = http_peer.Server()
    settings = {
        "server": kind,
        "url": f"{url}/{kind}",
        "concurrency": 1,
        "served_name": None,
        "max_length": 512,
    }
    facts = peer.load(settings)
    assert facts["versions"].get("server version") == ("1.2.3" if kind == "tei" else None)
    texts = [("q", "a" * size) for size in (5, 3, 9)] + [("r", "bb"), ("r", "b")]
    np.testing.assert_array_equal(peer.score(texts, 2).logits, [5, 3, 9, 2, 1])
    peer.close()
    assert len(asked) == 1 + 3  # the first while loading; then two for q, one for r
    assert all(body[RAW[kind]] is (kind != "vllm") for body in asked)


def test_a_server_that_refuses_is_told_with_its_words(reranking_server: tuple[str, Any]) -> None:
    peer = http_peer.Server()
    settings = {"server": "tei", "url": f"{reranking_server[0]}/vllm", "concurrency": 1, "max_length": 512}
    with pytest.raises(RuntimeError, match="/rerank answered 404"):
        peer.load(settings)
    peer.close()


def test_padded_batches_are_sorted_and_whole() -> None:
    batches = worker.sorted_batches([3, 9, 5, 9], 3)
    assert batches == [[1, 3, 2], [0]]


@pytest.mark.usefixtures("demo_texts")
def test_a_small_run_prints_and_writes_its_figures(tiny_xlmr: Path, tmp_path: Path) -> None:
    """Our engine alone: no peer's environment is built."""
    pytest.importorskip("matplotlib")
    arguments = (
        f"--model {tiny_xlmr} --pairs 20 --rounds 2 --threads 1 --engines ours,tei --reference-pairs 0"
    )
    done = CliRunner().invoke(
        bench_engine.main, [*arguments.split(), "--out", str(tmp_path)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert "not run: tei: needs a server: --url tei=http://…" in done.output
    result = json.loads((tmp_path / "result.json").read_text())
    (row,) = result["rows"]
    assert row["lane"]["pairs"] == 20
    assert len(row["lane"]["seconds"]) == len(row["lane"]["ids_seconds"]) == 2
    assert row["padding_share"] == 0
    assert row["tokens_per_second"]["low"] > 0
    assert row["share"]["median"] > 0
    assert result["samples"]["all"]["pairs"] == 20
    assert {"command", "machine", "engines", "matrix_product_rate"} <= result.keys()
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "rerank_udf" in (tmp_path / "table.txt").read_text()


def test_a_machine_without_a_network_runs_the_peers_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_ENVS", str(tmp_path))
    python = environments.python_of(environments.SENTENCE_TRANSFORMERS, environments.HERE)
    assert python == Path(sys.executable)
    assert not list(tmp_path.iterdir())


def test_cells_mark_what_ran_on_fewer_pairs() -> None:
    (row,) = rows_of([lane("st", [2.0, 1.0], sample="fewer", batch="best", batch_size=8)], {}, [], None)
    assert show.cells(row)[:4] == ["st*", "bfloat16", "8 (best)", "750 (500–1,000)"]


def test_a_profile_knows_linear_layers_and_attention_and_what_they_need(tiny_xlmr: Path) -> None:
    weights = read_weights(tiny_xlmr)
    spent, seconds = cpu_profile.profile(weights, rows=16, length=48)
    assert set(spent) == {cpu_profile.LINEAR, cpu_profile.ATTENTION, cpu_profile.OTHER}
    assert min(*spent.values(), seconds) > 0
    needed = sum(cpu_profile.operations_of(weights.architecture, rows=16, length=48).values())
    whole = necessary_flops(weights.architecture, [48] * 16) / 1e9
    hidden, width = weights.architecture.hidden, weights.architecture.intermediate
    tail = 16 * 2 * (5 * hidden**2 + 2 * hidden * width + hidden) / 1e9
    assert needed == pytest.approx(whole - tail), "all but the last layer's products and the head"
