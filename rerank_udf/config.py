"""The job's settings: conf/rerank.yaml as pydantic models.

`load_config` is the one way in: a YAML file, then `key.path=value` overrides, then checks that need more than one
setting. Every failure is a ConfigError with one sentence per problem; an unknown key names the known ones.
"""

from __future__ import annotations

import datetime
import difflib
import fnmatch
import json
import posixpath
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from rerank_udf import tables
from rerank_udf.errors import ConfigError

Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]
# A part of pydantic's location that names no setting: list[str], constrained-int
_KIND = re.compile(r"\[|^(constrained|function)-")
_Section = TypeVar("_Section", bound=BaseModel)
Truncation = Literal["only_second", "longest_first"]
_OPTIONS = "options"  # of a reader: where keys and passwords stand, which no error repeats
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")  # s3a://, hdfs://, dbfs:/


class Settings(BaseModel):
    """Base of every section: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic takes true for 1, and YAML takes yes and on for true."""
        kinds = _plain_types(cls.model_fields[str(info.field_name)].annotation)
        if kinds & {int, float} and bool not in kinds and _holds_bool(value):
            raise ValueError(f"expected a number, found {value!r}")
        return value


def _plain_types(annotation: Any) -> set[Any]:
    """The types that a setting is made of: int and None of `int | None`."""
    inner = get_args(annotation)
    return set().union(*map(_plain_types, inner)) if inner else {annotation}


def _holds_bool(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_bool, (*value, *value.values())))
    return any(map(_holds_bool, value)) if isinstance(value, (list, tuple)) else isinstance(value, bool)


class Source(Settings):
    """Where a table comes from: exactly one of path, table, sql; `where` is a SQL condition on its rows."""

    path: str | None = None
    format: Literal["parquet", "json", "csv", "orc", "delta", "iceberg"] = "parquet"
    options: dict[str, str] = Field(default_factory=dict)
    table: str | None = None
    sql: str | None = None
    where: str | None = None

    @model_validator(mode="after")
    def _exactly_one_origin(self) -> Source:
        given = [name for name in ("path", "table", "sql") if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"a source is exactly one of path, table or sql; found {found}")
        return self

    def is_plain_parquet(self) -> bool:
        """Whether it can be read without Spark: a path without a scheme, of Parquet, whole."""
        local = self.path is not None and not _SCHEME.match(self.path)
        return local and self.format == "parquet" and not self.where and not self.options

    def __str__(self) -> str:
        origin = self.path or self.table or f"sql: {self.sql}"
        return f"{origin} where {self.where}" if self.where else origin


class Columns(Settings):
    """The names that the user's tables give to our columns."""

    query_id: str = tables.QUERY_ID
    passage_id: str = tables.PASSAGE_ID
    query: str = tables.QUERY
    passage: str = tables.PASSAGE
    title: str | None = None
    score: str = tables.SCORE
    rank: str = tables.RANK


class Nested(Settings):
    """One row a query: either `array` (of structs) or parallel arrays `passage_id`, `passage`, `score`.

    In rank order. The names of struct fields and of the parallel arrays come from `input.columns`.
    """

    array: str | None = None
    parallel: bool = False

    @model_validator(mode="after")
    def _one_shape(self) -> Nested:
        if bool(self.array) == self.parallel:
            raise ValueError("nested is either {array: COLUMN} or {parallel: true}")
        return self


def _nested_from_name(value: object) -> object:
    """`nested: passages` is short for {array: passages}; `nested: parallel` for {parallel: true}."""
    if isinstance(value, str):
        return {"parallel": True} if value == "parallel" else {"array": value}
    return value


class Input(Settings):
    """The three input tables, or one that carries its texts."""

    candidates: Source
    queries: Source | None = None
    passages: Source | None = None
    nested: Annotated[Nested | None, BeforeValidator(_nested_from_name)] = None
    columns: Columns = Columns()
    query_template: str = "{query}"
    passage_template: str = "{passage}"
    limit_queries: int | None = Field(default=None, ge=1)


