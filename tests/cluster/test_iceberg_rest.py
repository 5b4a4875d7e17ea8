"""Input tables, score store and output in an Iceberg REST catalog, over HTTP: run, rerun, die, merge, two at once.

What was published is read through the catalog by pyiceberg, without Spark.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from fault_world import Row, World, candidate_rows, iceberg_settings, ranking_by_hand
from job_processes import DRIVER_JVM, DRIVER_PYTHON, kill, wait_until

pytest.importorskip("pyiceberg", reason="pyiceberg is not installed (make setup installs it)")
pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed (make setup installs it)")
from iceberg_rest import IcebergRest
from pyiceberg.catalog.rest import RestCatalog

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

MAKE_TABLES = """
from pyspark.sql import SparkSession
spark = SparkSession.builder.getOrCreate()
spark.sql("create schema ice.db")
rows = spark.read.parquet("../inputs")
for table, columns in {
    "candidates": ["query_id", "passage_id", "score", "source"],
    "queries": ["query_id", "query"],
    "passages": ["passage_id", "passage"],
}.items():
    rows.select(*columns).distinct().writeTo(f"ice.db.{table}").using("iceberg").create()
"""
QUERIES = 40
SCORES, BOTH = "/v1/namespaces/db/tables/scores", "/v1/namespaces/db/tables/both"
Ranking = set[tuple[str, str, int, float]]


@dataclass(frozen=True)
class RestWorld(World):
    """A world whose tables are all in the catalog `ice`, schema `db`; work, rejects and reports are on disk."""

    format: str = "iceberg"
    uri: str = ""

    def configure(self) -> RestWorld:
        super().configure()
        settings = yaml.safe_load(self.settings.read_text())
        settings["input"] = {
            name: {"table": f"ice.db.{name}"} for name in ("candidates", "queries", "passages")
        }
        settings["store"]["table"] = "ice.db.scores"
        settings["output"]["reranked"]["table"] = f"ice.db.{self.name}"
        self.settings.write_text(yaml.safe_dump(settings))
        return self

    def _lake(self) -> dict[str, str]:
        return {
            **iceberg_settings({}),
            "spark.sql.catalog.ice": "org.apache.iceberg.spark.SparkCatalog",
            "spark.sql.catalog.ice.type": "rest",
            "spark.sql.catalog.ice.uri": self.uri,
        }

    def create(self, **faults: Any) -> RestWorld:
        """The input tables too, made by Spark."""
        super().create(**faults)
        job = self.start("tables", submit=[sys.executable, "-c", MAKE_TABLES])
        assert job.finish() == 0, job.text
        return self

    def published(self, table: str | None = None, **where: Any) -> Ranking:
        """(query_id, passage_id, rank, logit) of a table, by default of the job's own; none where there is none."""
        catalog = RestCatalog("reader", uri=self.uri)
        name = ("db", table or self.name)
        if not catalog.table_exists(name):
            return set()
        rows = catalog.load_table(name).scan().to_arrow().to_pylist()
        found = [
            (row["query_id"], row["passage_id"], row["rank"], row["logit"])
            for row in rows
            if all(str(row[column]) == value for column, value in where.items())
        ]
        assert len(found) == len(set(found))
        return set(found)


@pytest.fixture
def rest(tmp_path: Path) -> Iterator[IcebergRest]:
    """A catalog of the test's own, which was asked for nothing that it does not have."""
    iceberg_settings({})  # skips where there are no jars
    with IcebergRest(tmp_path / "catalog") as server:
        yield server
        assert server.trouble == []


def sets(*assignments: str) -> list[str]:
    """Options of the command line."""
    return [part for one in assignments for part in ("--set", one)]


def queries(first: int, end: int) -> str:
    """Of a run over the queries from `first` to before `end`."""
    return f"input.candidates.where=query_id >= 'q{first:05}' and query_id < 'q{end:05}'"


def by_hand(first: int, end: int, top: int = 10**9) -> Ranking:
    """What comes out of them, the `top` of each query."""
    some = [row for row in candidate_rows(QUERIES) if f"q{first:05}" <= row["query_id"] < f"q{end:05}"]
    return {one for one in ranking_by_hand(some) if one[2] <= top}


