"""Every command and every block of Python of the tutorials runs."""

import pytest

from tests.docs.documented import ROOT, run_page

TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_every_block_of_a_tutorial_runs(page, home):
    assert run_page(page) > 2
