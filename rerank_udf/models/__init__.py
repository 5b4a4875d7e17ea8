"""From a model's name to its verified files on this node.

The driver resolves a name once (`resolve_model`): which files, which revision, which digests. Each node gets the
folder (`local_folder`): a hub model is downloaded once under a lock, a folder is verified in place. After that no
network is used.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rerank_udf.errors import ConfigError, ModelError
from rerank_udf.models import checkpoint, hub, mini
from rerank_udf.models.cache import remembered_digests
from rerank_udf.models.checkpoint import (
    CONFIG_FILE,
    HASH_MODEL_TYPE,
    INDEX_FILE,
    SENTENCEPIECE_FILE,
    TOKENIZER_FILE,
    Architecture,
)
from rerank_udf.models.sentencepiece import converted_tokenizer

MINI = "mini"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_URI = re.compile(r"[a-z][a-z0-9+]*:/", re.IGNORECASE)


@dataclass(frozen=True)
class ModelFiles:
    """A resolved model: picklable, and the same for every node.

    `location` is an absolute path, a hub id, or "" for mini; `revision` a commit of 40 hex digits for a hub
    model; `digests` sha256 hex by file name. `architecture` is None for the hash scorer, which has no weights.
    """

    name: str
    source: Literal["folder", "hub", "mini"]
    location: str
    revision: str | None
    digests: dict[str, str]
    architecture: Architecture | None = None


def resolve_model(name: str | Path, revision: str | None = None) -> ModelFiles:
    """Find a model, check that it is a one-label cross-encoder, pin its revision, digest its files.

    `name` is "mini", a folder, or a hub id (which needs `revision`: a commit, tag or branch). Reads headers
    only, never the weights of a hub model. Raises ModelError where there is no such model or its files do not
    fit together, ConfigError for a revision that is missing or out of place.
    """
    text = str(name)
    if text == MINI:
        _refuse_revision(text, revision)
        return ModelFiles(MINI, "mini", "", None, mini.digests(), mini.ARCHITECTURE)
    if _URI.match(text) and not text.startswith("file:/"):
        raise ModelError(
            f"the model {text!r} is a URI; expected a hub id or a folder: mount it, or ship it to every node "
            "(spark-submit --archives model.tar.gz#model) and give the path that it has there"
        )
    folder = Path(re.sub(r"^file:/+", "/", text)).expanduser()
    if folder.is_dir():
        _refuse_revision(text, revision)
        return _resolve_folder(text, folder.absolute())
    if isinstance(name, Path) or not _HUB_ID.fullmatch(text):
        raise ModelError(f"there is no model folder {folder} here: give a folder that holds {CONFIG_FILE}")
    if revision is None:
        raise ConfigError(
            f"{text!r} is no folder here; as a hub id it needs a revision (model.revision: a commit, tag or "
            "branch), so that every run and every node uses the same weights"
        )
    return _resolve_hub(text, revision)


def local_folder(files: ModelFiles) -> Path:
    """This node's folder with the model, complete and verified.

    Mini is assembled and a hub model downloaded once per node, under a lock. Raises ModelError where the folder
    is absent or a digest differs from what the driver saw.
    """
    if files.source == "mini":
        folder = mini.assembled_folder()
        if mini.digests() != files.digests:
            raise ModelError(
                "the model mini of this node is not the driver's: another version of this package, or of its parts, is "
                "installed here; install the same on both"
            )
    elif files.source == "hub":
        assert files.revision is not None
        folder = hub.downloaded_folder(files.location, files.revision, _shipped(files.digests))
    else:
        folder = _folder_here(files)
        _verify_in_place(folder, _shipped(files.digests))
    if SENTENCEPIECE_FILE in files.digests:
        _verify_conversion(folder / SENTENCEPIECE_FILE, files.digests[TOKENIZER_FILE])
    return folder


def tokenizer_folder(files: ModelFiles) -> Path:
    """A folder on this machine with the model's tokenizer, and maybe nothing else.

    Of a hub model no weights are fetched. Raises ModelError as `local_folder` does.
    """
    if files.source != "hub":
        return local_folder(files)
    assert files.revision is not None
    kept = hub.kept_folder(files.location, files.revision)
    if kept is not None:
        return kept
    found = hub.look_up(files.location, files.revision)
    shipped = SENTENCEPIECE_FILE if SENTENCEPIECE_FILE in files.digests else TOKENIZER_FILE
    return found.fetch(shipped).parent


def _resolve_folder(name: str, folder: Path) -> ModelFiles:
    available = [path.name for path in folder.iterdir() if path.is_file()]
    if CONFIG_FILE in available:
        config = checkpoint.read_json(folder / CONFIG_FILE)
        if config.get("model_type") == HASH_MODEL_TYPE:
            return ModelFiles(name, "folder", str(folder), None, remembered_digests(folder, [CONFIG_FILE]))
    model = f"the folder {name}"
    needed = checkpoint.needed_files(available, model)
    architecture = checkpoint.read_architecture(config, model)
    checkpoint.check_conversion(architecture, needed, model)
    if INDEX_FILE in needed:
        shards = checkpoint.shard_names(checkpoint.read_json(folder / INDEX_FILE), model)
        _require(shards, available, model)
        needed += shards
    checkpoint.check_tensors(architecture, checkpoint.tensor_shapes(checkpoint.weight_files(folder)), model)
    digests = remembered_digests(folder, needed)
    tokenizer = folder / TOKENIZER_FILE
    if SENTENCEPIECE_FILE in needed:
        tokenizer, digests[TOKENIZER_FILE] = converted_tokenizer(folder / SENTENCEPIECE_FILE)
    checkpoint.check_vocabulary(architecture, checkpoint.tokenizer_ids(tokenizer), model)
    return ModelFiles(name, "folder", str(folder), None, digests, architecture)


def _resolve_hub(name: str, revision: str) -> ModelFiles:
    model = f"the hub model {name}"
    if kept := hub.kept_folder(name, revision):
        return replace(_resolve_folder(name, kept), source="hub", location=name, revision=revision)
    found = hub.look_up(name, revision)
    needed = checkpoint.needed_files(found.sizes, model)
    architecture = checkpoint.read_architecture(checkpoint.read_json(found.fetch(CONFIG_FILE)), model)
    checkpoint.check_conversion(architecture, needed, model)
    if INDEX_FILE in needed:
        shards = checkpoint.shard_names(checkpoint.read_json(found.fetch(INDEX_FILE)), model)
        _require(shards, list(found.sizes), model)
        needed += shards
    weights = [file for file in needed if file.endswith(".safetensors")]
    checkpoint.check_tensors(architecture, found.tensor_shapes(weights), model)
    digests = {file: found.digest(file) for file in needed}
    if SENTENCEPIECE_FILE in needed:
        tokenizer, digests[TOKENIZER_FILE] = converted_tokenizer(found.fetch(SENTENCEPIECE_FILE))
    else:
        tokenizer = found.fetch(TOKENIZER_FILE)
    checkpoint.check_vocabulary(architecture, checkpoint.tokenizer_ids(tokenizer), model)
    return ModelFiles(name, "hub", name, found.commit, digests, architecture)


def _refuse_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise ConfigError(
            f"revision {revision!r} is given with the model {name!r}; only a hub id has revisions"
        )


def _require(names: list[str], available: list[str], model: str) -> None:
    absent = sorted(set(names) - set(available))
    if absent:
        raise ModelError(f"{model}: {INDEX_FILE} names {', '.join(absent)}, which are not there")


def _folder_here(files: ModelFiles) -> Path:
    """The folder on this node: the driver's path, or the relative one where Spark has put shipped files.

    Spark unpacks --archives into a Python worker's working directory and puts the folder of --files on sys.path.
    """
    places = [Path(files.location)]
    if not Path(files.name).is_absolute():
        places += [Path(base or ".") / files.name for base in ("", *sys.path)]
    for place in places:
        if (place / CONFIG_FILE).is_file():
            return place.absolute()
    raise ModelError(
        f"the model folder {files.location} is not on this node: mount it at the same path everywhere, or ship it "
        "(spark-submit --archives model.tar.gz#model) and name it by its relative path"
    )


def _shipped(digests: dict[str, str]) -> dict[str, str]:
    """The digests of the files that the model ships: without a tokenizer.json that is converted on the node."""
    converted = {TOKENIZER_FILE} if SENTENCEPIECE_FILE in digests else set()
    return {name: digest for name, digest in digests.items() if name not in converted}


def _verify_in_place(folder: Path, expected: dict[str, str]) -> None:
    _require_files(folder, list(expected))
    found = remembered_digests(folder, expected)
    for name, digest in expected.items():
        if found[name] != digest:
            raise ModelError(
                f"{folder / name} has sha256 {found[name]} on this node, but the driver found {digest}: the folder "
                "must hold the same files on every node, and not change during a run"
            )


def _require_files(folder: Path, names: list[str]) -> None:
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise ModelError(
            f"{folder} lacks {', '.join(absent)} on this node, which the driver found: copy it whole"
        )


def _verify_conversion(source: Path, expected: str) -> None:
    _, digest = converted_tokenizer(source)
    if digest != expected:
        raise ModelError(
            f"{source} gives a tokenizer.json with sha256 {digest} here, but {expected} on the driver: run the same "
            "version of rerank_udf on every node"
        )
