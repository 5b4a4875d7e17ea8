"""What is told of a column that nearly has its name, and of a bad line without a run."""

from __future__ import annotations

import pytest

from rerank_udf.config import parse_config
from rerank_udf.errors import InputError
from rerank_udf.spark.candidates import Shape, prepare
from rerank_udf.spark.estimate import estimate


@pytest.mark.parametrize(
    ("column", "remark"),
    [
        ("Query_ID", "'Query_ID' differs in capitals only; name the right one in input.columns.query_id"),
        (" query_id", "' query_id' differs in blanks only; name the right one in input.columns.query_id"),
        ("qid", "(it has qid, passage_id); name the right one in input.columns.query_id"),
    ],
)
def test_a_name_that_differs_in_capitals_or_blanks_only_is_pointed_out(spark, column, remark):
    table = spark.createDataFrame([("q1", "p1")], f"`{column}` string, passage_id string")
    with pytest.raises(InputError) as caught:
        prepare(table, None, None, Shape())
    assert str(caught.value).endswith(remark)


def test_a_dry_run_tells_a_bad_csv_line_as_the_job_does(spark, hash_model, tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("query_id,passage_id,query,passage\nq1,p1,a,b\nq2\n")
    config = parse_config(
        {"input": {"candidates": {"path": str(path), "format": "csv"}}, "model": {"name": str(hash_model)}}
    )
    with pytest.raises(InputError, match="cannot be read: Malformed CSV record: q2 "):
        estimate(spark, config)