class Model(Settings):
    """Which model scores, and how."""

    name: str = "mini"
    revision: str | None = None
    max_length: int = Field(default=512, ge=8, le=8192)
    query_max_length: int | None = Field(default=None, ge=1)
    truncation: Truncation = "only_second"
    precision: Precision = "auto"
    device: str = "auto"
    max_tokens_per_batch: Literal["auto"] | Annotated[int, Field(ge=16)] = "auto"


class Fusion(Settings):
    """Mix the reranker with the first stage: weighted min-max, or reciprocal rank fusion."""

    method: Literal["none", "min_max", "rrf"] = "none"
    reranker_weight: float = Field(default=0.7, ge=0.0, le=1.0)
    rrf_k: int = Field(default=60, ge=1)


class Ranking(Settings):
    """What of the candidates is scored, how it is ordered, and what is kept."""

    depth: int | None = Field(default=None, ge=1)
    beyond_depth: Literal["drop", "append"] = "drop"
    top_k: int | None = Field(default=None, ge=1)
    min_score: float | None = None
    activation: Literal["sigmoid", "identity"] = "sigmoid"
    fusion: Fusion = Fusion()

    @model_validator(mode="after")
    def _something_can_reach_min_score(self) -> Ranking:
        if self.activation == "sigmoid" and self.min_score is not None and self.min_score > 1:
            raise ValueError(
                f"min_score ({self.min_score:g}) is reached by nothing: scores are sigmoids, at most 1; for a "
                "threshold on logits set activation to identity"
            )
        return self


LakeFormat = Literal["parquet", "delta", "iceberg"]


class Store(Settings):
    """Where scores are kept, so that no pair is scored twice; and where runs keep their work.

    `path` (parquet, delta) or `table` (delta, iceberg); neither: beside the output. `work` is a folder for staged
    pairs and for scores that are finished and not yet appended.
    """

    path: str | None = None
    table: str | None = None
    format: LakeFormat = "parquet"
    work: str | None = None
    wave_minutes: float = Field(default=10, gt=0)

    @model_validator(mode="after")
    def _place_fits_format(self) -> Store:
        if self.path and self.table:
            raise ValueError("a store is one of path or table; found both")
        if self.format == "iceberg" and not self.table:
            raise ValueError("an Iceberg store is a table: set store.table to catalog.schema.name")
        if self.table and self.format == "parquet":
            raise ValueError(
                "a store.table is a Delta or an Iceberg table: set store.format, or give a path for parquet"
            )
        if self.table:
            tables.checked_table_name(self.table)
        return self


_DEFAULT_TARGET = "out/reranked"


