"""Files of text, CSV and JSON: what Spark would replace or pass over without a word, found before they are read.

One pass over the lines as bytes. Only where there is something to tell does a second one count the lines before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from pyspark.sql import Column, DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from rerank_udf.config import Source
from rerank_udf.lake import files
from rerank_udf.lake.failures import shown_path

# Options of a source that say which files are read, and where a line ends.
_OF_FILES = {
    "basepath",
    "ignorecorruptfiles",
    "ignoremissingfiles",
    "linesep",
    "modifiedafter",
    "modifiedbefore",
    "pathglobfilter",
    "recursivefilelookup",
}
_FILE = "_metadata.file_path"
_MOST_BYTES = 1_000_000  # of a line that come to the driver
_SHOWN = 40
# A file's first bytes → what it is instead of text, and what to do.
_KINDS = {
    b"PAR1": "is a Parquet file; set format: parquet",
    b"ORC": "is an ORC file; set format: orc",
    b"PK\x03\x04": "is a zip archive, which Spark does not open; unpack it, or compress it with gzip (.gz)",
}
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Line:
    """A line of a file: `data` without its end, at most a million bytes; `number` from 1, None where it is unknown."""

    file: str
    data: bytes
    number: int | None = None

    def __str__(self) -> str:
        return self.name if self.number is None else f"line {self.number:,} of {self.name}"

    @property
    def name(self) -> str:
        """The file as a user writes it."""
        return shown_path(self.file)


def valid_utf8(text: Column) -> Column:
    """Whether the bytes of a string column are UTF-8, which Spark does not promise."""
    if hasattr(F, "is_valid_utf8"):
        return F.is_valid_utf8(text)
    # Spark 3.5 has no such function; there decode() replaces what is not UTF-8, so the bytes differ.
    repaired = F.encode(F.decode(text.cast("binary"), "UTF-8"), "UTF-8")
    return repaired == text.cast("binary")


def what_is_wrong(spark: SparkSession, source: Source) -> str | None:
    """A sentence about a line that would be damaged or lost in reading; None where there is none.

    Of CSV and JSON by path: bytes that are not UTF-8, unless an `encoding` is stated. Of JSON also a second object
    behind the first, on one line or, with `multiLine`, in one file, unless a `mode` is stated.
    """
    if source.path is None or source.format not in ("csv", "json"):
        return None
    options = {name.lower(): value for name, value in source.options.items()}
    if "encoding" in options or "charset" in options:
        return None
    lines = _lines(spark, source)
    checks_objects = source.format == "json" and "mode" not in options
    is_whole = is_multi_line(source)
    value = F.col("value")
    sound = valid_utf8(value)
    if source.format == "json":
        sound &= ~F.contains(value, F.lit("\x00"))  # UTF-16 without a mark is like that
    wrong = ~sound
    if checks_objects and not is_whole:
        wrong |= _has_second_object(value)
    found = lines.where(wrong).select(*_line_of("value"), sound.alias("sound")).limit(1).collect()
    if found:
        line = numbered(lines, _line(found[0]))
        return _second_object(line) if found[0]["sound"] else _not_text(spark, source, lines, line)
    return _more_than_one_root(lines) if checks_objects and is_whole else None


def first_bad_json(spark: SparkSession, source: Source) -> Line | None:
    """The first line, or with `multiLine` the first file, that is no JSON object; None where Spark takes all."""
    left_out = ("mode", "columnnameofcorruptrecord")
    options = {name: value for name, value in source.options.items() if name.lower() not in left_out}
    # Spark gives a corrupt record only beside another column.
    read = spark.read.format("json").schema("_none string, _corrupt_record string").options(**options)
    bad = read.load(source.path).where("_corrupt_record is not null")
    found = bad.select("_none", *_line_of("_corrupt_record")).limit(1).collect()
    return numbered(_lines(spark, source), _line(found[0])) if found else None


def is_multi_line(source: Source) -> bool:
    """Whether a record may be longer than a line, by the source's own options."""
    options = {name.lower(): value for name, value in source.options.items()}
    return options.get("multiline", "").lower() == "true"


def numbered(lines: DataFrame, line: Line) -> Line:
    """The line with its number: that of the first one in its file with the same bytes."""
    data = _line_of("value")[1]
    own = lines.where(F.col(_FILE) == line.file).select(
        F.col("_metadata.file_block_start").alias("start"),
        F.monotonically_increasing_id().alias("id"),
        (data == F.lit(line.data)).alias("same"),
    )
    counted = own.groupBy("start").agg(
        F.count(F.lit(1)).alias("lines"),
        F.min("id").alias("first"),
        F.min(F.when(F.col("same"), F.col("id"))).alias("found"),
    )
    before = 0
    for block in counted.orderBy("start").collect():
        if block["found"] is not None:
            return Line(line.file, line.data, before + block["found"] - block["first"] + 1)
        before += block["lines"]
    return line


