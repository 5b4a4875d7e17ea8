"""Each format against an independent reader of it, round trips over hard text, and every bad line as a sentence."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
import tempfile
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_udf.errors import ConfigError, InputError
from rerank_udf.formats import FORMATS, convert, folders
from rerank_udf.formats.trec import decreasing_scores
from rerank_udf.identity import text_key

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ir_measures
    import pytrec_eval

HARD = [
    "",
    " ",
    "a\tb",
    "x\ny",
    "\r",
    'say "no"',
    "'",
    "\u2028",
    "\u2029",
    "\x85",
    "\0",
    "\ufeff",
    "é",
    "e\u0301",
]
HARD += ["👩‍👩‍👧", "עברית", "返金は", "\\n", "{}", "<pad> </s>", "\x1c", "\U0010ffff", "a" * 300]
TEXTS = st.one_of(st.sampled_from(HARD), st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
LINE_TEXTS = TEXTS.map(lambda t: t.translate(str.maketrans("\t\n\r", "   ")))
IDS = TEXTS.filter(bool)
LINE_IDS = LINE_TEXTS.filter(lambda t: bool(t) and not t.startswith(('"', "\ufeff")))
TREC_IDS = IDS.filter(lambda t: t.split() == [t] and "\0" not in t and not t.startswith("\ufeff"))
SCORES = st.floats(-1e30, 1e30) | st.sampled_from([1.0, 0.9999999999, -0.0, 1e-320])
quickly = settings(deadline=None, max_examples=25, database=None)


@contextmanager
def scratch() -> Iterator[Path]:
    """A new folder for every example of a property."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def put(folder: Path, **tables: dict[str, list[Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder


def rows(folder: Path, table: str, *columns: str) -> list[tuple[Any, ...]]:
    found = pq.read_table(folder / f"{table}.parquet")
    return list(zip(*(found[c].to_pylist() for c in columns or found.column_names), strict=True))


def pairs(ids: st.SearchStrategy[str], value: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[Any, Any]]:
    return st.dictionaries(st.tuples(ids, ids), value, min_size=1, max_size=8)


# Round trips


@quickly
@given(pairs(TREC_IDS, SCORES))
def test_a_run_comes_back_in_the_same_order_with_scores_lowered_at_most(found):
    by_query: dict[str, list[str]] = {}
    for query_id, passage_id in found:
        by_query.setdefault(query_id, []).append(passage_id)
    table = [(q, p, i, found[q, p]) for q, ps in by_query.items() for i, p in enumerate(ps, 1)]
    columns = dict(
        zip(("query_id", "passage_id", "rank", "score"), map(list, zip(*table, strict=True)), strict=True)
    )
    with scratch() as folder:
        convert("parquet", put(folder / "a", candidates=columns), "trec-run", folder / "run.txt")
        convert("trec-run", folder / "run.txt", "parquet", folder / "b")
        back = rows(folder / "b", "candidates", "query_id", "passage_id", "rank", "score")
    assert sorted(r[:3] for r in back) == sorted(r[:3] for r in table)
    for query_id, passages in by_query.items():
        scores = [s for q, _, _, s in back if q == query_id]
        given_scores = [found[query_id, p] for p in passages]
        assert (np.diff(np.float32(scores)) < 0).all()
        if (np.diff(np.float32(given_scores)) < 0).all():
            assert scores == given_scores


@quickly
@given(pairs(TREC_IDS, st.integers(-2, 3)), st.sampled_from(["trec-qrels", "msmarco-qrels"]))
def test_qrels_come_back(found, form):
    table = [(q, p, r) for (q, p), r in found.items()]
    names = ("query_id", "passage_id", "relevance")
    columns = dict(zip(names, map(list, zip(*table, strict=True)), strict=True))
    with scratch() as folder:
        convert("parquet", put(folder / "a", qrels=columns), form, folder / "qrels.gz")
        convert(form, folder / "qrels.gz", "parquet", folder / "b")
        assert rows(folder / "b", "qrels", *names) == table


