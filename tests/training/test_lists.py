import hashlib
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from training_world import TOPICS, settings, write_tables

from rerank_udf.config import load_settings
from rerank_udf.errors import ConfigError, InputError
from rerank_udf.training.development import held_out_lists, measure
from rerank_udf.training.lists import ListSampler
from rerank_udf.training.settings import HeldOut, TrainingConfig
from rerank_udf.training.split import groups_held_out, split
from rerank_udf.training.tables import digests, read_tables


@pytest.fixture
def faq(tmp_path):
    write_tables(tmp_path)
    return tmp_path


def configured(folder, **of_the_set):
    raw = settings(folder, "base")
    raw["sets"][0] |= of_the_set
    return TrainingConfig.model_validate(raw)


def sampler(config, count=200):
    tables = [read_tables(one) for one in config.sets]
    return ListSampler(config, tables, [split(one, config.seed) for one in tables], count), tables[0]


def topic(text):
    return next(one for one in TOPICS if one in text.split())


def test_nothing_that_is_held_out_is_trained_on(faq):
    lists, tables = sampler(configured(faq))
    held = split(tables, 0)
    assert len(held.held_out) == 6
    hidden = {topic(tables.queries.texts[query]) for query in held.held_out.tolist()}
    for one in (lists[number] for number in range(len(lists))):
        assert topic(one.query) not in hidden
    seen = {text for number in range(len(lists)) for text in lists[number].passages}
    kept_away = {tables.passages.texts[row] for row in np.flatnonzero(held.passages_held_out).tolist()}
    assert kept_away
    assert not seen & kept_away


def test_a_group_is_held_out_in_all_its_languages(faq):
    """A page is held out with its translations, so that the one cannot give the other away."""
    pages = {"queries": 6, "group": r"^(t\d+)-"}
    lists, tables = sampler(configured(faq, held_out=pages))
    held = split(tables, 0)
    hidden = {tables.passages.ids[row] for row in np.flatnonzero(held.passages_held_out).tolist()}
    assert {one[:-2] + other for one in hidden for other in ("en", "de")} == hidden
    assert len(lists[0].passages) > 1


@pytest.mark.parametrize(
    ("sizes", "queries", "taken"),
    [([60, 40], 10, 0), ([500, 1, 1, 1], 2, 2), ([100], 10, 0), ([10] * 10, 15, 20), ([10] * 10, 50, 20)],
)
def test_a_large_group_is_passed_over_rather_than_a_fifth_exceeded(sizes, queries, taken):
    asked = np.repeat([f"g{number}" for number in range(len(sizes))], sizes)
    for seed in range(5):
        held = groups_held_out(np.unique(asked), asked, HeldOut(queries=queries), seed)
        assert np.isin(asked, held).sum() == taken


def test_questions_about_one_passage_are_one_cluster(faq):
    """Ten questions about each of two held-out passages are no twenty independent ones."""
    tables = write_tables(faq)
    order = tables["queries"]["query_id"].str[1:].astype(int)
    twin = tables["qrels"].assign(passage_id=[f"t{n // 4}-en" for n in order for _ in range(2)])
    twin.drop_duplicates().to_parquet(faq / "qrels.parquet", index=False)
    read = read_tables(configured(faq).sets[0])
    lists = held_out_lists(read, split(read, 0))
    found = measure(lists, lambda texts: [np.zeros(len(one.passages), np.float32) for one in texts], seed=0)
    rows = found.summary.query("documents == 'all' and system == 'model' and group == 'all'")
    passages = {one.relevant_ids[0] for one in lists}
    assert rows["n_clusters"].unique().tolist() == [len(passages)]
    assert 1 < len(passages) < len(lists)


def test_a_share_holds_out_the_same_groups_in_every_set(faq):
    """By the names' digests alone, whatever else is asked about; as many queries are measured as are wanted."""
    pages = {"group": r"^(t\d+)-", "share": 0.3, "queries": 2}
    rows = pd.read_parquet(faq / "qrels.parquet")
    rows[rows["query_id"].str[1:].astype(int) % 3 == 0].to_parquet(faq / "fewer.parquet", index=False)
    expected = {
        f"t{number}-{lang}"
        for number in range(len(TOPICS))
        for lang in ("en", "de")
        if int(hashlib.sha256(f"0 t{number}".encode()).hexdigest()[:16], 16) < 0.3 * 2**64
    }
    assert 8 < len(expected) < 40
    for qrels in ("qrels", "fewer"):
        tables = read_tables(
            configured(faq, held_out=pages, qrels={"path": str(faq / f"{qrels}.parquet")}).sets[0]
        )
        held = split(tables, 0)
        assert {tables.passages.ids[row] for row in np.flatnonzero(held.passages_held_out)} == expected
        trained = {f"t{tables.queries.ids[query][1:]}-en" for query in held.train}
        assert not trained & expected
        assert {f"t{tables.queries.ids[query][1:]}-en" for query in held.held_out} <= expected
        assert len(held.held_out) == 2


