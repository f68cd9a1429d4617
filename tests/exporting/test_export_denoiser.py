import onnxruntime
import pytest
import torch

from pixelspace.config import read_json
from pixelspace.errors import NumericalError, UserError
from pixelspace.exporting.denoiser import Denoiser, check_alike
from pixelspace.exporting.onnx import to_onnx
from pixelspace.exporting.program import to_program
from tests.exporting.small import LABELLED, PLAIN, PYRAMID, READING, made


@pytest.mark.parametrize("config", [LABELLED, READING, PYRAMID], ids=["labelled", "reading", "pyramid"])
def test_the_denoiser_of_tensors_is_the_model_s(config):
    model = made(config)
    denoiser = Denoiser(model)
    inputs = denoiser.example(4)
    count = len(denoiser.outputs)
    wanted = model.denoised(
        inputs[:count], inputs[count], dict(zip(denoiser.examples, inputs[count + 1 :], strict=True))
    )
    for out, expected in zip(denoiser(*inputs), wanted, strict=True):
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=2e-6)


@pytest.mark.slow
def test_an_onnx_file_gives_the_model_s_estimates_for_other_numbers_of_images(tmp_path):
    model = made(PLAIN)
    assert to_onnx(model, tmp_path / "out") < 1e-5
    assert read_json(tmp_path / "out/model.json")["type"] == "ModelConfig"
    session = onnxruntime.InferenceSession(tmp_path / "out/denoiser.onnx")
    x, sigma = torch.randn(6, 3, 8, 8), torch.linspace(0.1, 9, 6)
    label = torch.tensor([0, 1, 2, -1, 1, 0])
    (found,) = session.run(["x0"], {"x": x.numpy(), "sigma": sigma.numpy(), "label": label.numpy()})
    torch.testing.assert_close(
        torch.from_numpy(found), model.denoised(x, sigma, {"label": label}), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_a_program_gives_the_model_s_estimates_for_other_numbers_of_images(tmp_path):
    model = made(PLAIN)
    assert to_program(model, tmp_path / "out") < 1e-5
    program = torch.export.load(tmp_path / "out/denoiser.pt2").module()
    x, sigma, label = torch.randn(5, 3, 8, 8), torch.linspace(0.1, 9, 5), torch.tensor([0, 1, 2, -1, 1])
    (found,) = program(x, sigma, label)
    torch.testing.assert_close(found, model.denoised(x, sigma, {"label": label}), rtol=1e-4, atol=1e-5)


def test_what_differs_from_the_model_is_not_handed_out(tmp_path):
    denoiser = Denoiser(made(LABELLED))
    with pytest.raises(NumericalError, match=r"wrong.onnx: differs from the model by"):
        check_alike(lambda inputs: [x * 1.001 for x in denoiser(*inputs)], denoiser, tmp_path / "wrong.onnx")


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something already"):
        to_program(made(LABELLED), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_a_program_takes_any_number_of_tokens(tmp_path):
    model = made(READING)
    assert to_program(model, tmp_path / "out") < 1e-5
    program = torch.export.load(tmp_path / "out/denoiser.pt2").module()
    words = model.reader(["a boat", "two"]).cond()
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 2.0])
    cond = {"size": torch.full((2, 2), 8), "corner": torch.zeros(2, 2, dtype=torch.int64), **words}
    (found,) = program(x, sigma, *(cond[name] for name in Denoiser(model).examples))
    torch.testing.assert_close(found, model.denoised(x, sigma, cond), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", [LABELLED, READING, PYRAMID], ids=["labelled", "reading", "pyramid"])
def test_networks_of_every_kind_become_onnx(config, tmp_path):
    assert to_onnx(made(config), tmp_path / "out") < 1e-5