@quickly
@given(
    st.dictionaries(IDS, st.tuples(TEXTS, TEXTS), min_size=1, max_size=5),
    st.dictionaries(IDS, TEXTS, min_size=1, max_size=5),
    pairs(LINE_IDS, st.integers(0, 3)),
)
def test_a_beir_folder_comes_back_with_titles_apart(passages, queries, judged):
    tables = {
        "passages": [(k, title, text) for k, (title, text) in passages.items()],
        "queries": list(queries.items()),
        "qrels": [(q, p, r) for (q, p), r in judged.items()],
    }
    names = {
        "passages": ("passage_id", "title", "passage"),
        "queries": ("query_id", "query"),
        "qrels": ("query_id", "passage_id", "relevance"),
    }
    columns = {
        t: dict(zip(names[t], map(list, zip(*found, strict=True)), strict=True))
        for t, found in tables.items()
    }
    with scratch() as folder:
        convert("parquet", put(folder / "a", **columns), "beir", folder / "beir", split="dev")
        # BEIR's own loader reads lines of JSON, and the qrels with the csv module.
        corpus = (folder / "beir/corpus.jsonl").read_text("utf-8")
        assert len(corpus.splitlines()) == len(passages)
        assert {(r["_id"], r["title"], r["text"]) for r in map(json.loads, corpus.splitlines())} == set(
            tables["passages"]
        )
        with (folder / "beir/qrels/dev.tsv").open(encoding="utf-8", newline="\n") as stream:
            read = list(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_MINIMAL))
        assert read == [["query-id", "corpus-id", "score"], *([q, p, str(r)] for q, p, r in tables["qrels"])]
        convert("beir", folder / "beir", "parquet", folder / "b", split="dev")
        for table, found in tables.items():
            assert rows(folder / "b", table, *names[table]) == found


@quickly
@given(
    st.dictionaries(LINE_IDS, LINE_TEXTS, min_size=1, max_size=6), st.sampled_from(["queries", "collection"])
)
def test_msmarco_texts_come_back(found, kind):
    table, key, text = (
        ("queries", "query_id", "query") if kind == "queries" else ("passages", "passage_id", "passage")
    )
    with scratch() as folder:
        put(folder / "a", **{table: {key: list(found), text: list(found.values())}})
        convert("parquet", folder / "a", f"msmarco-{kind}", folder / "x.tsv")
        with (folder / "x.tsv").open(encoding="utf-8", newline="\n") as stream:
            assert [line.rstrip("\n").split("\t") for line in stream] == [
                list(pair) for pair in found.items()
            ]
        convert(f"msmarco-{kind}", folder / "x.tsv", "parquet", folder / "b")
        assert rows(folder / "b", table, key, text) == list(found.items())


@quickly
@given(pairs(LINE_IDS, st.none()), st.data())
def test_msmarco_top1000_comes_back_with_each_text_once(found, data):
    queries = {q: data.draw(LINE_TEXTS) for q, _ in found}
    passages = {p: data.draw(LINE_TEXTS) for _, p in found}
    with scratch() as folder:
        put(
            folder / "a",
            queries={"query_id": list(queries), "query": list(queries.values())},
            passages={"passage_id": list(passages), "passage": list(passages.values())},
            candidates={"query_id": [q for q, _ in found], "passage_id": [p for _, p in found]},
        )
        convert("parquet", folder / "a", "msmarco-top1000", folder / "top.tsv")
        convert("msmarco-top1000", folder / "top.tsv", "parquet", folder / "b")
        assert rows(folder / "b", "candidates") == list(found)
        assert dict(rows(folder / "b", "queries")) == queries
        assert dict(rows(folder / "b", "passages")) == passages


@quickly
@given(
    st.dictionaries(
        TEXTS, st.tuples(st.sets(TEXTS, min_size=1, max_size=3), st.sets(TEXTS, max_size=3)), max_size=4
    ),
    st.data(),
)
def test_flagembedding_lines_come_back(found, data):
    lines = []
    for query, (pos, neg) in found.items():
        sides = {"pos": sorted(pos), "neg": sorted(neg - pos)}
        scores = {f"{k}_scores": [data.draw(SCORES) for _ in v] for k, v in sides.items()}
        lines.append({"query": query, **sides, **scores})
    with scratch() as folder:
        (folder / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines), "utf-8", newline="")
        convert("flagembedding", folder / "a.jsonl", "parquet", folder / "t")
        convert("parquet", folder / "t", "flagembedding", folder / "b.jsonl", scores=bool(lines))
        back = [json.loads(line) for line in (folder / "b.jsonl").read_text("utf-8").split("\n")[:-1]]
    kept = ("query", "pos", "neg", "pos_scores", "neg_scores")
    assert [{k: r.get(k) for k in kept} for r in back] == lines
    for record in back:
        assert record["query_id"] == text_key(record["query"]).hex()
        assert record["neg_id"] == [text_key(t).hex() for t in record["neg"]]


