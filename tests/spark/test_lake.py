"""Sources that are told in a sentence when they fail, and outputs that change all at once."""

from __future__ import annotations

import datetime
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from rerank_udf.config import Source, Target
from rerank_udf.errors import InputError
from rerank_udf.lake import files, targets, versions
from rerank_udf.lake.sources import bad_lines_told, is_text_typed, read_source
from rerank_udf.spark import read_reranked

# --- sources ---


def test_parquet_json_lines_csv_orc_tables_and_sql_are_read(spark, tmp_path):
    table = spark.createDataFrame([("a", 1), ("b", 2)], "query_id string, n int")
    for name in ("parquet", "json", "orc"):
        getattr(table.write, name)(str(tmp_path / name))
    table.write.csv(str(tmp_path / "csv"), header=True)
    table.createOrReplaceTempView("lake_view")
    sources = [Source(path=str(tmp_path / name), format=name) for name in ("parquet", "json", "orc", "csv")]
    sources += [Source(table="lake_view"), Source(sql="select * from lake_view")]
    for source in sources:
        filtered = source.model_copy(update={"where": "n > 1 or query_id = 'z'"})
        assert [(row["query_id"], int(row["n"])) for row in read_source(spark, filtered, "x").collect()] == [
            ("b", 2)
        ]
    assert [is_text_typed(source) for source in sources] == [False, False, False, True, False, False]


def test_csv_keeps_quotes_line_breaks_empty_texts_and_leading_zeros(spark, tmp_path):
    (tmp_path / "c.csv").write_bytes(
        b'query_id,query\n007,"She said ""no"", twice"\n008,"two\nlines, one cell"\n009,""\n010,\n011,plain \xc3\xa9\n'
    )
    source = Source(path=str(tmp_path / "c.csv"), format="csv")
    assert [tuple(row) for row in read_source(spark, source, "x").collect()] == [
        ("007", 'She said "no", twice'),
        ("008", "two\nlines, one cell"),
        ("009", ""),
        ("010", None),
        ("011", "plain é"),
    ]


@pytest.mark.parametrize("line", ["a,b,c", "a"])
def test_a_csv_line_with_more_or_fewer_cells_is_told(spark, tmp_path, line):
    (tmp_path / "c.csv").write_text(f"query_id,query\n1,good\n{line}\n")
    table = read_source(spark, Source(path=str(tmp_path / "c.csv"), format="csv"), "x")
    with (
        pytest.raises(InputError, match=f" cannot be read: Malformed CSV record: {line} ") as caught,
        bad_lines_told(),
    ):
        table.collect()
    assert "\n" not in str(caught.value)


def test_options_win_over_the_csv_defaults(spark, tmp_path):
    (tmp_path / "c.csv").write_text("a;b\n")
    source = Source(path=str(tmp_path / "c.csv"), format="csv", options={"sep": ";", "header": "false"})
    assert [tuple(row) for row in read_source(spark, source, "x").collect()] == [("a", "b")]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ({"path": "HERE/nothing"}, "there is nothing at this path"),
        ({"path": "HERE"}, "no parquet files in this folder; check the path and input format"),
        ({"table": "no_such_table"}, "no such table or view"),
        ({"sql": "selekt 1"}, "Syntax error"),
        ({"sql": "select x from range(1)"}, "cannot be resolved"),
        ({"sql": "select 1 as a", "where": "b = 1"}, "cannot be resolved"),
        ({"sql": "select 1 as a", "where": "a ="}, "Syntax error"),
    ],
    ids=str,
)
def test_a_source_that_cannot_be_read_is_one_sentence(spark, tmp_path, source, sentence):
    given = Source(**{name: value.replace("HERE", str(tmp_path)) for name, value in source.items()})
    with pytest.raises(InputError) as caught:
        read_source(spark, given, "input.candidates")
    assert str(caught.value).startswith("input.candidates (")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


# --- files ---


def test_a_small_file_is_replaced_whole(spark, tmp_path):
    path = str(tmp_path / "deep/er/x.json")
    for text in ("one", "zwei ä"):
        files.write_text(spark, path, text)
        assert Path(path).read_text(encoding="utf-8") == text
    assert sorted(files.children(spark, str(tmp_path / "deep/er"))) == ["x.json"]