def test_a_share_of_queries(faq):
    tables = read_tables(configured(faq, held_out={"by": "query", "share": 0.3}).sets[0])
    held = split(tables, 0)
    keys = [hashlib.sha256(f"0 {one}".encode()).hexdigest()[:16] for one in tables.queries.ids]
    assert held.held_out.tolist() == [n for n, key in enumerate(keys) if int(key, 16) < 0.3 * 2**64]
    assert sorted([*held.train.tolist(), *held.held_out.tolist()]) == list(range(len(TOPICS)))


@pytest.mark.parametrize(
    ("group", "sentence"),
    [
        (
            "^(t",
            r"sets.0.held_out.group: '\^\(t' is no regular expression: missing \), unterminated subpattern",
        ),
        ("^t", r"sets.0.held_out.group: '\^t' has no parenthesis"),
    ],
)
def test_a_group_that_can_match_nothing_is_told_at_loading(faq, group, sentence):
    raw = settings(faq, "base")
    raw["sets"][0]["held_out"] = {"group": group}
    (faq / "train.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match=sentence):
        load_settings(faq / "train.yaml", [], TrainingConfig, "conf/train.yaml")


def test_a_group_that_does_not_match_every_id_is_an_error(faq):
    with pytest.raises(ConfigError, match=r"held_out.group: .* not so for 't0-de'|not so for 't0-en'"):
        sampler(configured(faq, held_out={"queries": 6, "group": r"^(p\d+)"}))


def test_the_right_passage_is_first_and_no_other_is_right(faq):
    lists, _ = sampler(configured(faq))
    for one in (lists[number] for number in range(len(lists))):
        assert topic(one.passages[0]) == topic(one.query)
        assert topic(one.query) not in {topic(text) for text in one.passages[1:]}
        assert len(set(one.passages)) == len(one.passages) == 6


@pytest.mark.parametrize(("languages", "word"), [("same", "about"), ("other", "Thema")])
def test_languages(faq, languages, word):
    """All questions are English."""
    lists, _ = sampler(configured(faq, languages=languages))
    assert all(word in text for number in range(100) for text in lists[number].passages)


def test_negatives_come_from_the_ranks_that_are_asked_for(faq):
    """Of the topic n, candidates of ranks 3 to 6 are the topics n + 1 and n + 2; of one language, ranks 2 and 3."""
    hard = [{"ranking": "candidates", "ranks": [2, 3], "count": 2}]
    lists, _ = sampler(configured(faq, negatives=hard, held_out={"queries": 0}))
    for one in (lists[number] for number in range(100)):
        asked = TOPICS.index(topic(one.query))
        found = {TOPICS.index(topic(text)) for text in one.passages[1:]}
        assert found <= {(asked + 1) % len(TOPICS), (asked + 2) % len(TOPICS)}


def test_wrong_passages_may_be_in_the_querys_own_language(faq):
    """All questions are English and every right passage is German: two wrong ones of the query's ranks 2 and 3 in
    English, one at random; the others German."""
    wrong = [
        {"ranking": "candidates", "ranks": [2, 3], "count": 2, "language": "query"},
        {"ranking": "random", "count": 1, "language": "query"},
        {"ranking": "random", "count": 2},
    ]
    lists, _ = sampler(configured(faq, languages="other", negatives=wrong, held_out={"queries": 0}))
    for one in (lists[number] for number in range(100)):
        asked = TOPICS.index(topic(one.query))
        own = [text for text in one.passages if "about" in text]
        assert ["Thema" in text for text in one.passages] == [True] + [False] * 3 + [True] * 2
        near = {(asked + 1) % len(TOPICS), (asked + 2) % len(TOPICS)}
        assert {TOPICS.index(topic(text)) for text in own[:2]} == near
        assert asked not in {TOPICS.index(topic(text)) for text in one.passages[1:]}


def test_wrong_passages_may_be_in_any_language(faq):
    """Without it, every passage of a list is in the right one's language: English here."""
    wrong = [{"ranking": "candidates", "ranks": [3, 6], "count": 4, "language": "any"}]
    lists, _ = sampler(configured(faq, languages="same", negatives=wrong, held_out={"queries": 0}))
    for one in (lists[number] for number in range(100)):
        assert "about" in one.passages[0]
        assert sorted("Thema" in text for text in one.passages) == [False] * 3 + [True] * 2


def test_a_list_depends_on_its_number_alone(faq):
    config = configured(faq)
    short, long = sampler(config, 50)[0], sampler(config, 200)[0]
    assert [short[number].passages for number in range(50)] == [long[number].passages for number in range(50)]
    assert short[49].passages == sampler(config, 50)[0][49].passages
    other = config.model_copy(update={"seed": 1})
    assert [short[number].query for number in range(50)] != [
        sampler(other, 50)[0][n].query for n in range(50)
    ]


def test_every_query_comes_once_before_any_comes_again(faq):
    lists, tables = sampler(configured(faq))
    size = len(split(tables, 0).train)
    queries = [lists[number].query for number in range(2 * size)]
    assert len(set(queries[:size])) == len(set(queries[size:])) == size
    assert queries[:size] != queries[size:]


def test_what_the_teacher_finds_better_than_the_right_one_is_left_out(faq):
    """The teacher's logits fall with the rank, so the right passage, first of all, is 4 above the third topic."""
    raw = settings(faq, "base", drop_above_gold=0.0)
    raw["sets"][0] |= {"teacher": {"table": {"path": str(faq / "teacher.parquet")}}}
    config = TrainingConfig.model_validate(raw)
    lists, _ = sampler(config)
    for one in (lists[number] for number in range(100)):
        known = one.teacher[1:][~np.isnan(one.teacher[1:])]
        assert (known <= one.teacher[0]).all()
    turned = configured(faq, teacher={"table": {"path": str(faq / "teacher.parquet")}, "scale": 2.0})
    assert sampler(turned)[0][0].teacher[0] == 2 * lists[0].teacher[0] == 20.0


def test_without_qrels_there_is_no_right_passage(faq):
    lists, _ = sampler(configured(faq, qrels=None, teacher={"table": {"path": str(faq / "teacher.parquet")}}))
    assert not lists[0].relevant
    assert (~np.isnan(lists[0].teacher)).sum() >= 2


@pytest.mark.parametrize(("languages", "lang"), [("any", "de"), ("same", "en"), ("other", "de")])
def test_without_qrels_the_teachers_best_is_held_out_and_right(faq, languages, lang):
    """The teacher puts the topic after next first, in both languages; the German passage stands before the English."""
    rows = pd.read_parquet(faq / "candidates.parquet")
    steps = (
        rows["passage_id"].str.extract(r"t(\d+)-")[0].astype(int) - rows["query_id"].str[1:].astype(int)
    ) % 40
    rows.assign(logit=np.where(steps == 2, 5.0, -rows["rank"])).to_parquet(
        faq / "teacher.parquet", index=False
    )
    taught = {"qrels": None, "teacher": {"table": {"path": str(faq / "teacher.parquet")}}}
    lists, tables = sampler(configured(faq, languages=languages, **taught))
    held = split(tables, 0)
    found = held_out_lists(tables, held)
    assert len(found) == len(held.held_out) == 6
    best = {one.relevant_ids[0] for one in found}
    for one in found:
        asked = int(one.key.removeprefix("faq q"))
        assert one.relevant_ids == [f"t{(asked + 2) % 40}-{lang}"]
        assert one.passage_ids[2] == one.relevant_ids[0]
    assert {tables.passages.ids[row] for row in np.flatnonzero(held.passages_held_out)} >= best
    hidden = {tables.passages.texts[tables.passages.ids.index(one)] for one in best}
    asked = {tables.queries.texts[query] for query in held.held_out}
    for one in (lists[number] for number in range(len(lists))):
        assert one.query not in asked
        assert not hidden & set(one.passages)


def test_without_qrels_a_query_that_the_teacher_did_not_score_trains_and_does_not_measure(faq):
    rows = pd.read_parquet(faq / "teacher.parquet")
    rows[rows["query_id"] != "q7"].to_parquet(faq / "teacher.parquet", index=False)
    tables = read_tables(
        configured(faq, qrels=None, teacher={"table": {"path": str(faq / "teacher.parquet")}}).sets[0]
    )
    held = split(tables, 0)
    assert len(held.train) + len(held.held_out) == len(TOPICS)
    assert 7 in held.train


@pytest.mark.parametrize(
    ("table", "change", "sentence"),
    [
        (
            "queries",
            lambda rows: rows.rename(columns={"query": "text"}),
            "no column 'query'; it has query_id, text",
        ),
        (
            "passages",
            lambda rows: rows._append(rows.iloc[0]),
            "passage_id 't0-en' stands there more than once",
        ),
        ("candidates", lambda rows: rows.assign(passage_id="x"), "candidates: 'x' (row 1) has no text"),
        ("qrels", lambda rows: rows.assign(query_id=None), "column 'query_id' is null in 80 rows"),
        ("qrels", lambda rows: rows.assign(relevance=0), "no query is left to train on"),
        (
            "qrels",
            lambda rows: pd.concat([rows, rows.iloc[2:4]]),
            "qrels: query_id 'q1', passage_id 't1-en' stands there more than once, and so do 1 other pairs",
        ),
        (
            "candidates",
            lambda rows: rows._append(rows.iloc[7]),
            "candidates: query_id 'q0', passage_id 't3-en' stands there more than once",
        ),
    ],
)
def test_bad_tables_are_sentences(faq, table, change, sentence):
    tables = write_tables(faq)
    change(tables[table]).to_parquet(faq / f"{table}.parquet", index=False)
    with pytest.raises(InputError) as error:
        sampler(configured(faq))
    assert sentence in str(error.value)


def taught(folder, **of_the_set):
    return configured(folder, teacher={"table": {"path": str(folder / "teacher.parquet")}}, **of_the_set)


DATE = pd.Timestamp("2026-01-01")


@pytest.mark.parametrize(
    ("table", "changed", "sentence"),
    [
        (
            "candidates",
            {"rank": lambda rows: rows["rank"].astype(str)},
            "sets.faq.candidates: column 'rank' has the type {text}; a whole number is expected: cast it",
        ),
        (
            "candidates",
            {"rank": lambda rows: rows["rank"] + 0.5},
            "sets.faq.candidates: column 'rank' has the type double; a whole number is expected: ",
        ),
        (
            "candidates",
            {"query_id": lambda rows: DATE},
            "column 'query_id' has the type timestamp[{unit}]; a string or a whole number is expected",
        ),
        (
            "qrels",
            {"relevance": lambda rows: "1"},
            "sets.faq.qrels: column 'relevance' has the type {text}; a whole number is expected",
        ),
        (
            "qrels",
            {"relevance": lambda rows: True},
            "'relevance' has the type bool; a whole number is expected",
        ),
        (
            "queries",
            {"query": lambda rows: range(len(rows))},
            "sets.faq.input.queries: column 'query' has the type int64; a string is expected",
        ),
        (
            "passages",
            {"passage": lambda rows: DATE},
            "column 'passage' has the type timestamp[{unit}]; a string is",
        ),
        (
            "passages",
            {"passage": lambda rows: b"text"},
            "column 'passage' has the type binary; a string is expected",
        ),
        ("passages", {"lang": lambda rows: 1}, "column 'lang' has the type int64; a string is expected"),
        (
            "teacher",
            {"logit": lambda rows: "0.5"},
            "sets.faq.teacher: column 'logit' has the type {text}; a number is expected",
        ),
    ],
)
def test_a_column_of_another_type_is_told(faq, table, changed, sentence):
    write_tables(faq)[table].assign(**changed).to_parquet(faq / f"{table}.parquet", index=False)
    column = pq.read_schema(faq / f"{table}.parquet").field(next(iter(changed))).type
    with pytest.raises(InputError) as error:
        read_tables(taught(faq).sets[0])
    unit = column.unit if pa.types.is_timestamp(column) else ""
    assert sentence.format(text=column, unit=unit) in str(error.value)


def test_what_is_no_parquet_is_told(faq):
    (faq / "qrels.parquet").write_text("query_id,passage_id,relevance")
    with pytest.raises(InputError, match=r"sets.faq.qrels: .*qrels.parquet cannot be read as Parquet: "):
        read_tables(configured(faq).sets[0])


def test_files_of_different_types_are_told(faq):
    (faq / "qrels").mkdir()
    for name, relevance in (("a", 1), ("b", "one")):
        rows = write_tables(faq)["qrels"].assign(relevance=relevance)
        rows.to_parquet(faq / f"qrels/{name}.parquet", index=False)
    with pytest.raises(InputError, match=r"sets.faq.qrels: .*qrels cannot be read: "):
        read_tables(configured(faq, qrels={"path": str(faq / "qrels")}).sets[0])


def test_the_same_values_in_other_types_are_the_same_tables(faq):
    """Ids that are numbers, categories for texts, whole numbers with a point, logits of Spark's decimals."""
    tables = write_tables(faq)
    tables["passages"]["passage_id"] = tables["passages"]["passage_id"].astype("category")
    for name in ("query", "lang"):
        tables["queries"][name] = tables["queries"][name].astype("category")
    for name in ("queries", "candidates", "qrels", "teacher"):
        tables[name]["query_id"] = tables[name]["query_id"].str[1:]

    def written():
        for name, table in tables.items():
            table.to_parquet(faq / f"{name}.parquet", index=False)
        return digests(read_tables(taught(faq).sets[0]))

    before = written()
    for name in ("queries", "candidates", "qrels", "teacher"):
        tables[name]["query_id"] = tables[name]["query_id"].astype("uint32")
    tables["candidates"]["rank"] = tables["candidates"]["rank"].astype(float)
    tables["qrels"]["relevance"] = tables["qrels"]["relevance"].astype("int8")
    tables["teacher"]["logit"] = [Decimal(str(one)) for one in tables["teacher"]["logit"]]
    assert written() == before


@pytest.mark.parametrize(
    ("logit", "scale", "told"),
    [
        (np.inf, 1.0, "inf"),
        (-np.inf, 1.0, "-inf"),
        (1e39, 1.0, "1e[+]39"),
        (1e38, 50.0, "1e[+]38"),
    ],
)
def test_a_teachers_infinite_logit_is_told(faq, logit, scale, told):
    rows = write_tables(faq)["teacher"]
    rows.loc[[3, 5], "logit"] = logit
    rows.to_parquet(faq / "teacher.parquet", index=False)
    config = configured(faq, teacher={"table": {"path": str(faq / "teacher.parquet")}, "scale": scale})
    named = (
        f"sets.faq.teacher: 2 logits are infinite, .* {told} of query_id 'q0', passage_id 't1-en'; drop these"
    )
    with pytest.raises(InputError, match=named):
        read_tables(config.sets[0])


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.iloc[:0],
        lambda rows: rows.assign(logit=np.nan),
        lambda rows: rows.assign(logit=None),
        lambda rows: pd.DataFrame({"query_id": ["q0"], "passage_id": ["t20-en"], "logit": [1.0]}),
    ],
)
def test_without_qrels_a_teacher_that_knows_no_ranked_pair_is_told(faq, change):
    rows = write_tables(faq)["teacher"]
    table = pa.Table.from_pandas(change(rows), preserve_index=False)
    logit = table.schema.get_field_index("logit")
    whole = table["logit"].cast(pa.float64())
    for one in (table, table.set_column(logit, "logit", pa.array(whole.to_pylist(), from_pandas=False))):
        pq.write_table(one, faq / "teacher.parquet")
        read_tables(taught(faq).sets[0])  # there are qrels to learn from
        with pytest.raises(InputError, match=r"sets.faq.teacher: it has a logit for none .* 400 pairs"):
            read_tables(taught(faq, qrels=None).sets[0])


def test_a_held_out_query_without_candidates_counts_as_0(faq):
    """It is one of those whose answer the first stage did not find."""
    tables = write_tables(faq)
    config = configured(faq)
    read = read_tables(config.sets[0])
    lost = read.queries.ids[split(read, 0).held_out[0]]
    rows = tables["candidates"]
    rows[rows["query_id"] != lost].to_parquet(faq / "candidates.parquet", index=False)
    read = read_tables(config.sets[0])
    lists = held_out_lists(read, split(read, 0))
    found = measure(lists, lambda texts: [np.zeros(len(one.passages), np.float32) for one in texts], seed=0)
    rows = found.summary.query("documents == 'all' and group == 'all' and measure == 'RR@10'")
    assert rows.set_index("system").loc["first", ["n", "mean"]].tolist() == [6, pytest.approx(5 / 6)]
