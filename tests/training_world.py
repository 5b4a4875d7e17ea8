"""A small world to train in: forty topics in two languages, a question and a passage of each."""

import pandas as pd

TOPICS = [
    f"{thing}{number}" for number in range(8) for thing in ("refund", "ticket", "market", "parking", "museum")
]


def write_tables(folder):
    """queries, passages, candidates, qrels, teacher as Parquet; passages of a topic are t1-en and t1-de."""
    passages = [
        (f"t{number}-{lang}", f"{intro} {topic} {rest}", lang)
        for number, topic in enumerate(TOPICS)
        for lang, intro, rest in (
            ("en", "All about the", "and nothing else."),
            ("de", "Alles zum Thema", "und mehr."),
        )
    ]
    queries = [(f"q{number}", f"where is {topic}", "en") for number, topic in enumerate(TOPICS)]
    order = [
        (f"q{number}", f"t{(number + step) % len(TOPICS)}-{lang}", 10.0 - step, 2 * step + place + 1)
        for number in range(len(TOPICS))
        for step in range(5)
        for place, lang in enumerate(("de", "en"))
    ]
    tables = {
        "queries": pd.DataFrame(queries, columns=["query_id", "query", "lang"]),
        "passages": pd.DataFrame(passages, columns=["passage_id", "passage", "lang"]),
        "candidates": pd.DataFrame(order, columns=["query_id", "passage_id", "score", "rank"]),
        "qrels": pd.DataFrame(
            [(f"q{n}", f"t{n}-{lang}", 1) for n in range(len(TOPICS)) for lang in ("en", "de")],
            columns=["query_id", "passage_id", "relevance"],
        ),
    }
    tables["teacher"] = tables["candidates"].assign(logit=lambda rows: rows["score"])[
        ["query_id", "passage_id", "logit"]
    ]
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
    return tables


def settings(folder, base, **changes):
    """A configuration of three short steps on those tables."""
    at = {
        name: {"path": str(folder / f"{name}.parquet")}
        for name in ("queries", "passages", "candidates", "qrels")
    }
    one = {
        "name": "faq",
        "input": {name: at[name] for name in ("queries", "passages", "candidates")},
        "qrels": at["qrels"],
        "negatives": [
            {"ranking": "candidates", "ranks": [1, 8], "count": 3},
            {"ranking": "random", "count": 2},
        ],
        "max_lengths": {32: 1},
        "held_out": {"queries": 6, "depth": 4},
    }
    return {
        "base": str(base),
        "sets": [one],
        "schedule": {
            "steps": 6,
            "warmup_steps": 1,
            "save_every": 2,
            "evaluate_every": 4,
            "lists_per_step": 4,
        },
        "optimizer": {"learning_rate": 1e-3},
        "device": "cpu",
        "output": str(folder / "model"),
        "work": str(folder / "work"),
        **changes,
    }