def test_a_small_file_is_replaced_on_a_file_system_without_an_atomic_rename(spark, tmp_path):
    """Hive's `pfile`: Hadoop knows no FileContext for it, as for dbfs."""
    path = f"pfile://{tmp_path}/deep/er/x.json"
    spark.conf.set("fs.pfile.impl", "org.apache.hadoop.fs.ProxyLocalFileSystem")
    try:
        for text in ("one", "zwei ä"):
            files.write_text(spark, path, text)
            assert files.read_text(spark, path) == text
        assert sorted(files.children(spark, f"pfile://{tmp_path}/deep/er")) == ["x.json"]
    finally:
        spark.conf.unset("fs.pfile.impl")


def test_what_cannot_be_deleted_is_told(spark, tmp_path, caplog):
    (tmp_path / "held/inner").mkdir(parents=True)
    (tmp_path / "held/inner/file").touch()
    real = os.unlink

    def refuses(path: Any, *rest: Any, **named: Any) -> None:
        if Path(str(path)).name == "file":
            raise PermissionError(13, "Permission denied")
        real(path, *rest, **named)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "unlink", refuses)
        with pytest.raises(PermissionError):
            files.remove(spark, str(tmp_path / "held"))
        assert files.clear(spark, str(tmp_path / "held")) is None
    assert "held is not needed any more and cannot be deleted: " in caplog.text
    files.remove(spark, str(tmp_path / "held"))
    assert not (tmp_path / "held").exists()


def test_an_object_stores_folders_have_no_age(spark, tmp_path, monkeypatch):
    (tmp_path / "run/_temporary/0").mkdir(parents=True)
    assert files.youngest(spark, str(tmp_path / "run")) < 60
    monkeypatch.setattr(files, "_OBJECT_STORES", {"file"})
    assert files.youngest(spark, str(tmp_path / "run")) is None
    (tmp_path / "run/_temporary/part").touch()
    assert files.youngest(spark, str(tmp_path / "run")) < 60


def test_children_tell_their_age_and_removing_what_is_not_there_is_no_error(spark, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "new.txt").touch()
    hour_ago = time.time() - 3600
    os.utime(tmp_path / "old", (hour_ago, hour_ago))
    ages = files.children(spark, str(tmp_path))
    assert ages["old"] > 3000 > ages["new.txt"]
    for name in ("old", "new.txt", "never"):
        files.remove(spark, str(tmp_path / name))
    assert files.children(spark, str(tmp_path)) == {}
    assert files.children(spark, str(tmp_path / "nowhere")) == {}


def test_a_path_with_blanks_and_other_scripts_is_this_machines_own(spark, tmp_path):
    odd = tmp_path / "ein Pfad ä 日本"
    files.write_text(spark, str(odd / "x"), "y")
    assert (odd / "x").read_text() == "y"
    assert files.local_path(spark, f"file://{odd}") == odd
    assert files.local_path(spark, str(odd)) == odd


# --- published versions ---


def numbers(spark: SparkSession, count: int) -> DataFrame:
    return spark.range(count).coalesce(1)


def publish(
    spark: SparkSession, out: Path, count: int, run_id: str, run_date: str | None = None, keep: int = 2
) -> str:
    date = datetime.date.fromisoformat(run_date) if run_date else None
    return versions.publish(
        spark,
        numbers(spark, count),
        str(out),
        run_id=run_id,
        run_date=date,
        keep_versions=keep,
        facts={"rows": count},
    )


def kept(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "_versions").iterdir())


def test_a_reader_sees_the_newest_whole_version(spark, tmp_path):
    out = tmp_path / "out"
    first = publish(spark, out, 1, "a")
    before = read_reranked(spark, str(out))
    publish(spark, out, 2, "b")
    assert before.count() == 1  # a reader that has begun keeps its version
    assert read_reranked(spark, f"{out}/").count() == 2
    assert spark.read.parquet(first).count() == 1
    pointer = json.loads((out / "_current/latest.json").read_text())
    assert (pointer["version"], pointer["kept"], pointer["rows"]) == ("b", ["b", "a"], 2)


def test_a_plain_read_of_the_folder_fails_rather_than_show_half(spark, tmp_path):
    publish(spark, tmp_path / "out", 1, "a")
    with pytest.raises(AnalysisException, match="UNABLE_TO_INFER_SCHEMA"):
        spark.read.parquet(str(tmp_path / "out"))


