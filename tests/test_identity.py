import hashlib

import pytest

from rerank_udf.identity import model_key, pair_key, text_key

SETTINGS = {
    "precision": "float32",
    "max_length": 512,
    "query_max_length": 384,
    "truncation": "only_second",
    "numerics_version": 1,
}


def test_a_text_key_is_the_head_of_its_sha256():
    assert text_key("ä") == hashlib.sha256(b"\xc3\xa4").digest()[:16]


def test_a_pair_key_tells_the_two_sides_apart():
    a, b = text_key("a"), text_key("b")
    assert pair_key(a, b) == hashlib.sha256(a + b).digest()[:16]
    assert pair_key(a, b) != pair_key(b, a)


def test_composed_and_decomposed_letters_are_different_texts():
    assert text_key("\u00e9") != text_key("e\u0301")


def test_a_model_key_is_32_hex_digits_and_does_not_depend_on_the_order_of_files():
    key = model_key({"a": "1", "b": "2"}, **SETTINGS)
    assert len(bytes.fromhex(key)) == 16
    assert key == model_key({"b": "2", "a": "1"}, **SETTINGS)


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "float16"},
        {"max_length": 256},
        {"query_max_length": None},
        {"truncation": "longest_first"},
        {"numerics_version": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_moves_a_score_makes_another_model_key(change):
    files = {"model.safetensors": "00"}
    assert model_key(files, **SETTINGS) != model_key(files, **(SETTINGS | change))


def test_other_weights_make_another_model_key():
    assert model_key({"model.safetensors": "00"}, **SETTINGS) != model_key(
        {"model.safetensors": "01"}, **SETTINGS
    )
