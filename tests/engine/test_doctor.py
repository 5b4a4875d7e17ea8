"""The doctor must find a right backend right, and every mistake of a forward pass that is known to be made."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from rich.console import Console

from rerank_udf import cli
from rerank_udf.engine import ScorerPlan, padded, rates, resolve_scorer
from rerank_udf.engine.backend import OutOfMemoryError, PackedBatch
from rerank_udf.engine.doctor import DoctorReport, examine, host, show, speed
from rerank_udf.engine.doctor.exactness import Inputs, check, judge, logits_of
from rerank_udf.engine.doctor.host import device_facts, has_code_for, installed_versions, visible_devices
from rerank_udf.engine.doctor.report import Answer, ClusterReport
from rerank_udf.engine.doctor.samples import (
    check_lengths,
    demo_texts,
    random_sequences,
    real_pairs,
    write_long_model,
)
from rerank_udf.engine.doctor.speed import measure_tokenizer
from rerank_udf.engine.packed import PackedBackend
from rerank_udf.engine.padded import PaddedBackend
from rerank_udf.engine.scorer import ModelEngine, Scorer
from rerank_udf.errors import ConfigError
from rerank_udf.models.checkpoint import read_architecture, read_json
from rerank_udf.tokens import PairTokenizer, read_tokenizer

Arrays = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(autouse=True)
def _no_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds are read once and believed: the tests are about everything else."""
    monkeypatch.setattr(speed, "MOST_SECONDS", 1e-9)
    monkeypatch.setattr(speed, "TOKENIZER_SECONDS", 1e-9)
    monkeypatch.setattr(rates, "SECONDS_PER_PRODUCT", 1e-9)
    monkeypatch.setattr(rates, "_CHUNK_SECONDS", 1e-9)


@pytest.fixture(scope="module", params=["tiny_xlmr", "tiny_bert"])
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


def inputs_of(folder: Path, longest: int = 130) -> list[Inputs]:
    architecture = read_architecture(read_json(folder / "config.json"), "tiny")
    lengths = [length for length in check_lengths(2, longest) for _ in range(2)]
    return [Inputs("random ids", random_sequences(architecture, lengths))]


# --- mistakes -----------------------------------------------------------------------------------------------------


class Mistaken(PaddedBackend):
    """The plain backend with a mistake in it, in every precision."""

    name = "mistaken"

    def in_float32(self) -> Mistaken:
        return type(self)(self._folder, precision="float32", device=self.device)


def with_inputs(change: Callable[[Arrays], Arrays]) -> type[Mistaken]:
    """A mistake in what the encoder is given: ids, mask, positions, types."""

    class Changed(Mistaken):
        def start(self, batch: PackedBatch) -> torch.Tensor:
            right = padded.pad_batch
            with mock.patch.object(padded, "pad_batch", lambda *given: change(right(*given))):
                return super().start(batch)

    return Changed


class OffByOne(Mistaken):
    """Rows begin one token late: what cu_seqlens without the leading 0's token would do."""

    def start(self, batch: PackedBatch) -> torch.Tensor:
        offsets = batch.offsets.copy()
        offsets[1:-1] += 1
        return super().start(PackedBatch(batch.token_ids, offsets, batch.type_ids))


class OtherWeights(Mistaken):
    """Every weight is off by about one percent."""

    def __init__(self, folder: Path, *, precision: str, device: str) -> None:
        super().__init__(folder, precision=precision, device=device)
        torch.manual_seed(0)
        for parameter in self._encoder.parameters():
            parameter.data *= 1 + 0.01 * torch.randn_like(parameter)


def positions_from_zero(inputs: Arrays) -> Arrays:
    return inputs | {"position_ids": np.maximum(inputs["position_ids"] - 1, 0)}


def positions_that_advance_on_pads(inputs: Arrays) -> Arrays:
    rows, longest = inputs["position_ids"].shape
    return inputs | {"position_ids": np.tile(np.arange(2, longest + 2), (rows, 1))}


