"""The page of a run: what it shows, what it says where something is missing, and that nothing on it runs or loads."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from run_reports import HOSTILE, a_run, an_evaluation, movement, text_of

from rerank_udf import page
from rerank_udf.cli import cli
from rerank_udf.page.advice import CUTS, REJECTS
from rerank_udf.page.histograms import expected_padding
from rerank_udf.page.movement import Movement, band_names
from rerank_udf.page.numbers import compact, percent, seconds_text, short
from rerank_udf.page.plot import ticks
from rerank_udf.tables import Cut, Reason

pytest.importorskip("jinja2", reason="Jinja2 is not installed (make setup installs it)")

VOID = {"meta", "link", "br", "img", "input"}


class Page(HTMLParser):
    """Elements with their attributes and text; every element but the void ones must be closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(self.open), data))

    @property
    def text(self) -> str:
        """Everything that is read, with single spaces."""
        return " ".join(" ".join(text for where, text in self.texts if "style" not in where).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def html_of(report: Any = None, evaluation: Any = None) -> str:
    return page.render_text(text_of(report or a_run()), evaluation)


def page_of(report: Any = None, evaluation: Any = None) -> Page:
    return Page(html_of(report, evaluation))


# --- what it shows ---


def test_the_headline_has_the_runs_numbers():
    text = page_of().text
    for shown in (
        "pairs in 64 60 distinct",
        "scored 60 0 reused",
        "ranked 59 1 cut",
        "rejected 4 for 2 reasons",
    ):
        assert shown in text
    for shown in (
        "bge-reranker-v2-m3",
        "revision abc",
        "float16",
        "tokens/s 200",
        "time 0:09",
        "59 ranked rows in out/reranked",
    ):
        assert shown in text


def test_rejects_and_cuts_say_how_many_and_what_to_do():
    text = page_of().text
    assert "null_id 3 · 4.7 % of the rows " + REJECTS[Reason.NULL_ID] in text
    assert "bad_score 1 · 1.6 % of the rows " + REJECTS[Reason.BAD_SCORE] in text
    assert "top_k 1 · 1.6 % of the rows " + CUTS[Cut.TOP_K] in text


def test_every_reason_has_advice():
    for names, advice in ((Reason, REJECTS), (Cut, CUTS)):
        codes = {value for name, value in vars(names).items() if name.isupper()}
        assert codes == set(advice)


def test_lengths_and_scores_stand_in_tables_too():
    text = page_of().text
    assert "17–32 30 (50.0 %) 700 (43.8 %)" in text
    assert "2 … 2.5 0 (0 %) 4 (66.7 %)" in text
    assert "−5 … −4.5 40 (74.1 %) 0 (0 %)" in text


def test_pairs_over_time_add_up():
    text = page_of().text
    assert "0.0 s 0 0" in text
    assert "4.0 s 40 1,000" in text
    assert "8.0 s 60 1,600" in text


def test_movement_is_told_in_sentences_and_cells():
    text = page_of().text
    assert "66.7 % of 6 queries have another first passage than before (4)" in text
    assert "Of 59 ranked passages 6.8 % rose, 86.4 % stayed, 6.8 % fell." in text
    assert "1 2 (33.3 %) 4 (66.7 %) 0 (0 %) 0 (0 %) 0 (0 %) 0 (0 %)" in text
    assert "6–10 0 (0 %) 0 (0 %) 0 (0 %) 0 (0 %) 29 (96.7 %) 1 (3.3 %)" in text


def test_the_evaluation_is_shown_by_group_with_interval_and_p():
    found = page_of(evaluation=an_evaluation())
    assert "nDCG@10 went from .600 to .733 over 6 queries: +.133, 95 % interval [+.020, +.250]." in found.text
    assert "ar mini 2 .800 .700 −.100 [−.300, .100] 0 / 1 / 1 .200 .970 .200" in found.text
    assert "<b>fr</b> mini 4 .500 .750 +.250 [.100, .400] 3 / 1 / 0 <.001" in found.text
    assert "An unjudged passage counts as not relevant" in found.text


def test_precision_by_threshold_counts_what_lies_above_and_says_what_scores_are_not():
    text = page_of(evaluation=an_evaluation()).text
    assert "Scores are not calibrated" in text
    for row in ("0 60 16.7 % 58.8 % 100 %", "0.25 20 45.0 % 69.2 % 90.0 %", "0.5 10 80.0 % 88.9 % 80.0 %"):
        assert row in text


def test_changed_queries_show_texts_both_orders_and_judgements():
    found = page_of(evaluation=an_evaluation())
    text = found.text
    assert ".100 → 1.000" in text
    assert "1.000 → .400" in text
    for shown in (
        "1 was 7 · score .910 ✓ relevant, 2",
        "1 now",
        "✗ not relevant",
        "not judged",
        "النص",
        "p<1>",
    ):
        assert shown.replace("1 now", "1 cut") in text
    assert HOSTILE in text


def test_a_grade_below_zero_is_not_relevant():
    document = an_evaluation()
    shown = json.loads(json.dumps(document).replace('"relevance": 2', '"relevance": -2'))
    assert shown != document
    text = page_of(evaluation=shown).text
    assert "relevant, -2" not in text
    assert "1 was 7 · score .910 ✗ not relevant" in text


def test_lengths_in_few_buckets_are_not_compared_with_padded_batches():
    report = a_run()
    fine, coarse = [0] * 20 + [50, 8, 2] + [0] * 41, [50, 8, 2] + [0] * 61
    report.figures["lengths"] = {"low": 1.0, "width": 16.0, "pairs": fine, "tokens": fine}
    assert "Padded batches of 32 pairs" in page_of(report).text
    report.figures["lengths"] = {"low": 1.0, "width": 128.0, "pairs": coarse, "tokens": coarse}
    text = page_of(report).text
    assert "Padding: none by construction" in text
    assert "Padded batches" not in text


def test_a_model_of_unknown_shape_is_no_obstacle():
    report = a_run()
    report.model |= {"architecture": None, "digests": None}
    assert "max_length 512" in page_of(report).text


def test_settings_are_shown_without_their_secrets():
    report = json.loads(text_of(a_run()))
    report["config"]["input"]["candidates"]["options"]["password"] = (
        "hunter2"  # a file that other hands wrote
    )
    html = page.render_text(json.dumps(report))
    assert "hunter2" not in html
    assert "password: '***'" in Page(html).text


def evaluated(**options: Any) -> dict[str, Any]:
    """evaluation.json's content, of 30 queries whose only relevant passage rises from second to first."""
    pytest.importorskip("ir_measures", reason="ir-measures is not installed")
    from rerank_udf.evaluation import evaluate

    orders = {"first": "ba", "mini": "ab"}
    rows = {
        name: pd.DataFrame([(f"q{n}", p, r) for n in range(30) for r, p in enumerate(order, 1)])
        for name, order in orders.items()
    }
    rows["qrels"] = pd.DataFrame([(f"q{n}", "a", 1) for n in range(30)])
    for name, frame in rows.items():
        frame.columns = ["query_id", "passage_id", "relevance" if name == "qrels" else "rank"]
    for name, change in options.pop("changes", {}).items():
        rows[name] = change(rows[name])
    found = evaluate(rows["mini"], rows["qrels"], baseline={"first": rows["first"]}, name="mini", **options)
    document = json.loads(found.document()) | {"notes": found.notes()}
    return an_evaluation() | document | {"changed": []}


def test_notes_say_what_the_terminal_says():
    text = page_of(evaluation=evaluated(top_k=1, measures=["RR@10"])).text
    for shown in (
        "Recall@2 of the candidates (ceiling) 1.000; on them: oracle 1.000, random",
        "Δ against first; 10,000 bootstraps over 30 queries; paired t-test, Holm over 1 tests.",
        "Of every list the first 1 are measured, as many as are published.",
    ):
        assert shown in text


def test_bootstraps_are_not_claimed_where_none_were_made(monkeypatch):
    for module in ("rerank_udf.evaluation", "rerank_udf.evaluation.significance"):
        monkeypatch.setattr(f"{module}.BOOTSTRAP_CLUSTERS", 29)
    text = page_of(evaluation=evaluated()).text
    assert "Δ against first; interval by expansion over 30 queries" in text
    assert "bootstraps" not in text


def test_what_is_odd_about_the_tables_is_on_the_page():
    others = {"mini": lambda rows: rows.assign(passage_id=rows["passage_id"].str.upper())}
    text = page_of(evaluation=evaluated(changes=others)).text
    assert "60 rows of the ranking are not among the baseline's candidates, from which recall" in text
    assert "None of the ranking's passages is judged: do both tables spell passage_id alike? " in text
    nothing = evaluated(changes={"mini": lambda rows: rows.iloc[:0]})
    nothing["precision"] |= {name: [0, 0, 0, 0] for name in ("rows", "judged", "relevant")}
    text = page_of(evaluation=nothing).text
    assert "30 queries without candidates count as 0. None of the qrels' queries is in the ranking" in text
    assert "0 queries won, 0 tied, 30 lost" in text


# --- what is not there ---


def test_without_judgements_it_says_how_to_get_an_evaluation():
    text = page_of().text
    assert "Give evaluation.qrels" in text
    assert "Queries that gained" not in text


def test_a_published_run_whose_evaluation_has_not_ended_says_how_to_have_one():
    report = a_run()
    report.config["evaluation"]["qrels"] = {"path": "in/qrels"}
    text = page_of(report).text
    assert "published 59 ranked rows in out/reranked" in text
    assert "the result is published, but no evaluation of it has ended" in text
    assert "rerank-udf evaluate with this run's --config and --set" in text
    assert "published nothing" not in text
    options = {option for one in cli.commands["evaluate"].params for option in one.opts}
    assert {"--config", "--set"} <= options
    del report.output["path"]
    text = page_of(report).text
    assert "published nothing that could be evaluated" in text
    assert "rerank-udf evaluate" not in text


def test_a_run_that_only_reused_says_so():
    report = a_run(
        pairs_scored=0, pairs_reused=60, tokens=0, waves=[], models_loaded=0, devices=[], placement=""
    )
    del report.figures["lengths"], report.figures["times"]
    text = page_of(report).text
    assert (
        "Nothing was scored and no model was loaded: the store knew the scores of all 60 distinct pairs"
        in text
    )
    assert "Pairs scored over time" not in text
    assert "first passages against the rest" in text


def test_a_run_refused_for_its_rejects_says_so():
    report = a_run(
        ranked=0,
        pairs_distinct=0,
        pairs_scored=0,
        cut={"stopped": 40},
        rejects={"null_passage": 24},
        waves=[],
        figures={},
    )
    report.output = {"rejects": "out/rejects", "report": "out/report/run_report.json"}
    text = page_of(report).text
    assert "not published 24 of 64 rows were rejected That is 37.5 %" in text
    assert "run.max_reject_fraction allows 25.0 %" in text
    assert text.index("Rejects by reason") < text.index("Did it help?")
    assert "No row of this run has a score" in text
    assert CUTS[Cut.STOPPED] in text
    assert "Each row and its reason: out/rejects" in text


def test_a_report_of_no_rows_is_a_page_too():
    report = a_run(
        **dict.fromkeys(
            ("pairs_in", "pairs_distinct", "pairs_scored", "ranked", "tokens", "models_loaded"), 0
        ),
        **{name: {} for name in ("cut", "rejects", "figures", "seconds", "model", "store", "output")},
        waves=[],
        devices=[],
    )
    text = page_of(report).text
    assert "The candidates table has no rows" in text
    assert "No row was rejected." in text


def test_candidates_without_an_order_have_no_movement():
    report = a_run()
    report.figures["movement"] = {**movement(), "cells": [[0] * 11 for _ in range(10)]}
    text = page_of(report).text
    assert "neither rank nor score" in text
    assert "From first-stage rank to new rank" not in text


def test_an_evaluation_without_a_baseline_shows_means_alone():
    evaluation = an_evaluation()
    evaluation["settings"] |= {"systems": ["mini"], "baseline": None}
    evaluation |= {
        "changed": [],
        "summary": [row for row in evaluation["summary"] if row["system"] == "mini"],
    }
    text = page_of(evaluation=evaluation).text
    assert "nDCG@10 is .733 over 6 queries." in text
    assert "won / tied / lost" not in text


def test_nothing_relevant_among_the_ranked_is_said():
    evaluation = an_evaluation()
    evaluation["precision"]["relevant"] = [0, 0, 0, 0]
    assert "None of the ranked passages of judged queries is relevant" in page_of(evaluation=evaluation).text


# --- from files ---


def test_a_page_is_made_from_the_files_alone(tmp_path):
    (tmp_path / "run_report.json").write_text(a_run().to_json(), encoding="utf-8")
    assert "Give evaluation.qrels" in page.render(tmp_path / "run_report.json")
    (tmp_path / page.EVALUATION_FILE).write_text(json.dumps(an_evaluation()), encoding="utf-8")
    assert "nDCG@10 went from" in page.render(tmp_path / "run_report.json")


def test_an_evaluation_of_another_run_is_left_alone(tmp_path):
    (tmp_path / "run_report.json").write_text(a_run().to_json(), encoding="utf-8")
    (tmp_path / page.EVALUATION_FILE).write_text(json.dumps(an_evaluation("another")), encoding="utf-8")
    assert "nDCG@10 went from" not in page.render(tmp_path / "run_report.json")


def test_a_report_from_before_figures_is_a_page_too():
    report = json.loads(text_of(a_run()))
    del report["figures"]
    for wave in report["waves"]:
        del wave["tokens"], wave["started_at"]
    assert "No row of this run has a score" in Page(page.render_text(json.dumps(report))).text


# --- nothing runs, nothing loads ---


def test_nothing_is_loaded_and_nothing_runs():
    html = html_of(evaluation=an_evaluation())
    found = Page(html)
    assert not {"script", "img", "iframe", "object", "embed", "base", "form"} & {
        tag for tag, _ in found.elements
    }
    for tag, attributes in found.elements:
        assert not any(
            name.startswith("on") or name in ("src", "srcset", "style", "action") for name in attributes
        )
        if "href" in attributes:
            assert re.match(r"#|data:,", str(attributes["href"])), (tag, attributes)
    style = "".join(text for where, text in found.texts if "style" in where)
    assert "url(" not in style
    assert "@import" not in style


def test_texts_have_their_own_direction_and_no_claimed_language():
    found = page_of(evaluation=an_evaluation())
    texts = [a for _, a in found.elements if (a.get("class") or "") == "text"]
    assert len(texts) == 2 + 2 * 3
    assert all(a.get("dir") == "auto" and a.get("lang") == "" for a in texts)
    assert found.all("html")[0]["lang"] == "en"


def test_every_picture_has_a_title_a_description_and_a_table():
    found = page_of(evaluation=an_evaluation())
    ids = [a["id"] for _, a in found.elements if "id" in a]
    assert len(ids) == len(set(ids))
    named = [str(a["aria-labelledby"]).split() for a in found.all("svg") if a.get("role") == "img"]
    assert len(named) == len(found.all("figure")) == 8
    assert {one for both in named for one in both} <= set(ids)
    assert all(a.get("aria-hidden") == "true" for a in found.all("svg") if a.get("role") != "img")
    assert len(found.all("table")) == 8 + 1


def test_links_lead_to_sections_that_are_there():
    found = page_of()
    targets = {f"#{a['id']}" for _, a in found.elements if "id" in a}
    assert {str(a["href"]) for a in found.all("a")} <= targets


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on the PATH")
    return found


def console_of(chromium: str, html: str, folder: Path) -> list[str]:
    """What a browser without any network writes to its console: script errors, refused and failed loads."""
    (folder / "page.html").write_text(html, encoding="utf-8")
    done = subprocess.run(
        [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"),
            *(f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--dump-dom"),
            (folder / "page.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "</html>" in done.stdout, done.stderr[-2000:]
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_a_browser_has_nothing_to_complain_of(chromium, tmp_path):
    assert console_of(chromium, html_of(evaluation=an_evaluation()), tmp_path) == []


def test_a_browser_would_complain_of_a_script_or_a_picture_from_elsewhere(chromium, tmp_path):
    worse = html_of().replace(
        "</body>", "<img src='https://example.invalid/x.png'><script>y()</script></body>"
    )
    assert len(console_of(chromium, worse, tmp_path)) >= 2


# --- the numbers ---


@pytest.mark.parametrize(
    ("value", "shown"), [(0.7123, ".712"), (1.0, "1.000"), (-0.05, "−.050"), (None, "–"), (float("nan"), "–")]
)
def test_figures_are_short(value, shown):
    assert short(value) == shown


def test_shares_counts_and_times():
    shares = [percent(n, 8000).replace("\u00a0", " ") for n in (1000, 0, 8000, 1, 7999)]
    assert shares == ["12.5 %", "0 %", "100 %", "<0.1 %", ">99.9 %"]
    assert percent(1, 0) == "–"
    assert [compact(n) for n in (950, 1200, 34e6, 2e9)] == ["950", "1.2k", "34M", "2G"]
    assert [seconds_text(s) for s in (0.42, 12.4, 195, 3723)] == ["0.4 s", "12 s", "3:15", "1:02:03"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 7), (-3.5, 8), (0, 231160), (0.42, 0.97)])
def test_ticks_are_round_inside_and_few(low, high):
    found = ticks(low, high, 5)
    assert 2 <= len(found) <= 6
    assert low <= found[0]
    assert found[-1] <= high + 1e-9
    gaps = {round(b - a, 9) for a, b in pairwise(found)}
    assert len(gaps) == 1


def test_bands_are_named_by_their_ranks():
    assert band_names([1, 2, 3, 5, 10]) == ["1", "2", "3", "4–5", "6–10", "> 10"]


def test_empty_bands_are_left_out():
    found = Movement.of(movement())
    assert found is not None
    assert found.columns == ("1", "2", "3", "4–5", "6–10", "cut")
    assert sum(map(sum, found.cells)) == 60


def test_expected_padding_is_that_of_random_batches():
    pairs = [5, 40, 20, 0, 10, 3]
    rng = random.Random(0)
    drawn = [rng.choices(range(1, 7), pairs, k=8) for _ in range(20_000)]
    computed, wanted = sum(8 * max(batch) for batch in drawn), sum(map(sum, drawn))
    assert expected_padding(pairs, 8) == pytest.approx(1 - wanted / computed, abs=0.005)
    assert expected_padding([0, 9, 0], 32) == 0.0
    assert expected_padding([], 32) == 0.0
