"""Write tests/reference/golden/*.parquet: what the pinned reference does with every case (`make golden`).

Run in the environment of constraints-reference.txt:

    .venv-reference/bin/python tests/reference/make_golden.py [tiny-xlmr] [tiny-bert] [mini] [--mini FOLDER]

A row is one pair under one setting: the ids that reached the reference's model, their token types (BERT), its float32
logit and FlagReranker's normalised score (null for CrossEncoder). Texts over 2,000 characters are not stored: they
follow from reference_cases.py by name, and their digests are here to notice when they no longer do. Versions, machine,
command, digests of the model and what was observed on the way are in the file's schema metadata, under `header`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from make_models import MODELS, weights_digest, write_model
from reference_cases import CROSS_ENCODER, FLAG, ONE_TOKEN_WORDS, Group, groups
from reference_run import Pair, Reference, Reply, versions
from transformers import AutoTokenizer

GOLDEN = Path(__file__).parent / "golden"
LONGEST_STORED_TEXT = 2_000
PADDED_BATCH = 16
SCHEMA = pa.schema(
    [
        ("group", pa.string()),
        ("case", pa.string()),
        ("reference", pa.string()),
        ("max_length", pa.int32()),
        ("query_max_length", pa.int32()),
        ("truncation", pa.string()),
        ("query", pa.string()),
        ("passage", pa.string()),
        ("texts_sha256", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("type_ids", pa.list_(pa.uint8())),
        ("logit", pa.float32()),
        ("score", pa.float64()),
    ]
)


def texts_sha256(query: str, passage: str) -> str:
    """One digest for both texts of a case."""
    return hashlib.sha256(json.dumps([query, passage]).encode()).hexdigest()


def make(model: str, folder: Path) -> None:
    """Run every group of `model` and write its golden file."""
    reference = Reference(folder)
    _check_one_token_words(reference, model)
    rows: list[dict[str, Any]] = []
    padding_moves_logits = 0.0
    for group in groups(model):
        pairs = [(case.query, case.passage) for case in group.cases]
        limits = {"reference": group.reference, "max_length": group.max_length}
        limits["query_max_length"] = group.query_max_length
        alone = reference.run(pairs, **limits)
        padded = reference.run(pairs, **limits, batch_size=PADDED_BATCH)
        padding_moves_logits = max(padding_moves_logits, _largest_difference(alone, padded, group))
        rows += _rows(group, alone, _scores(reference, group, pairs))
        print(f"{model}: {group.name}: {len(pairs)} pairs", flush=True)
    header = {
        **_made_by(model),
        "weights_digest": weights_digest(folder),
        "files_sha256": {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in ("model.safetensors", "tokenizer.json")
        },
        "observed": {
            "largest_logit_difference_alone_or_in_a_padded_batch": padding_moves_logits,
        },
    }
    if model == "tiny-xlmr":
        differing = _hub_layout_differences(folder)
        header["observed"]["cases_where_the_hub_s_tokenizer_config_json_gives_other_ids"] = differing
    GOLDEN.mkdir(exist_ok=True)
    table = pa.Table.from_pylist(rows, SCHEMA.with_metadata({"header": json.dumps(header)}))
    pq.write_table(table, GOLDEN / f"{model}.parquet", compression="zstd", compression_level=19)
    print(json.dumps(header, indent=2, ensure_ascii=False))


def _made_by(model: str) -> dict[str, Any]:
    return {
        "command": f"python tests/reference/make_golden.py {model}",
        "versions": versions(),
        "machine": {"system": platform.system(), "processor": _processor(), "cores": os.cpu_count()},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _check_one_token_words(reference: Reference, model: str) -> None:
    """Border cases count words: each must be one token, wherever it stands."""
    if model == "mini":
        return
    text = " ".join(ONE_TOKEN_WORDS * 2)
    ids = reference.flag.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 2 * len(ONE_TOKEN_WORDS):
        raise SystemExit(f"{model} has {len(ids)} tokens for {text!r}; border cases need one a word")


def _largest_difference(alone: Sequence[Reply], padded: Sequence[Reply], group: Group) -> float:
    """How far padding moves a logit; the ids must not move at all."""
    for case, one, other in zip(group.cases, alone, padded, strict=True):
        if (one.token_ids, one.type_ids) != (other.token_ids, other.type_ids):
            raise SystemExit(f"{group.name}: {case.name}: the reference's ids change with the batch")
    return max(abs(one.logit - other.logit) for one, other in zip(alone, padded, strict=True))


def _scores(reference: Reference, group: Group, pairs: Sequence[Pair]) -> list[float | None]:
    if group.reference == CROSS_ENCODER:
        return [None] * len(pairs)
    limits: dict[str, Any] = {"max_length": group.max_length, "query_max_length": group.query_max_length}
    limits |= {"normalize": True, "batch_size": 2}  # a full batch would draw progress bars
    return [float(reference.flag.compute_score([pair], **limits)[0]) for pair in pairs]


def _rows(group: Group, replies: Sequence[Reply], scores: Sequence[float | None]) -> Iterator[dict[str, Any]]:
    for case, reply, score in zip(group.cases, replies, scores, strict=True):
        stored = [text if len(text) <= LONGEST_STORED_TEXT else None for text in (case.query, case.passage)]
        yield {
            "group": group.name,
            "case": case.name,
            "reference": group.reference,
            "max_length": group.max_length,
            "query_max_length": group.query_max_length,
            "truncation": group.truncation,
            "query": stored[0],
            "passage": stored[1],
            "texts_sha256": texts_sha256(case.query, case.passage),
            "token_ids": reply.token_ids,
            "type_ids": reply.type_ids,
            "logit": np.float32(reply.logit),
            "score": score,
        }


def _hub_layout_differences(folder: Path) -> list[str]:
    """Cases whose ids change when the folder also holds the tokenizer_config.json that XLM-R rerankers have on the hub.

    Its `<mask>` takes the space before it, which is also what the tokenizer class assumes where there is no such file.
    """
    mask = {"content": "<mask>", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False}
    signs = {
        "bos": "<s>",
        "eos": "</s>",
        "cls": "<s>",
        "sep": "</s>",
        "pad": "<pad>",
        "unk": "<unk>",
        "mask": "<mask>",
    }
    settings = {
        "added_tokens_decoder": {"250001": {**mask, "special": True}},
        "clean_up_tokenization_spaces": True,
        "model_max_length": 8192,
        "tokenizer_class": "XLMRobertaTokenizer",
        "sp_model_kwargs": {},
        **{f"{name}_token": sign for name, sign in signs.items()},
    }
    with tempfile.TemporaryDirectory() as place:
        hub = Path(place)
        for name in ("config.json", "tokenizer.json"):
            shutil.copy(folder / name, hub)
        (hub / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        bare_tokenizer, hub_tokenizer = (AutoTokenizer.from_pretrained(str(place)) for place in (folder, hub))
    differing = []
    for group in groups("tiny-xlmr"):
        for case in group.cases if group.reference == FLAG and "border" not in group.name else ():
            texts = [case.query, case.passage]
            bare = bare_tokenizer(texts, add_special_tokens=False)["input_ids"]
            if bare != hub_tokenizer(texts, add_special_tokens=False)["input_ids"]:
                differing.append(f"{group.name}: {case.name}")
    return differing


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models", nargs="*", help=f"of {', '.join(MODELS)}, mini; without: {', '.join(MODELS)}"
    )
    parser.add_argument("--mini", type=Path, help="folder of the assembled mini model (needed for mini)")
    arguments = parser.parse_args()
    for model in arguments.models or MODELS:
        if model == "mini":
            if arguments.mini is None:
                sys.exit("mini needs --mini FOLDER, the folder that rerank_udf.models.mini assembles")
            make(model, arguments.mini)
            continue
        with tempfile.TemporaryDirectory() as place:
            make(model, write_model(model, Path(place)))


if __name__ == "__main__":
    main()
