import json
import shlex

import pytest
from rich.console import Console

from rerank_udf.report import RunReport, clock, new_report, redacted, redacted_command


def a_report(**facts: object) -> RunReport:
    report = new_report(
        "20260131T000000Z-abcdef",
        "rerank-udf rerank",
        {"model": {"name": "mini"}},
        {"input.candidates": "a"},
        0,
    )
    for name, value in facts.items():
        setattr(report, name, value)
    return report


def test_rows_are_accounted_for_when_ranked_cut_and_rejected_make_the_input():
    report = a_report(pairs_in=10, ranked=4, cut={"depth": 2, "top_k": 1}, rejects={"null_id": 3})
    assert report.rejected() == 3
    assert report.unaccounted() == 0
    report.ranked = 3
    assert report.unaccounted() == 1


def test_the_report_is_json_with_every_promised_field():
    found = json.loads(a_report(pairs_in=1, ranked=1).to_json())
    promised = {
        *("config", "command", "versions", "machine", "model_key", "inputs", "seed"),
        *("pairs_in", "pairs_distinct", "pairs_scored", "pairs_reused", "ranked", "cut", "rejects"),
        *("tokens", "seconds", "tokens_per_second", "models_loaded", "devices", "output"),
    }
    assert promised <= set(found)
    assert found["versions"]["pyarrow"]
    assert found["machine"]["cores"] >= 1


def test_phases_add_up_by_name():
    report = a_report()
    for _ in range(2):
        with report.phase("score"):
            pass
    assert list(report.seconds) == ["score"]
    assert report.seconds["score"] >= 0


def test_a_phase_that_fails_is_timed_too():
    report = a_report()
    with pytest.raises(KeyError), report.phase("stage"):
        raise KeyError
    assert "stage" in report.seconds


def test_secrets_do_not_reach_the_report():
    options = {
        "password": "p",
        "fs.s3a.secret.key": "s",
        "fs.s3a.access.key": "a",
        "auth_token": "t",
        "fs.gs.auth.service.account.private.key": "g",
        "fs.s3a.encryption.key": "e",
        "api_key": "i",
        "db_pwd": "d",
        "sig": "x",
        "header": "true",
        "empty.password": "",
    }
    config = {
        "input": {"candidates": {"options": options}},
        "list": [{"sasToken": "x"}],
        "max_tokens_per_batch": 5,
    }
    clean = redacted(config)
    found = clean["input"]["candidates"]["options"]
    assert [name for name, value in found.items() if value == "***"] == [
        "password",
        "fs.s3a.secret.key",
        "fs.s3a.access.key",
        "auth_token",
        "fs.gs.auth.service.account.private.key",
        "fs.s3a.encryption.key",
        "api_key",
        "db_pwd",
        "sig",
    ]
    assert (found["header"], found["empty.password"], clean["max_tokens_per_batch"]) == ("true", "", 5)
    assert clean["list"] == [{"sasToken": "***"}]


def test_the_report_masks_its_own_configuration():
    report = a_report(config={"options": {"password": "hunter2"}})
    assert "hunter2" not in report.to_json()


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (
            "rerank-udf rerank --set input.candidates.options.password=hunter2",
            "input.candidates.options.password=***",
        ),
        ("rerank-udf rerank --set 'a.secret=hunter 2' --config x", "--set 'a.secret=***'"),
        ("rerank-udf rerank --set=a.access_key=hunter2", "--set=a.access_key=***"),
        ("rerank-udf rerank --set model.max_length=256", "model.max_length=256"),
    ],
)
def test_the_command_keeps_no_secret_either(command, shown):
    found = json.loads(a_report(command=command).to_json())["command"]
    assert shown in found
    assert "hunter" not in found


def test_the_table_tells_pairs_rejects_time_and_place():
    report = a_report(
        pairs_in=1234,
        pairs_distinct=1200,
        pairs_scored=1200,
        ranked=1000,
        cut={"top_k": 200},
        rejects={"null_id": 30, "bad_score": 4},
    )
    report.output = {"path": "out/reranked"}
    report.seconds = {"score": 75.0, "publish": 3.2}
    console = Console(width=200)
    with console.capture() as capture:
        console.print(report.table())
    text = capture.get()
    for part in (
        "1,234 in",
        "1,200 distinct",
        "200 (top_k 200)",
        "34 (null_id 30, bad_score 4)",
        "1:18",
        "score 1:15",
        "out/reranked",
    ):
        assert part in text


def test_a_narrow_terminal_shows_every_character_of_a_path():
    place = "s3a://bucket/team [eu]/" + "reranked/" * 12 + "[/end]"
    report = a_report()
    report.output = {"version": place}
    console = Console(width=60)
    with console.capture() as capture:
        console.print(report.table())
    shown = "".join(line.strip() for line in capture.get().split("version", 1)[1].splitlines())
    assert shown.replace(" ", "") == place.replace(" ", "")


@pytest.mark.parametrize(
    ("seconds", "shown"), [(3.2, "0:03"), (59.6, "1:00"), (75, "1:15"), (3700, "1:01:40"), (0, "0:00")]
)
def test_a_clock_shows_minutes_and_hours(seconds, shown):
    assert clock(seconds) == shown


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("store.password=HUSH", "store.password=***"),
        ("input.candidates.options={fs.s3a.secret.key: HUSH}", "input.candidates.options=***"),
        ("input.candidates.options={sfToken: HUSH}", "input.candidates.options=***"),
        ("ranking.depth=100", "ranking.depth=100"),
        ("input.candidates.path=/data/sas/x", "input.candidates.path=/data/sas/x"),
    ],
)
def test_a_command_is_told_without_its_secrets(word, shown):
    told = redacted_command(shlex.join(["rerank-udf", "rerank", "--set", word]))
    assert shlex.split(told) == ["rerank-udf", "rerank", "--set", shown]
