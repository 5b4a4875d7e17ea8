"""A job's whole world in one folder: inputs, model, settings, store, output; and what must come out of it.

The scorer is the hash of the pair, so the output is known from a plain loop, to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from job_processes import Job
from lake_readers import SNAPSHOTS, Snapshot, Witness, digest, read_table
from standalone import REPOSITORY, environment, spark_version, write_conf

DEADLY, NOT_FINITE = "☠", "∞"  # of each text with one of these signs there is one pair
DEPTH = 50
_PASSAGES = 2000  # every tenth has the text of the one before it

Row = dict[str, Any]

_END = "-- end --"
_STORE_COMMANDS = f"""
import sys
from rerank_udf.cli import main
for command in sys.argv[1].split(";"):
    main(["store", *command.split(), *sys.argv[2:]])
    print("{_END}", flush=True)
"""


# --- input ---


def candidate_rows(queries: int) -> list[Row]:
    """query_id, passage_id, query, passage, score: DEPTH rows a query, with ties; two rows with odd texts."""
    rows = []
    for q in range(queries):
        for n in range(DEPTH):
            p = (q * 37 + n) % _PASSAGES
            text = f"passage {p - (p % 10 == 0)} of a corpus that was made for killing jobs"
            rows.append(_row(q, f"p{p:05}", text, 30.0 - n // 2))
    rows.append(_row(queries - 1, "deadly", f"whoever reads this dies {DEADLY}", 99.0))
    rows.append(_row(queries - 2, "endless", f"this one has no finite score {NOT_FINITE}", 99.0))
    return rows


def _row(query: int, passage_id: str, passage: str, score: float) -> Row:
    return {
        "query_id": f"q{query:05}",
        "passage_id": passage_id,
        "query": f"question {query}",
        "passage": passage,
        "score": score,
        "source": f"{query}/{passage_id}",
    }


def key_of(row: Row) -> bytes:
    """The pair's key: the first 16 bytes of a hash over its two texts."""
    texts = (hashlib.sha256(row[name].encode()).digest()[:16] for name in ("query", "passage"))
    return hashlib.sha256(b"".join(texts)).digest()[:16]


def ranking_by_hand(rows: Sequence[Row], lost: str = "") -> set[tuple[str, str, int, float]]:
    """(query_id, passage_id, rank, logit) of every row, but for passages with the sign `lost`."""
    by_query: dict[str, list[tuple[float, int, str]]] = {}
    first_stage: Counter[str] = Counter()
    for row in sorted(rows, key=lambda row: (row["query_id"], -row["score"], row["passage_id"])):
        first_stage[row["query_id"]] += 1
        if lost and lost in row["passage"]:
            continue
        logit = int.from_bytes(hashlib.sha256(key_of(row)).digest()[:3], "big") / 2**20 - 8
        entry = (-logit, first_stage[row["query_id"]], row["passage_id"])
        by_query.setdefault(row["query_id"], []).append(entry)
    return {
        (query, passage, rank, -negative)
        for query, entries in by_query.items()
        for rank, (negative, _, passage) in enumerate(sorted(entries), start=1)
    }


# --- the world ---