# What others read


def test_trec_eval_sees_the_ranks_order_even_where_scores_tie(tmp_path):
    candidates = {
        "query_id": ["q"] * 4,
        "passage_id": ["a", "z", "m", "b"],
        "rank": [1, 2, 3, 4],
        "score": [1.0, 1.0, 0.99999999999, 0.5],
    }
    convert("parquet", put(tmp_path, candidates=candidates), "trec-run", tmp_path / "run")
    run = {"q": {d.doc_id: d.score for d in ir_measures.read_trec_run(str(tmp_path / "run"))}}
    for place, passage in enumerate(candidates["passage_id"], 1):
        evaluator = pytrec_eval.RelevanceEvaluator({"q": {passage: 1}}, {"recip_rank"})
        assert evaluator.evaluate(run)["q"]["recip_rank"] == pytest.approx(1 / place)


def test_scores_that_cannot_stay_give_way_to_minus_rank():
    assert decreasing_scores([0.5, None, 0.1]) == [-1.0, -2.0, -3.0]
    assert decreasing_scores([float("nan"), 0.1]) == [-1.0, -2.0]
    assert decreasing_scores([1e300, 2.0]) == [-1.0, -2.0]
    assert decreasing_scores([3.0, 2.5, -1.0]) == [3.0, 2.5, -1.0]
    assert decreasing_scores([]) == []
    lowered = decreasing_scores([0.1, 0.9, 0.05])
    assert lowered == [0.1, float(np.nextafter(np.float32(0.1), np.float32(0))), 0.05]


def test_a_foreign_run_is_ranked_as_trec_eval_does_by_score_and_not_by_its_rank_column(tmp_path):
    (tmp_path / "run").write_text("q Q0 a 0 1.5 x\nq Q0 b 0 3 x\nq Q0 c 1 1.5 x\nr\tQ0\td 7 -1e3 x\n")
    assert convert("trec-run", tmp_path / "run", "parquet", tmp_path / "t") == {"candidates": 4}
    expected = [("q", "b", 3.0, 1), ("q", "a", 1.5, 2), ("q", "c", 1.5, 3), ("r", "d", -1000.0, 1)]
    assert rows(tmp_path / "t", "candidates", "query_id", "passage_id", "score", "rank") == expected


def test_a_jobs_output_folder_is_the_version_that_it_points_to(tmp_path):
    for number, version in enumerate(("old", "new")):
        part = tmp_path / "out/_versions" / version / "part-0.parquet"
        part.parent.mkdir(parents=True)
        pq.write_table(pa.table({"query_id": ["q"], "passage_id": [version], "rank": [number + 1]}), part)
    pointers = tmp_path / "out/_current"
    pointers.mkdir()
    (pointers / "run_date=2026-01-30.json").write_text('{"version": "old"}')
    assert convert("parquet", tmp_path / "out", "trec-run", tmp_path / "dated") == {"dated": 1}
    assert (tmp_path / "dated").read_text().split()[2] == "old"
    (pointers / "run_date=2026-01-31.json").write_text('{"version": "new"}')
    with pytest.raises(
        InputError, match=r"a table for each of 2 run dates; give one by its own path, such as .*/new"
    ):
        convert("parquet", tmp_path / "out", "trec-run", tmp_path / "both")
    (pointers / "latest.json").write_text('{"version": "new"}')
    convert("parquet", tmp_path / "out", "trec-run", tmp_path / "latest")
    assert (tmp_path / "latest").read_text().split()[2] == "new"


