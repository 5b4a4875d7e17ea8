import numpy as np
import pytest
from training_world import TOPICS, settings, write_tables

from rerank_udf.errors import ConfigError, InputError
from rerank_udf.training.lists import ListSampler
from rerank_udf.training.settings import TrainingConfig
from rerank_udf.training.split import split
from rerank_udf.training.tables import read_tables


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
    ],
)
def test_bad_tables_are_sentences(faq, table, change, sentence):
    tables = write_tables(faq)
    change(tables[table]).to_parquet(faq / f"{table}.parquet", index=False)
    with pytest.raises(InputError) as error:
        sampler(configured(faq))
    assert sentence in str(error.value)
