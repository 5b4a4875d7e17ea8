"""Inputs that Spark would damage, or lose rows of, without a word; and those for which it lacks something."""

from __future__ import annotations

import gzip
import json
import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyspark
import pytest
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from rerank_udf.config import Source
from rerank_udf.errors import InputError
from rerank_udf.lake import files, plain_text
from rerank_udf.lake.sources import bad_lines_told, is_text_typed, read_source

PASSAGES = "passage_id,passage\np1,Über uns\np2,eins zwei\n"
OBJECTS = '{"passage_id": "p1", "passage": "Über uns"}\n{"passage_id": "p2", "passage": "eins zwei"}\n'

SAYS_WHICH_FILE = int(pyspark.__version__.split(".")[0]) >= 4


def read(spark: SparkSession, path: Path | str, format_: str = "csv", **options: str) -> DataFrame:
    return read_source(spark, Source(path=str(path), format=format_, options=options), "input.passages")


def rows(frame: DataFrame) -> list[tuple[Any, ...]]:
    return sorted(tuple(row) for row in frame.select("passage_id", "passage").collect())


def told(spark: SparkSession, path: Path | str, format_: str = "csv", **options: str) -> str:
    with pytest.raises(InputError) as caught:
        read(spark, path, format_, **options)
    sentence = str(caught.value)
    assert sentence.startswith(f"input.passages ({path}")
    assert "\n" not in sentence
    assert "Exception" not in sentence
    return sentence


def first_not_utf8(path: Path) -> int:
    """The number of the first line that Python's own decoder refuses."""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            return number
    raise AssertionError(f"{path} is UTF-8")


# --- text that is not UTF-8 ---


def test_latin_1_is_told_with_file_and_line_and_its_remedy_reads_it(spark, tmp_path):
    path = tmp_path / "p.csv"
    path.write_bytes(PASSAGES.encode("iso-8859-1"))
    sentence = told(spark, path)
    assert f"line {first_not_utf8(path)} of {path} is not UTF-8: «p1,\\xdcber uns»" in sentence
    assert "options: {encoding: ISO-8859-1}" in sentence
    assert rows(read(spark, path, encoding="ISO-8859-1")) == [("p1", "Über uns"), ("p2", "eins zwei")]
    assert rows(read(spark, path, Encoding="UTF-8"))[0] == ("p1", "\N{REPLACEMENT CHARACTER}ber uns")


def test_windows_1252_is_not_sent_to_an_encoding_that_damages_it(spark, tmp_path):
    """ISO-8859-1 makes control characters of its quotes, and Spark 4 reads no windows-1252."""
    path = tmp_path / "p.csv"
    path.write_bytes("passage_id,passage\np1,café\np2,“so”\n".encode("windows-1252"))
    sentence = told(spark, path)
    assert f"line {first_not_utf8(path)} of" in sentence
    assert "iconv -f WINDOWS-1252 -t UTF-8" in sentence
    assert "ISO-8859-1" not in sentence


def test_the_line_is_counted_over_many_splits_in_a_folder_of_many_files(spark, session_settings, tmp_path):
    folder = tmp_path / "ein Ordner ä 100%25"
    folder.mkdir()
    generator = random.Random(5)
    lines = [f"p{i},{'wörter ' * generator.randrange(30)}".encode() for i in range(3000)]
    (folder / "a good.csv").write_bytes(b"\n".join([b"passage_id,passage", *lines]))
    lines[2345] = b"p2345,caf\xe9"
    bad = folder / "b%20bad.csv"
    bad.write_bytes(b"\n".join([b"passage_id,passage", *lines]))
    session_settings.conf.set("spark.sql.files.maxPartitionBytes", "20000")
    assert first_not_utf8(bad) == 2347
    assert f"line 2,347 of {bad} is not UTF-8" in told(spark, folder)
    bad.unlink()
    assert read(spark, folder).count() == 3000