def test_old_versions_go_and_the_current_one_counts_as_kept(spark, tmp_path):
    out = tmp_path / "out"
    for count, run_id in enumerate("abc", 1):
        publish(spark, out, count, run_id)
    assert kept(out) == ["b", "c"]
    publish(spark, out, 9, "d", keep=1)
    assert kept(out) == ["d"]
    assert read_reranked(spark, str(out)).count() == 9


@pytest.mark.parametrize(
    "change", [{"kept": ["b", "../../precious"]}, {"version": "../../precious"}, {"kept": 7}]
)
@pytest.mark.parametrize("date", [None, "2026-01-30"])
def test_a_pointer_that_names_another_place_is_refused(spark, tmp_path, change, date):
    out, precious = tmp_path / "out", tmp_path / "precious"
    spark.range(1).write.parquet(str(precious))
    publish(spark, out, 1, "a", date)
    (pointer,) = (out / "_current").glob("*.json")
    pointer.write_text(json.dumps({**json.loads(pointer.read_text()), **change}))
    with pytest.raises(InputError, match=r"is not what this job writes: .*restore it, or delete it"):
        publish(spark, out, 2, "c", date)
    with pytest.raises(InputError, match="is not what this job writes"):
        read_reranked(spark, str(out))
    assert precious.exists()


def test_a_version_that_fails_half_way_is_never_seen(spark, tmp_path):
    out = tmp_path / "out"
    publish(spark, out, 1, "a")
    broken = spark.range(4, numPartitions=2).select(
        F.when(F.col("id") < 2, 1).otherwise(F.raise_error(F.lit("boom")))
    )
    with pytest.raises(Exception, match="boom"):
        versions.publish(spark, broken, str(out), run_id="b", run_date=None, keep_versions=2, facts={})
    assert read_reranked(spark, str(out)).count() == 1


def test_a_run_never_writes_over_a_version(spark, tmp_path):
    publish(spark, tmp_path / "out", 1, "a")
    with pytest.raises(AnalysisException, match="PATH_ALREADY_EXISTS"):
        publish(spark, tmp_path / "out", 2, "a")


def test_each_run_date_has_its_pointer_and_all_are_read_together(spark, tmp_path):
    out = tmp_path / "out"
    publish(spark, out, 1, "a", "2026-01-30")
    publish(spark, out, 2, "b", "2026-01-31")
    publish(spark, out, 3, "c", "2026-01-31")
    assert read_reranked(spark, str(out), "2026-01-30").count() == 1
    assert read_reranked(spark, str(out), datetime.date(2026, 1, 31)).count() == 3
    found = read_reranked(spark, str(out)).groupBy("run_date").count().collect()
    assert {(str(row["run_date"]), row["count"]) for row in found} == {("2026-01-30", 1), ("2026-01-31", 3)}
    assert dict(read_reranked(spark, str(out)).dtypes)["run_date"] == "date"


def test_of_runs_with_a_date_and_runs_without_one_is_asked_for(spark, tmp_path):
    out = tmp_path / "out"
    publish(spark, out, 1, "a")
    publish(spark, out, 2, "b", "2026-01-30")
    published = json.loads((out / "_current/latest.json").read_text())["published_at"]
    with pytest.raises(InputError) as found:
        read_reranked(spark, str(out))
    assert str(found.value) == (
        f"{out} holds a table without a run date (published {published}) and those of run date 2026-01-30; say which "
        "is meant: run_date='2026-01-30', or run_date=None for the one without"
    )
    publish(spark, out, 3, "c", "2026-01-31")
    with pytest.raises(
        InputError, match=r"of 2 run dates \(2026-01-30 to 2026-01-31\); say .*='2026-01-31', or"
    ):
        read_reranked(spark, str(out))
    assert read_reranked(spark, str(out), "2026-01-30").count() == 2
    assert read_reranked(spark, str(out), None).count() == 1
    for date, rows in (
        (None, 1),
        ("2026-01-31", 3),
    ):  # as the job and its evaluation read what they published
        target = Target(path=str(out), run_date=date)
        assert targets.read(spark, target).count() == rows
    publish(spark, out, 4, "d")  # a run without a date goes on too
    assert read_reranked(spark, str(out), None).count() == 4