@pytest.mark.parametrize("sign", ["_delta_log/0.json", "metadata/v1.metadata.json"])
def test_a_lake_tables_folder_is_refused_since_its_files_hold_deleted_rows(tmp_path, sign):
    table = tmp_path / "reranked"
    (table / sign).parent.mkdir(parents=True)
    (table / sign).write_text("{}")
    pq.write_table(pa.table({"query_id": ["q"], "passage_id": ["p"], "rank": [1]}), table / "a.parquet")
    with pytest.raises(InputError, match="reranked is a Delta or Iceberg table, whose files hold deleted"):
        convert("parquet", table, "trec-run", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_reranked_table_of_spark_part_files_with_integer_ids_becomes_a_run(tmp_path):
    part = tmp_path / "reranked"
    part.mkdir()
    (part / "_SUCCESS").touch()
    logits = {"logit": [9.0, 8.0], "score": [1.0, 1.0]}
    pq.write_table(
        pa.table({"query_id": [2, 10], "passage_id": [5, 5], "rank": [2, 1], **logits}),
        part / "part-1.parquet",
    )
    pq.write_table(
        pa.table({"query_id": [2, 10], "passage_id": [6, 6], "rank": [1, 4], **logits}),
        part / "part-2.parquet",
    )
    assert convert("parquet", part, "trec-run", tmp_path / "run", tag="mini") == {"run": 4}
    found = [(d.query_id, d.doc_id) for d in ir_measures.read_trec_run(str(tmp_path / "run"))]
    assert found == [("10", "5"), ("10", "6"), ("2", "6"), ("2", "5")]
    first = (tmp_path / "run").read_text().splitlines()[0]
    assert first == "10 Q0 5 1 1.0 mini"
    convert("parquet", part, "msmarco-run", tmp_path / "run.tsv")
    assert (tmp_path / "run.tsv").read_text() == "10\t5\t1\n10\t6\t2\n2\t6\t1\n2\t5\t2\n"


def test_candidates_without_rank_are_ordered_by_score(tmp_path):
    columns = {"query_id": ["q"] * 3, "passage_id": ["b", "a", "c"], "score": [1, 1, 2]}
    convert("parquet", put(tmp_path, candidates=columns), "msmarco-run", tmp_path / "run")
    assert (tmp_path / "run").read_text() == "q\tc\t1\nq\ta\t2\nq\tb\t3\n"


def test_any_format_becomes_any_other(tmp_path):
    (tmp_path / "qrels").write_text("q 0 p 1\n")
    assert convert("trec-qrels", tmp_path / "qrels", "msmarco-qrels", tmp_path / "out.tsv") == {"out.tsv": 1}
    assert (tmp_path / "out.tsv").read_text() == "q\t0\tp\t1\n"


def test_gzip_crlf_and_a_byte_order_mark_are_read_as_what_they_hold(tmp_path):
    data = "\ufeff1\thow long?\r\n2\tquando\r\n".encode()
    (tmp_path / "a.tsv").write_bytes(data)
    (tmp_path / "b").write_bytes(gzip.compress(data[:15]) + gzip.compress(data[15:]))
    for name in ("a.tsv", "b"):
        convert("msmarco-queries", tmp_path / name, "parquet", tmp_path / f"{name}.out")
        assert rows(tmp_path / f"{name}.out", "queries") == [("1", "how long?"), ("2", "quando")]


def test_gzip_written_twice_is_the_same_file(tmp_path):
    put(tmp_path, queries={"query_id": [1], "query": ["x"]})
    for name in ("a.gz", "b.gz"):
        convert("parquet", tmp_path, "msmarco-queries", tmp_path / name)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.gz").read_bytes()) == b"1\tx\n"


def test_tabs_and_line_breaks_become_spaces_on_request_only(tmp_path):
    put(tmp_path, passages={"passage_id": ["p"], "passage": ["a\tb\r\nc\u2028d"]})
    with pytest.raises(
        InputError, match=r"passage of id 'p' has a tab or a line break, 'a\\tb.*--replace-whitespace"
    ):
        convert("parquet", tmp_path, "msmarco-collection", tmp_path / "c.tsv")
    assert not (tmp_path / "c.tsv").exists()
    convert("parquet", tmp_path, "msmarco-collection", tmp_path / "c.tsv", replace_whitespace=True)
    assert (tmp_path / "c.tsv").read_bytes().decode() == "p\ta b  c\u2028d\n"


def test_flagembedding_keeps_given_ids_and_repeated_pairs_once(tmp_path):
    lines = [
        {
            "query": "q",
            "pos": ["a"],
            "neg": ["b", "b"],
            "query_id": 7,
            "pos_id": ["A"],
            "neg_id": ["B", "B"],
            "type": "x",
        },
        {"query": "q", "pos": ["a"], "neg": [], "query_id": "7", "pos_id": ["A"], "prompt": "p"},
        {"query": "r", "pos": ["b"]},
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    convert("flagembedding", tmp_path / "x.jsonl", "parquet", tmp_path / "t")
    b, r = text_key("b").hex(), text_key("r").hex()
    assert rows(tmp_path / "t", "queries") == [("7", "q"), (r, "r")]
    assert rows(tmp_path / "t", "passages") == [("A", "a"), ("B", "b"), (b, "b")]
    assert rows(tmp_path / "t", "qrels") == [("7", "A", 1), ("7", "B", 0), (r, b, 1)]
    assert rows(tmp_path / "t", "candidates") == [("7", "A"), ("7", "B"), (r, b)]


def test_negatives_stand_in_rank_order_and_queries_without_positives_are_left_out(tmp_path):
    put(
        tmp_path,
        queries={"query_id": ["q", "none"], "query": ["Q", "N"]},
        passages={"passage_id": ["a", "b", "c"], "passage": ["A", "B", "C"]},
        candidates={
            "query_id": ["q"] * 3,
            "passage_id": ["a", "b", "c"],
            "rank": [3, 2, 1],
            "score": [0.1, 0.2, 0.3],
        },
        qrels={"query_id": ["q", "q", "none"], "passage_id": ["b", "c", "a"], "relevance": [2, 0, 0]},
    )
    assert convert("parquet", tmp_path, "flagembedding", tmp_path / "x.jsonl") == {"x.jsonl": 1}
    ids = {"query_id": "q", "pos_id": ["b"], "neg_id": ["c", "a"]}
    assert json.loads((tmp_path / "x.jsonl").read_text()) == {
        "query": "Q",
        "pos": ["B"],
        "neg": ["C", "A"],
        **ids,
    }


def test_a_beir_folder_without_qrels_and_with_gzip_is_read(tmp_path):
    with gzip.open(tmp_path / "corpus.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.write('{"_id": 1, "text": "x", "title": null, "metadata": {"url": "u"}}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": ""}\n')
    assert convert("beir", tmp_path, "parquet", tmp_path / "t") == {"passages": 1, "queries": 1}
    assert rows(tmp_path / "t", "passages", "passage_id", "title", "passage") == [("1", "", "x")]


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_CHARACTERS_AT_ONCE", 500_000)
    with (tmp_path / "collection.tsv").open("w") as stream:
        for i in range(20_000):
            stream.write(f"{i}\t{'word ' * 200}{i}\n")
    tracemalloc.start()
    convert("msmarco-collection", tmp_path / "collection.tsv", "parquet", tmp_path / "t")
    convert("parquet", tmp_path / "t", "msmarco-collection", tmp_path / "back.tsv")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "back.tsv").read_bytes() == (tmp_path / "collection.tsv").read_bytes()
    assert peak < 0.7 * (tmp_path / "collection.tsv").stat().st_size


# Bad lines

RUN = "query, Q0, passage, rank, score, tag"
BEIR_QRELS = "query-id\tcorpus-id\tscore\n"


BROKEN_GZIP = gzip.compress(b"q 0 p 1\n" * 9999, mtime=0)[:-30]


@pytest.mark.parametrize(
    ("form", "content", "sentence"),
    [
        ("trec-run", "q Q0 p 1 2.0\n", rf"line 1: found 5 fields, 'q Q0 p 1 2.0'; 6 white-space.* \({RUN}\)"),
        ("trec-run", "q Q0 p 1 2 t\n\n", "line 2: found 0 fields, ''"),
        ("trec-run", "q Q0 p one 2.0 t", "line 1: found rank 'one'; a whole number"),
        ("trec-run", "q Q0 p 1 nan t", "line 1: found score 'nan'; a finite number"),
        ("trec-run", "q Q0 p 1 1_0 t", "line 1: found score '1_0'"),
        ("trec-run", "q Q0 p 1 2 t\nq Q0 p 2 1 t", "line 2: found passage 'p' a second time for query 'q'"),
        ("trec-run", "q Q0 p 1 2 t\nr Q0 p 1 2 t\nq Q0 s 2 1 t", "line 3: found query 'q', whose lines ended.*sort -s"),
        ("trec-qrels", "q 0 p 1.5", "line 1: found relevance '1.5'; a whole number"),
        ("trec-qrels", "q 0 p " + "9" * 19, "line 1: found relevance '9999"),
        ("trec-qrels", "q 0 p 1\nq 0 p 1", "qrels: query_id 'q', passage_id 'p' stands there twice"),
        ("trec-qrels", b"q 0 p 1\nq 0 caf\xe9 1", "line 2: found byte 0xe9, which is not UTF-8"),
        ("trec-qrels", BROKEN_GZIP, "line [0-9]+: found broken gzip .*copy it again"),
        ("msmarco-queries", "1\ta\tb", r"line 1: found 3 fields.* 2 tab-separated fields \(query_id, query\)"),
        ("msmarco-queries", "1\ta\n1\tb", "queries: query_id '1' stands there twice"),
        ("msmarco-queries", "\ta", "line 1: found an empty query_id; an id"),
        ("msmarco-collection", "1\n", "line 1: found 1 fields, '1'; 2 tab-separated"),
        ("msmarco-top1000", "1\t2\tq\tp\n1\t3\tother\tp", "line 2: found query_id '1' with 'other', and further up"),
        ("msmarco-top1000", "1\t2\tq\tp\n1\t2\tq\tp", "candidates: query_id '1', passage_id '2' stands there twice"),
        ("msmarco-run", "1\t2\t0", "line 1: found rank 0; a rank from 1"),
        ("msmarco-qrels", "1\t0\t2", "line 1: found 3 fields"),
        ("flagembedding", "[1]", r"line 1: found '\[1\]'; a JSON object on one line"),
        ("flagembedding", '{"query": "q"', "line 1: found .* a JSON object"),
        ("flagembedding", "[" * 99999, "line 1: found .* a JSON object"),
        ("flagembedding", '{"pos": []}', "line 1: found query None; a string"),
        ("flagembedding", '{"query": "q", "pos": "p"}', "line 1: found 'pos' 'p'; a list of texts"),
        ("flagembedding", '{"query": "q", "pos": [3]}', "line 1: found pos 3; a string"),
        ("flagembedding", r'{"query": "q", "pos": ["\ud800"]}', "line 1: found half of a surrogate pair in pos"),
        ("flagembedding", '{"query": "q", "pos": ["a"], "neg": ["a"]}', "line 1: found a passage both pos"),
        ("flagembedding", '{"query": "q", "pos": ["a"], "pos_scores": []}', r"'pos_scores' \[\]; a list of 1"),
        ("flagembedding", '{"query": "q", "pos": ["a"], "pos_scores": [true]}', "pos_scores True; a finite number"),
        (
            "flagembedding",
            '{"query": "q", "pos": ["a"], "pos_scores": [1]}\n{"query": "r", "pos": ["a"]}',
            "line 2: found 'pos' without pos_scores; every line with, as the first is,",
        ),
        (
            "flagembedding",
            '{"query": "q", "pos": ["a"], "pos_id": ["1"]}\n{"query": "r", "pos": ["b"], "pos_id": ["1"]}',
            "line 2: found passage_id '1' with 'b', and further up with another text",
        ),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_and_nothing_is_left_behind(tmp_path, form, content, sentence):
    (tmp_path / "input").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=sentence):
        convert(form, tmp_path / "input", "parquet", tmp_path / "out")
    assert list(tmp_path.glob("out/*")) == []


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "has no corpus.jsonl"),
        ({"corpus.jsonl": ""}, "has no queries.jsonl"),
        ({"corpus.jsonl": '{"_id": "a"}', "queries.jsonl": ""}, "corpus.jsonl, line 1: found text None; a string"),
        ({"corpus.jsonl": '{"text": "a"}', "queries.jsonl": ""}, "corpus.jsonl, line 1: found _id None"),
        ({"corpus.jsonl": '{"_id": "a", "text": "", "title": 1}', "queries.jsonl": ""}, "found title 1; a string"),
        ({"corpus.jsonl": "", "queries.jsonl": "", "qrels/dev.tsv": ""}, "no split 'test'; the splits there are: dev"),
        ({"corpus.jsonl": "", "queries.jsonl": "", "qrels/test.tsv": "q\td\t1\n"}, "line 1: found .* the header"),
        ({"corpus.jsonl": "", "queries.jsonl": "", "qrels/test.tsv": BEIR_QRELS + "q\td\n"}, "line 2: found 2"),
    ],
)  # fmt: skip
def test_a_broken_beir_folder_is_a_sentence(tmp_path, files, sentence):
    for name, content in files.items():
        (tmp_path / "beir" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "beir" / name).write_text(content)
    (tmp_path / "beir").mkdir(exist_ok=True)
    with pytest.raises(InputError, match=sentence):
        convert("beir", tmp_path / "beir", "parquet", tmp_path / "out")


