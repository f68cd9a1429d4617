"""What numbers are made into words, and which are not."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pixelspace.cli import main
from pixelspace.diagnosis.diagnose import Diagnosis, diagnose, looks, trend_of
from pixelspace.diagnosis.findings import findings
from pixelspace.diagnosis.knowledge import Layer
from pixelspace.diagnosis.telling import told
from pixelspace.errors import UserError
from tests.cli.conftest import as_files, squares


def photographs(n: int = 64, seed: int = 0) -> torch.Tensor:
    """float (n, 3, 64, 64) of colours that fall off with frequency as those of photographs, each about its own mean."""
    generator = torch.Generator().manual_seed(seed)
    f = torch.fft.fftfreq(64, 1 / 64)
    falling = 1 / (f[:, None] ** 2 + f**2).sqrt().clamp(min=1)
    return torch.fft.ifft2(torch.fft.fft2(torch.randn(n, 3, 64, 64, generator=generator)) * falling).real * 300 + 120


SOUND = Diagnosis(
    drawn=looks(photographs()),
    real=looks(photographs(seed=1)),
    sigmas=(0.05, 0.5, 5.0),
    deviation=0.5,
    averaged=((0.6, 0.1, 0.9),),
    raw=((0.6, 0.1, 0.9),),
    layers=(Layer("first", 64, 0, False), Layer("second", 64, 0, False)),
    trend=(1.0,) * 8,
)


def signs(d: Diagnosis) -> set[str]:
    return {finding.sign for finding in findings(d)}


def drawn(images: torch.Tensor) -> Diagnosis:
    return replace(SOUND, drawn=looks(images))


def test_other_pictures_of_the_same_kind_are_not_out_of_the_ordinary():
    assert findings(SOUND) == [] and told(SOUND).endswith("nothing is out of the ordinary")


def test_each_sign_is_found_in_pictures_that_show_it_and_no_other():
    images = photographs()
    grey = images.mean(1, keepdim=True) + 0.2 * (images - images.mean(1, keepdim=True))
    assert signs(drawn(grey)) == {"grey"}
    assert signs(drawn(images + 15 * torch.randn(images.shape))) == {"noisy"}
    assert signs(drawn(torch.nn.functional.avg_pool2d(images, 3, 1, 1))) == {"blurred"}
    assert signs(drawn(images[:1] + 0.3 * (images - images[:1]))) >= {"alike"}


@pytest.mark.parametrize("period", [4, 8])
def test_patches_that_do_not_meet_are_found_with_their_size(period):
    shift = torch.randn(64, 3, 64 // period, 64 // period).repeat_interleave(period, 2).repeat_interleave(period, 3)
    (found,) = [one for one in findings(drawn(photographs() + 30 * shift)) if one.sign == "gridded"]
    assert f"patches of {period} pixels" in found.text


def test_a_checkerboard_is_found():
    i = torch.arange(64)
    board = 10.0 - 20.0 * ((i[:, None] + i) % 2)
    assert any("every 2 pixels" in one.text for one in findings(drawn(photographs() + board)))


def test_what_a_network_does_not_know_is_told():
    assert signs(replace(SOUND, averaged=((0.6, 0.1, 1.5),), raw=())) == {"noise level"}
    assert signs(replace(SOUND, averaged=((1.0, 0.98, 1.0),), raw=())) == {"untrained"}
    assert signs(replace(SOUND, averaged=((0.97, 0.3, 0.9),), raw=())) == {"noisy"}
    assert signs(replace(SOUND, averaged=((1.0, 1.1, 2.0),))) == {"young average"}
    assert signs(replace(SOUND, layers=(Layer("first", 64, 3, True),))) == {"dead channels", "silent layers"}
    assert signs(replace(SOUND, trend=(1.0, 0.9, *(None,) * 6))) == {"still learning"}


def test_every_sign_is_explained_on_the_page_and_no_other():
    root = Path(__file__).parents[2]
    source = (root / "pixelspace/diagnosis/findings.py").read_text(encoding="utf-8")
    page = (root / "docs/diagnosis.md").read_text(encoding="utf-8")
    made = set(re.findall(r'Finding\(\s*"([^"]+)"', source))
    assert made == set(re.findall(r"^## (.+)$", page, re.MULTILINE)) and "gridded" in made


def test_a_trend_is_the_last_fifth_over_the_one_before():
    rows = [[1.0] * 8] * 12 + [[2.0] * 8] * 4 + [[1.0, None, 2.0, *[3.0] * 5]] * 4
    assert trend_of(rows) == (0.5, None, 1.0, 1.5, 1.5, 1.5, 1.5, 1.5)
    assert trend_of(rows[:4]) == (None,) * 8


def test_a_run_is_diagnosed_by_its_own_images_and_a_folder_by_those_that_are_given(run_folder, tmp_path):
    found = diagnose(run_folder, n=8, steps=1)
    assert found.real is not None and len(found.averaged[0]) == len(found.raw[0]) == len(found.sigmas) == 8
    assert "untrained" in signs(found)
    given = diagnose(run_folder / "00-train", data=as_files(squares(9, 0), tmp_path / "squares"), n=8, steps=1)
    assert given.real is not None and given.raw == () and given.averaged != found.averaged
    alone = diagnose(run_folder / "00-train", n=8, steps=1)
    assert alone.real is None and alone.averaged == () and alone.drawn == given.drawn == found.drawn
    assert "give them by --data" in told(alone)


def test_what_attends_to_text_is_listened_to_while_it_reads_some(tmp_path):
    assert main(["train", "greedy-cc12m-512-scratch-debug", "--out", str(tmp_path / "run"), "--quiet"]) == 0
    found = diagnose(tmp_path / "run", n=8, steps=1)
    assert any("text" in one.name for one in found.layers) and not any(one.dead for one in found.layers)


def test_too_few_images_to_say_anything_of_are_refused(run_folder):
    with pytest.raises(UserError, match="n must be from 8"):
        diagnose(run_folder, n=7)