@dataclass(frozen=True)
class World:
    """Everything of a job below `root`, but for what is given a place of its own.

    By default the work folder is where the product has it by default: in the store's, where that is a path.
    """

    root: Path
    queries: int = 40
    format: str = "parquet"
    name: str = "reranked"
    store_at: Path | None = None
    work_at: Path | None = None
    out_at: Path | None = None
    # Four attempts a task, as on a cluster; a local master by itself gives up after the first.
    master: str = "local[2,4]"

    # places

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def journal(self) -> Path:
        return self.root / "journal"

    @property
    def out(self) -> Path:
        """The published table."""
        folder = self.out_at or self.root
        return folder / "warehouse/db" / self.name if self.format == "iceberg" else folder / self.name

    @property
    def store(self) -> Path:
        """The score store."""
        folder = self.store_at or self.root
        return folder / "vault/db/scores" if self.format == "iceberg" else folder / "store"

    @property
    def work(self) -> Path:
        """Staged pairs, finished scores."""
        return self.work_at or (self.root / "work" if self.format == "iceberg" else self.store / "_work")

    @property
    def settings(self) -> Path:
        return self.root / f"{self.name}.yaml"

    # set-up

    def create(self, **faults: Any) -> World:
        """Write inputs, model and settings; scoring takes as long as `faults` say."""
        self.model.mkdir(parents=True)
        (self.model / "config.json").write_text('{"model_type": "rerank-udf-hash"}')
        self.faults(**faults)
        (self.root / "inputs").mkdir()
        pq.write_table(
            pa.Table.from_pylist(candidate_rows(self.queries)), self.root / "inputs/part-0.parquet"
        )
        self.configure()
        write_conf(self.root / "conf", self._lake())
        return self

    def faults(self, **faults: Any) -> None:
        """What goes wrong from the next start on; the model stays the same for the store."""
        switches = {"journal": str(self.journal), **faults}
        (self.model / "faults.json").write_text(json.dumps(switches))

    def configure(self) -> World:
        """Write the settings file."""
        store: Row = {"format": self.format, "wave_minutes": 0.02}
        if self.format == "iceberg":
            store["table"], place = "vault.db.scores", {"table": f"lake.db.{self.name}"}
        else:
            store["path"], place = str(self.store), {"path": str(self.out)}
        if self.work_at or self.format == "iceberg":
            store["work"] = str(self.work)
        settings = {
            "input": {"candidates": {"path": str(self.root / "inputs")}},
            "model": {"name": str(self.model)},
            "store": store,
            "output": {
                "reranked": {"format": self.format, **place},
                "rejects": {"path": str(self.root / f"{self.name}-rejects")},
            },
            "run": {"report": str(self.root / f"{self.name}-report")},
        }
        self.settings.write_text(yaml.safe_dump(settings))
        return self

    def _lake(self) -> dict[str, str]:
        if self.format == "parquet":
            return {}
        if self.format == "delta":
            return delta_settings()
        store, out = self.store.parents[1], self.out.parents[1]
        return iceberg_settings({"vault": store, "lake": out})

    # what happens

    def start(self, name: str, *options: str, submit: Sequence[Any] = ()) -> Job:
        """The job: by `python -m` on a local master, or through `submit`, a spark-submit command."""
        command = submit or [sys.executable, "-m", "rerank_udf.cli", "rerank"]
        paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        around = environment(self.root / "conf", MASTER=self.master)
        if not submit:
            around["PYTHONPATH"] = os.pathsep.join(paths)
        return Job([*command, "--config", self.settings, *options], self.root / "runs", around, name)

    def run(self, name: str, *options: str, submit: Sequence[Any] = ()) -> int:
        """The job from beginning to end; its exit code."""
        return self.start(name, *options, submit=submit).finish()

    def succeed(self, name: str, *options: str, submit: Sequence[Any] = ()) -> Row:
        """The job, which has to end well; its report."""
        job = self.start(name, *options, submit=submit)
        assert job.finish() == 0, job.text
        return self.report()

    def store_says(self, *commands: str) -> list[str]:
        """What each `rerank-udf store …` prints, one after another in one session; all have to end well."""
        job = self.start("store", submit=[sys.executable, "-c", _STORE_COMMANDS, ";".join(commands)])
        assert job.finish() == 0, job.text
        return job.out.read_text().split(_END)[:-1]

    def report(self) -> Row:
        """run_report.json."""
        found: Row = json.loads((self.root / f"{self.name}-report/run_report.json").read_text())
        return found

    # what is there

    def snapshot(self) -> Snapshot:
        """The data files of the published table."""
        return SNAPSHOTS[self.format](self.out)

    def table(self) -> pa.Table | None:
        """The published table."""
        return read_table(self.snapshot())

    def digest(self) -> str:
        """Of the published table; "" where there is none."""
        table = self.table()
        return "" if table is None else digest(table)

    def witness(self) -> Witness:
        """Someone who reads the published table all the while."""
        return Witness(self.snapshot)

    def ranking(self) -> set[tuple[str, str, int, float]]:
        """As `ranking_by_hand`, of the published table."""
        table = self.table()
        assert table is not None
        rows = table.select(["query_id", "passage_id", "rank", "logit"]).to_pydict()
        return set(zip(*rows.values(), strict=True))

    def rejects(self) -> list[Row]:
        """The rejects table."""
        found: list[Row] = pq.read_table(self.root / f"{self.name}-rejects").to_pylist()
        return found

    def scorings(self) -> Counter[bytes]:
        """How often each pair has been scored, in all runs together."""
        raws = [file.read_bytes() for file in self.journal.glob("*.keys")]
        return Counter(raw[at : at + 16] for raw in raws for at in range(0, len(raw) - 15, 16))

    def scorings_so_far(self) -> int:
        """How many scorings there were in all, from the sizes of the journal's files."""
        return sum(file.stat().st_size for file in self.journal.glob("*.keys")) // 16

    def scorings_since(self, before: Counter[bytes]) -> Counter[bytes]:
        """As `scorings`, without those that were there already."""
        return self.scorings() - before

    def scoring_now(self) -> set[int]:
        """The pids of those that have written to the journal a moment ago."""
        files = [file for file in self.journal.glob("*.keys") if time() - file.stat().st_mtime < 0.2]
        return {int(file.name.split("-")[0]) for file in files}

    # again

    def keep(self) -> None:
        """Remember this state for `restore`."""
        shutil.copytree(self.root, self.root.with_name(f"{self.root.name}.kept"), symlinks=True)

    def restore(self) -> None:
        """Back to the state that was kept, at the same place: Iceberg's metadata holds whole paths."""
        shutil.rmtree(self.root)
        shutil.copytree(self.root.with_name(f"{self.root.name}.kept"), self.root, symlinks=True)