@pytest.mark.parametrize("format_", ["csv", "json"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_utf_16_is_told(spark, tmp_path, format_, encoding):
    path = tmp_path / "p"
    text = (PASSAGES if format_ == "csv" else OBJECTS).replace("Ü", "U")
    path.write_bytes(text.encode(encoding))
    sentence = told(spark, path, format_)
    assert "UTF-16" in sentence
    assert "save it as UTF-8" in sentence
    if format_ == "csv":
        stated = "UTF-16" if encoding == "utf-16" else "UTF-16LE"
        assert f"options: {{encoding: {stated}}}" in sentence
        assert rows(read(spark, path, encoding=stated))[0] == ("p1", "Uber uns")


def test_json_that_is_not_utf8_is_told_and_no_encoding_advised_that_spark_refuses(spark, tmp_path):
    path = tmp_path / "p.json"
    path.write_bytes(OBJECTS.encode("iso-8859-1"))
    sentence = told(spark, path, "json")
    assert f"line {first_not_utf8(path)} of {path} is not UTF-8" in sentence
    assert "encoding:" not in sentence
    with pytest.raises(PySparkException, match="lineSep"):
        spark.read.json(str(path), encoding="ISO-8859-1").collect()


@pytest.mark.parametrize("format_", ["csv", "json"])
def test_a_byte_order_mark_and_gzip_are_no_trouble(spark, tmp_path, format_):
    text = PASSAGES if format_ == "csv" else OBJECTS
    (tmp_path / "p.txt").write_bytes(text.encode("utf-8-sig"))
    (tmp_path / "p.txt.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("p.txt", "p.txt.gz"):
        assert rows(read(spark, tmp_path / name, format_)) == [("p1", "Über uns"), ("p2", "eins zwei")]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("p.csv", gzip.compress(PASSAGES.encode(), mtime=0), "is compressed with gzip"),
        (
            "p.csv.gz",
            gzip.compress(PASSAGES.encode() * 500, mtime=0)[:-20],
            "breaks off, or is not compressed",
        ),
        ("p.csv.gz", PASSAGES.encode(), "breaks off, or is not compressed"),
        ("p.csv", b"PK\x03\x04\xff\xff", "is a zip archive"),
        ("p.csv", b"", "there is nothing in it; a CSV has a header line"),
        ("p.csv", OBJECTS.encode(), "is it JSON (format: json)?"),
    ],
    ids=["gzip without .gz", "gzip broken off", "no gzip", "zip", "empty", "JSON"],
)
def test_a_csv_that_is_something_else_is_told(spark, tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    assert sentence in told(spark, tmp_path / name)


def test_a_parquet_file_as_text_and_text_as_parquet_or_orc_are_told(spark, tmp_path):
    spark.range(20).coalesce(1).write.parquet(str(tmp_path / "table"))
    (part,) = (tmp_path / "table").glob("*.parquet")
    for format_ in ("csv", "json"):
        assert f"{part} is a Parquet file; set format: parquet" in told(spark, tmp_path / "table", format_)
    path = tmp_path / "p.csv.gz"  # its last bytes, read as a Parquet file's, name a footer of gigabytes
    path.write_bytes(gzip.compress(PASSAGES.encode()))
    for format_ in ("parquet", "orc"):
        assert re.search(rf"{path} is not an? \S+( or ORC)? file; say what it is", told(spark, path, format_))


@pytest.mark.parametrize(
    ("separator", "hint"), [("\t", '{sep: "\\t"}'), (";", '{sep: ";"}'), ("|", '{sep: "|"}')]
)
def test_another_separator_is_told_and_the_hint_reads_the_table(spark, tmp_path, separator, hint):
    path = tmp_path / "p.csv"
    path.write_text(PASSAGES.replace(",", separator), encoding="utf-8")
    assert f"set options: {hint}" in told(spark, path)
    assert rows(read(spark, path, sep=separator))[0] == ("p1", "Über uns")
    (tmp_path / "comma.csv").write_text(PASSAGES, encoding="utf-8")
    assert 'set options: {sep: ","}' in told(spark, tmp_path / "comma.csv", sep=separator)


# --- JSON lines ---


@pytest.mark.parametrize(
    "line", ['{"passage_id": "p3", "passage": "cut', "5", '"p3"', "[1, 2]", "passage_id,passage", "[{"]
)
def test_a_line_that_is_no_json_object_is_told_with_its_number(spark, tmp_path, line):
    path = tmp_path / "p.json"
    path.write_text(f"{OBJECTS}{line}\n{OBJECTS}", encoding="utf-8")
    assert f"line 3 of {path} is «{line}»; each line has to be one whole object" in told(spark, path, "json")
    assert read(spark, path, "json", mode="DROPMALFORMED").where("passage_id is not null").count() == 4
    assert read(spark, path, "json", MODE="permissive").where("passage_id is not null").count() == 4


def test_a_line_that_only_reading_finds_is_told_with_its_file(spark, tmp_path):
    path = tmp_path / "p.json"
    path.write_text(f"{OBJECTS}null\n", encoding="utf-8")
    table = read(spark, path, "json")
    where = f" of {path}" if SAYS_WHICH_FILE else ""
    with pytest.raises(InputError) as caught, bad_lines_told():
        table.collect()
    assert str(caught.value).startswith(f"an input line{where} cannot be read: ")
    assert "\n" not in str(caught.value)


def test_json_that_is_one_array_needs_multi_line_and_is_read_with_it(spark, tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps([json.loads(line) for line in OBJECTS.splitlines()], indent=1))
    assert f"line 1 of {path} is «[»; " in (sentence := told(spark, path, "json"))
    assert 'options: {multiLine: "true"}' in sentence
    assert rows(read(spark, path, "json", multiLine="true")) == [("p1", "Über uns"), ("p2", "eins zwei")]
    path.write_text(path.read_text()[:-10])
    assert "under multiLine each file has to be one whole array" in told(
        spark, path, "json", multiLine="true"
    )


def test_objects_of_which_spark_reads_the_first_alone_are_told(spark, tmp_path):
    first, second = OBJECTS.splitlines()
    path = tmp_path / "p.json"
    path.write_text(f"{first}\n{second}{first}\n", encoding="utf-8")
    assert spark.read.json(str(path)).count() == 2
    assert f"line 2 of {path} holds more than one object" in told(spark, path, "json")
    for text in (OBJECTS, "\n".join(json.dumps(json.loads(line), indent=1) for line in (first, second))):
        path.write_text(text, encoding="utf-8")
        assert spark.read.json(str(path), multiLine=True).count() == 1
        assert "holds 2 objects one after the other" in told(spark, path, "json", multiLine="true")


def test_braces_in_texts_are_no_second_object(spark):
    generator = random.Random(7)
    signs = ["{", "}", "} {", '"', "\\", "[", "]", ",", ":", "x", "é", "\n", "'", "}{"]

    def value(depth: int) -> Any:
        text = "".join(generator.choices(signs, k=generator.randrange(12)))
        choices = [text, {text: value(depth - 1)}, [value(depth - 1), {}, {"a": text}]] if depth else [text]
        return generator.choice(choices)

    singles = [json.dumps({"a": value(3), "b": value(3)}, ensure_ascii=i % 2 == 0) for i in range(300)]
    between = ["", " ", "\t"]
    doubles = [a + between[i % 3] + b for i, (a, b) in enumerate(pairwise(singles))]
    frame = spark.createDataFrame([(text,) for text in singles + doubles], "value string")
    found = frame.select("value", plain_text._has_second_object(F.col("value")).alias("two")).collect()
    for row in found:
        _, end = json.JSONDecoder().raw_decode(row["value"])
        assert row["two"] == (end < len(row["value"])), row["value"]


def test_numbers_in_json_may_be_read_as_the_text_that_they_are(spark, tmp_path):
    path = tmp_path / "p.json"
    path.write_text(
        '{"passage_id": 1.5, "passage": "x", "score": 0.25}\n{"passage_id": 10, "passage": "y"}\n'
    )
    assert rows(read(spark, path, "json", primitivesAsString="true")) == [("1.5", "x"), ("10", "y")]
    as_text = Source(path=str(path), format="json", options={"primitivesAsString": "true"})
    assert is_text_typed(as_text)  # so that scores are parsed
    assert not is_text_typed(as_text.model_copy(update={"options": {}}))


def test_an_empty_json_file_is_told(spark, tmp_path):
    (tmp_path / "p.json").write_text("\n")
    assert "there is nothing in it" in told(spark, tmp_path / "p.json", "json")


def test_keys_that_differ_in_capitals_only_are_told(spark, tmp_path):
    (tmp_path / "p.json").write_text(
        '{"passage_id": "p1", "passage": "x"}\n{"Passage_ID": "p2", "passage": "y"}\n'
    )
    assert "two columns have one name, capitals aside" in told(spark, tmp_path / "p.json", "json")


@pytest.mark.parametrize("format_", ["csv", "json"])
def test_text_that_is_not_there_is_told_as_any_other(spark, tmp_path, format_):
    assert "there is nothing at this path" in told(spark, tmp_path / "nothing", format_)
    (tmp_path / "empty").mkdir()
    assert f"no {format_} files in this folder" in told(spark, tmp_path / "empty", format_)


# --- file systems that this Spark cannot reach ---


def hadoop_version() -> str:
    """By the name of the jar that pyspark brings."""
    (jar,) = (Path(pyspark.__file__).parent / "jars").glob("hadoop-client-api-*.jar")
    return jar.stem.removeprefix("hadoop-client-api-")


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("s3a://b/p", "add org.apache.hadoop:hadoop-aws:HADOOP (spark.jars.packages"),
        (
            "abfss://c@a.dfs.core.windows.net/p",
            "add org.apache.hadoop:hadoop-azure:HADOOP (spark.jars.packages",
        ),
        ("gs://b/p", "add com.google.cloud.bigdataoss:gcs-connector (spark.jars.packages"),
        ("s3n://b/p", "this Spark knows no scheme s3n://; write s3a:// in its place"),
        ("foo://b/p", "this Spark knows no scheme foo://; is it spelt right?"),
    ],
)
def test_a_scheme_without_its_package_is_one_sentence(spark, path, sentence):
    for format_ in ("parquet", "csv"):
        assert sentence.replace("HADOOP", hadoop_version()) in told(spark, path, format_)


@pytest.mark.parametrize("call", [files.qualified, files.children, files.read_text])
def test_outputs_and_stores_there_are_told_too(spark, call):
    with pytest.raises(InputError, match=f"^s3a://b/p: .*hadoop-aws:{hadoop_version()} ") as caught:
        call(spark, "s3a://b/p")
    assert "\n" not in str(caught.value)


def test_of_classes_that_are_absent_only_those_of_a_client_are_its_packages(spark):
    error = Exception("java.lang.NoClassDefFoundError: software/amazon/awssdk/core/SdkException")
    sentence = files.no_client(spark, "s3a://b/p", error)
    assert sentence is not None
    assert "(it lacks software.amazon.awssdk.core.SdkException)" in sentence
    assert files.no_client(spark, "s3a://b/p", Exception("ClassNotFoundException: com.example.Keys")) is None
    assert files.no_client(spark, "/a/path", error) is None
