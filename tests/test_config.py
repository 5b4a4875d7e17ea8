import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from rerank_udf.config import JobConfig, Ranking, load_config, load_settings, parse_config, parse_section
from rerank_udf.errors import ConfigError
from rerank_udf.training.settings import Negatives, TrainingConfig

REPOSITORY = Path(__file__).parents[1]
LEAST = {"input": {"candidates": {"path": "data/candidates"}}}


def with_setting(path: str, value: object) -> dict[str, object]:
    """LEAST with one setting more: `with_setting("model.name", "x")`."""
    raw: dict[str, object] = yaml.safe_load(yaml.safe_dump(LEAST))
    section = raw
    *parents, last = path.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})  # type: ignore[assignment]
    section[last] = value
    return raw


def complaint(raw: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(raw)
    return str(caught.value)


def test_the_annotated_reference_holds_every_setting_and_each_default():
    """conf/rerank.yaml says `null` or a value for every setting; what it says is what the code has."""
    written = yaml.safe_load((REPOSITORY / "conf/rerank.yaml").read_text(encoding="utf-8"))
    given = {name: written["input"][name] for name in ("candidates", "queries", "passages")}
    defaults = parse_config({"input": given}).model_dump(mode="json")
    loaded = load_config(REPOSITORY / "conf/rerank.yaml").model_dump(mode="json")
    assert loaded == defaults

    def same_keys(file: dict[str, object], model: dict[str, object], at: str) -> None:
        assert set(file) == set(model), at
        for name, value in file.items():
            if isinstance(value, dict) and at + name not in (
                "input.candidates",
                "input.queries",
                "input.passages",
            ):
                same_keys(value, model[name], f"{at}{name}.")  # type: ignore[arg-type]

    same_keys(written, loaded, "")


def test_the_least_settings_are_the_candidates():
    config = parse_config(LEAST)
    assert config.model.name == "mini"
    assert (config.store_path(), config.work_path()) == ("out/reranked_store", "out/reranked_store/_work")
    assert list(config.sources()) == ["input.candidates"]


def test_nothing_changes_after_loading():
    with pytest.raises(ValueError, match="frozen"):
        parse_config(LEAST).model.max_length = 3


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (
            "model.max_lenght",
            3,
            "unknown setting model.max_lenght; did you mean max_length? Known here: name, revision",
        ),
        ("modle", {}, "unknown setting modle; did you mean model? Known here: input, model, ranking"),
        ("input.nested", {"arry": "x"}, "unknown setting input.nested.arry; did you mean array?"),
        (
            "ranking.fusion.k",
            3,
            "unknown setting ranking.fusion.k; Known here: method, reranker_weight, rrf_k",
        ),
        ("output.reranked", {"path": "out", "colour": 1}, "unknown setting output.reranked.colour"),
        ("model.max-length", 3, "unknown setting model.max-length; did you mean max_length?"),
    ],
)
def test_an_unknown_setting_is_an_error_that_lists_the_known_ones(path, value, sentence):
    assert sentence in complaint(with_setting(path, value))


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("output.layout", "row", "output.layout: expected 'rows' or 'nested', found 'row'"),
        ("output.keep_columns", 5, "output.keep_columns: expected 'all' or 'none', or a valid list, found 5"),
        ("model.max_length", 9000, "model.max_length: expected less than or equal to 8192, found 9000"),
        (
            "model.max_tokens_per_batch",
            "lots",
            "model.max_tokens_per_batch: expected 'auto', or a valid integer",
        ),
        (
            "model.revision",
            1234567,
            "model.revision: expected a valid string, found 1234567; put it in quotes",
        ),
        (
            "input.query_template",
            {"query": None},
            "input.query_template: expected a valid string, found {'query': None}; put it in quotes",
        ),
        ("ranking.top_k", 0, "ranking.top_k: expected greater than or equal to 1, found 0"),
        ("ranking.depth", True, "ranking.depth: expected a number, found True"),
        ("ranking.min_score", False, "ranking.min_score: expected a number, found False"),
        ("model.max_tokens_per_batch", True, "model.max_tokens_per_batch: expected a number, found True"),
        ("store.wave_minutes", True, "store.wave_minutes: expected a number, found True"),
        ("ranking.min_score", float("nan"), "ranking.min_score: expected a finite number, found nan"),
        (
            "ranking.fusion",
            {"method": "rfr"},
            "ranking.fusion.method: expected 'none', 'min_max' or 'rrf', found 'rfr'",
        ),
        ("run.max_reject_fraction", 2, "run.max_reject_fraction: expected less than or equal to 1, found 2"),
        ("input.candidates", "data/c", "input.candidates: expected a section with path, format"),
        ("store", None, "store: expected a section with path, table, format, work, wave_minutes, found None"),
        (
            "input.candidates",
            {"path": "a", "table": "b"},
            "exactly one of path, table or sql; found path and table",
        ),
        ("input.candidates", {"where": "x = 1"}, "exactly one of path, table or sql; found none of them"),
        ("input.nested", {"parallel": False}, "nested is either {array: COLUMN} or {parallel: true}"),
        (
            "output.reranked",
            {"table": "t"},
            "store.path or store.table must be set when output.reranked is a table",
        ),
        ("output.reranked", {"path": "a", "table": "t"}, "a target is exactly one of path or table"),
        ("output.reranked", {"path": "a", "mode": "append"}, "mode append needs a table"),
        ("output.reranked", {"path": "a", "run_date": "2026-02-30"}, "output.reranked.run_date"),
        ("evaluation.measures", [], "evaluation.measures"),
        ("run.report", "", "run.report"),
        ("output.rejects.path", "", "output.rejects.path"),
    ],
)
def test_a_value_that_does_not_fit_is_a_sentence(path, value, sentence):
    assert sentence in complaint(with_setting(path, value))


