"""What each reason of a reject or a cut means, and what to do about it."""

from __future__ import annotations

from rerank_udf.tables import Cut, Reason

_NO_ID = "The {} table has no such id. Is it older than the candidates, or are ids spelt otherwise?"
_TEXTS = "One {}_id has several texts. Keep one of them, or give each its own id."
_NULL = "The {}'s text is null. An empty text would be valid and would be scored."

REJECTS = {
    Reason.NULL_ID: "query_id or passage_id is null. Drop such rows, or find out which join made them.",
    Reason.UNKNOWN_QUERY: _NO_ID.format("queries"),
    Reason.UNKNOWN_PASSAGE: _NO_ID.format("passages"),
    Reason.AMBIGUOUS_QUERY: _TEXTS.format("query"),
    Reason.AMBIGUOUS_PASSAGE: _TEXTS.format("passage"),
    Reason.DUPLICATE_CANDIDATE: "The pair of ids stands more than once; one of the rows was taken. "
    "Deduplicate the candidates.",
    Reason.NULL_QUERY: _NULL.format("query"),
    Reason.NULL_PASSAGE: _NULL.format("passage"),
    Reason.INVALID_UTF8: "The text is no valid UTF-8. Decode it with its real encoding before this job.",
    Reason.BAD_SCORE: "The first-stage score is no finite number. Mend it, or leave the column out.",
    Reason.BAD_RANK: "The first-stage rank cannot be used as one. Mend it, or leave the column out.",
    Reason.UNEQUAL_ARRAYS: "The parallel arrays of this query differ in length, so nothing says which text "
    "is whose.",
    Reason.TEXT_CHANGED: "The text changed while the run read it. Run again when the input is at rest, or "
    "persist it first.",
    Reason.NOT_FINITE: "The model gave no finite number, in float32 neither. Look at the text; the next run "
    "tries it again.",
    Reason.OUT_OF_MEMORY: "The pair did not fit into memory alone. Lower model.max_length, or give tasks more.",
    Reason.TOKENIZER_ERROR: "The tokenizer failed on this text; the rejects table has its words.",
    Reason.CRASHED_WORKER: "The Python worker died on this pair each time. Score it alone (rerank-udf "
    "explain) to see why.",
}

CUTS = {
    Cut.DEPTH: "Beyond ranking.depth, so never scored. ranking.beyond_depth: append keeps such rows below "
    "the others.",
    Cut.MIN_SCORE: "Scored below ranking.min_score. Scores compare within a query only, so a fixed threshold "
    "cuts unevenly.",
    Cut.TOP_K: "Ranked below ranking.top_k. Their scores are in the store: a larger top_k costs nothing.",
    Cut.STOPPED: "Sound, but the run ended before scoring because too many other rows were rejected.",
}
