"""CITATION.cff: the software, and the four papers as far as we know them."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())

CUI, FAN, CHEN = ({"family-names": f, "given-names": g} for f, g in (("Cui", "Yongjin"), ("Fan", "Xiaohui"), ("Chen", "Huajun")))
PAPERS = {
    "arXiv:2605.22417": ("The Neglected Baseline in Model Interpretation", [CUI, FAN]),
    "arXiv:2605.12952": (
        "Debunking Grad-ECLIP: A Comprehensive Study on Its Incorrectness and Fundamental Principles for Model Interpretation",
        [CUI, FAN],
    ),
    "arXiv:2605.11392": ("Transformer Interpretability from Perspective of Attention and Gradient", [CUI, FAN, CHEN]),
    "arXiv:2605.27458": (
        "Generic Interpretation Approach for Transformer Models Incorporating Heterogenous Attention Structures",
        [CUI, FAN, CHEN],
    ),
}
# of the schema of CFF 1.2.0: what must be there, and what we may say
REQUIRED = {"authors", "cff-version", "message", "title"}
KNOWN = REQUIRED | {
    "type",
    "version",
    "date-released",
    "license",
    "keywords",
    "references",
    "abstract",
    "url",
    "repository-code",
    "identifiers",
    "doi",
}


def test_the_fields_are_those_of_the_format():
    assert set(CITATION) >= REQUIRED
    assert set(CITATION) <= KNOWN
    assert (CITATION["cff-version"], CITATION["type"], CITATION["license"]) == ("1.2.0", "software", "Apache-2.0")
    assert all(isinstance(CITATION[name], str) for name in ("message", "title", "version"))


@pytest.mark.parametrize("arxiv", PAPERS)
def test_each_paper_is_there_with_its_title_and_authors(arxiv):
    (paper,) = (one for one in CITATION["references"] if one["identifiers"][0]["value"] == arxiv)
    title, authors = PAPERS[arxiv]
    assert paper == {
        "type": "article",
        "title": title,
        "authors": authors,
        "year": 2026,
        "month": 5,
        "identifiers": [{"type": "other", "value": arxiv, "description": "arXiv"}],
    }


def test_no_other_paper_is_there():
    assert len(CITATION["references"]) == len(PAPERS)