def causal(inputs: Arrays) -> Arrays:
    seen = inputs["attention_mask"].astype(bool)[:, None, None, :]
    longest = seen.shape[-1]
    return inputs | {"attention_mask": seen & np.tri(longest, dtype=bool)[None, None]}


def without_the_last_token(inputs: Arrays) -> Arrays:
    mask = inputs["attention_mask"].copy()
    mask[np.arange(len(mask)), np.maximum(mask.sum(axis=1) - 1, 1)] = 0
    mask[np.arange(len(mask)), mask.sum(axis=1) - 1] = 0
    return inputs | {"attention_mask": mask}


def without_types(inputs: Arrays) -> Arrays:
    return inputs | {"token_type_ids": np.zeros_like(inputs["token_type_ids"])}


MISTAKES = {
    "positions from zero": ("tiny_xlmr", with_inputs(positions_from_zero)),
    "positions that advance on pads": ("tiny_xlmr", with_inputs(positions_that_advance_on_pads)),
    "a causal mask": ("tiny_xlmr", with_inputs(causal)),
    "the last token unseen": ("tiny_xlmr", with_inputs(without_the_last_token)),
    "rows off by one token": ("tiny_xlmr", OffByOne),
    "weights off by a percent": ("tiny_xlmr", OtherWeights),
    "no token types": ("tiny_bert", with_inputs(without_types)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_shows_in_float32(request: pytest.FixtureRequest, mistake: str) -> None:
    fixture, kind = MISTAKES[mistake]
    folder = request.getfixturevalue(fixture)
    (found,) = check(kind(folder, precision="float32", device="cpu"), folder, inputs_of(folder))
    assert found.failure is not None
    assert "off the float32 transformers forward; expected at most 0.0001" in found.failure


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("mistake", [name for name in MISTAKES if "percent" not in name])
def test_a_mistake_of_the_16_bit_kernel_alone_shows_in_16_bits(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, mistake: str, precision: str
) -> None:
    fixture, kind = MISTAKES[mistake]
    folder = request.getfixturevalue(fixture)
    monkeypatch.setattr(kind, "in_float32", PaddedBackend.in_float32)
    float32, sixteen = check(kind(folder, precision=precision, device="cpu"), folder, inputs_of(folder))
    assert (float32.precision, float32.failure) == ("float32", None)
    assert sixteen.precision == precision
    assert sixteen.failure is not None
    assert sixteen.failure.startswith(f"random ids in {precision}: ")


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_right_backend_passes(folder: Path, precision: str) -> None:
    found = check(PackedBackend(folder, precision=precision, device="cpu"), folder, inputs_of(folder))
    assert [one.failure for one in found] == [None] * len(found)
    assert {one.precision for one in found} == {"float32", precision}
    assert all(one.not_finite == 0 and one.largest > 0 for one in found), "compared with itself"


# --- the verdict --------------------------------------------------------------------------------------------------


ROWS = np.linspace(-2, 2, 40).astype(np.float32)
ROUNDING = (0.01 * np.random.default_rng(0).standard_normal(40)).astype(np.float32)


def judged(
    precision: str, found: Any, *, float32: Any = ROWS, same_bits: Any = None, groups: bool = True
) -> Any:
    batch = PackedBatch(np.zeros(80, np.int32), np.arange(0, 81, 2), None)
    given = Inputs("texts", batch, np.repeat([0, 1], 20) if groups else None)
    bits = float32 if same_bits is None else same_bits
    return judge(given, precision, *(np.asarray(a, dtype=np.float32) for a in (found, float32, bits)))


def test_float32_may_err_by_one_in_ten_thousand():
    assert judged("float32", ROWS + 0.9e-4).failure is None
    assert "expected at most 0.0001" in judged("float32", ROWS + 1.1e-4).failure


def test_16_bits_may_err_about_as_much_as_transformers_does():
    within = judged("bfloat16", ROWS - 2 * ROUNDING, same_bits=ROWS + ROUNDING)
    assert within.failure is None
    assert within.expected_rms == pytest.approx(np.sqrt(np.mean(ROUNDING**2)), rel=1e-3)
    assert within.rms == pytest.approx(2 * within.expected_rms, rel=1e-3)
    beyond = judged("bfloat16", ROWS - 4 * ROUNDING, same_bits=ROWS + ROUNDING)
    assert "expected at most 3 times as much" in beyond.failure


def test_one_row_that_is_wrong_is_found_among_many_that_are_right():
    one = ROWS + ROUNDING
    one[7] = ROWS[7] + 0.13
    found = judged("float16", one, same_bits=ROWS + ROUNDING)
    assert found.largest == pytest.approx(0.13, abs=1e-5)
    assert "a logit of 2 tokens is 0.13 off" in found.failure


def test_logits_that_transformers_loses_too_are_the_models_affair():
    lost = ROWS + ROUNDING
    lost[[3, 4]] = np.nan, np.inf
    both = judged("float16", lost, same_bits=lost)
    assert (both.not_finite, both.expected_not_finite, both.failure) == (2, 2, None)
    ours = judged("float16", lost, same_bits=ROWS + ROUNDING)
    assert ours.failure == "texts in float16: 2 of 40 logits are not finite, though transformers' are"


def test_a_model_whose_float32_is_not_finite_is_told():
    broken = ROWS.copy()
    broken[0] = np.nan
    found = judged("float32", ROWS, float32=broken)
    assert found.failure == "texts: transformers' own logits are not finite in float32"


def test_kendalls_tau_is_the_mean_over_queries():
    swapped = ROWS.copy()
    swapped[[20, 21]] = swapped[[21, 20]]  # one of 190 pairs of the second query
    found = judged("bfloat16", swapped, same_bits=ROWS + ROUNDING)
    assert found.kendall_tau == pytest.approx((1 + (1 - 2 / 190)) / 2)


def test_int8_is_judged_by_the_order_it_keeps():
    noisy = ROWS + 0.5 * np.random.default_rng(1).standard_normal(40).astype(np.float32)
    assert judged("int8", ROWS + 20 * ROUNDING, groups=False).judged is False
    assert "Kendall tau to float32 is" in judged("int8", noisy - 2 * ROWS).failure


def test_a_batch_that_does_not_fit_is_halved(tiny_bert: Path) -> None:
    class Small(PaddedBackend):
        def start(self, batch: PackedBatch) -> torch.Tensor:
            if len(batch.lengths) > 3:
                raise OutOfMemoryError("3 rows at most")
            return super().start(batch)

    (given,) = inputs_of(tiny_bert, 20)
    small = Small(tiny_bert, precision="float32", device="cpu")
    whole = PaddedBackend(tiny_bert, precision="float32", device="cpu")
    np.testing.assert_allclose(logits_of(small, given.batch), logits_of(whole, given.batch), atol=1e-5)


# --- what it is given ---------------------------------------------------------------------------------------------


def test_lengths_are_powers_of_two_and_their_neighbours():
    assert check_lengths(2, 9) == [2, 3, 4, 5, 7, 8, 9]
    assert check_lengths(2, 512)[-4:] == [256, 257, 511, 512]
    assert check_lengths(511, 8192) == [
        *(511, 512, 513, 1023, 1024, 1025, 2047, 2048, 2049, 4095, 4096, 4097, 8191, 8192)
    ]


def test_every_other_row_holds_pads_and_the_second_half_of_a_row_the_last_type(tiny_bert, tiny_xlmr):
    bert, xlmr = (read_architecture(read_json(f / "config.json"), "tiny") for f in (tiny_bert, tiny_xlmr))
    found = random_sequences(xlmr, [300, 300, 2])
    pads = found.token_ids == xlmr.pad_token_id
    assert found.lengths.tolist() == [300, 300, 2]
    assert not pads[:300].any()
    assert 3 <= pads[300:600].sum() <= 30
    assert found.token_ids.max() < xlmr.vocabulary
    assert found.type_ids is None
    assert random_sequences(bert, [5]).type_ids.tolist() == [0, 0, 1, 1, 1]


def test_the_long_model_takes_8192_tokens_and_tells_them_apart(tmp_path: Path, folder: Path) -> None:
    like = read_architecture(read_json(folder / "config.json"), "tiny")
    long = write_long_model(tmp_path, like)
    assert long.most_tokens == 8192
    assert long.hidden // long.heads == like.hidden // like.heads
    batch = random_sequences(long, [8192, 64, 63, 62, 9, 2])
    logits = logits_of(PaddedBackend(tmp_path, precision="float32", device="cpu"), batch)
    assert np.std(logits) > 0.1


def test_real_pairs_are_the_first_candidates_of_queries_in_many_languages():
    found = real_pairs(8, 5)
    assert np.bincount(found.groups).max() == 5
    assert 6 <= found.groups.max() + 1 <= 8
    assert len(set(found.queries)) == found.groups.max() + 1
    assert sum(not query.isascii() for query in set(found.queries)) > 2


# --- the machine --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architectures", "capability", "supported"),
    [
        (["sm_80", "sm_90"], (9, 0), True),
        (["sm_80", "sm_86"], (8, 9), True),  # L4 runs sm_86 code
        (["sm_86"], (8, 0), False),  # but A100 does not
        (["sm_75", "sm_80", "sm_86", "sm_90"], (7, 0), False),  # V100 since torch left it out
        (["sm_90"], (10, 0), False),
        (["sm_90", "compute_90"], (10, 0), True),  # compiled by the driver
        (["sm_90a"], (9, 0), True),
        (["sm_100a"], (10, 3), False),
        (["sm_100", "sm_120"], (12, 0), True),
        ([], (8, 0), False),
    ],
)
def test_which_cards_a_torch_build_has_code_for(architectures, capability, supported):
    assert has_code_for(architectures, capability) is supported


def card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    facts = mock.Mock(major=capability[0], minor=capability[1], uuid="GPU-1")
    facts.name = "Card"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: facts)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 << 30, 4 << 30))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])