# --- the catalog ---


def asked(rest: IcebergRest, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
    """Status and JSON, over HTTP."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{rest.uri}/v1/{path}", data, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read() or b"{}")


def test_of_two_writers_with_one_base_the_catalog_refuses_one(rest):
    """Else the tests below would show nothing."""

    def kind(status: int, answer: dict[str, Any]) -> tuple[int, str]:
        return status, answer["error"]["type"]

    schema = {
        "type": "struct",
        "schema-id": 0,
        "fields": [{"id": 1, "name": "a", "type": "long", "required": False}],
    }
    create = {"name": "t", "schema": schema, "stage-create": False, "properties": {}}
    tables, table = "namespaces/db/tables", "namespaces/db/tables/t"
    assert kind(*asked(rest, "GET", "namespaces/db")) == (404, "NoSuchNamespaceException")
    assert kind(*asked(rest, "POST", tables, create)) == (404, "NoSuchNamespaceException")
    assert asked(rest, "POST", "namespaces", {"namespace": ["db"]})[0] == 200
    assert kind(*asked(rest, "POST", "namespaces", {"namespace": ["db"]})) == (409, "AlreadyExistsException")
    assert kind(*asked(rest, "GET", table)) == (404, "NoSuchTableException")
    assert asked(rest, "HEAD", table)[0] == 404
    staged = asked(rest, "POST", tables, {**create, "stage-create": True})
    assert staged[0] == 200
    assert "metadata-location" not in staged[1]
    assert asked(rest, "HEAD", table)[0] == 404
    assert asked(rest, "POST", tables, create)[0] == 200
    assert asked(rest, "HEAD", table)[0] == 204
    assert kind(*asked(rest, "POST", tables, create)) == (409, "AlreadyExistsException")
    assert kind(*asked(rest, "DELETE", "namespaces/db")) == (409, "NamespaceNotEmptyException")

    def commit(parent: int | None, snapshot: int) -> tuple[int, dict[str, Any]]:
        added = {
            "snapshot-id": snapshot,
            "sequence-number": asked(rest, "GET", table)[1]["metadata"]["last-sequence-number"] + 1,
            "timestamp-ms": 2_000_000_000_000 + snapshot,
            "manifest-list": f"file:///nowhere/{snapshot}.avro",
            "summary": {"operation": "append"},
            "schema-id": 0,
        }
        main = {"action": "set-snapshot-ref", "ref-name": "main", "type": "branch", "snapshot-id": snapshot}
        required = {"type": "assert-ref-snapshot-id", "ref": "main", "snapshot-id": parent}
        updates = [{"action": "add-snapshot", "snapshot": added}, main]
        return asked(rest, "POST", table, {"requirements": [required], "updates": updates})

    assert commit(None, 1)[0] == 200
    assert kind(*commit(None, 2)) == (409, "CommitFailedException")
    assert commit(1, 3)[0] == 200
    rest.meet("db.t")
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda number: commit(3, number)[0], (4, 5)))
    assert sorted(done) == [200, 409]
    now = asked(rest, "GET", table)[1]["metadata"]
    assert now["current-snapshot-id"] == (4, 5)[done.index(200)]
    assert len(now["snapshots"]) == 3
    assert asked(rest, "DELETE", table)[0] == 204
    assert kind(*asked(rest, "DELETE", table)) == (404, "NoSuchTableException")
    assert asked(rest, "DELETE", "namespaces/db")[0] == 204


# --- jobs ---


def test_a_job_is_published_is_not_done_twice_and_survives_its_death(rest, tmp_path):
    world = RestWorld(tmp_path / "world", queries=QUERIES, uri=rest.uri).create()
    job = world.start("no-schema", *sets("output.reranked.table=ice.nowhere.reranked"))
    assert job.finish() == 2, job.text
    assert "there is no schema `ice`.`nowhere`; make it first (create schema `ice`.`nowhere`)" in job.text

    first = world.succeed("first", *sets(queries(0, 10)))
    assert first["pairs_scored"] == first["pairs_distinct"] > 0
    assert world.published() == by_hand(0, 10)

    before = world.scorings()
    told = world.succeed("again", *sets(queries(0, 10)))
    assert (told["pairs_scored"], told["models_loaded"]) == (0, 0)
    assert world.scorings() == before
    assert world.published() == by_hand(0, 10)

    world.faults(microseconds_per_pair=5000)
    appends = rest.statuses("POST", SCORES).count(200)
    job = world.start("dies")
    wait_until(lambda: rest.statuses("POST", SCORES).count(200) > appends, "a wave in the store", job)
    kill(job.find(DRIVER_JVM, DRIVER_PYTHON))
    job.end()
    assert world.published() == by_hand(0, 10)  # nobody saw half a table
    world.faults()
    after = world.succeed("after")
    assert after["pairs_scored"] < after["pairs_distinct"] - first["pairs_distinct"]
    assert world.published() == by_hand(0, QUERIES)
    scored = world.scorings()

    commands = ("verify", "stats --json", "compact", "vacuum --keep all", "verify", "stats --json")
    sound, before_it, compacted, _, still_sound, after_it = world.store_says(*commands)
    assert "every file is sound" in sound
    assert "small files into large ones" in compacted
    assert "every file is sound" in still_sound
    ((many, facts), (few, as_many)) = (
        (one["files"], one["facts"]) for text in (before_it, after_it) for one in json.loads(text)
    )
    assert many > few == 1
    assert facts == as_many >= after["pairs_distinct"]
    assert world.succeed("last")["pairs_scored"] == 0
    assert world.scorings() == scored
    assert world.published() == by_hand(0, QUERIES)


def test_a_merge_replaces_the_runs_queries_and_a_run_date_its_day(rest, tmp_path):
    world = RestWorld(tmp_path / "world", queries=QUERIES, uri=rest.uri).create()
    merge = "output.reranked.mode=merge"
    world.succeed("merge-1", *sets(merge, queries(0, 10)))
    world.succeed("merge-2", *sets(merge, queries(5, 15), "ranking.top_k=3"))
    assert world.published() == by_hand(0, 5) | by_hand(5, 15, top=3)

    def on(day: str, *assignments: str) -> None:
        daily = ["output.reranked.table=ice.db.daily", f"output.reranked.run_date={day}"]
        world.succeed(f"{day}-{len(assignments)}", *sets(*daily, *assignments))

    on("2026-01-01", queries(0, 10))
    on("2026-01-02", queries(0, 12))
    on("2026-01-01", queries(2, 8), "ranking.top_k=3")
    assert world.published("daily", run_date="2026-01-01") == by_hand(2, 8, top=3)
    assert world.published("daily", run_date="2026-01-02") == by_hand(0, 12)
    assert max(world.scorings().values()) == 1


def test_two_jobs_at_once_are_both_right(rest, tmp_path):
    """On one store, and merging into one table: first both make it, then both change it, each time at one moment."""
    one = RestWorld(tmp_path / "world", queries=QUERIES, uri=rest.uri, name="one").create()
    other = RestWorld(tmp_path / "world", queries=QUERIES, uri=rest.uri, name="other").configure()
    both = ["output.reranked.table=ice.db.both", "output.reranked.mode=merge"]

    def at_once(name: str, *assignments: str) -> list[Row]:
        with (
            one.start(name, *sets(*both, queries(0, 25), *assignments)) as first,
            other.start(f"{name}-other", *sets(*both, queries(15, QUERIES), *assignments)) as second,
        ):
            assert first.wait() == 0, first.text
            assert second.wait() == 0, second.text
        return [one.report(), other.report()]

    rest.meet("db.scores")
    rest.meet("db.both")
    at_once("made")
    assert 409 in rest.statuses("POST", SCORES)
    assert rest.statuses("POST", BOTH).count(409) == 1
    assert one.published("both") == by_hand(0, QUERIES)
    assert max(one.scorings().values()) <= 2

    scored = one.scorings()
    rest.meet("db.both")
    again = at_once("changed", "ranking.top_k=3")
    assert [told["pairs_scored"] for told in again] == [0, 0]
    assert one.scorings() == scored
    assert rest.statuses("POST", BOTH).count(409) == 2
    assert one.published("both") == by_hand(0, QUERIES, top=3)
    (sound,) = one.store_says("verify")
    assert "every file is sound" in sound
