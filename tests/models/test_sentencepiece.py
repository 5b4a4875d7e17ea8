from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
from model_folders import write_model, xlmr_config
from tokenizers import Tokenizer

from rerank_udf.errors import ModelError
from rerank_udf.models import resolve_model
from rerank_udf.models.sentencepiece import converted_tokenizer, tokenizer_json
from rerank_udf.tokens import PairLimits, PairTokenizer, read_tokenizer

SENTENCES = [
    "how long does a refund take",
    "refunds take five days",
    "we ship on monday",
    "der fluss fließt durch die stadt",
    "日本の首都は東京です",
    "ﬁve ① Ｆｕｌｌ width",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small unigram model that the sentencepiece library trains, in XLM-R's file name."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_prefix=str(folder / "sentencepiece.bpe"),
        vocab_size=90,
        model_type="unigram",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder / "sentencepiece.bpe.model"


@pytest.mark.parametrize(
    "text", [*SENTENCES, "", "two  spaces", " in front", "unseen: Ω", "e\u0301", "refundsdays"]
)
def test_ids_are_the_librarys_own_moved_by_fairseqs_one(trained: Path, text: str) -> None:
    library = sentencepiece.SentencePieceProcessor(model_file=str(trained))
    expected = [3 if number == library.unk_id() else number + 1 for number in library.encode(text)]
    path, _ = converted_tokenizer(trained)
    assert read_tokenizer(path).encode(text, add_special_tokens=False).ids == expected


def test_special_tokens_stand_where_xlm_r_has_them(trained: Path) -> None:
    tokenizer = Tokenizer.from_file(str(converted_tokenizer(trained)[0]))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(trained)).get_piece_size()
    tokens = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    assert [tokenizer.token_to_id(token) for token in tokens] == [0, 1, 2, 3, pieces + 1]
    assert tokenizer.encode("we", "we").ids[0] == 0
    assert tokenizer.encode("we", "we").ids.count(2) == 3


def test_a_literal_mask_takes_the_space_before_it(trained: Path) -> None:
    tokenizer = Tokenizer.from_file(str(converted_tokenizer(trained)[0]))
    assert tokenizer.encode("we  <mask>", add_special_tokens=False).tokens[-1] == "  <mask>"


def test_the_conversion_is_made_once_and_its_digest_is_of_its_bytes(trained: Path) -> None:
    path, digest = converted_tokenizer(trained)
    before = path.stat().st_mtime_ns
    assert converted_tokenizer(trained) == (path, digest)
    assert path.stat().st_mtime_ns == before
    assert json.loads(path.read_text(encoding="utf-8")) == tokenizer_json(trained)


def test_a_folder_with_nothing_newer_is_tokenised_by_the_conversion(trained: Path) -> None:
    encoded = PairTokenizer.from_folder(trained.parent, PairLimits()).encode(["we"], ["ship"])
    assert encoded.token_ids[0] == 0
    assert encoded.token_ids.tolist().count(2) == 3


@pytest.mark.parametrize(
    "content", [b"", b"\x0a\xff\xff\xff", b"no sentencepiece model at all", b"\x0a\x03\x0a\x01a"]
)
def test_what_is_no_sentencepiece_model_is_a_model_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "sentencepiece.bpe.model").write_bytes(content)
    with pytest.raises(ModelError, match=r"sentencepiece model"):
        tokenizer_json(tmp_path / "sentencepiece.bpe.model")


def test_another_kind_of_sentencepiece_model_is_a_model_error(tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_prefix=str(tmp_path / "c"),
        vocab_size=60,
        model_type="char",
        minloglevel=2,
    )
    with pytest.raises(ModelError, match="no unigram sentencepiece model"):
        tokenizer_json(tmp_path / "c.model")


def test_ids_of_another_family_are_not_guessed(trained: Path, tmp_path: Path) -> None:
    """CamemBERT's pieces stand four places further on."""
    write_model(
        tmp_path, xlmr_config(model_type="camembert", architectures=["CamembertForSequenceClassification"])
    )
    shutil.copyfile(trained, tmp_path / "sentencepiece.bpe.model")
    with pytest.raises(
        ModelError, match=r"sentencepiece.bpe.model and no tokenizer.json, and its ids are not XLM-R"
    ):
        resolve_model(str(tmp_path))
