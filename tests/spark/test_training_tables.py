"""A training run whose tables Spark reads, and whose teacher is a job's own store or output."""

import io
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console
from training_world import settings, write_tables

from rerank_udf import cli
from rerank_udf.config import Source, parse_config
from rerank_udf.errors import InputError
from rerank_udf.spark import read_reranked
from rerank_udf.spark.pipeline import run_rerank
from rerank_udf.spark.training_tables import exported
from rerank_udf.training.settings import TrainingConfig
from rerank_udf.training.tables import read_tables


@pytest.fixture(scope="module")
def scored(spark, hash_model, tmp_path_factory):
    """A folder with the tables, and a job's output and store beside them."""
    folder = tmp_path_factory.mktemp("faq")
    write_tables(folder)
    inputs = {
        name: {"path": str(folder / f"{name}.parquet")} for name in ("candidates", "queries", "passages")
    }
    job = {
        "input": inputs,
        "model": {"name": str(hash_model)},
        "output": {
            "reranked": {"path": str(folder / "out/reranked")},
            "rejects": {"path": str(folder / "out/rejects")},
        },
        "run": {"report": str(folder / "out/report")},
    }
    run_rerank(spark, parse_config(job), Console(file=io.StringIO()))
    return folder


def taught_by(folder, teacher, **of_the_set):
    raw = settings(folder, "base")
    raw["sets"][0] |= {"teacher": teacher, **of_the_set}
    return TrainingConfig.model_validate(raw)


def logits_of(tables):
    pairs = zip(tables.teacher.pairs.tolist(), tables.teacher.logits.tolist(), strict=True)
    size = len(tables.passages.ids)
    return {
        (tables.queries.ids[pair // size], tables.passages.ids[pair % size]): logit for pair, logit in pairs
    }


@pytest.fixture(scope="module")
def expected(spark, scored):
    rows = read_reranked(spark, str(scored / "out/reranked")).collect()
    return {(row["query_id"], row["passage_id"]): np.float32(row["logit"]) for row in rows}


def test_a_score_store_teaches(scored, expected):
    config = taught_by(scored, {"store": str(scored / "out/reranked_store")})
    assert not config.needs_spark()
    assert logits_of(read_tables(config.sets[0])) == expected
    assert len(expected) == 400


def test_a_reranked_table_teaches(spark, scored, expected):
    read_reranked(spark, str(scored / "out/reranked")).createOrReplaceTempView("big_model")
    config = taught_by(scored, {"table": {"sql": "select * from big_model where logit is not null"}})
    assert config.needs_spark()
    assert logits_of(read_tables(exported(spark, config).sets[0])) == expected


def test_a_jobs_output_folder_teaches_too_without_the_rows_that_have_no_logit(scored, expected, tmp_path):
    out = tmp_path / "reranked"
    shutil.copytree(scored / "out/reranked", out)
    (version,) = (out / "_versions").iterdir()
    part = next(version.glob("*.parquet"))
    table = pq.read_table(part)
    column = table.schema.get_field_index("logit")
    unscored = pa.array([None, *table["logit"].to_pylist()[1:]], table.schema.field("logit").type)
    pq.write_table(table.set_column(column, table.schema.field("logit"), unscored), part)
    lost = (table["query_id"][0].as_py(), table["passage_id"][0].as_py())
    config = taught_by(scored, {"table": {"path": str(out)}})
    assert not config.needs_spark()
    assert logits_of(read_tables(config.sets[0])) == {k: v for k, v in expected.items() if k != lost}


def test_a_store_of_other_texts_is_told_instead_of_teaching_nothing(scored, tmp_path):
    """As after a run with a template: the keys are those of the rendered texts."""
    shutil.copytree(scored / "out/reranked_store", tmp_path / "store")
    for file in (tmp_path / "store/facts").rglob("*.parquet"):
        table = pq.read_table(file)
        keys = pa.array([bytes(16)[:8] + key.as_py()[:8] for key in table["pair_key"]], pa.binary())
        pq.write_table(table.set_column(table.schema.get_field_index("pair_key"), "pair_key", keys), file)
    with pytest.raises(InputError, match=r"knows none of the rankings' 400 pairs; .* passage_template"):
        read_tables(taught_by(scored, {"store": str(tmp_path / "store")}).sets[0])


@pytest.mark.parametrize("store", ["s3a://lake/out/store", "hdfs:/lake/store", "/nowhere/store"])
def test_a_store_that_is_not_on_this_disk_is_told(scored, store):
    with pytest.raises(InputError, match=f"there is no folder {store} on this machine"):
        read_tables(taught_by(scored, {"store": store}).sets[0])


@pytest.mark.parametrize(
    ("path", "plain"),
    [("s3a://b/c", False), ("dbfs:/c", False), ("hdfs:/c", False), ("/c", True), ("c:d", True)],
)
def test_only_paths_of_this_machine_are_read_without_spark(path, plain):
    assert Source(path=path).is_plain_parquet() is plain


def test_a_condition_is_sparks(spark, scored):
    config = taught_by(
        scored,
        None,
        qrels={"path": str(scored / "qrels.parquet"), "where": "query_id in ('q1', 'q2')"},
        rankings={"lower": {"path": str(scored / "candidates.parquet"), "where": "rank > 4"}},
    )
    tables = read_tables(exported(spark, config).sets[0])
    assert [tables.queries.ids[row] for row in np.flatnonzero(tables.relevant.sizes())] == ["q1", "q2"]
    assert set(tables.rankings["lower"].sizes().tolist()) == {6}
    assert set(tables.rankings["candidates"].sizes().tolist()) == {10}


def test_an_unknown_model_key_lists_the_known_ones(scored, capsys):
    raw = settings(scored, "base")
    raw["sets"][0]["teacher"] = {"store": str(scored / "out/reranked_store"), "model_key": "mistyped"}
    (scored / "train.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "--config", str(scored / "train.yaml"), "--dry-run"])
    (known,) = (one.name for one in (scored / "out/reranked_store/facts").iterdir())
    assert end.value.code == 2
    assert (
        f"model_key 'mistyped' is not in {scored}/out/reranked_store/facts, which has {known}"
        in capsys.readouterr().err
    )


def test_a_dry_run_shows_a_list_and_writes_nothing(scored, capsys):
    raw = settings(scored, "base")
    raw["sets"][0]["teacher"] = {"store": str(scored / "out/reranked_store")}
    (scored / "train.yaml").write_text(yaml.safe_dump(raw))
    cli.main(["train", "--config", str(scored / "train.yaml"), "--dry-run"])
    out = capsys.readouterr().out
    assert "faq: 40 queries, 80 passages · 34 train, 6 held out" in out
    assert "✓" in out
    assert not (scored / "work/run.json").exists()
