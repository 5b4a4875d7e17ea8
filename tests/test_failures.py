"""Messages as Spark, Delta and py4j gave them, cut where only more of the same follows."""

import pytest

from rerank_udf.lake.failures import innermost_cause, place_failure, unreadable_file

DELTA = (
    "An error occurred while calling o1567.save.\n"
    ": org.apache.spark.sql.delta.DeltaIOException: [DELTA_CANNOT_CREATE_LOG_PATH] Cannot create file:/d/_delta_log\n"
    "\tat org.apache.spark.sql.delta.DeltaErrorsBase.cannotCreateLogPathException(DeltaErrors.scala:2022)\n"
)
FULL = (
    "An error occurred while calling o99.parquet.\n: org.apache.spark.SparkException: Job aborted.\n"
    "\tat org.apache.spark.sql.errors.QueryExecutionErrors$.jobAbortedError(QueryExecutionErrors.scala:1)\n"
    "Caused by: java.io.IOException: No space left on device\n\tat java.base/java.io.FileOutputStream.writeBytes\n"
)
OTHER = (
    "An error occurred while calling o5.collect.\n: org.apache.spark.SparkException: Job aborted.\n"
    "\tat org.apache.spark.Foo\nCaused by: java.lang.IllegalStateException: half a block\n\tat org.apache.Bar\n"
)
BARE = "An error occurred while calling o7.load.\n: java.lang.IllegalArgumentException: no such thing\n\tat a.b.C\n"
WORKER = (
    "\n  An exception was thrown from the Python worker. Please see the stack trace below.\n"
    "Traceback (most recent call last):\n"
    '  File "/opt/pyspark/worker_util.py", line 88, in check_python_version\n    raise PySparkRuntimeError(\n'
    "pyspark.errors.exceptions.base.PySparkRuntimeError: [PYTHON_VERSION_MISMATCH] Python in worker is another.\n\n"
    "JVM stacktrace:\norg.apache.spark.api.python.PythonException: Traceback\n\tat org.apache.spark.Foo\n"
)
DAMAGED = (
    "An error occurred while calling o985.parquet.\n: org.apache.spark.SparkException: [FAILED_READ_FILE.NO_HINT] "
    "Encountered error while reading file file:///d/c.parquet.  SQLSTATE: KD001\n\tat org.apache.spark.Foo\n"
    "Caused by: java.io.IOException: can not read class PageHeader\n\tat org.apache.Bar\n"
)


@pytest.mark.parametrize(
    ("message", "place"),
    [
        (DELTA, "[DELTA_CANNOT_CREATE_LOG_PATH] Cannot create file:/d/_delta_log"),
        (FULL, "No space left on device"),
        (OTHER, None),
    ],
)
def test_what_a_disk_says_is_found_anywhere_in_a_stack(message, place):
    assert place_failure(RuntimeError(message)) == place


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (OTHER, "java.lang.IllegalStateException: half a block"),
        (WORKER, "PySparkRuntimeError: [PYTHON_VERSION_MISMATCH] Python in worker is another."),
        (DAMAGED, "java.io.IOException: can not read class PageHeader"),
        (BARE, "java.lang.IllegalArgumentException: no such thing"),
        ("plain words\nand more", "plain words"),
        ("", "RuntimeError"),
    ],
)
def test_the_innermost_cause_is_one_line(message, cause):
    assert innermost_cause(RuntimeError(message)) == cause


def test_the_file_that_could_not_be_read_is_found():
    assert unreadable_file(RuntimeError(DAMAGED)) == "/d/c.parquet"
    assert unreadable_file(RuntimeError(FULL)) is None
