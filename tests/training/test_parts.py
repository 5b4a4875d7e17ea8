"""The pieces of a training step, each against an independent computation of the same."""

import pickle
import shutil

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification

from rerank_udf.tokens import PairLimits, PairTokenizer
from rerank_udf.training import forward
from rerank_udf.training.encode import ListEncoder
from rerank_udf.training.forward import TrainedEncoder
from rerank_udf.training.lists import TrainingList
from rerank_udf.training.loss import list_loss
from rerank_udf.training.optimizer import MasterAdamW, parameter_groups
from rerank_udf.training.run import Collator
from rerank_udf.training.settings import Loss, Optimizer

LONG = "the river bank is open on monday and we ship red fish to paris in five days " * 6


@pytest.fixture(params=["tiny_xlmr", "tiny_bert"])
def folder(request):
    return request.getfixturevalue(request.param)


def loaded(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder).float().eval()


def a_list(max_length=24, query="how long does the refund take"):
    passages = ["refund in five days", LONG, "", "the bird is red"]
    return TrainingList("faq", query, passages, True, np.full(4, np.nan, np.float32), max_length)


def encoder(folder, best_part=False):
    return ListEncoder(folder, loaded(folder).config.pad_token_id, best_part)


def test_ids_are_those_that_scoring_gives(folder):
    one = a_list()
    expected = PairTokenizer.from_folder(folder, PairLimits(max_length=24)).encode(
        [one.query] * 4, one.passages
    )
    found = encoder(folder).pairs(one)
    assert [pair.ids for pair in found] == [
        expected.token_ids[start:stop].tolist()
        for start, stop in zip(expected.offsets[:-1], expected.offsets[1:], strict=True)
    ]


def test_the_best_part_of_a_long_passage_holds_most_of_the_question(tiny_bert):
    passage = "the river bank " * 20 + "refund in five days " + "the red fish " * 20
    one = TrainingList("faq", "refund in five days", [passage], True, np.full(1, np.nan, np.float32), 16)
    (cut,), (best,) = encoder(tiny_bert).pairs(one), encoder(tiny_bert, best_part=True).pairs(one)
    assert len(cut.ids) == len(best.ids) == 16
    query = set(best.ids[1:5])
    assert query <= set(best.ids[best.passage_at :])
    assert not query & set(cut.ids[cut.passage_at :])


@pytest.fixture(params=["_plain", "_fused"])
def attend(request, monkeypatch):
    """Attention as a CPU computes it, and as a card does."""
    monkeypatch.setattr(forward, "_plain", getattr(forward, request.param))


@pytest.mark.parametrize("frozen", [None, 0, 1])
def test_logits_are_transformers_own(folder, frozen, attend):
    model, lists = loaded(folder), encoder(folder)
    batches = lists.batches(lists.pairs(a_list()), max_tokens=64)
    assert len(batches) > 1
    for batch in batches:
        given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        types = {} if batch.token_type_ids is None else {"token_type_ids": batch.token_type_ids}
        with torch.no_grad():
            expected = model(**given, **types).logits[:, 0]
        torch.testing.assert_close(
            TrainedEncoder(model, frozen)(**given, **types), expected, atol=1e-5, rtol=1e-5
        )


def test_nothing_is_dropped_in_training_whatever_trainer_asks_for(folder):
    model, lists = loaded(folder), encoder(folder)
    assert any(one.p > 0 for one in model.modules() if isinstance(one, torch.nn.Dropout))
    (batch,) = lists.batches(lists.pairs(a_list()), max_tokens=1000)
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    ours = TrainedEncoder(model, None)
    ours.train()
    assert torch.equal(ours(**given), ours(**given))


@pytest.mark.parametrize("strategy", ["longest", "fixed"])
def test_what_a_tokenizers_file_says_of_padding_and_truncation_is_not_heeded(tiny_bert, tmp_path, strategy):
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(tiny_bert / name, tmp_path / name)
    tokenizer = Tokenizer.from_file(str(tiny_bert / "tokenizer.json"))
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=40 if strategy == "fixed" else None)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    one = a_list(max_length=48)
    assert encoder(tmp_path).pairs(one) == encoder(tiny_bert).pairs(one)


def test_gradients_are_transformers_own(folder, attend):
    lists, (ours, theirs) = encoder(folder), (loaded(folder), loaded(folder))
    (batch,) = lists.batches(lists.pairs(a_list()), max_tokens=1000)
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if batch.token_type_ids is not None:
        given["token_type_ids"] = batch.token_type_ids
    TrainedEncoder(ours, None)(**given).square().sum().backward()
    theirs(**given).logits.square().sum().backward()
    for (name, own), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        expected = torch.zeros_like(other) if other.grad is None else other.grad
        found = torch.zeros_like(own) if own.grad is None else own.grad
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3, msg=name)


