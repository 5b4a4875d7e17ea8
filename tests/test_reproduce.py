"""The recipes of benchmarks/reproduce on small files of the same forms; e5-small is the bi-encoder, mini reranks."""

import gzip
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
RECIPES = REPOSITORY / "benchmarks/reproduce"
SCRIPT = RECIPES / "first_stage.py"
E5 = ["--pooling", "mean", "--query-prefix", "query: ", "--passage-prefix", "passage: "]
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
    done = subprocess.run(
        [sys.executable, SCRIPT, tables, "--model", bi_encoder, "--depth", "3", *E5],
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


def script(name):
    """One of the recipes' scripts as a module."""
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("depth", [5, 40])
def test_nearest_block_by_block_is_nearest_of_all(depth):
    torch = pytest.importorskip("torch")
    queries, passages = torch.randn(11, 8, generator=torch.Generator().manual_seed(4)).split([3, 8])
    passages = torch.cat([passages, -passages, passages / 2])
    nearest = script("first_stage").Nearest(queries, depth)
    for block in passages.split([7, 1, 9, 7]):
        nearest.see(block)
    for row, products in enumerate((queries @ passages.T).tolist()):
        expected = sorted(range(len(products)), key=lambda place: -products[place])[:depth]
        missing = [-1] * (depth - len(expected))
        assert nearest.places[row].tolist() == expected + missing
        assert nearest.scores[row][: len(expected)].tolist() == pytest.approx(sorted(products)[::-1][:depth])


@pytest.fixture
def miracl(tmp_path):
    """Two languages whose ids are the same, in the files that MIRACL has."""
    titles = {"en": "Town hall", "de": "Rathaus"}
    texts = {
        "en": [
            "A refund takes five working days.",
            "The market opens on Saturday.",
            "Parking costs two euros.",
        ],
        "de": ["Der Markt ist samstags offen.", "Parken kostet zwei Euro.", "Erstattungen dauern fünf Tage."],
    }
    asked = {"en": ("how long does a refund take", 0), "de": ("was kostet Parken", 1)}
    for language, (question, right) in asked.items():
        base, corpus = tmp_path / f"miracl-v1.0-{language}", tmp_path / f"miracl-corpus-v1.0-{language}"
        for folder in (base / "topics", base / "qrels", corpus):
            folder.mkdir(parents=True)
        (base / f"topics/topics.miracl-v1.0-{language}-dev.tsv").write_text(f"7\t{question}\n")
        judged = f"7\tQ0\t12#{right}\t1\n7\tQ0\t12#2\t0\n"
        (base / f"qrels/qrels.miracl-v1.0-{language}-dev.tsv").write_text(judged)
        for number, text in enumerate(texts[language]):
            record = {"docid": f"12#{number}", "title": titles[language], "text": text}
            with gzip.open(corpus / f"docs-{number}.jsonl.gz", "wt") as file:
                file.write(json.dumps(record) + "\n")
    return tmp_path


def test_miracls_files_become_tables_with_ids_of_their_language(miracl, tmp_path):
    counts = script("miracl").tables(miracl, "de", tmp_path / "de")
    assert counts == {"queries": 1, "passages": 3, "qrels": 2}
    tables = {name: pd.read_parquet(tmp_path / f"de/{name}.parquet").to_dict("records") for name in counts}
    assert tables["queries"] == [{"query_id": "de|7", "query": "was kostet Parken", "lang": "de"}]
    first = {"passage_id": "de|12#0", "title": "Rathaus", "passage": "Der Markt ist samstags offen."}
    assert tables["passages"][0] == first
    assert [row["relevance"] for row in tables["qrels"]] == [1, 0]


def test_a_language_that_was_not_downloaded_is_named(miracl, tmp_path):
    command = [sys.executable, RECIPES / "miracl.py", miracl, "sw", tmp_path / "sw"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: There is no topics.miracl-v1.0-sw-dev.tsv below {miracl}; download the language's files there first.\n"
    )


@pytest.mark.slow
def test_all_languages_are_reranked_and_measured_by_one_job(miracl, bi_encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*command):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    for language in ("en", "de"):
        tables = f"build/reproduce/miracl/{language}"
        run(RECIPES / "miracl.py", miracl, language, tables)
        run(SCRIPT, tables, "--model", bi_encoder, *E5)
    settings = ["--config", RECIPES / "miracl.yaml"]
    mini = ["--set", "model.name=mini", "--set", "model.revision=null", "--set", "model.max_length=512"]
    run("-m", "rerank_udf.cli", "rerank", *settings, *mini)
    ranked = pd.concat(
        map(pd.read_parquet, (tmp_path / "build/reproduce/miracl-reranked").rglob("*.parquet"))
    )
    best = ranked[ranked["rank"] == 1].set_index("query_id")["passage_id"].to_dict()
    assert best == {"en|7": "en|12#0", "de|7": "de|12#1"}
    told = run("-m", "rerank_udf.cli", "evaluate", *settings)
    figures = {line.split()[0]: line.split()[1:4] for line in told.splitlines() if line[:3] in ("de ", "en ")}
    assert figures == {"de": ["1", "1.000", "1.000"], "en": ["1", "1.000", "1.000"]}


def test_the_settings_are_the_jobs_own():
    from rerank_udf.config import load_config

    for name in ("fiqa", "miracl"):
        assert load_config(RECIPES / f"{name}.yaml").model.name == "BAAI/bge-reranker-v2-m3"
    commands = (REPOSITORY / "benchmarks/reproduce/README.md").read_text()
    written = yaml.safe_load((REPOSITORY / "benchmarks/reproduce/fiqa.yaml").read_text())
    assert all(Path(one["path"]).parent == Path("build/reproduce/fiqa") for one in written["input"].values())
    assert "build/reproduce/beir/fiqa build/reproduce/fiqa" in commands