def test_every_problem_is_told_at_once():
    told = complaint(
        {"input": {"candidates": {"path": "a"}}, "ranking": {"depth": 0, "top_k": 0}, "runn": {}}
    )
    assert [line.split(":")[0].strip() for line in told.splitlines()[1:]] == [
        "ranking.depth",
        "ranking.top_k",
        "unknown setting runn; did you mean run? Known here",
    ]


def test_without_candidates_the_error_says_so():
    assert "input is missing" in complaint({})
    assert "input.candidates is missing" in complaint({"input": {}})


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("data/c", "data/c"),
        ("data/c", "data/c/out"),
        ("data/c/part", "data/c"),
        ("data/c", "./data/x/..//c/out/"),
        ("file:///data/c", "/data/c/out"),
        ("data/c*/", "data/c1/out"),
        ("data/{a,b}", "data/a/out"),
        ("s3://bucket/c", "s3a://bucket//c/out"),
        ("hdfs://node/c", "hdfs://node/c/./out"),
    ],
)
def test_an_output_inside_an_input_is_refused(source, target):
    raw = {"input": {"candidates": {"path": source}}, "output": {"reranked": {"path": target}}}
    assert "overlap: writing the one would damage the other" in complaint(raw)


def test_an_output_inside_an_input_is_found_through_symbolic_links_and_relative_paths(tmp_path, monkeypatch):
    (tmp_path / "candidates").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "candidates")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for target in (tmp_path / "link" / "out", "../link/out", "../candidates"):
        raw = {
            "input": {"candidates": {"path": str(tmp_path / "candidates")}},
            "output": {"rejects": {"path": str(target)}},
        }
        assert "output.rejects.path" in complaint(raw)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("data/c", "data/cc"),
        ("data/c", "data/out"),
        ("hdfs://a/c", "hdfs://b/c"),
        ("s3a://b/c", "/b/c"),
        ("data/c*", "data/d"),
    ],
)
def test_neighbours_are_not_taken_for_parents(source, target):
    parse_config({"input": {"candidates": {"path": source}}, "output": {"reranked": {"path": target}}})


def test_qrels_are_an_input_too():
    raw = with_setting("evaluation.qrels", {"path": "out/reranked/qrels"})
    assert "evaluation.qrels" in complaint(raw)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("output.rejects", {"path": "out/reranked/rejects"}),
        ("run.report", "out/rejects"),
        ("store.path", "out/reranked"),
        ("output.rejects", {"path": "out/reranked_store/rejects"}),  # where the run stages by default
    ],
)
def test_two_outputs_never_share_a_place(path, value):
    assert "give each a path of its own" in complaint(with_setting(path, value))


@pytest.mark.parametrize(
    ("source", "target"),
    [("db.t", "db.t"), ("DB.t", "db.T"), ("t", "db.t"), ("spark_catalog.`db`.t", "db.t")],
)
def test_the_output_table_is_never_an_input_table(source, target):
    raw = {
        "input": {"candidates": {"table": source}},
        "output": {"reranked": {"table": target}},
        "store": {"path": "w"},
    }
    assert "the output would replace the input" in complaint(raw)


def test_another_table_of_the_same_name_may_be_the_output():
    raw = {
        "input": {"candidates": {"table": "a.t"}},
        "output": {"reranked": {"table": "b.t"}},
        "store": {"path": "w"},
    }
    assert parse_config(raw).output.reranked.table == "b.t"