def test_what_is_frozen_has_no_gradient(tiny_xlmr):
    model, lists = loaded(tiny_xlmr), encoder(tiny_xlmr)
    model.base_model.embeddings.requires_grad_(False)
    model.base_model.encoder.layer[0].requires_grad_(False)
    (batch,) = lists.batches(lists.pairs(a_list()), max_tokens=1000)
    TrainedEncoder(model, 1)(batch.input_ids, batch.attention_mask).sum().backward()
    moved = {name for name, one in model.named_parameters() if one.grad is not None}
    assert moved
    assert all("layer.1." in name or name.startswith("classifier") for name in moved)


def test_the_loss_is_what_its_docstring_says():
    logits = np.array([2.0, -1.0, 0.5, 0.3, 0.1, -0.2], np.float32)
    teacher = np.array([5.0, 1.0, np.nan, 1.0, 2.0, 3.0], np.float32)
    found = list_loss(
        torch.from_numpy(logits),
        [3, 3],
        [True, False],
        torch.from_numpy(teacher),
        Loss(bce_weight=0.2, teacher_weight=0.3),
    )
    cross_entropy = -log_softmax(logits[:3])[0]
    binary = np.mean(np.log1p(np.exp([-2.0, -1.0, 0.5])))
    first = softmax(teacher[:2]) @ (log_softmax(teacher[:2]) - log_softmax(logits[:2]))
    second = softmax(teacher[3:]) @ (log_softmax(teacher[3:]) - log_softmax(logits[3:]))
    assert found.item() == pytest.approx((cross_entropy + 0.2 * binary + 0.3 * first + second) / 2, rel=1e-5)


def test_a_list_that_nobody_scored_and_nobody_judged_teaches_nothing():
    logits = torch.ones(3, requires_grad=True)
    list_loss(logits, [3], [False], torch.full((3,), float("nan")), Loss()).backward()
    assert logits.grad.tolist() == [0, 0, 0]


def test_a_list_is_taught_alike_whatever_stands_beside_it():
    logits, teacher = torch.randn(9), torch.randn(9)
    together = list_loss(logits, [2, 7], [True, True], teacher, Loss())
    alone = [
        list_loss(logits[at], [len(logits[at])], [True], teacher[at], Loss())
        for at in (slice(2), slice(2, 9))
    ]
    assert together.item() == pytest.approx(sum(one.item() for one in alone) / 2, rel=1e-5)


def test_what_reads_for_a_card_can_be_sent_to_another_process(tiny_bert):
    one = a_list()
    here = Collator(encoder(tiny_bert), 1000)
    there = pickle.loads(pickle.dumps(here))
    (mine,), (theirs,) = here([one])["batches"], there([one])["batches"]
    assert torch.equal(mine.input_ids, theirs.input_ids)
    assert here([one])["tokens"] == sum(len(pair.ids) for pair in encoder(tiny_bert).pairs(one))


def test_the_optimiser_is_adamw_with_clipping():
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(8, 4), torch.nn.Linear(8, 4)
    theirs.load_state_dict(ours.state_dict())
    optimizers = (
        MasterAdamW([{"params": list(ours.parameters()), "lr": 0.01, "weight_decay": 0.1}], 1.0, (0.9, 0.98)),
        torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1, betas=(0.9, 0.98)),
    )
    for _ in range(20):
        rows = torch.randn(5, 8)
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(rows).square().sum().backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_small_updates_of_a_bfloat16_model_are_not_lost():
    parameter = torch.nn.Parameter(torch.full((4,), 100.0, dtype=torch.bfloat16))
    optimizer = MasterAdamW([{"params": [parameter], "lr": 0.01, "weight_decay": 0.0}], 1e9, (0.9, 0.98))
    for _ in range(100):  # a step of .01 is a fiftieth of what bfloat16 resolves near 100
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert parameter.tolist() == [99.0] * 4


def test_lower_layers_learn_more_slowly(tiny_xlmr):
    model = loaded(tiny_xlmr)
    choice = Optimizer(learning_rate=1.0, head_learning_rate=5.0, layer_decay=0.5)
    rates = {id(one): group["lr"] for group in parameter_groups(model, choice) for one in group["params"]}
    assert len(rates) == sum(1 for _ in model.parameters())
    named = {name: rates[id(one)] for name, one in model.named_parameters()}
    assert named["classifier.dense.weight"] == 5.0
    assert named["roberta.encoder.layer.1.output.dense.weight"] == 1.0
    assert named["roberta.encoder.layer.0.output.dense.bias"] == 0.5
    assert named["roberta.embeddings.word_embeddings.weight"] == 0.25