def test_a_run_for_one_date_never_deletes_what_another_is_writing(spark, tmp_path):
    """Three dates filled in at the same time, and each keeps one version."""
    out = tmp_path / "out"
    for run_id in ("20260101T000000Z-aaaaaa", "20260101T000001Z-bbbbbb"):
        spark.range(7).write.parquet(f"{out}/_versions/{run_id}")  # written, not yet pointed to
    publish(spark, out, 1, "20260101T000002Z-cccccc", "2026-01-03", keep=1)
    assert len(kept(out)) == 3


def test_versions_of_runs_that_died_go_after_a_day_and_nothing_else_does(spark, tmp_path):
    out = tmp_path / "out"
    long_ago = time.time() - 2 * 24 * 3600
    for name in ("20260101T000000Z-aaaaaa", "20260101T000001Z-bbbbbb", "my own notes"):
        (out / "_versions" / name).mkdir(parents=True)
        part = out / "_versions" / name / "part-0.parquet"
        part.touch()
        if not name.endswith("bbbbbb"):  # that run still writes
            os.utime(part, (long_ago, long_ago))
    publish(spark, out, 1, versions.new_run_id())
    assert [name[-6:] for name in kept(out)][1:] == ["bbbbbb", " notes"] or set(kept(out)) >= {
        "20260101T000001Z-bbbbbb",
        "my own notes",
    }
    assert "20260101T000000Z-aaaaaa" not in kept(out)


def test_nothing_published_is_a_sentence(spark, tmp_path):
    with pytest.raises(
        InputError, match=r"nothing published at .*: no _current/latest.json there; has the job finished"
    ):
        read_reranked(spark, str(tmp_path / "out"))
    publish(spark, tmp_path / "dated", 1, "a", "2026-01-30")
    with pytest.raises(InputError, match=r"nothing published at .* for run date 2026-01-31"):
        read_reranked(spark, str(tmp_path / "dated"), "2026-01-31")


def test_a_run_id_tells_its_age():
    age = versions.run_age(versions.new_run_id())
    assert age is not None
    assert -1 <= age < 60
    assert versions.run_age("my own notes") is None
    assert versions.new_run_id() != versions.new_run_id()


# --- tables by name ---


@pytest.fixture
def table_name(spark: SparkSession) -> Any:
    name = "rerank_target"
    spark.sql(f"drop table if exists {name}")
    yield name
    spark.sql(f"drop table if exists {name}")


def to_table(spark: SparkSession, frame: DataFrame, **target: Any) -> dict[str, str]:
    return targets.publish(spark, frame, Target(**target), "run", {})


def test_a_table_is_overwritten_or_appended_to(spark, table_name):
    assert to_table(spark, numbers(spark, 3), table=table_name) == {"table": table_name}
    to_table(spark, numbers(spark, 2), table=table_name)
    assert targets.read(spark, Target(table=table_name)).count() == 2
    to_table(spark, numbers(spark, 5), table=table_name, mode="append")
    assert spark.table(table_name).count() == 7


def test_a_run_date_replaces_its_own_partition_only(spark, table_name):
    def counts() -> dict[str, int]:
        return {
            str(row["run_date"]): row["count"]
            for row in spark.table(table_name).groupBy("run_date").count().collect()
        }

    odd = numbers(spark, 3).withColumn("a`b.c", F.lit(1))
    to_table(spark, odd, table=table_name, run_date="2026-01-30")
    to_table(spark, odd, table=table_name, run_date="2026-01-31")
    to_table(spark, odd.limit(1), table=table_name, run_date="2026-01-31")
    assert counts() == {"2026-01-30": 3, "2026-01-31": 1}
    to_table(spark, odd, table=table_name, run_date="2026-01-31", mode="append")
    assert counts() == {"2026-01-30": 3, "2026-01-31": 4}
    assert targets.read(spark, Target(table=table_name, run_date="2026-01-30")).count() == 3


def test_a_table_with_other_columns_is_told_and_left_alone(spark, table_name):
    to_table(spark, numbers(spark, 3), table=table_name, run_date="2026-01-30")
    with pytest.raises(InputError, match="and this run differ in column 'extra'; use a new table"):
        to_table(
            spark, numbers(spark, 3).withColumn("extra", F.lit(1)), table=table_name, run_date="2026-01-30"
        )
    with pytest.raises(InputError, match=f"output.reranked.table {table_name}: "):
        to_table(spark, numbers(spark, 3).select(F.lit("x").alias("y")), table=table_name, mode="append")
    assert spark.table(table_name).count() == 3
