import pytest

import pixelspace as ps
from pixelspace.config import read_json
from tests.cli.conftest import WEIGHTS, refused


def test_export_writes_the_averaged_or_the_raw_weights_alone(cli, run_folder, tmp_path):
    for weights in ("ema", "raw"):
        code, out, _ = cli("export", run_folder, tmp_path / weights, "--weights", weights)
        assert code == 0 and out.startswith(f"exported: {tmp_path / weights} (")
        wanted = ps.load(run_folder, device="cpu", weights=weights).sha256
        assert ps.load(tmp_path / weights, device="cpu").sha256 == wanted
        assert {path.name for path in (tmp_path / weights).iterdir()} == {
            *("MANIFEST.json", "state.json", "model.safetensors")
        }


def test_half_weights_take_half_the_bytes_and_draw_nearly_the_same(cli, run_folder, tmp_path):
    assert cli("export", run_folder, tmp_path / "whole")[0] == 0
    assert cli("export", run_folder, tmp_path / "half", "--dtype", "bf16")[0] == 0
    whole, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half"))
    assert 0.48 < half / whole < 0.56
    images = [ps.load(tmp_path / name, device="cpu").sample(2, progress=False).int() for name in ("whole", "half")]
    assert (images[0] - images[1]).abs().max() <= 12


def test_weights_of_k_diffusion_become_a_pipeline(cli, tmp_path):
    assert cli("export", WEIGHTS, tmp_path / "pipe", "--as", "diffusers")[0] == 0
    assert read_json(tmp_path / "pipe/model_index.json")["_class_name"] == ["pipeline", "PixelspacePipeline"]


def test_exports_that_cannot_be_meant_are_a_line(cli, run_folder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    refused(cli("export", run_folder, tmp_path / "full", "--as", "diffusers"), 2, "full: holds something already")
    refused(cli("export", run_folder, tmp_path / "x", "--as", "onnx", "--dtype", "bf16"), 2, "--dtype bf16", "float32")
    refused(cli("export", tmp_path / "none", tmp_path / "x"), 4, "no such file or folder")


def test_a_card_can_be_read_before_anything_is_pushed(cli, run_folder):
    code, out, _ = cli("push", run_folder, "me/faces", "--licence", "mit", "--card-only")
    assert code == 0 and out.startswith("---\nlicense: mit\n") and str(run_folder) not in out


@pytest.mark.parametrize("licence", ["MIT", "", "my own: see the page", "mit\nlicense: other"])
def test_a_licence_that_the_hub_cannot_have_is_a_line(cli, run_folder, licence):
    refused(cli("push", run_folder, "me/faces", "--licence", licence, "--card-only"), 2, "licence: expected a name")
