"""The lines by which other libraries' data comes over."""

import pytest

from tests.docs.documented import ROOT, blocks, run_block


@pytest.mark.slow
def test_what_a_script_has_in_datasets_or_webdataset_is_trained_on(home):
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    begun = page[: page.index("**What a script of yours has**")].count("\n")
    ended = page[: page.index("**ImageNet's classes**")].count("\n")
    files = sorted(str(path) for path in (home / "captioned").rglob("*.png"))
    names = {"files": files, "captions": [f"a photo, number {number}" for number in range(len(files))]}
    told = [block for block in blocks(page) if begun < block.line < ended]
    assert [block.kind for block in told] == ["python", "python", "shell"]
    for block in told:
        run_block(block, f"data.md:{block.line}", names)