def excerpt(data: bytes, at: int = 0) -> str:
    """Some of a line around a byte, quoted; bytes that are not UTF-8 as \\xNN."""
    start = max(0, at - _SHOWN)
    while start and data[start] & 0xC0 == 0x80:
        start += 1
    end = at + _SHOWN
    text = data[start:end].decode("utf-8", "backslashreplace").replace("\n", "\\n").replace("\r", "\\r")
    return f"«{'…' if start else ''}{text}{'…' if end < len(data) else ''}»"


def _lines(spark: SparkSession, source: Source) -> DataFrame:
    kept = {name: value for name, value in source.options.items() if name.lower() in _OF_FILES}
    return spark.read.format("text").options(**kept).load(source.path)


def _line_of(text: str) -> tuple[Column, Column]:
    """`file` and `data` of a Line."""
    data = F.substring(F.col(text).cast("binary"), 1, _MOST_BYTES)
    return F.col(_FILE).alias("file"), data.alias("data")


def _line(row: Row) -> Line:
    return Line(row["file"], bytes(row["data"]))


def _has_second_object(value: Column) -> Column:
    """Whether an object follows another one without a comma, outside of strings."""
    outside = F.regexp_replace(F.regexp_replace(value, r"\\.", ""), '"[^"]*"', '""')
    return value.rlike(r"\}\s*\{") & outside.rlike(r"\}\s*\{")


def _second_object(line: Line) -> str:
    return f"{line} holds more than one object, of which Spark reads the first; give each a line of its own"


def _more_than_one_root(lines: DataFrame) -> str | None:
    """With `multiLine` Spark reads a file's first object; one that begins a line stands for an object of its own."""
    value = F.col("value")
    by_file = (
        lines.select(F.col(_FILE).alias("file"), value)
        .groupBy("file")
        .agg(
            F.count(F.when(value.startswith("{"), 1)).alias("objects"),
            F.count(F.when(value.startswith("["), 1)).alias("arrays"),
        )
    )
    found = by_file.where("objects > 1 and arrays = 0").limit(1).collect()
    if not found:
        return None
    return (
        f"{shown_path(found[0]['file'])} holds {found[0]['objects']:,} objects one after the other, of which Spark "
        "reads the first with multiLine; leave multiLine out where each is one line, else make them one array: [{…}, …]"
    )


def _not_text(spark: SparkSession, source: Source, lines: DataFrame, line: Line) -> str:
    head = files.first_bytes(spark, unquote(line.file), 4)
    for start, sentence in _KINDS.items():
        if head.startswith(start):
            return f"{line.name} {sentence}"
    if head.startswith(_GZIP) and not line.name.endswith(".gz"):
        return f"{line.name} is compressed with gzip, which Spark tells by the name; rename it to end in .gz"
    if head.startswith(_UTF_16):
        return f"{line.name} is UTF-16; {_remedy(source, 'UTF-16')}"
    if b"\x00" in line.data:
        return f"{line.name} looks like UTF-16; {_remedy(source, 'UTF-16LE')}"
    where = ""
    try:
        line.data.decode("utf-8")
    except UnicodeDecodeError as problem:
        where = f": {excerpt(line.data, problem.start)}"
    is_windows = _has_c1(lines, line.file)
    tool = f"iconv -f {'WINDOWS-1252' if is_windows else 'ISO-8859-1'} -t UTF-8, say"
    if source.format == "json":
        return f"{line} is not UTF-8{where}; save it as UTF-8 ({tool})"
    other = "" if is_windows else ", or say what it is (options: {encoding: ISO-8859-1}, say)"
    return (
        f"{line} is not UTF-8{where}; save it as UTF-8 ({tool}){other}. Where encoding: UTF-8 is stated, such bytes "
        "become \N{REPLACEMENT CHARACTER}"
    )


def _remedy(source: Source, encoding: str) -> str:
    """Of JSON lines in another encoding Spark wants more than its name."""
    other = f", or set options: {{encoding: {encoding}}}" if source.format == "csv" else ""
    return f"save it as UTF-8{other}"


def _has_c1(lines: DataFrame, file: str) -> bool:
    """Whether a line that is not UTF-8 has bytes that windows-1252 uses, and ISO-8859-1 does not."""
    bad = lines.where((F.col(_FILE) == file) & ~valid_utf8(F.col("value")))
    as_latin_1 = F.decode(F.col("value").cast("binary"), "ISO-8859-1")
    return not bad.where(as_latin_1.rlike("[\\x80-\\x9f]")).isEmpty()
