"""The recipe of benchmarks/reproduce up to its first stage: a small BEIR folder, and e5-small as the bi-encoder."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
SCRIPT = REPOSITORY / "benchmarks/reproduce/first_stage.py"
TEXTS = {
    "d1": "Refunds arrive within five working days.",
    "d2": "The market is open on Saturday night.",
    "d3": "Die Parkgebühr beträgt zwei Euro je Stunde.",
    "d4": "The museum shows paintings of the last century.",
}
QUESTIONS = {"q1": ("how long does a refund take", "d1"), "q2": ("what does parking cost", "d3")}


@pytest.fixture
def beir(tmp_path):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": key, "title": "", "text": text} for key, text in TEXTS.items()]
    queries = [{"_id": key, "text": text} for key, (text, _) in QUESTIONS.items()] + [
        {"_id": "q9", "text": "unjudged"}
    ]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = "".join(f"{key}\t{right}\t1\n" for key, (_, right) in QUESTIONS.items())
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


@pytest.fixture(scope="session")
def bi_encoder(tmp_path_factory, xlmr_tokenizer):
    """multilingual-e5-small as transformers loads it."""
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    from rerank_udf.errors import ModelError
    from rerank_udf.models import mini

    torch = pytest.importorskip("torch")
    try:
        parts = mini.find_parts()
    except ModelError as absent:
        pytest.skip(str(absent))
    model = XLMRobertaModel(XLMRobertaConfig.from_dict(mini.CONFIG), add_pooling_layer=False)
    tensors = mini.frozen_tensors(parts.frozen)
    model.load_state_dict({name.removeprefix("roberta."): torch.tensor(one) for name, one in tensors})
    folder = tmp_path_factory.mktemp("e5")
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_file=str(xlmr_tokenizer), pad_token="<pad>").save_pretrained(folder)
    return folder


def test_the_first_stage_finds_the_answers_also_in_another_language(beir, bi_encoder, tmp_path):
    from rerank_udf import cli

    tables = tmp_path / "tables"
    cli.main(["convert", "--from", "beir", "--to", "parquet", str(beir), str(tables)])
    prefixes = ["--pooling", "mean", "--query-prefix", "query: ", "--passage-prefix", "passage: "]
    done = subprocess.run(
        [sys.executable, SCRIPT, tables, "--model", bi_encoder, "--depth", "3", *prefixes],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 queries · 4 passages · 6 candidates" in done.stdout
    found = pd.read_parquet(tables / "candidates.parquet")
    first = found[found["rank"] == 1].set_index("query_id")["passage_id"].to_dict()
    assert first == {key: right for key, (_, right) in QUESTIONS.items()}
    assert found.groupby("query_id")["score"].apply(lambda scores: scores.is_monotonic_decreasing).all()


def test_the_settings_are_the_jobs_own():
    from rerank_udf.config import load_config

    config = load_config(REPOSITORY / "benchmarks/reproduce/fiqa.yaml")
    assert config.model.name == "BAAI/bge-reranker-v2-m3"
    commands = (REPOSITORY / "benchmarks/reproduce/README.md").read_text()
    written = yaml.safe_load((REPOSITORY / "benchmarks/reproduce/fiqa.yaml").read_text())
    assert all(Path(one["path"]).parent == Path("build/reproduce/fiqa") for one in written["input"].values())
    assert "build/reproduce/beir/fiqa build/reproduce/fiqa" in commands