# Tables that cannot be written

IDS_OK: dict[str, list[Any]] = {"query_id": ["q"], "passage_id": ["p"]}


@pytest.mark.parametrize(
    ("form", "table", "columns", "sentence"),
    [
        ("trec-run", "candidates", IDS_OK, "neither 'rank' nor 'score'; a run needs an order"),
        ("trec-run", "candidates", IDS_OK | {"query_id": ["a b"], "rank": [1]}, "query_id 'a b' cannot be a TREC"),
        ("trec-run", "candidates", IDS_OK | {"passage_id": ["a\0"], "rank": [1]}, "passage_id .* cannot be a TREC"),
        ("trec-run", "candidates", IDS_OK | {"passage_id": ["a\u3000b"], "rank": [1]}, "cannot be a TREC"),
        ("trec-run", "candidates", IDS_OK | {"rank": [None]}, "column 'rank' is null in row 1"),
        ("trec-run", "candidates", IDS_OK | {"rank": ["1"]}, "column 'rank' has the type string; a whole number"),
        ("trec-run", "candidates", {k: v * 2 for k, v in IDS_OK.items()} | {"rank": [1, 1]}, "has rank 1, as another"),
        ("trec-qrels", "qrels", IDS_OK, "has no column 'relevance'; it has query_id, passage_id"),
        ("trec-qrels", "qrels", IDS_OK | {"relevance": [0.5]}, "'relevance' has the type double"),
        ("trec-qrels", "qrels", IDS_OK | {"query_id": [""], "relevance": [1]}, "'query_id' is '' in row 1"),
        ("msmarco-queries", "queries", {"query_id": ["a\tb"], "query": ["x"]}, "query_id 'a.tb' has a tab"),
        ("msmarco-queries", "queries", {"query_id": ["a"], "query": [None]}, "column 'query' is null in row 1"),
        ("msmarco-queries", "queries", {"query_id": ["a"], "query": [1]}, "'query' has the type int64; a string"),
        ("msmarco-queries", "passages", {"passage_id": ["a"]}, "has no queries.parquet, .* there is passages.pa"),
    ],
)  # fmt: skip
def test_a_table_that_a_format_cannot_hold_is_a_sentence(tmp_path, form, table, columns, sentence):
    put(tmp_path / "in", **{table: columns})
    with pytest.raises(InputError, match=sentence):
        convert("parquet", tmp_path / "in", form, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_text_that_is_not_utf8_in_parquet_is_a_sentence(tmp_path):
    broken = pa.array([b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"query_id": ["q"], "query": broken}), tmp_path / "queries.parquet")
    with pytest.raises(InputError, match="column 'query' is not valid UTF-8 in rows 1 to 1"):
        convert("parquet", tmp_path, "msmarco-queries", tmp_path / "out")