class Target(Settings):
    """Where a table goes: a path (Parquet versions behind a pointer, or a Delta table) or a table name.

    Of a table that exists its own format counts, of one that is made here `format`. `mode: merge`: the queries of
    this run replace their own rows, the others stay.
    """

    path: str | None = None
    format: LakeFormat = "parquet"
    table: str | None = None
    mode: Literal["overwrite", "append", "merge"] = "overwrite"
    run_date: datetime.date | None = None
    keep_versions: int = Field(default=2, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _default_place(cls, raw: Any) -> Any:
        """`run_date` alone, say, leaves the path as it is by default."""
        placed = not isinstance(raw, dict) or raw.get("path") or raw.get("table")
        return raw if placed else {**raw, "path": _DEFAULT_TARGET}

    @model_validator(mode="after")
    def _path_or_table(self) -> Target:
        if bool(self.path) == bool(self.table):
            raise ValueError("a target is exactly one of path or table")
        if self.path and self.format == "iceberg":
            raise ValueError("Iceberg needs a table: set table to catalog.schema.name instead of path")
        if self.path and self.format == "parquet" and self.mode != "overwrite":
            raise ValueError(
                f"mode {self.mode} needs a table, or format delta; a Parquet path holds whole versions (use run_date "
                "for one a day)"
            )
        if self.table:
            tables.checked_table_name(self.table)
        return self

    def __str__(self) -> str:
        return self.path or str(self.table)


class RejectsTarget(Settings):
    """Where rejected rows go: a folder of Parquet files, written anew by each run."""

    path: str = Field(default="out/rejects", min_length=1)


class Output(Settings):
    """What the job leaves behind."""

    reranked: Target = Target(path=_DEFAULT_TARGET)
    rejects: RejectsTarget = RejectsTarget()
    layout: Literal["rows", "nested"] = "rows"
    keep_columns: Literal["all", "none"] | list[str] = "all"


class EvaluationSettings(Settings):
    """What `rerank-udf evaluate` measures, and the job itself where qrels are given."""

    qrels: Source | None = None
    measures: list[str] = Field(default=["nDCG@10", "RR@10", "Judged@10"], min_length=1)
    group_by: list[str] = []
    clusters: str | None = None
    seed: int = 0


class Run(Settings):
    """How the run itself behaves."""

    max_reject_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    report: str = Field(default="out/report", min_length=1)


class JobConfig(Settings):
    """Everything in conf/rerank.yaml."""

    input: Input
    model: Model = Model()
    ranking: Ranking = Ranking()
    store: Store = Store()
    output: Output = Output()
    evaluation: EvaluationSettings = EvaluationSettings()
    run: Run = Run()

    @model_validator(mode="after")
    def _outputs_stay_clear_of_inputs(self) -> JobConfig:
        for out_name, out_path in self.output_paths().items():
            for in_name, source in self.sources().items():
                if source.path and _overlap(out_path, source.path):
                    raise ValueError(
                        f"{out_name} ({out_path}) and {in_name} ({source.path}) overlap: "
                        "writing the one would damage the other; choose an output outside every input"
                    )
        return self

    @model_validator(mode="after")
    def _output_table_is_no_input(self) -> JobConfig:
        target = self.output.reranked.table
        for in_name, source in self.sources().items():
            if target and source.table and _same_table(target, source.table):
                raise ValueError(
                    f"output.reranked.table and {in_name}.table are both {target}: "
                    "the output would replace the input; choose another table"
                )
        return self

    @model_validator(mode="after")
    def _outputs_stay_clear_of_each_other(self) -> JobConfig:
        paths = list(self.output_paths().items())
        for i, (name, path) in enumerate(paths):
            for other, other_path in paths[i + 1 :]:
                if _overlap(path, other_path):
                    raise ValueError(
                        f"{name} ({path}) and {other} ({other_path}) overlap; give each a path of its own"
                    )
        return self

    @model_validator(mode="after")
    def _store_has_a_place(self) -> JobConfig:
        if self.output.reranked.path:
            return self
        if not (self.store.path or self.store.table):
            raise ValueError("store.path or store.table must be set when output.reranked is a table")
        if not (self.store.path or self.store.work):
            raise ValueError(
                "store.work must be set when store and output.reranked are tables: a folder where runs stage their "
                "pairs and keep finished scores until they are appended"
            )
        return self

    def sources(self) -> dict[str, Source]:
        """Every input by its key path."""
        found = {
            "input.candidates": self.input.candidates,
            "input.queries": self.input.queries,
            "input.passages": self.input.passages,
            "evaluation.qrels": self.evaluation.qrels,
        }
        return {name: source for name, source in found.items() if source is not None}

    def with_sources(self, sources: Mapping[str, Source]) -> JobConfig:
        """The same job with other inputs, by key path."""
        parts: dict[str, dict[str, Source]] = {}
        for path, source in sources.items():
            part, _, name = path.partition(".")
            parts.setdefault(part, {})[name] = source
        changed = {part: getattr(self, part).model_copy(update=found) for part, found in parts.items()}
        return self.model_copy(update=changed)

    def output_paths(self) -> dict[str, str]:
        """Every path that the job writes to, by its key path."""
        found = {
            "output.reranked.path": self.output.reranked.path,
            "output.rejects.path": self.output.rejects.path,
            "run.report": self.run.report,
            "store.path": self.store_path(),
            "store.work": self.store.work or (self.work_path() if self.store.table else None),
        }
        return {name: path for name, path in found.items() if path}

    def store_path(self) -> str | None:
        """The folder of the score store: `store.path`, or beside the output; None where the store is a table."""
        if self.store.table:
            return None
        return (self.store.path or f"{str(self.output.reranked.path).rstrip('/')}_store").rstrip("/")

    def work_path(self) -> str:
        """Where runs stage and score: `store.work`, else inside the store's folder, else beside the output."""
        if self.store.work:
            return self.store.work.rstrip("/")
        store = self.store_path()
        return f"{store}/_work" if store else f"{str(self.output.reranked.path).rstrip('/')}_work"


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> JobConfig:
    """The job's settings, as `load_settings` reads them."""
    return load_settings(path, overrides, JobConfig, "conf/rerank.yaml")


class _OnceLoader(yaml.SafeLoader):
    """Refuses a key that a section has twice: YAML would take the last one and say nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As SafeLoader's."""
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice in one section; keep one", key.start_mark
                )
            seen.add(key.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def load_settings(
    path: str | Path, overrides: Iterable[str], section: type[_Section], example: str
) -> _Section:
    """Read a YAML file, apply `key.path=value` overrides (values are YAML), and check everything.

    Raises ConfigError: no such file (`example` is one to start from), not YAML, an unknown key (with the known ones), a
    value out of range.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"no settings file at {file}; start from {example}")
    try:
        raw = yaml.load(file.read_text(encoding="utf-8"), _OnceLoader)  # a SafeLoader
    except (
        yaml.YAMLError,
        ValueError,
    ) as error:  # ValueError: a date such as 2026-13-45, or bytes that are no text
        raise ConfigError(f"{file} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        first, second = list(section.model_fields)[:2]
        raise ConfigError(
            f"{file} holds {type(raw).__name__}, expected sections such as {first}: and {second}:"
        )
    given = _given(overrides)
    return _parsed(section, _with_overrides(raw, given), str(file), {key: value for key, value, _ in given})


def parse_config(raw: Mapping[str, Any], where: str = "the settings") -> JobConfig:
    """Check a mapping as `load_config` does; `where` names it in errors."""
    return _parsed(JobConfig, raw, where)


def _parsed(
    section: type[_Section], raw: Mapping[str, Any], where: str, given: Mapping[str, str] | None = None
) -> _Section:
    """`given`: the texts of what came from --set, by key."""
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in _sentences(error, section, given or {}))
        raise ConfigError(f"{where}:\n{lines}") from None


def parse_section(section: type[_Section], raw: Mapping[str, Any], where: str) -> _Section:
    """Check one section alone, for callers that take its settings as arguments."""
    try:
        return section.model_validate(dict(raw))
    except ValidationError as error:
        raise ConfigError("; ".join(f"{where}: {line}" for line in _sentences(error, section, {}))) from None


def _given(overrides: Iterable[str]) -> list[tuple[str, str, Any]]:
    """Key, text and value of each --set. Raises ConfigError for one that YAML does not read, or not whole."""
    found = []
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise ConfigError(f"--set takes key.path=value, found {text!r}")
        try:
            parsed = yaml.load(value, _OnceLoader)
            cut = _has_comment(value)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(
                f"--set {key}: the value is not YAML; if it is a text, write {_as_text(key, value)}"
            ) from error
        if cut:
            raise ConfigError(
                f"--set {key}: what follows # would be left out as a comment; if it belongs to the value, write "
                f"{_as_text(key, value)}"
            )
        found.append((key, value, parsed))
    return found


def _has_comment(text: str) -> bool:
    """Whether YAML leaves something out: between its tokens there are blanks and comments only."""
    end = 0
    for token in yaml.scan(text, yaml.SafeLoader):
        if "#" in text[end : token.start_mark.index]:
            return True
        end = max(end, token.end_mark.index)
    return False


def _as_text(key: str, value: str) -> str:
    """The --set, as a shell takes it, that gives the value as a text."""
    shown = "…" if _OPTIONS in key + value else value
    return f"--set {shlex.quote(f'{key}={json.dumps(shown, ensure_ascii=False)}')}"


def _with_overrides(raw: dict[str, Any], given: Iterable[tuple[str, str, Any]]) -> dict[str, Any]:
    """The settings with those of --set; each section on the way is copied, since an alias is the same one elsewhere."""
    for key, _, value in given:
        section = raw
        *parents, last = key.split(".")
        for parent in parents:
            inner = section.get(parent)
            inner = section[parent] = dict(inner) if isinstance(inner, dict) else {}
            section = inner
        section[last] = value
    return raw


def _overlap(one: str, other: str) -> bool:
    """Whether one path is the other or lies inside it; wildcards match as they do for Spark."""
    a, b = _parts(one), _parts(other)
    return all(_same_part(*pair) for pair in zip(a, b, strict=False))


def _same_part(one: str, other: str) -> bool:
    """`{a,b}` is taken for `*`: rather a refusal too many than a damaged input."""
    one, other = (re.sub(r"\{[^}]*\}", "*", part) for part in (one, other))
    return fnmatch.fnmatchcase(one, other) or fnmatch.fnmatchcase(other, one)


def _parts(path: str) -> list[str]:
    """The components of an absolute form to compare by: local paths resolved, URLs with one slash for several."""
    scheme, sign, rest = path.partition("://")
    if sign and scheme != "file":
        scheme = "s3a" if scheme in ("s3", "s3n") else scheme.lower()
        return [scheme, *(part for part in posixpath.normpath(rest).split("/") if part)]
    local = Path(path.removeprefix("file://").removeprefix("file:")).resolve()
    return ["file", *local.parts[1:]]


def _same_table(one: str, other: str) -> bool:
    """Whether two names may mean one table: a short name is compared with the end of a longer one."""
    a, b = (name.replace("`", "").lower().split(".")[::-1] for name in (one, other))
    return all(x == y for x, y in zip(a, b, strict=False))


def _sentences(error: ValidationError, root: type[BaseModel], given: Mapping[str, str]) -> list[str]:
    """One sentence a setting; what a setting of several kinds might have been stands in one of them.

    `given`: the texts of what came from --set, by key.
    """
    found: dict[str, str] = {}
    for detail in error.errors():
        where = ".".join(str(part) for part in detail["loc"] if not _KIND.search(str(part)))
        sentence = _sentence(detail, where, root, given)
        expected, _, _ = sentence.removeprefix(f"{where}: ").partition(", found")
        earlier = found.get(where)
        also = f", or {expected.removeprefix('expected ')}, found"
        found[where] = earlier.replace(", found", also, 1) if earlier else sentence
    return list(found.values())


def _sentence(detail: Mapping[str, Any], where: str, root: type[BaseModel], given: Mapping[str, str]) -> str:
    """One pydantic error as a sentence that a user can act on."""
    if detail["type"] == "extra_forbidden":
        known = _known_keys(root, tuple(detail["loc"][:-1]))
        close = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"unknown setting {where}; {hint}Known here: {', '.join(known)}"
    if detail["type"] == "missing":
        return f"{where} is missing"
    if detail["type"] == "value_error":
        return f"{where}: {detail['ctx']['error']}" if where else str(detail["ctx"]["error"])
    if detail["type"] == "model_type":
        known = _known_keys(root, tuple(detail["loc"]))
        return f"{where}: expected a section with {', '.join(known)}, found {detail['input']!r}"
    message = str(detail["msg"]).removeprefix("Input should be ")
    found = type(detail["input"]).__name__ if _OPTIONS in detail["loc"] else repr(detail["input"])
    return f"{where}: expected {message}, found {found}{_remedy(detail, where, given)}"


def _remedy(detail: Mapping[str, Any], where: str, given: Mapping[str, str]) -> str:
    """For what is no text, but would be one in quotes. A shell takes one pair of them away."""
    if detail["type"] != "string_type" or detail["input"] is None:
        return ""
    if where in given:
        return f"; write {_as_text(where, given[where])}"
    return "; put it in quotes" if isinstance(detail["input"], (int, float, dict, datetime.date)) else ""


def _known_keys(section: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """The field names of the section at `location`, walking through optional and annotated types."""
    for part in location:
        field = section.model_fields.get(str(part))
        inner = _section_of(field.annotation) if field else None
        if inner is None:
            break
        section = inner
    return list(section.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _section_of(argument)
        if found:
            return found
    return None
