"""Input on disk; store, work and output on s3a:// against a real S3 server: run, rerun, change, die, publish.

Parquet, Delta, and Iceberg with a Hive metastore: a catalog of folders is not meant for object stores.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest
import yaml
from fault_world import (
    DEADLY,
    World,
    delta_settings,
    iceberg_settings,
    jars_folder,
    only_first,
    ranking_by_hand,
)
from job_processes import DRIVER_JVM, DRIVER_PYTHON, Job, kill, wait_until
from lake_readers import SNAPSHOTS, iceberg_snapshot, read_table
from standalone import JAVA_OPTIONS, write_conf

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

CREATE_SCHEMA = """
from pyspark.sql import SparkSession
SparkSession.builder.getOrCreate().sql("create schema lake.db")
"""
BUCKET, SECRET = "lake", "5ecret-that-must-not-be-told"


@dataclass(frozen=True)
class Bucket:
    """The server's bucket, read with plain HTTP."""

    url: str

    def keys(self, prefix: str = "") -> list[str]:
        found, token = [], ""
        while True:
            query = f"?list-type=2&max-keys=500&prefix={prefix}" + (
                f"&continuation-token={token}" if token else ""
            )
            root = ElementTree.fromstring(self._get(query))
            found += [node.text or "" for node in root.iter() if node.tag.endswith("}Key")]
            more = [node.text or "" for node in root.iter() if node.tag.endswith("}NextContinuationToken")]
            if not more:
                return found
            token = urllib.parse.quote(more[0], safe="")

    def download(self, prefix: str, folder: Path) -> Path:
        """Every object below `prefix` as a file below `folder`."""
        for key in self.keys(prefix):
            file = folder / key
            file.parent.mkdir(parents=True, exist_ok=True)
            if not key.endswith("/"):
                file.write_bytes(self._get(f"/{key}"))
        return folder / prefix

    def _get(self, path: str) -> bytes:
        # the server wants a signature and does not check it
        signed = "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
        asked = urllib.request.Request(f"{self.url}{path}", headers={"Authorization": signed})
        with urllib.request.urlopen(asked) as answer:
            return bytes(answer.read())


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    pytest.importorskip("moto.server", reason="moto[server] is not installed (make setup installs it)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    around = {**os.environ, "PYTHONWARNINGS": "ignore"}
    url = f"http://127.0.0.1:{port}/{BUCKET}"

    def made() -> bool:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="PUT")).close()
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    with Job(command, tmp_path_factory.mktemp("s3"), around, "server") as server:
        wait_until(made, "a bucket", server)
        yield Bucket(url)


def s3a_settings(bucket: Bucket) -> dict[str, str]:
    jars = sorted((jars_folder() / "s3a").glob("*.jar"))
    if not jars:
        pytest.skip(f"no jars of s3a in {jars_folder()} (RERANK_UDF_JARS names another place)")
    return {
        "spark.jars": ",".join(map(str, jars)),
        "spark.hadoop.fs.s3a.endpoint": bucket.url.removesuffix(f"/{BUCKET}"),
        "spark.hadoop.fs.s3a.endpoint.region": "us-east-1",
        "spark.hadoop.fs.s3a.access.key": "somebody",
        "spark.hadoop.fs.s3a.secret.key": SECRET,
        "spark.hadoop.fs.s3a.path.style.access": "true",
        "spark.hadoop.fs.s3a.connection.ssl.enabled": "false",
    }


class S3World(World):
    """A world whose store and output are in the bucket; the rest is on disk."""

    def on(self, bucket: Bucket) -> S3World:
        self.create()
        settings = yaml.safe_load(self.settings.read_text())
        settings["store"]["wave_minutes"] = 0.2
        if self.format == "iceberg":
            settings["store"]["work"] = self.at("work")
        else:
            settings["store"]["path"] = self.at("store")
            settings["output"]["reranked"]["path"] = self.at(self.name)
        settings["output"]["rejects"]["path"] = self.at("rejects")
        settings["run"]["report"] = self.at("report")
        self.settings.write_text(yaml.safe_dump(settings))
        conf = s3a_settings(bucket)
        if self.format == "delta":
            delta = delta_settings()
            conf |= {**delta, "spark.jars": f"{conf['spark.jars']},{delta['spark.jars']}"}
        if self.format == "iceberg":
            iceberg = self.metastore()
            conf |= {**iceberg, "spark.jars": f"{conf['spark.jars']},{iceberg['spark.jars']}"}
        write_conf(self.root / "conf", conf)
        return self

    def metastore(self) -> dict[str, str]:
        """Catalogs of a Hive metastore: the one in Spark's own jars, without a server, its database on disk."""
        metastore = f"jdbc:derby:;databaseName={self.root}/metastore;create=true"
        settings = iceberg_settings({}) | {
            "spark.hadoop.javax.jdo.option.ConnectionURL": metastore,
            "spark.hadoop.datanucleus.schema.autoCreateAll": "true",
            "spark.hadoop.hive.metastore.schema.verification": "false",
            "spark.hadoop.iceberg.engine.hive.lock-enabled": "false",  # this metastore has no table for locks
            "spark.driver.extraJavaOptions": f"{JAVA_OPTIONS} -Dderby.stream.error.file={self.root}/derby.log",
        }
        for catalog in ("vault", "lake"):
            settings[f"spark.sql.catalog.{catalog}"] = "org.apache.iceberg.spark.SparkCatalog"
            settings[f"spark.sql.catalog.{catalog}.type"] = "hive"
            settings[f"spark.sql.catalog.{catalog}.warehouse"] = self.at("warehouse")
        return settings

    def at_files_of(self, table: str) -> str:
        """Where in the bucket the files of the output or of the store lie."""
        return (
            f"{self.place}/warehouse/db.db/{table}" if self.format == "iceberg" else f"{self.place}/{table}"
        )

    @property
    def place(self) -> str:
        """A world's own folder in the bucket: a store that two shared would have the second's pairs already."""
        return f"{self.format}/{self.name}"

    def at(self, name: str) -> str:
        return f"s3a://{BUCKET}/{self.place}/{name}"

    def told(self, bucket: Bucket, folder: Path) -> dict[str, Any]:
        """The report, from the bucket."""
        report = bucket.download(f"{self.place}/report/run_report.json", folder)
        found: dict[str, Any] = json.loads(report.read_text())
        return found

    def published(self, bucket: Bucket, folder: Path) -> set[tuple[str, str, int, float]]:
        """(query_id, passage_id, rank, logit), read from the bucket without Spark."""
        out = bucket.download(f"{self.at_files_of(self.name)}/", folder)
        of_format = SNAPSHOTS[self.format]
        if self.format == "iceberg":
            of_format = partial(
                iceberg_snapshot, local=lambda url: folder / url.removeprefix(f"s3a://{BUCKET}/")
            )
        table = read_table(of_format(out))
        assert table is not None
        rows = table.select(["query_id", "passage_id", "rank", "logit"]).to_pydict()
        return set(zip(*rows.values(), strict=True))