def test_nested_may_be_a_name():
    assert parse_config(with_setting("input.nested", "hits")).input.nested.array == "hits"
    assert parse_config(with_setting("input.nested", "parallel")).input.nested.parallel is True


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_setting_changes_its_own_table_only_where_two_are_one_alias(tmp_path):
    """What YAML's aliases make one thing is one dict in Python; each --set is of one key path."""
    text = "input: {candidates: &a {path: a}, queries: &b {path: b, options: &o {x: y}}, passages: *b}\n"
    file = write(tmp_path / "job.yaml", text + "evaluation: {qrels: {<<: *a, options: *o}}\n")
    untouched = load_config(file).model_dump()
    deeper = load_config(file, ["evaluation.qrels.options.x=z"])
    assert deeper.evaluation.qrels is not None
    assert deeper.input.queries is not None
    assert (deeper.evaluation.qrels.options, deeper.input.queries.options) == ({"x": "z"}, {"x": "y"})
    for place in ("input.queries", "input.passages", "evaluation.qrels"):
        changed = load_config(file, [f"{place}.path=other"]).model_dump()
        part, name = place.split(".")
        assert changed[part][name]["path"] == "other"
        changed[part][name]["path"] = untouched[part][name]["path"]
        assert changed == untouched


def test_yes_on_and_true_are_no_numbers(tmp_path):
    file = write(tmp_path / "job.yaml", "input: {candidates: {path: a}}\n")
    for word in ("yes", "on", "true", "off"):
        with pytest.raises(ConfigError, match=r"ranking\.depth: expected a number, found (True|False)"):
            load_config(file, [f"ranking.depth={word}"])
    with pytest.raises(ConfigError, match=r"schedule\.steps: expected a number, found True"):
        training("schedule.steps=yes")
    with pytest.raises(ConfigError, match=r"ranks: expected a number, found \[True, 3\]"):
        parse_section(Negatives, {"ranks": [True, 3], "count": 1}, "")
    assert training("freeze.embeddings=yes", "new_head=on").freeze.embeddings is True
    assert load_config(file, ["input.nested={parallel: on}", "ranking.depth=2"]).ranking.depth == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("input.query_template", "{query}"),
        ("input.passage_template", "{title} {passage}"),
        ("model.revision", "0123456"),
        ("model.revision", "2026-01-31"),
        ("model.name", "{it's} \\ $a"),
        ("model.name", "no"),
        ("output.reranked.path", "out/run #1"),
        ("output.reranked.path", "#1"),
        ("evaluation.clusters", "[x] # y"),
    ],
)
def test_the_remedy_for_a_text_that_yaml_takes_for_something_else_is_one_to_paste(tmp_path, key, value):
    """A shell reads it as one option, and the setting is then the text that was meant."""
    file = write(tmp_path / "job.yaml", "input: {candidates: {path: a}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file, [f"{key}={value}"])
    command = str(caught.value).partition("write ")[2]
    said = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True
    )
    option, argument = said.stdout.splitlines()
    assert option == "--set"
    found: Any = load_config(file, [argument])
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def test_the_remedy_is_written_as_a_shell_wants_it(tmp_path):
    file = write(tmp_path / "job.yaml", "input: {candidates: {path: a}}\n")
    with pytest.raises(ConfigError, match=r"found 42798; write --set 'model\.revision=\"0123456\"'$"):
        load_config(file, ["model.revision=0123456"])
    with pytest.raises(ConfigError, match=r"as a comment; .* --set 'output\.reranked\.path=\"a #1\"'$"):
        load_config(file, ["output.reranked.path=a #1"])


@pytest.mark.parametrize("value", ["out/run#1", '"out/run #1"', "'out/run #1'"])
def test_a_number_sign_that_begins_no_comment_is_a_letter(tmp_path, value):
    file = write(tmp_path / "job.yaml", "input: {candidates: {path: a}}\n")
    found = load_config(file, [f"output.reranked.path={value}"]).output.reranked.path
    assert found == value.strip("'\"")


@pytest.mark.parametrize("value", ["12345678", "{12345678", "12345678 #x"])
def test_a_readers_options_are_not_repeated_in_a_remedy(tmp_path, value):
    file = write(tmp_path / "job.yaml", "input: {candidates: {path: a}}\n")
    with pytest.raises(ConfigError, match=r"write --set 'input\.candidates\.options\.key=\"…\"'") as caught:
        load_config(file, [f"input.candidates.options.key={value}"])
    assert "12345678" not in str(caught.value)


