import contextlib
import io
import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import torch
import transformers
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError
from rich.console import Console
from safetensors.numpy import load_file, save_file
from training_world import settings, write_tables

from rerank_udf import load_scorer
from rerank_udf.config import load_settings
from rerank_udf.errors import ConfigError, InputError, ModelError
from rerank_udf.training import checkpoints
from rerank_udf.training import run as run_module
from rerank_udf.training.lists import ListSampler
from rerank_udf.training.settings import TrainingConfig
from rerank_udf.training.split import split
from rerank_udf.training.tables import read_tables
from rerank_udf.training.train import base_folder, preview, train

QUIET = Console(quiet=True)


def configured(folder, base, **changes):
    return TrainingConfig.model_validate(settings(folder, base, **changes))


@pytest.fixture
def faq(tmp_path):
    write_tables(tmp_path)
    return tmp_path


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one.keys() | other.keys())


def test_a_trained_model_is_a_folder_that_scores_with_a_card(faq, tiny_xlmr):
    folder = train(configured(faq, tiny_xlmr, card={"name": "faq", "licences": {"faq": "CC0"}}), QUIET)
    logits = load_scorer(str(folder), precision="float32").logits(
        ["where is refund1"], ["All about the refund1"]
    )
    assert np.isfinite(logits).all()
    before, after = weights(tiny_xlmr), weights(folder)
    assert before.keys() == after.keys()
    assert not same(before, after)
    card = (folder / "README.md").read_text()
    assert card.startswith("# faq\n")
    assert "| faq | 34 / 6 | 80 | qrels | 100% | CC0 |" in card
    assert "| faq | 6 | " in card  # held-out figures
    last = json.loads((faq / "work/development.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 6
    assert {"first", "model"} <= last["nDCG@10"]["faq"].keys()


@pytest.mark.parametrize(
    ("source", "kind"), [("tiny_bert", "AutoModel"), ("tiny_xlmr", "AutoModelForMaskedLM")]
)
def test_an_encoder_with_a_new_head_becomes_a_folder_that_scores(faq, request, source, kind):
    source = request.getfixturevalue(source)
    base = faq / "encoder"
    getattr(transformers, kind).from_pretrained(source).save_pretrained(base)
    shutil.copyfile(source / "tokenizer.json", base / "tokenizer.json")
    folder = train(configured(faq, base, new_head=True, precision="float32"), QUIET)
    queries, passages = ["where is refund1", "ticket2"], ["All about the refund1", "Alles zum Thema"]
    found = load_scorer(str(folder), precision="float32", device="cpu").logits(queries, passages)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    for query, passage, logit in zip(queries, passages, found, strict=True):
        given = tokenizer(query, passage, return_tensors="pt", return_token_type_ids=True)
        kept = {name: given[name] for name in given if kind == "AutoModel" or name != "token_type_ids"}
        with torch.no_grad():
            assert float(model(**kept).logits) == pytest.approx(float(logit), abs=1e-4)


def test_what_is_frozen_stays_bit_for_bit(faq, tiny_xlmr):
    folder = train(configured(faq, tiny_xlmr, freeze={"embeddings": True, "layers": 1}), QUIET)
    before, after = weights(tiny_xlmr), weights(folder)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert all("layer.1." in name or name.startswith("classifier") for name in changed)


def test_it_learns_what_it_is_shown(faq, tiny_bert):
    """A list's logits come to follow the teacher's, which fall with the rank."""
    raw = settings(faq, tiny_bert)
    raw["sets"][0] |= {
        "teacher": {"table": {"path": str(faq / "teacher.parquet")}},
        "held_out": {"queries": 0},
    }
    raw["sets"][0] |= {"qrels": None, "negatives": [{"ranking": "candidates", "ranks": [1, 10], "count": 7}]}
    raw |= {"optimizer": {"learning_rate": 5e-3}, "precision": "float32"}
    raw["schedule"] |= {"steps": 60, "save_every": 60, "lists_per_step": 8, "average_last": 1}
    trained = train(TrainingConfig.model_validate(raw), QUIET)
    before, after = (agreement(faq, folder) for folder in (tiny_bert, trained))
    assert after > before + 0.3, (before, after)


def test_what_a_teacher_alone_taught_is_measured_by_the_passage_that_it_puts_first(faq, tiny_bert):
    """Its logits fall with the rank, so the first stage is as good as the teacher."""
    raw = settings(faq, tiny_bert)
    raw["sets"][0] |= {"qrels": None, "teacher": {"table": {"path": str(faq / "teacher.parquet")}}}
    folder = train(TrainingConfig.model_validate(raw), QUIET)
    card = (folder / "README.md").read_text()
    assert "| faq | 34 / 6 | 80 | teacher | 100% | not stated |" in card
    assert "In faq, without qrels, the teacher's first counts as the right one.\n" in card
    assert "| faq | 6 | 1.000 | 1.000 | " in card


def agreement(folder, model):
    """Mean rank correlation of a model's logits with the teacher's, over the queries."""
    tables = [pd.read_parquet(folder / f"{name}.parquet") for name in ("teacher", "queries", "passages")]
    rows = tables[0].merge(tables[1], on="query_id").merge(tables[2], on="passage_id")
    rows["own"] = load_scorer(str(model), precision="float32").logits(
        list(rows["query"]), list(rows["passage"])
    )
    by_query = rows.groupby("query_id")
    return np.mean([one["own"].corr(one["logit"], method="spearman") for _, one in by_query])


def stop_at(monkeypatch, number):
    """End training as Ctrl-C does, when this list is drawn; four of them are a step."""
    drawn = ListSampler.__getitem__

    def stopping(self, asked):
        if asked == number:
            raise KeyboardInterrupt
        return drawn(self, asked)

    monkeypatch.setattr(ListSampler, "__getitem__", stopping)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(faq, tiny_xlmr, monkeypatch):
    whole = train(configured(faq, tiny_xlmr, output=str(faq / "whole"), work=str(faq / "whole-work")), QUIET)
    with monkeypatch.context() as patched:
        stop_at(patched, 20)
        with pytest.raises(KeyboardInterrupt):
            train(configured(faq, tiny_xlmr), QUIET)
    assert not (faq / "model").exists()
    lines = Console(record=True, width=200, file=io.StringIO())
    again = train(configured(faq, tiny_xlmr), lines)
    assert "going on from checkpoint-4" in lines.export_text()
    assert same(weights(whole), weights(again))


def test_a_finished_run_is_prolonged_from_before_its_rate_fell(faq, tiny_xlmr):
    schedule = settings(faq, tiny_xlmr)["schedule"] | {"decay": 0.5, "average_last": 1, "evaluate_every": 100}
    train(configured(faq, tiny_xlmr, schedule=schedule | {"steps": 8}), QUIET)
    longer = schedule | {"steps": 12}
    prolonged = train(configured(faq, tiny_xlmr, schedule=longer), QUIET)
    straight = {"output": str(faq / "straight"), "work": str(faq / "straight-work"), "schedule": longer}
    assert same(weights(prolonged), weights(train(configured(faq, tiny_xlmr, **straight), QUIET)))


def test_a_run_whose_last_step_is_saved_between_two_can_be_prolonged(faq, tiny_xlmr):
    """Nine steps, saved every second: 6, 8 and, of the last one, 9 are after the decay began, 4 is before."""
    schedule = settings(faq, tiny_xlmr)["schedule"] | {"decay": 0.4, "average_last": 1, "evaluate_every": 100}
    train(configured(faq, tiny_xlmr, schedule=schedule | {"steps": 9}), QUIET)
    assert saved(faq) == {4, 6, 8, 9}
    longer, lines = schedule | {"steps": 14}, Console(record=True, width=200, file=io.StringIO())
    prolonged = train(configured(faq, tiny_xlmr, schedule=longer), lines)
    deleted = "going on from checkpoint-4; checkpoint-6, checkpoint-8, checkpoint-9 deleted"
    assert deleted in lines.export_text()
    straight = {"output": str(faq / "straight"), "work": str(faq / "straight-work"), "schedule": longer}
    assert same(weights(prolonged), weights(train(configured(faq, tiny_xlmr, **straight), QUIET)))


def saved(folder):
    return {int(one.name.split("-")[1]) for one in (folder / "work").glob("checkpoint-*")}


@pytest.mark.parametrize(
    ("steps", "stopped_after", "wanted", "sentence"),
    [
        (
            6,
            6,
            3,
            "holds step 6 of a run of 6; the rate of one of 3 falls from step 1 on: set schedule.steps",
        ),
        (20, 8, 10, "holds step 8 of a run of 20; the rate of one of 10 falls from step 5 on"),
        (
            6,
            6,
            8,
            "holds no checkpoint from before the rate fell, only from step 6 of 6 on: a run of 8 cannot",
        ),
    ],
)
def test_a_run_that_cannot_be_made_so_long_is_refused_and_stays(
    faq, tiny_xlmr, monkeypatch, steps, stopped_after, wanted, sentence
):
    schedule = settings(faq, tiny_xlmr)["schedule"] | {"decay": 0.5, "average_last": 1, "evaluate_every": 100}
    if wanted > steps:
        schedule["save_every"] = 6
    with monkeypatch.context() as patched:
        stop_at(patched, 4 * stopped_after + 4)
        with contextlib.suppress(KeyboardInterrupt):
            train(configured(faq, tiny_xlmr, schedule=schedule | {"steps": steps}), QUIET)
    before, noted = saved(faq), (faq / "work/run.json").read_text()
    with pytest.raises(ConfigError, match=sentence):
        train(configured(faq, tiny_xlmr, schedule=schedule | {"steps": wanted}), QUIET)
    assert saved(faq) == before != set()
    assert (faq / "work/run.json").read_text() == noted


def test_a_stopped_run_is_made_shorter_while_its_rate_is_constant(faq, tiny_xlmr, monkeypatch):
    schedule = settings(faq, tiny_xlmr)["schedule"] | {"decay": 0.5, "average_last": 1, "evaluate_every": 100}
    with monkeypatch.context() as patched:
        stop_at(patched, 20)
        with pytest.raises(KeyboardInterrupt):
            train(configured(faq, tiny_xlmr, schedule=schedule | {"steps": 20}), QUIET)
    assert saved(faq) == {2, 4}
    shorter = train(configured(faq, tiny_xlmr, schedule=schedule | {"steps": 8}), QUIET)
    straight = {"output": str(faq / "straight"), "work": str(faq / "straight-work")}
    whole = configured(faq, tiny_xlmr, schedule=schedule | {"steps": 8}, **straight)
    assert same(weights(shorter), weights(train(whole, QUIET)))


@pytest.mark.parametrize(
    ("table", "change", "named"),
    [
        ("passages", lambda rows: rows.assign(passage=rows["passage"] + "."), "sets.faq.passages"),
        ("queries", lambda rows: rows.iloc[::-1], "sets.faq.queries"),
        ("candidates", lambda rows: rows[rows["rank"] < 9], "sets.faq.candidates"),
        ("qrels", lambda rows: rows.iloc[1:], "sets.faq.qrels"),
    ],
)
def test_a_run_does_not_go_on_with_other_tables(faq, tiny_xlmr, table, change, named):
    config = configured(faq, tiny_xlmr)
    train(config, QUIET)
    rows = pd.read_parquet(faq / f"{table}.parquet")
    change(rows).to_parquet(faq / f"{table}.parquet", index=False)
    with pytest.raises(ConfigError, match=f"was begun on another {named}: bring back the rows of then"):
        train(config, QUIET)
    rows.to_parquet(faq / f"{table}.parquet", index=False, row_group_size=7)  # the same rows, another file
    train(config, QUIET)


def test_a_run_that_saved_nothing_begins_with_the_tables_as_they_are(faq, tiny_xlmr, monkeypatch):
    with monkeypatch.context() as patched:
        stop_at(patched, 0)
        with pytest.raises(KeyboardInterrupt):
            train(configured(faq, tiny_xlmr), QUIET)
    rows = pd.read_parquet(faq / "qrels.parquet").iloc[1:]
    rows.to_parquet(faq / "qrels.parquet", index=False)
    train(configured(faq, tiny_xlmr), QUIET)
    assert saved(faq) == {2, 4, 6}


def test_another_run_in_the_same_folder_is_refused(faq, tiny_xlmr):
    train(configured(faq, tiny_xlmr), QUIET)
    with pytest.raises(ConfigError, match="holds a training run with another seed: give another work folder"):
        train(configured(faq, tiny_xlmr, seed=1), QUIET)


@pytest.mark.parametrize("changed", [{"decay": 0.9}, {"warmup_steps": 3}])
def test_a_run_does_not_go_on_under_a_rate_of_another_shape(faq, tiny_xlmr, changed):
    train(configured(faq, tiny_xlmr), QUIET)
    schedule = settings(faq, tiny_xlmr)["schedule"] | changed
    with pytest.raises(ConfigError, match=f"a training run with another schedule.{next(iter(changed))}"):
        train(configured(faq, tiny_xlmr, schedule=schedule | {"steps": 9}), QUIET)


@pytest.mark.parametrize(
    ("length", "sentence"),
    [
        (4096, "max_length is 4096, but .* has positions for"),
        (8, "leave no room for a passage in max_length=8"),
    ],
)
def test_lengths_that_the_base_cannot_have_are_told_before_training(faq, tiny_xlmr, length, sentence):
    raw = settings(faq, tiny_xlmr)
    raw["sets"][0]["max_lengths"] = {32: 0.9, length: 0.1}
    with pytest.raises((ConfigError, ModelError), match=sentence):
        train(TrainingConfig.model_validate(raw), QUIET)


def test_what_transformers_tokenizers_read_comes_along(faq, tiny_bert):
    base = faq / "cased"
    shutil.copytree(tiny_bert, base)
    (base / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    folder = train(configured(faq, base), QUIET)
    assert (folder / "tokenizer_config.json").read_text() == '{"do_lower_case": false}'


def test_the_weights_are_the_mean_of_the_last_checkpoints(faq, tiny_xlmr):
    schedule = settings(faq, tiny_xlmr)["schedule"] | {"average_last": 1, "decay": 0.0}
    parts = [
        weights(
            train(
                configured(
                    faq,
                    tiny_xlmr,
                    output=str(faq / f"{steps}"),
                    work=str(faq / f"w{steps}"),
                    schedule=schedule | {"steps": steps},
                ),
                QUIET,
            )
        )
        for steps in (4, 6)
    ]
    averaged = weights(
        train(configured(faq, tiny_xlmr, schedule=schedule | {"steps": 6, "average_last": 2}), QUIET)
    )
    name = "classifier.dense.weight"
    np.testing.assert_allclose(averaged[name], (parts[0][name] + parts[1][name]) / 2, atol=1e-6)
    assert not np.allclose(parts[0][name], parts[1][name], atol=1e-4)


def test_a_folder_of_something_else_is_never_replaced(faq, tiny_xlmr):
    (faq / "model").mkdir()
    (faq / "model/thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="the model would replace it"):
        train(configured(faq, tiny_xlmr), QUIET)
    assert (faq / "model/thesis.txt").read_text() == "years of work"


def test_checkpoints_of_another_program_are_left_alone(faq, tiny_xlmr):
    other = faq / "work/checkpoint-7"
    other.mkdir(parents=True)
    (other / "trainer_state.json").write_text("{}")
    with pytest.raises(ConfigError, match="checkpoints of another program"):
        train(configured(faq, tiny_xlmr), QUIET)
    assert other.is_dir()


@pytest.mark.parametrize(("output", "named"), [("work", "work"), (".", "work"), ("base", "base")])
def test_a_model_replaces_no_checkpoints_and_no_base(faq, tiny_xlmr, output, named):
    raw = settings(faq, str(faq / "base"))
    raw |= {"work": str(faq / "work"), "output": str(faq / output)}
    with pytest.raises(ValueError, match=f"is or holds {named} "):
        TrainingConfig.model_validate(raw)


def loaded(folder, raw):
    (folder / "train.yaml").write_text(yaml.safe_dump(raw))
    return load_settings(folder / "train.yaml", [], TrainingConfig, "conf/train.yaml")


def files(folder):
    return {one.name for one in folder.rglob("*") if one.is_file()}


def test_an_output_that_cannot_be_written_is_told_before_anything_is_read(tmp_path, tiny_bert):
    (tmp_path / "models").write_text("a file")
    output = str(tmp_path / "models" / "mine")
    with pytest.raises(
        ConfigError, match=r"output: .*models/mine \(.*models is a file\); give another folder"
    ):
        train(configured(tmp_path, tiny_bert, output=output), QUIET)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_a_card_that_torch_cannot_use_is_told_before_anything_is_read(
    tmp_path, tiny_bert, monkeypatch, precision
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"device is cuda, but this torch .* sees no CUDA device"):
        train(configured(tmp_path, tiny_bert, device="cuda", precision=precision), QUIET)
    assert not (tmp_path / "work").exists()


def test_a_run_that_diverged_leaves_the_older_model_as_it_is(faq, tiny_bert):
    folder = train(configured(faq, tiny_bert), QUIET)
    before, older = weights(folder), files(folder)
    again = {"optimizer": {"learning_rate": 1e20}, "work": str(faq / "again")}
    with pytest.raises(
        ModelError, match=r"not finite numbers: .* lower optimizer.learning_rate \(it is 1e\+20\) or"
    ):
        train(configured(faq, tiny_bert, **again), QUIET)
    assert same(before, weights(folder))
    assert files(folder) == older
    assert not (faq / ".model.partial").exists()


def test_weights_that_the_outputs_precision_cannot_hold_are_told(faq, tiny_bert):
    base = faq / "large"
    shutil.copytree(tiny_bert, base)
    large = weights(base)
    large["classifier.bias"][:] = 1e6
    save_file(large, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"classifier.bias are too large for output_precision float16"):
        train(configured(faq, base, output_precision="float16"), QUIET)
    assert not (faq / "model").exists()
    assert not (faq / ".model.partial").exists()


@pytest.mark.parametrize("card", [None, {"licences": None}, {"licences": {"faq": None}}, {"name": None}])
def test_a_card_says_what_it_says_by_itself_where_a_setting_is_null(faq, tiny_bert, card):
    folder = train(loaded(faq, settings(faq, tiny_bert, card=card)), QUIET)
    told = (folder / "README.md").read_text()
    assert told.startswith("# model\n\nA cross-encoder: it reads")
    assert "| faq | 34 / 6 | 80 | qrels | 100% | not stated |" in told


@pytest.mark.parametrize(
    ("card", "sentence"),
    [
        (
            "mine",
            "card: expected a section with name, description, base, licence, licences, limits, found 'mine'",
        ),
        ({"licences": "CC0"}, "card.licences: expected a valid dictionary, found 'CC0'"),
        ({"license": "CC0"}, "unknown setting card.license; did you mean licence?"),
    ],
)
def test_a_card_that_cannot_be_written_is_told_at_loading(faq, card, sentence):
    with pytest.raises(ConfigError) as error:
        loaded(faq, settings(faq, "base", card=card))
    assert sentence in str(error.value)


def without_candidates(folder, queries):
    rows = pd.read_parquet(folder / "candidates.parquet")
    rows[~rows["query_id"].isin(queries)].to_parquet(folder / "candidates.parquet", index=False)


def held_out(folder, base):
    tables = read_tables(configured(folder, base).sets[0])
    return [tables.queries.ids[one] for one in split(tables, 0).held_out.tolist()]


@pytest.mark.parametrize("run", [train, preview])
def test_held_out_queries_of_which_none_has_candidates_are_told_before_training(faq, tiny_bert, run):
    without_candidates(faq, held_out(faq, tiny_bert))
    with pytest.raises(
        InputError, match=r"none of the 6 held-out queries of faq has candidates .*held_out.queries"
    ):
        run(configured(faq, tiny_bert), QUIET)
    assert not (faq / "work").exists()  # another held_out would be another run there


def test_the_figures_do_not_depend_on_how_many_lists_are_scored_at_once(faq, tiny_bert, monkeypatch):
    without_candidates(faq, held_out(faq, tiny_bert)[1:2])  # a list, and then a part, of no pairs
    figures = []
    for at_once in (1, 256):
        monkeypatch.setattr(run_module, "_LISTS_SCORED", at_once)
        work, output = str(faq / f"work{at_once}"), str(faq / f"model{at_once}")
        train(configured(faq, tiny_bert, work=work, output=output), QUIET)
        figures.append((faq / f"work{at_once}/development.jsonl").read_text())
    assert figures[0] == figures[1]


def test_nothing_is_measured_meanwhile_where_only_later_queries_have_candidates(faq, tiny_bert):
    without_candidates(faq, held_out(faq, tiny_bert)[:2])
    schedule = settings(faq, tiny_bert)["schedule"] | {"evaluate_queries": 2}
    train(configured(faq, tiny_bert, schedule=schedule), QUIET)
    lines = (faq / "work/development.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [6]


@pytest.mark.parametrize("inside", ["", "/deeper"])
def test_a_work_folder_that_is_a_file_is_told(faq, inside):
    (faq / "file").write_text("years of work")
    with pytest.raises(ConfigError, match=r"work is .*, but .*file is a file; give a folder"):
        loaded(faq, settings(faq, "base", work=str(faq / "file") + inside))
    assert (faq / "file").read_text() == "years of work"


def test_a_work_folder_that_cannot_be_made_is_told(faq):
    config = configured(faq, "base")
    (faq / "work").write_text("since then")
    with pytest.raises(ConfigError, match=r"work: .*work cannot be written to \(.*File exists"):
        checkpoints.claim(faq / "work", config, {})


@pytest.mark.parametrize(
    ("reached", "sentence"),
    [(False, "the hub could not be reached or gave an error; on nodes"), (True, "main cannot be downloaded")],
)
def test_an_encoder_that_cannot_be_downloaded_is_told(faq, monkeypatch, reached, sentence):
    def away(*_, **__):
        raise LocalEntryNotFoundError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", away)
    known = SimpleNamespace(siblings=[], sha="0" * 40)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", (lambda *_, **__: known) if reached else away)
    config = configured(faq, "intfloat/multilingual-e5-small", new_head=True, revision="main")
    with pytest.raises(
        ModelError, match=f"the hub model intfloat/multilingual-e5-small.*{sentence}"
    ) as error:
        base_folder(config)
    assert str(error.value).endswith("(LocalEntryNotFoundError: no network)")