def only_first(queries: int) -> tuple[str, str]:
    """The options of a run over the first few queries."""
    return "--set", f"input.candidates.where=query_id < 'q{queries:05}'"


# --- formats ---


def jars_folder() -> Path:
    """The jars that stand in for spark.jars.packages where there is no Maven repository."""
    return Path(os.environ.get("RERANK_UDF_JARS") or REPOSITORY.parent / "shared/jars")


def lake_jars(lake: str) -> str:
    """spark.jars of a lake format for this Spark; skips the test where they are not there."""
    version = ".".join(map(str, spark_version()))
    folder = jars_folder() / f"{lake}-{version}"
    jars = sorted(folder.glob("*.jar"))
    if not jars:
        pytest.skip(
            f"no jars of {lake} for Spark {version} in {folder} (RERANK_UDF_JARS names another place)"
        )
    return ",".join(map(str, jars))


def delta_settings() -> dict[str, str]:
    """A session that knows Delta."""
    return {
        "spark.jars": lake_jars("delta"),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.databricks.delta.snapshotPartitions": "2",  # 50 tasks for each small log otherwise
    }


def iceberg_settings(catalogs: Mapping[str, Path]) -> dict[str, str]:
    """A session with Iceberg catalogs, each a folder."""
    settings = {
        "spark.jars": lake_jars("iceberg"),
        "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
    }
    for name, folder in catalogs.items():
        settings[f"spark.sql.catalog.{name}"] = "org.apache.iceberg.spark.SparkCatalog"
        settings[f"spark.sql.catalog.{name}.type"] = "hadoop"
        settings[f"spark.sql.catalog.{name}.warehouse"] = str(folder)
    return settings