def test_a_card_that_torch_has_no_code_for_is_a_failure_with_a_remedy(monkeypatch, tiny_bert):
    card(monkeypatch, (6, 1))
    report = examine(resolve_scorer(tiny_bert, precision="float32", device="cuda"))
    assert report.exactness == ()
    assert report.failures == (
        f"this torch ({torch.__version__}) has code for sm_80, sm_90, and Card is sm_61: install a torch whose "
        "torch.cuda.get_arch_list() has sm_61",
    )
    assert "sm_61" in printed(report, 120)


def test_facts_of_a_card(monkeypatch):
    card(monkeypatch, (9, 0))
    facts = device_facts("cuda:1")
    assert (facts.device, facts.capability, facts.supported, facts.remedy) == ("cuda:1", "sm_90", True, None)
    assert (facts.memory_free_bytes, facts.memory_total_bytes) == (3 << 30, 4 << 30)
    assert visible_devices("auto") == [("cuda:0", "GPU-1"), ("cuda:1", "GPU-1")]
    assert visible_devices("cuda:1") == [("cuda:1", "GPU-1")]
    assert visible_devices("cpu") == [("cpu", None)]


def test_a_card_that_torch_cannot_use_is_told(monkeypatch):
    monkeypatch.setattr(host, "resolve_device", lambda _: "cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA: install a CUDA build of torch" in str(device_facts("cpu").remedy)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "update the driver" in str(device_facts("cpu").remedy)


def test_versions_name_what_is_installed():
    found = installed_versions()
    assert found["torch"] == torch.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "flash-attn" not in found


def test_the_tokeniser_is_timed_as_if_each_text_was_new(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it remembers is dropped before each pass, and a pass is a call with all of a task's threads."""
    log: list[str] = []
    real = read_tokenizer(folder / "tokenizer.json")

    class Model:
        def _clear_cache(self) -> None:
            log.append("forget")

    class Timed:
        model = Model()

        def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> Any:
            log.append(f"encode {len(texts)}")
            return real.encode_batch_fast(texts, add_special_tokens=add_special_tokens)

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    clock = itertools.count(0.0, 0.5)
    monkeypatch.setattr(speed, "TOKENIZER_SECONDS", 1.0)
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(speed, "read_tokenizer", lambda _path: Timed())
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setenv("RAYON_NUM_THREADS", "4")
    found = measure_tokenizer(folder / "tokenizer.json", 1000.0)
    texts = demo_texts()
    assert log == ["forget", f"encode {len(texts)}"] * 2, "half a second each"
    tokens = 2 * sum(len(one) for one in real.encode_batch(texts, add_special_tokens=False))
    assert (found.texts, found.threads) == (len(texts), 4)
    assert found.tokens_per_second_per_core == pytest.approx(tokens / 4)
    assert found.cores_needed[10] == pytest.approx(1000 / (tokens / 4) / 10)


# --- the whole of it ----------------------------------------------------------------------------------------------


def test_a_report_of_this_machine_is_complete_and_plain(folder: Path) -> None:
    report = examine(resolve_scorer(folder, precision="bfloat16", device="cpu", max_length=64))
    assert report.passed, report.failures
    rows = [(check.inputs, check.precision) for check in report.exactness]
    names = ("random ids, to 64", "real texts", "made-up model, to 8,192")
    assert sorted(rows) == sorted((name, bits) for name in names for bits in ("float32", "bfloat16"))
    assert report.device.memory_total_bytes is None or report.device.memory_total_bytes > 1 << 20
    assert report.speed is not None
    assert report.speed.tokens_per_second > 0
    assert report.speed.share > 0
    assert report.tokenizer is not None
    assert list(report.tokenizer.cores_needed) == [1, 10, 100]
    assert report.backend["backend"] in ("torch-padded", "torch-packed", "openvino")
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert (plain["passed"], plain["model"]["max_length"]) == (True, 64)


def loader(kind: type[Mistaken]) -> Callable[[ScorerPlan], Scorer]:
    """Loads a scorer with a mistake in its backend."""

    def load(plan: ScorerPlan) -> Scorer:
        folder = Path(plan.files.location)
        backend = kind(folder, precision=plan.precision, device="cpu")
        engine = ModelEngine(PairTokenizer.from_folder(folder, plan.limits), backend, None)
        return Scorer(engine, model_key=plan.model_key, facts={})

    return load


def printed(report: DoctorReport | ClusterReport, width: int) -> str:
    """What a terminal of that width shows."""
    console = Console(file=io.StringIO(), width=width)
    console.print(show(report), highlight=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`rerank-udf doctor …` in this process: exit code, output, errors."""

    def start(*arguments: object) -> tuple[int, str, str]:
        code = 0
        try:
            cli.main(["doctor", *(str(argument) for argument in arguments)])
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return start


def test_the_command_prints_a_table_and_ends_with_0(run: Run, tiny_bert: Path) -> None:
    code, out, err = run("--model", tiny_bert, "--precision", "float32", "--device", "cpu")
    assert (code, err) == (0, "")
    assert "✓ cpu is fit to score" in out
    assert "tokens/s a core" in out


def test_json_is_all_there_is_on_standard_output(run: Run, tiny_bert: Path, tmp_path: Path) -> None:
    settings = tmp_path / "job.yaml"
    settings.write_text(
        "input: {candidates: {path: x}}\noutput: {reranked: {path: z}, rejects: {path: y}}\n"
        f"model: {{name: {tiny_bert}, max_length: 100, precision: bfloat16, device: cpu}}\n"
    )
    code, out, err = run(
        "--json", "--config", settings, "--set", "model.max_length=50", "--precision", "float32"
    )
    assert (code, err) == (0, "")
    found = json.loads(out)["model"]
    assert (found["name"], found["max_length"], found["precision"]) == (str(tiny_bert), 50, "float32")


@pytest.mark.parametrize("mistake", ["a causal mask", "rows off by one token", "weights off by a percent"])
@pytest.mark.slow
def test_a_backend_that_is_wrong_ends_with_1(
    run: Run, monkeypatch: pytest.MonkeyPatch, tiny_xlmr: Path, mistake: str
) -> None:
    monkeypatch.setattr(ScorerPlan, "load", loader(MISTAKES[mistake][1]))
    code, out, _ = run("--model", tiny_xlmr, "--precision", "bfloat16", "--device", "cpu")
    assert code == 1
    assert "✗ random ids, to 512 in float32: a logit of" in out.replace("\n", " ")
    assert "fit to score" not in out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model", "/nowhere"], "there is no model folder /nowhere here"),
        (["--precision", "float64"], "precision: expected 'auto', 'float32'"),
        (["--device", "tpu"], "device is 'tpu'; it must be auto, cpu, cuda or cuda:N"),
        (["--set", "model.name=x"], "--set changes a setting of --config FILE, and there is none"),
        (["--config", "/nowhere.yaml"], "no settings file at /nowhere.yaml"),
    ],
)
def test_bad_input_ends_with_2_and_a_sentence(run: Run, options: list[str], sentence: str) -> None:
    code, out, err = run(*options)
    assert (code, out) == (2, "")
    assert sentence in err
    assert "Traceback" not in err


def test_the_hash_scorer_has_nothing_to_examine(hash_model: Path) -> None:
    with pytest.raises(ConfigError, match="there is no model to examine"):
        examine(resolve_scorer(hash_model))


@pytest.mark.parametrize("width", [80, 120])
def test_what_is_printed_fits_the_terminal(
    monkeypatch: pytest.MonkeyPatch, tiny_xlmr: Path, width: int
) -> None:
    report = examine(resolve_scorer(tiny_xlmr, precision="float32", device="cpu", max_length=32))
    wrong = replace(report.exactness[0], failure="random ids in float32: a logit is 0.3 off " * 4)
    report = replace(report, exactness=(wrong, *report.exactness[1:]))
    answers = tuple(Answer(f"node{n}.example", f"node{n}/{n}", "cpu", report, None) for n in range(2))
    for found in (report, ClusterReport(answers, 2)):
        text = printed(found, width)
        assert max(map(len, text.splitlines())) <= width
        assert "wrong" in text
        assert "✗" in text


def test_a_cluster_tells_who_answered_and_who_did_not(tiny_bert: Path) -> None:
    report = examine(resolve_scorer(tiny_bert, precision="float32", device="cpu", max_length=32))
    heard = Answer("a", "a/1", "cpu", report, None)
    others = (
        Answer("a", "a/2", None, None, None),
        Answer("b", "b/9", "cuda:0", None, "CUDA error: no device"),
    )
    found = ClusterReport((heard, *others), 4)
    assert (
        found.coverage == "3 of 4 executors answered: a (2), b (1); 1 did not get a task and are not examined"
    )
    assert found.failures == ("b cuda:0: CUDA error: no device",)
    assert ClusterReport((heard,), 1).passed
    assert ClusterReport((others[0],), 1).failures == ("no executor examined a device",)
    assert json.loads(json.dumps(found.to_dict()))["executors_by_host"] == {"a": 2, "b": 1}


@pytest.mark.slow
def test_it_runs_where_pyspark_cannot_be_imported(tiny_bert: Path) -> None:
    code = f"""
import sys
sys.modules["pyspark"] = None
from rerank_udf import cli
from rerank_udf.engine import doctor
light = not any(name in sys.modules for name in ("torch", "transformers", "openvino"))
from rerank_udf.engine.doctor import speed
speed.MOST_SECONDS = speed.TOKENIZER_SECONDS = 1e-9
try:
    cli.main(["doctor", "--model", {str(tiny_bert)!r}, "--precision", "float32", "--device", "cpu"])
finally:
    print("RESULT", light)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "✓ cpu is fit to score" in done.stdout
    assert done.stdout.splitlines()[-1] == "RESULT True"