def test_settings_on_the_command_line_win_over_the_file(tmp_path):
    file = write(tmp_path / "job.yaml", "input: {candidates: {path: a}}\nmodel: {max_length: 128}\n")
    config = load_config(
        file,
        [
            "model.max_length=64",
            "ranking.fusion.method=rrf",
            "input.queries.path=b",
            "output.reranked.run_date=2026-01-31",
        ],
    )
    assert (config.model.max_length, config.ranking.fusion.method) == (64, "rrf")
    assert config.input.queries is not None
    assert config.input.queries.path == "b"
    assert str(config.output.reranked.run_date) == "2026-01-31"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.max_length", "--set takes key.path=value, found 'model.max_length'"),
        ("=3", "--set takes key.path=value"),
        ("model.name=[", "--set model.name: the value is not YAML"),
        ("output.reranked.run_date=2026-13-45", "--set output.reranked.run_date: the value is not YAML"),
        ("model.nam=x", "did you mean name?"),
    ],
)
def test_an_override_that_cannot_be_read_is_a_sentence(tmp_path, override, sentence):
    file = write(tmp_path / "job.yaml", "input: {candidates: {path: a}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file, [override])
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"input: [", "is not YAML"),
        (b"- a\n- b\n", "holds list, expected sections"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"output: {reranked: {run_date: 2026-13-45}}", "is not YAML"),
        (b"", "holds NoneType, expected sections"),
    ],
)
def test_a_file_that_is_no_settings_file_is_a_sentence(tmp_path, content, sentence):
    file = tmp_path / "job.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        load_config(file)


def test_a_settings_file_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"no settings file at .*job.yaml; start from conf/rerank.yaml"):
        load_config(tmp_path / "job.yaml")


def test_a_section_alone_is_checked_the_same_way():
    assert parse_section(Ranking, {"depth": 3}, "rerank()").depth == 3
    with pytest.raises(
        ConfigError, match=r"rerank\(\): ranking|rerank\(\): unknown setting dept; did you mean depth"
    ):
        parse_section(Ranking, {"dept": 3}, "rerank()")


def test_the_settings_files_load():
    for name in ("rerank", "demo"):
        assert isinstance(load_config(REPOSITORY / f"conf/{name}.yaml"), JobConfig)


def training(*overrides: str) -> TrainingConfig:
    return load_settings(REPOSITORY / "conf/train.yaml", overrides, TrainingConfig, "")


def test_the_annotated_training_settings_name_every_setting():
    config = training()
    written = yaml.safe_load((REPOSITORY / "conf/train.yaml").read_text())
    assert written.keys() == TrainingConfig.model_fields.keys()
    for section in ("loss", "optimizer", "schedule", "freeze"):
        assert written[section].keys() == type(getattr(config, section)).model_fields.keys()
    assert written["sets"][0].keys() == type(config.sets[0]).model_fields.keys()


def test_a_mistyped_training_setting_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown setting optimizer.lr; .*Known here: learning_rate"):
        training("optimizer.lr=1")


def test_a_set_that_teaches_nothing_is_refused():
    tables = "{candidates: {path: c}, queries: {path: q}, passages: {path: p}}"
    with pytest.raises(ConfigError, match="the set faq has neither qrels nor a teacher"):
        training(f"sets=[{{name: faq, input: {tables}}}]")


@pytest.mark.parametrize(
    "options", [{"fs.s3a.secret.key": 12345678}, "fs.s3a.secret.key=12345678", ["12345678"]]
)
def test_a_readers_options_are_not_repeated_in_an_error(options):
    raw = {"input": {"candidates": {"path": "in/candidates", "options": options}}}
    with pytest.raises(ConfigError, match=r"input\.candidates\.options.*found (int|str|list)") as caught:
        parse_config(raw)
    assert "12345678" not in str(caught.value)


def test_a_key_that_stands_twice_is_named_with_its_line(tmp_path: Path) -> None:
    """YAML takes the last one and says nothing: what the first one asked for would be lost."""
    file = tmp_path / "job.yaml"
    file.write_text("ranking: {top_k: 3}\nrun: {report: out}\nranking: {depth: 5}\n")
    with pytest.raises(ConfigError, match=r"(?s)'ranking' stands twice in one section; keep one.*line 3"):
        load_config(file)


def test_a_min_score_that_no_sigmoid_reaches_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"min_score \(5\) is reached by nothing.*set activation to identity"
    ):
        parse_section(Ranking, {"min_score": 5}, where="ranking")
    assert parse_section(Ranking, {"min_score": 5, "activation": "identity"}, where="ranking").min_score == 5
