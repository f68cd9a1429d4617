"""Links of pages that are read in the repository lead to files that are there."""

import re

import pytest

from tests.docs.documented import ROOT

PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8")))
    here = [target.partition("#")[0] for target in targets if not re.match(r"(https?:|#)", target)]
    gone = [target for target in here if not (page.parent / target).exists()]
    assert not gone, f"{page.name}: no file {gone}"