def test_beir_qrels_cannot_hold_a_tab_and_then_no_file_appears(tmp_path):
    put(
        tmp_path / "in",
        passages={"passage_id": ["p"], "passage": ["x"]},
        queries={"query_id": ["q"], "query": ["x"]},
        qrels={"query_id": ["q\t1"], "passage_id": ["p"], "relevance": [1]},
    )
    with pytest.raises(InputError, match=r"query_id 'q\\t1' cannot stand in a tab-separated line"):
        convert("parquet", tmp_path / "in", "beir", tmp_path / "out")
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        ({"passages": {"passage_id": ["b"], "passage": ["B"]}}, {}, "name 'a', which passages does not have"),
        (
            {"passages": {"passage_id": ["a", "a"], "passage": ["A", "B"]}},
            {},
            "passages: an id stands there twice",
        ),
        ({}, {"scores": True}, "no score for query_id 'q', passage_id 'a'"),
        (
            {"qrels": {"query_id": ["q", "01"], "passage_id": ["a", "a"], "relevance": [1, 1]}},
            {},
            "qrels name query_id '01', which queries does not have; add its text",
        ),
    ],
)
def test_flagembedding_needs_every_text_and_asked_for_scores(tmp_path, change, options, sentence):
    tables = {
        "queries": {"query_id": ["q"], "query": ["Q"]},
        "passages": {"passage_id": ["a"], "passage": ["A"]},
        "candidates": {"query_id": ["q"], "passage_id": ["a"]},
        "qrels": {"query_id": ["q"], "passage_id": ["a"], "relevance": [1]},
    }
    with pytest.raises(InputError, match=sentence):
        convert("parquet", put(tmp_path, **tables | change), "flagembedding", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


# Targets, names, options


def test_a_target_is_replaced_on_request_only_and_other_tables_stay(tmp_path):
    (tmp_path / "q.tsv").write_text("1\tnew\n")
    target = put(
        tmp_path / "t", queries={"query_id": ["0"], "query": ["old"]}, qrels=IDS_OK | {"relevance": [1]}
    )
    with pytest.raises(
        InputError, match=r"queries.parquet exists already; give another target, or allow overwriting"
    ):
        convert("msmarco-queries", tmp_path / "q.tsv", "parquet", target)
    assert rows(target, "queries") == [("0", "old")]
    convert("msmarco-queries", tmp_path / "q.tsv", "parquet", target, overwrite=True)
    assert rows(target, "queries") == [("1", "new")]
    assert rows(target, "qrels") == [("q", "p", 1)]
    with pytest.raises(InputError, match=r"q.tsv exists already"):
        convert("parquet", target, "msmarco-queries", tmp_path / "q.tsv")
    with pytest.raises(InputError, match="is a file; a folder"):
        convert("msmarco-queries", tmp_path / "q.tsv", "parquet", tmp_path / "q.tsv")
    with pytest.raises(InputError, match="is a folder; a file"):
        convert("parquet", target, "msmarco-queries", target, overwrite=True)
    for below in ("q.tsv/run", "q.tsv/a/b/run"):
        with pytest.raises(InputError, match=r"q.tsv.* is a file, or lies below one; a folder is written"):
            convert("parquet", target, "msmarco-queries", tmp_path / below)
        with pytest.raises(InputError, match=r"q.tsv.* is a file, or lies below one; a folder is written"):
            convert("msmarco-queries", tmp_path / "q.tsv", "parquet", tmp_path / below)


def test_what_one_format_lacks_for_another_is_said_of_the_users_file(tmp_path):
    (tmp_path / "run.txt").write_text("q Q0 p 1 0.5 bm25\n")
    sentence = r"^\S+/run.txt, read as trec-run, has no queries.parquet, which this format needs; there is candidates"
    with pytest.raises(InputError, match=sentence):
        convert("trec-run", tmp_path / "run.txt", "flagembedding", tmp_path / "out")


def missing(tmp_path: Path) -> None:
    convert("trec-run", tmp_path / "none", "parquet", tmp_path)


def missing_folder(tmp_path: Path) -> None:
    convert("parquet", tmp_path / "none", "trec-run", tmp_path / "out")


def not_parquet(tmp_path: Path) -> None:
    (tmp_path / "qrels.parquet").write_text("no")
    convert("parquet", tmp_path, "trec-qrels", tmp_path / "out")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (missing, "There is no file"),
        (missing_folder, "There is no .*none"),
        (not_parquet, "cannot be read as Parquet"),
    ],
)
def test_a_source_that_is_not_there_is_a_sentence(tmp_path, call: Callable[[Path], None], sentence):
    with pytest.raises(InputError, match=sentence):
        call(tmp_path)


