"""Every command and every block of Python of the tutorials runs."""

import pytest

from tests.docs.documented import ROOT, run_page

QUICK = ("own-images", "grow-a-model")  # `make site` runs all
TUTORIALS = [
    pytest.param(page, marks=() if page.stem in QUICK else pytest.mark.slow, id=page.stem)
    for page in sorted((ROOT / "docs/tutorials").glob("*.md"))
]


@pytest.mark.parametrize("page", TUTORIALS)
def test_every_block_of_a_tutorial_runs(page, home):
    assert run_page(page) > 2