def test_a_pair_that_kills_its_worker_is_found_by_notes_in_the_bucket(bucket, tmp_path, monkeypatch):
    """No note is on the node's own disk: on a cluster the next attempt may run on another node."""
    disk = tmp_path / "disk"
    disk.mkdir()
    monkeypatch.setenv("TMPDIR", str(disk))
    world = S3World(tmp_path / "world", name="deadly").on(bucket)
    world.faults(kills_worker=DEADLY)
    job = world.start("deadly", "--set", "run.max_reject_fraction=0.001")
    assert job.finish() == 0, job.text
    rows = pq.read_table(world.root / "inputs/part-0.parquet").to_pylist()
    assert world.published(bucket, tmp_path / "1") == ranking_by_hand(rows, lost=DEADLY)
    assert world.told(bucket, tmp_path / "1")["rejects"] == {"crashed_worker": 1}
    assert list(disk.rglob("rerank_udf_notes*")) == []
    assert SECRET not in job.text


@pytest.mark.parametrize("lake", ["parquet", "delta", "iceberg"])
def test_a_job_on_s3_is_published_is_not_done_twice_and_survives_its_death(bucket, tmp_path, lake):
    world = S3World(tmp_path / "world", queries=40, format=lake).on(bucket)
    rows = pq.read_table(world.root / "inputs/part-0.parquet").to_pylist()
    first = [row for row in rows if row["query_id"] < "q00010"]

    if lake == "iceberg":
        job = world.start("no-schema", *only_first(10))
        assert job.finish() == 2, job.text
        assert "there is no schema `lake`.`db`; make it first (create schema `lake`.`db`)" in job.text
        job = world.start("schema", submit=[sys.executable, "-c", CREATE_SCHEMA])
        assert job.finish() == 0, job.text

    job = world.start("first", *only_first(10))
    assert job.finish() == 0, job.text
    assert world.published(bucket, tmp_path / "1") == ranking_by_hand(first)
    told = world.told(bucket, tmp_path / "1")
    assert told["pairs_scored"] == told["pairs_distinct"] > 0
    assert SECRET not in job.text + json.dumps(told)

    before = world.scorings()
    job = world.start("again", *only_first(10))
    assert job.finish() == 0, job.text
    assert world.scorings() == before
    again = world.told(bucket, tmp_path / "2")
    assert (again["pairs_scored"], again["models_loaded"]) == (0, 0)
    assert world.published(bucket, tmp_path / "2") == ranking_by_hand(first)

    world.faults(microseconds_per_pair=2000)
    job = world.start("dies")
    wait_until(lambda: world.scorings_so_far() > sum(before.values()) + 300, "scoring", job)
    kill(job.find(DRIVER_JVM, DRIVER_PYTHON))
    job.end()
    assert world.published(bucket, tmp_path / "3") == ranking_by_hand(first)  # nobody saw half a table
    world.faults()
    job = world.start("after")
    assert job.finish() == 0, job.text
    assert world.published(bucket, tmp_path / "4") == ranking_by_hand(rows)
    facts = bucket.keys(f"{world.at_files_of('scores' if lake == 'iceberg' else 'store')}/")
    left = [key for key in facts if key.endswith(".parquet") and "/_work/" not in key]
    assert left

    sound, compacted, still_sound, _ = world.store_says("verify", "compact", "verify", "stats")
    assert "every file is sound" in sound
    assert ("appends into one" if lake == "parquet" else "small files into large ones") in compacted
    assert "every file is sound" in still_sound
    job = world.start("last")
    assert job.finish() == 0, job.text
    assert world.told(bucket, tmp_path / "5")["pairs_scored"] == 0