@pytest.mark.parametrize(
    ("forms", "options", "sentence"),
    [
        (("trec", "parquet"), {}, "no format 'trec'; the formats are parquet, trec-run, trec-qrels, beir"),
        (("parquet", "parquet"), {}, "nothing to convert"),
        (("parquet", "trec-run"), {"split": "dev"}, "no option 'split'; the options they have: tag"),
        (("trec-run", "parquet"), {"tag": "x"}, "no option 'tag'; the options they have: none"),
        (("parquet", "trec-run"), {"tag": "a b"}, "The tag 'a b' cannot be a TREC"),
    ],
)
def test_names_and_options_that_do_not_exist_are_sentences(tmp_path, forms, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        convert(forms[0], tmp_path, forms[1], tmp_path / "out", **options)


def test_every_format_says_what_it_becomes():
    for form in FORMATS.values():
        assert "→" in (form.read.__doc__ or "")
        assert "→" in (form.write.__doc__ or "")


def test_converting_needs_neither_pandas_nor_anything_heavier(tmp_path):
    (tmp_path / "qrels").write_text("q 0 p 1\n")
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(name, *_):\n"
        "        if name in ('pandas', 'torch', 'pyspark'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent)\n"
        "from rerank_udf.formats import convert; print(convert('trec-qrels', 'qrels', 'parquet', 'out'))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert run.stdout == "{'qrels': 1}\n"
