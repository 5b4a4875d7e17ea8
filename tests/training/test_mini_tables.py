"""What mini's tables leave out must be what the run holds out."""

import numpy as np
import pandas as pd
import pytest
from training_world import settings, write_tables

from rerank_udf.training.mini.tables import HELD_OUT, SEED, questions_trained_on
from rerank_udf.training.settings import TrainingConfig
from rerank_udf.training.split import split
from rerank_udf.training.tables import read_tables


@pytest.mark.parametrize("group_of_two", [False, True])
def test_the_proses_answers_are_of_questions_that_the_sets_train_on(tmp_path, group_of_two):
    write_tables(tmp_path)
    path = tmp_path / "qrels.parquet"
    qrels = pd.read_parquet(path)
    if group_of_two:  # questions with two right passages
        qrels = pd.concat([qrels, qrels.assign(passage_id=np.roll(qrels["passage_id"], 3))])
        qrels = qrels.drop_duplicates(["query_id", "passage_id"])
        qrels.to_parquet(path)
    raw = settings(tmp_path, "base")
    raw["sets"][0]["held_out"] = {"queries": HELD_OUT}
    tables = read_tables(TrainingConfig.model_validate(raw).sets[0])
    divided = split(tables, SEED)
    trained = {tables.queries.ids[number] for number in divided.train.tolist()}
    assert len(divided.held_out) > 0
    relevant = qrels[qrels["relevance"] > 0]
    assert set(questions_trained_on(relevant)["query_id"]) == trained < set(relevant["query_id"])
