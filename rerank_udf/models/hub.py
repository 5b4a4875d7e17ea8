"""Models from the Hugging Face hub: resolved on the driver, downloaded once per node, verified, then offline."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from rerank_udf.errors import ModelError
from rerank_udf.models.cache import cache_root, complete_folder, file_digest, marked_digests

_ATTEMPTS = 2
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubModel:
    """A repository at a commit: `sizes` are its files, `lfs_digests` the sha256 that the hub states for some."""

    name: str
    commit: str
    sizes: dict[str, int]
    lfs_digests: dict[str, str] = field(repr=False)

    def fetch(self, file: str) -> Path:
        """A small file, from the driver's cache or downloaded. Raises ModelError where that fails."""
        from huggingface_hub import hf_hub_download

        try:
            path = hf_hub_download(
                self.name, file, revision=self.commit, cache_dir=str(cache_root() / "hub" / "driver")
            )
        except Exception as error:
            raise _unreachable(self.name, error) from error
        return Path(path)

    def digest(self, file: str) -> str:
        """A file's sha256: as the hub states it, else of the file itself."""
        return self.lfs_digests.get(file) or file_digest(self.fetch(file))

    def tensor_shapes(self, files: list[str]) -> dict[str, tuple[int, ...]]:
        """Name → shape of the tensors in safetensors files, from their first bytes alone."""
        from huggingface_hub import HfApi

        shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            try:
                found = HfApi().parse_safetensors_file_metadata(self.name, file, revision=self.commit)
            except Exception as error:
                raise _unreachable(f"{self.name}/{file}", error) from error
            shapes |= {name: tuple(tensor.shape) for name, tensor in found.tensors.items()}
        return shapes


def look_up(name: str, revision: str) -> HubModel:
    """Ask the hub for a repository's commit and files. Raises ModelError where it has none such, or is away."""
    from huggingface_hub import HfApi

    try:
        found = HfApi().model_info(name, revision=revision, files_metadata=True)
    except Exception as error:
        raise _unreachable(f"{name} at revision {revision}", error) from error
    files = found.siblings or []
    return HubModel(
        name,
        str(found.sha),
        {file.rfilename: file.size or 0 for file in files},
        {file.rfilename: str(file.lfs["sha256"]) for file in files if file.lfs},
    )


def kept_folder(name: str, revision: str) -> Path | None:
    """This node's complete copy where `revision` is a whole commit and was downloaded before; asks no network."""
    if not _COMMIT.fullmatch(revision):
        return None
    folder = _place(name, revision)
    return folder if marked_digests(folder) else None


def downloaded_folder(name: str, commit: str, digests: dict[str, str]) -> Path:
    """This node's copy of a hub model, downloaded on the first call of any process; no network afterwards.

    After a download that died, the files that were whole are kept; a file whose sha256 is wrong is fetched once
    more. Raises ModelError where the hub cannot be reached or the file stays wrong.
    """

    def build(folder: Path) -> dict[str, str]:
        for file, digest in digests.items():
            _download(name, commit, file, digest, folder)
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # huggingface_hub's notes for resuming
        return digests

    return complete_folder(_place(name, commit), build)


def _place(name: str, commit: str) -> Path:
    return cache_root() / "hub" / name.replace("/", "--") / commit


def _download(name: str, commit: str, file: str, digest: str, folder: Path) -> None:
    from huggingface_hub import hf_hub_download

    found = ""
    for _ in range(_ATTEMPTS):
        try:
            hf_hub_download(name, file, revision=commit, local_dir=str(folder))
        except Exception as error:
            raise _unreachable(f"{name}/{file}", error) from error
        found = file_digest(folder / file)
        if found == digest:
            return
        (folder / file).unlink()
    raise ModelError(
        f"{name}/{file} came with sha256 {found}, {_ATTEMPTS} times, where {digest} was expected: check the proxy or "
        "mirror between this node and the hub"
    )


def _unreachable(what: str, error: Exception) -> ModelError:
    kind = type(error).__name__
    hint = {
        "RepositoryNotFoundError": "there is no such repository, or it is private: check the id, set HF_TOKEN",
        "GatedRepoError": "the repository asks for consent: accept its terms on the hub, and set HF_TOKEN",
        "RevisionNotFoundError": "the repository has no such revision: give one of its commits, tags or branches",
        "EntryNotFoundError": "the repository has no such file at this revision",
    }.get(
        kind,
        "the hub could not be reached or gave an error; on nodes without a network give a folder instead",
    )
    first_line = str(error).strip().split("\n")[0]
    return ModelError(f"the hub model {what}: {hint} ({kind}: {first_line})")
