"""Tables that Spark reads for a training run, with a stand-in for Spark that gives their rows in some order."""

import click.testing
import pandas as pd
import pytest
import yaml
from training_world import settings, write_tables

from rerank_udf import cli
from rerank_udf.errors import InputError
from rerank_udf.spark import training_tables
from rerank_udf.training.settings import TrainingConfig
from rerank_udf.training.tables import digests, read_tables


class AnyOrder:
    def __init__(self, path, seed):
        self.path, self.seed = path, seed

    def toPandas(self):  # noqa: N802  (its name in Spark)
        return pd.read_parquet(self.path).sample(frac=1, random_state=self.seed)


@pytest.fixture
def through_spark(tmp_path, monkeypatch):
    """Settings whose tables all need Spark, and a function that sets the order it gives rows in."""
    teacher = write_tables(tmp_path)["teacher"]
    twice = pd.concat([teacher, teacher.assign(logit=0.5)])  # a pair that has been scored by two models, say
    twice.to_parquet(tmp_path / "teacher.parquet", index=False)
    raw = settings(tmp_path, "base")
    one = raw["sets"][0]
    one["teacher"] = {"table": {"path": str(tmp_path / "teacher.parquet"), "where": "true"}}
    for source in (*one["input"].values(), one["qrels"]):
        source["where"] = "true"

    def order(seed):
        monkeypatch.setattr(
            training_tables, "read_source", lambda spark, source, label: AnyOrder(source.path, seed)
        )

    order(0)
    return raw, order


def test_the_same_rows_are_the_same_tables_in_whatever_order_they_come(through_spark):
    raw, order = through_spark
    config = TrainingConfig.model_validate(raw)
    assert config.needs_spark()
    found = []
    for seed in (0, 1):
        order(seed)
        exported = training_tables.exported(None, config)
        assert not exported.needs_spark()
        found.append(digests(read_tables(exported.sets[0])))
    assert found[0] == found[1]
    assert set(found[0]) == {
        f"sets.faq.{name}" for name in ("queries", "passages", "candidates", "qrels", "teacher")
    }


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda rank: rank.astype(str), "column 'rank' has the type .*; a whole number is expected"),
        (lambda rank: rank.where(rank != 3), "column 'rank' is null in 40 rows"),  # then pandas has floats
    ],
)
def test_types_of_what_spark_read_are_checked_too(through_spark, tmp_path, change, sentence):
    raw, _ = through_spark
    rows = pd.read_parquet(tmp_path / "candidates.parquet")
    rows.assign(rank=change(rows["rank"])).to_parquet(tmp_path / "candidates.parquet", index=False)
    exported = training_tables.exported(None, TrainingConfig.model_validate(raw))
    with pytest.raises(InputError, match=f"sets.faq.candidates: {sentence}"):
        read_tables(exported.sets[0])


def test_a_dry_run_leaves_the_copies_of_a_run_alone(through_spark, tmp_path, monkeypatch):
    raw, _ = through_spark
    monkeypatch.setattr(cli, "_session", lambda name: None)
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(raw))
    copy = tmp_path / "work/tables/faq/queries.parquet"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"of a run")
    result = click.testing.CliRunner().invoke(
        cli.cli, ["train", "--config", str(tmp_path / "train.yaml"), "--dry-run"], catch_exceptions=False
    )
    assert "faq: 40 queries, 80 passages · 34 train, 6 held out" in result.output
    assert copy.read_bytes() == b"of a run"
    assert [one for one in (tmp_path / "work").rglob("*") if one.is_file()] == [copy]
