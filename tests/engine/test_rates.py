"""FLOPs by hand and by torch's own counter; the rate only for being a rate: a test has no business with a clock."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch
from model_folders import bert_config, xlmr_config
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForSequenceClassification

from rerank_udf.engine import rates
from rerank_udf.engine.rates import matrix_product_rate, necessary_flops, product_rates, product_shapes
from rerank_udf.models.checkpoint import Architecture, read_architecture


def tiny(**changes: int) -> Architecture:
    return read_architecture(xlmr_config(**changes), "tiny")


def test_flops_of_one_layer_are_those_of_its_first_token():
    one = tiny(hidden_size=2, num_hidden_layers=1, num_attention_heads=1, intermediate_size=3)
    # one token's row vector times (2, 2): q, W_kᵀ q, W_v, output, head's dense: 4 multiply-adds each, 20
    # feed-forward (2, 3) and (3, 2): 12; three tokens' scores and their weighted sum, 2 each: 12; the label: 2
    assert necessary_flops(one, [3]) == 2 * (20 + 12 + 12 + 2)


def test_flops_of_a_whole_layer_are_counted_for_every_token():
    sizes = {"hidden_size": 2, "num_attention_heads": 2, "intermediate_size": 3}
    two, one = tiny(num_hidden_layers=2, **sizes), tiny(num_hidden_layers=1, **sizes)
    # three tokens: Q, K, V, output 4 x 4 each, feed-forward 12 each; QKᵀ and AV: 3 x 3 entries of 2 multiply-adds each
    assert necessary_flops(two, [3]) - necessary_flops(one, [3]) == 2 * (3 * 16 + 3 * 12 + 2 * 9 * 2)


def test_flops_of_several_sequences_add_up_and_do_not_overflow():
    large = tiny(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    lengths = np.array([8192, 2, 500], dtype=np.int32)
    assert necessary_flops(large, np.tile(lengths, 1000)) == pytest.approx(
        1000 * sum(necessary_flops(large, [n]) for n in (8192, 2, 500))
    )
    assert necessary_flops(large, []) == 0


@pytest.mark.parametrize("config", [xlmr_config(), bert_config(num_hidden_layers=3, intermediate_size=48)])
def test_flops_are_transformers_own_less_what_the_last_layer_saves(tmp_path, config):
    tokens = 37
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = AutoModelForSequenceClassification.from_config(
        AutoConfig.from_pretrained(tmp_path), attn_implementation="eager"
    ).eval()
    ids = torch.full((1, tokens), 5)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    h, f, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    others = tokens - 1
    saved = others * (2 * h * h + 2 * h * f)  # Q and output, feed-forward: not for the other tokens
    saved += 2 * others * tokens * h  # nor their rows of QKᵀ and AV
    saved += 2 * tokens * h * h - 2 * h * h  # W_k and W_v once for the first token, not for every token
    saved -= 2 * tokens * (heads - 1) * h  # but scores and weighted sums over whole states, in every head
    found = necessary_flops(read_architecture(config, "tiny"), [tokens])
    assert counter.get_total_flops() - found == 2 * saved


def test_the_shapes_are_those_of_a_layers_products():
    assert product_shapes(tiny()) == ((32, 96), (32, 32), (32, 64), (64, 32))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16", "int8"])
def test_each_library_that_has_the_precision_is_measured_in_each_shape(monkeypatch, precision):
    monkeypatch.setattr(rates, "SECONDS_PER_PRODUCT", 1e-9)
    monkeypatch.setattr(rates, "_CHUNK_SECONDS", 1e-9)
    openvino = importlib.util.find_spec("openvino") is not None
    if precision == "int8" and not openvino:
        pytest.skip("openvino is not installed")
    found = product_rates(precision, "cpu", tiny(), rows=16)
    expected = {"torch"} if precision != "int8" else set()
    assert set(found) == expected | ({"openvino"} if openvino and precision != "float16" else set())
    assert all(len(by_shape) == 4 and min(by_shape) > 0 for by_shape in found.values())


def test_the_faster_library_counts_for_each_shape_and_the_shapes_by_their_flops(monkeypatch):
    measured = {"torch": (10.0, 40.0, 5.0, 20.0), "openvino": (20.0, 4.0, 10.0, 5.0)}
    monkeypatch.setattr(rates, "product_rates", lambda *_: measured)
    # shapes of 3072, 1024, 2048 and 2048 multiply-adds a row at 20, 40, 10 and 20 a second
    seconds = 3072 / 20 + 1024 / 40 + 2048 / 10 + 2048 / 20
    assert matrix_product_rate("float32", "cpu", tiny()) == pytest.approx(8192 / seconds)


def test_the_card_that_is_measured_is_the_one_that_is_waited_for(monkeypatch):
    """Without a device torch would wait for card 0, and make itself at home on it."""
    card, waited_for = torch.device("cuda:1"), []
    monkeypatch.setattr(rates, "SECONDS_PER_PRODUCT", 1e-9)
    monkeypatch.setattr(rates, "_CHUNK_SECONDS", 1e-9)
    monkeypatch.setattr(rates, "torch_device", torch.device)
    monkeypatch.setattr(rates, "_torch_product", lambda *_: int)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited_for.append(device))
    assert set(product_rates("float16", "cuda:1", tiny())) == {"torch"}
    assert set(waited_for) == {card}


def test_a_precision_that_nothing_here_has_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="no library here multiplies matrices in int8 on cpu"):
        matrix_product_rate("int8", "cpu", tiny())


def test_threads_are_put_back(monkeypatch):
    monkeypatch.setattr(rates, "SECONDS_PER_PRODUCT", 1e-9)
    monkeypatch.setattr(rates, "_CHUNK_SECONDS", 1e-9)
    before = torch.get_num_threads()
    monkeypatch.setenv("RERANK_UDF_THREADS", str(before + 1))
    assert matrix_product_rate("float32", "cpu", tiny(), rows=4) > 0
    assert torch.get_num_threads() == before
