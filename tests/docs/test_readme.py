"""Every command and every block of Python of the README runs."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from pixelspace import api
from pixelspace.cli.given import recipe_of
from tests.docs.documented import ROOT, blocks, commands, run_block
from tests.docs.small import small

README = ROOT / "README.md"
BLOCKS = [block for block in blocks(README.read_text(encoding="utf-8")) if block.kind in ("python", "shell")]


@pytest.fixture
def others(home, golden, golden_json, monkeypatch) -> None:
    """Tiny weights of other systems under the names the README has for them, and their configurations at hand: in
    released files they stand inside or follow from the size."""
    weights = golden("hdit/nbhd_class_2lvl.weights")
    save_file(weights, "weights.safetensors")
    torch.save({"model": golden("maskdit/tiny_state_dict"), "ema": golden("maskdit/tiny_state_dict")}, "2075000.pt")
    nested = {name[3:]: tensor for name, tensor in golden("mdm/nested2_text").items() if name.startswith("sd.")}
    torch.save(nested, "vis_model.pth")
    configs = {
        "k-diffusion": golden_json("hdit/nbhd_class_2lvl")["config"],
        "maskdit": golden_json("maskdit/tiny_state_dict")["config"],
        "ml-mdm": golden_json("mdm/nested2_text")["config"],
    }

    def configured(path: str, *, system: str = "k-diffusion") -> api.Model:
        return api.import_checkpoint(path, system=system, config=configs[system])

    monkeypatch.setattr("pixelspace.import_checkpoint", configured, raising=False)


@pytest.mark.slow
def test_every_block_of_the_readme_runs(home, others):
    (home / "landscapes").rename(home / "pictures")
    x, sigma, label = torch.randn(2, 3, 32, 32), torch.tensor([1.0, 2.0]), torch.tensor([0, 1])
    names = {"x": x, "sigma": sigma, "label": label}
    for block in BLOCKS:
        if block.kind == "python":  # its model reads text
            shutil.rmtree("runs/mine")
            shutil.copytree("runs/hdit-text-demo", "runs/mine")
        run_block(block, f"README.md:{block.line}", names)


def test_a_block_that_cannot_be_run_is_told_of():
    (block,) = blocks("Text.\n\n    brew install pixelspace\n")
    with pytest.raises(AssertionError, match=r"page:3: it is not known how to run 'brew'"):
        run_block(block, f"page:{block.line}", {})
    (block,) = blocks("Text.\n\n    pixelspace show hdit-nothing\n")
    with pytest.raises(AssertionError, match="pixelspace show hdit-nothing: exit code 2"):
        run_block(block, "page", {})
    (block,) = blocks("    pip install '.[nothing]'\n")
    with pytest.raises(AssertionError, match="pip: no extra"):
        run_block(block, "page", {})


def test_blocks_are_told_apart_by_how_they_stand():
    shell, python, shown = (
        "    one && two  # why\n    three \\\n        four\n",
        "```python\nx = 1\n```\n",
        "```text\nout\n```\n",
    )
    page = f"# A\n\n{shell}\n{python}\n- a\n    b\n\n{shown}"
    found = list(blocks(page))
    assert [(block.line, block.kind) for block in found] == [(3, "shell"), (8, "python"), (15, "text")]
    assert list(commands(found[0].text)) == [["one"], ["two"], ["three", "four"]]


@pytest.mark.parametrize("name", ["hdit-grown-128", "hdit-pyramid-256", "greedy-256", "mdm-256", "maskdit-latents256"])
def test_small_recipes_have_the_stages_of_those_they_stand_for(name):
    assert [stage.name for stage in small(name).stages] == [stage.name for stage in recipe_of(name).stages]
