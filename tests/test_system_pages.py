"""The pages of docs/systems and the papers' entries: nothing in them that the tree does not have."""

import re
from pathlib import Path

import pytest
import torch

from pixelspace.cli.given import recipe_of

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs/systems").glob("*.md"))
WITH_PATHS = [*PAGES, *(ROOT / "docs" / name for name in ("errors.md", "diagnosis.md", "faq.md"))]


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_each_of_the_four_systems_has_a_page_of_the_same_parts():
    assert [page.stem for page in PAGES] == ["greedy", "hdit", "maskdit", "matryoshka"]
    for page in PAGES:
        headings = re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert headings == ["What the paper says", "What is here", "Where we deviate", "Numbers", "To cite"], page


@pytest.mark.parametrize("page", WITH_PATHS, ids=lambda page: page.stem)
def test_what_a_page_links_to_and_names_is_there(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in _anchors(file), f"{page.name} links to {target}#{anchor}"
    for path in re.findall(r"`((?:tests|pixelspace|benchmarks|examples)/[\w/.\-]+)`", text):
        assert (ROOT / path).exists(), f"{page.name} names {path}"
    for path in re.findall(r"`((?:backbones|objectives|noise|growth|recipes)/\w+\.py)`", text):
        assert (ROOT / "pixelspace" / path).exists(), f"{page.name} names {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_system_can_be_cited_and_is_so_in_citation_cff(page):
    (entry,) = re.findall(r"```bibtex\n(@\w+\{.*?\n\})\n```", page.read_text(encoding="utf-8"), re.DOTALL)
    fields = dict(re.findall(r"^\s+(\w+)\s*= \{(.*)\},?$", entry, re.MULTILINE))
    assert fields.keys() >= {"title", "author", "year", "eprint"} and entry.count("{") == entry.count("}")
    assert fields["title"] in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.parametrize("preset", ["hdit-imagenet128", "hdit-imagenet256", "hdit-ffhq1024"])
def test_parameters_and_arithmetic_on_hdits_page_are_its_own(preset):
    page = (ROOT / "docs/systems/hdit.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| `{preset}` \| \S+ \| ([\d,]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert row
    stage = recipe_of(preset).stages[0]
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in stage.backbone.build().parameters())
    assert f"{count:,}" == row[1] and f"{stage.backbone.macs(*stage.size) / 1e9:.1f}" == row[2]
