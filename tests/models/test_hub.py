"""The real hub client against a hub on 127.0.0.1. It reads its endpoint at import, so each call is a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_folders import bert_config, write_model, write_wordpiece_tokenizer
from stand_in_hub import COMMIT, REPOSITORY, StandInHub, serving

RESOLVE = "from rerank_udf.models import *; files = resolve_model({name!r}, {revision!r}); "
HEADER_BYTES = 100_001  # what the client reads of a file to find its safetensors header
FETCH = RESOLVE + "folder = local_folder(files); print(files.revision, folder)"
DOWNLOAD = "from rerank_udf.models.hub import *; print(downloaded_folder({name!r}, {commit!r}, {digests}))"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandInHub]:
    folder = tmp_path / "repository"
    folder.mkdir()
    write_model(folder, bert_config(vocab_size=write_wordpiece_tokenizer(folder / "tokenizer.json")))
    (folder / "README.md").write_text("not needed")
    (folder / "pytorch_model.bin").write_bytes(b"never fetched")
    with serving(folder) as server:
        yield server


def start(hub: StandInHub, cache: Path, code: str = FETCH, **names: object) -> subprocess.Popen[str]:
    values = {"name": REPOSITORY, "revision": "main", "commit": COMMIT, **names}
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(cache / "huggingface"),
        "HF_HUB_DISABLE_XET": "1",
        "RERANK_UDF_CACHE": str(cache),
    }
    command = [sys.executable, "-W", "error", "-c", code.format(**values)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(hub: StandInHub, cache: Path, code: str = FETCH, **names: object) -> tuple[int, str, str]:
    process = start(hub, cache, code, **names)
    output, errors = process.communicate(timeout=60)
    return process.returncode, output.strip(), errors


def test_a_branch_is_pinned_to_its_commit_and_only_what_scoring_needs_is_fetched(
    hub: StandInHub, tmp_path: Path
) -> None:
    code, output, errors = run(hub, tmp_path / "cache")
    assert code == 0, errors
    commit, folder = output.split()
    assert commit == COMMIT
    assert {path.name for path in Path(folder).iterdir()} == {
        "_complete.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (Path(folder) / name).read_bytes() == (hub.folder / name).read_bytes()


def test_the_driver_reads_headers_and_never_the_weights(hub: StandInHub, tmp_path: Path) -> None:
    size = (hub.folder / "model.safetensors").stat().st_size
    code, output, errors = run(hub, tmp_path / "cache", RESOLVE + "print(files.digests['model.safetensors'])")
    assert code == 0, errors
    assert output == hub.digest("model.safetensors")
    assert hub.bytes_sent["model.safetensors"] <= min(size, HEADER_BYTES)


def test_who_wants_the_tokenizer_alone_fetches_no_weights(hub: StandInHub, tmp_path: Path) -> None:
    code, output, errors = run(hub, tmp_path / "cache", RESOLVE + "print(tokenizer_folder(files))")
    assert code == 0, errors
    found = Path(output) / "tokenizer.json"
    assert found.read_bytes() == (hub.folder / "tokenizer.json").read_bytes()
    assert hub.bytes_sent["model.safetensors"] <= HEADER_BYTES


def test_once_fetched_a_pinned_model_needs_no_network(hub: StandInHub, tmp_path: Path) -> None:
    assert run(hub, tmp_path / "cache", revision=COMMIT)[0] == 0
    before = hub.requests
    code, output, errors = run(hub, tmp_path / "cache", revision=COMMIT)
    assert code == 0, errors
    assert output.split()[0] == COMMIT
    assert hub.requests == before


def test_two_processes_at_once_download_once(hub: StandInHub, tmp_path: Path) -> None:
    size = (hub.folder / "model.safetensors").stat().st_size
    processes = [start(hub, tmp_path / "cache") for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert hub.bytes_sent["model.safetensors"] - size <= 2 * HEADER_BYTES  # and two readings of the header


def test_a_download_that_breaks_off_once_is_gone_on_with(hub: StandInHub, tmp_path: Path) -> None:
    hub.break_off["model.safetensors"] = 1
    code, output, errors = run(
        hub, tmp_path / "cache", DOWNLOAD, digests={"model.safetensors": hub.digest("model.safetensors")}
    )
    assert code == 0, errors
    assert (Path(output) / "model.safetensors").read_bytes() == (
        hub.folder / "model.safetensors"
    ).read_bytes()


def test_after_a_download_that_died_whole_files_are_not_fetched_again(
    hub: StandInHub, tmp_path: Path
) -> None:
    hub.break_off["tokenizer.json"] = 100  # longer than the client's own patience
    both = {name: hub.digest(name) for name in ("model.safetensors", "tokenizer.json")}
    code, _, errors = run(hub, tmp_path / "cache", DOWNLOAD, digests=both)
    assert code != 0
    assert "ModelError" in errors
    assert not list((tmp_path / "cache").rglob("_complete.json"))

    hub.break_off.clear()
    before = hub.bytes_sent["model.safetensors"]
    code, output, errors = run(hub, tmp_path / "cache", DOWNLOAD, digests=both)
    assert code == 0, errors
    assert hub.bytes_sent["model.safetensors"] == before > 0
    assert (Path(output) / "tokenizer.json").read_bytes() == (hub.folder / "tokenizer.json").read_bytes()


def test_a_corrupted_download_is_fetched_once_more(hub: StandInHub, tmp_path: Path) -> None:
    assert run(hub, tmp_path / "cache", RESOLVE)[0] == 0
    size = (hub.folder / "model.safetensors").stat().st_size
    code = (
        "import sys; from rerank_udf.models.hub import downloaded_folder; "
        "from rerank_udf.models.cache import file_digest; "
    )
    code += (
        f"folder = downloaded_folder({REPOSITORY!r}, {COMMIT!r}, {{{{'model.safetensors': sys.argv[0] and "
    )
    code += f"{hub.digest('model.safetensors')!r}}}}}); print(file_digest(folder / 'model.safetensors'))"
    before = hub.bytes_sent["model.safetensors"]
    hub.corrupt["model.safetensors"] = 1
    status, output, errors = run(hub, tmp_path / "cache", code)
    assert status == 0, errors
    assert output == hub.digest("model.safetensors")
    assert hub.bytes_sent["model.safetensors"] - before == 2 * size


def test_a_download_that_stays_corrupted_is_an_error_with_both_digests(
    hub: StandInHub, tmp_path: Path
) -> None:
    status, _, errors = run(hub, tmp_path / "cache", DOWNLOAD, digests={"model.safetensors": "f" * 64})
    assert status != 0
    assert (
        f"came with sha256 {hub.digest('model.safetensors')}, 2 times, where {'f' * 64} was expected"
        in errors
    )
    assert not list((tmp_path / "cache").rglob("model.safetensors"))


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            {"name": "nobody/nothing"},
            "the hub model nobody/nothing at revision main: there is no such repository",
        ),
        (
            {"revision": "v9"},
            "the repository has no such revision: give one of its commits, tags or branches",
        ),
    ],
)
def test_what_the_hub_does_not_have_is_said(
    hub: StandInHub, tmp_path: Path, names: dict[str, str], sentence: str
) -> None:
    code, _, errors = run(hub, tmp_path / "cache", **names)
    assert code != 0
    assert sentence in errors


def test_a_repository_with_pickled_weights_only_is_refused_on_the_driver(
    hub: StandInHub, tmp_path: Path
) -> None:
    (hub.folder / "model.safetensors").unlink()
    code, _, errors = run(hub, tmp_path / "cache", RESOLVE)
    assert code != 0
    assert "has its weights only as pytorch_model.bin" in errors


def test_a_hub_that_is_away_is_said(hub: StandInHub, tmp_path: Path) -> None:
    hub.server_close()
    code, _, errors = run(hub, tmp_path / "cache", RESOLVE)
    assert code != 0
    assert "the hub could not be reached or gave an error" in errors
