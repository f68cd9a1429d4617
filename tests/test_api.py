from dataclasses import replace

import pytest
import torch

import pixelspace as ps
from pixelspace.backbones.hdit import Global, HDiTConfig, Level, Neighborhood
from pixelspace.errors import CheckpointError, UserError
from pixelspace.model import Model
from pixelspace.model_config import ModelConfig
from pixelspace.noise.levels import Karras
from pixelspace.noise.process import EDM, Process
from pixelspace.sampling.generate import Sampling
from pixelspace.sampling.solvers import SOLVERS

CONFIG = ModelConfig(
    backbone=HDiTConfig(
        levels=(Level(16, 1, Neighborhood(8, kernel=3)), Level(16, 1, Global(8))),
        patch=(2, 2),
        mapping_width=16,
        num_classes=3,
    ),
    process=Process(EDM(0.5)),
    sampling=Sampling("dpmpp_2m_sde", steps=4, levels=Karras(0.02, 20.0)),
    size=(16, 24),
    classes=("cat", "dog", "newt"),
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    network = CONFIG.backbone.build()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return Model(CONFIG, network.state_dict(), "cpu")


def draw(model, n=3, **given):
    return model.sample(n, progress=False, **given)


def test_samples_are_bytes_on_the_cpu(model):
    images = draw(model)
    assert images.shape == (3, 16, 24, 3) and images.dtype == torch.uint8 and images.device.type == "cpu"
    assert images.is_contiguous()


def test_an_image_depends_on_its_seed_and_number_alone(model):
    images = draw(model, 5, label="dog", exact=True, batch=4)
    assert torch.equal(images[:2], draw(model, 2, label="dog", exact=True, batch=4))
    assert torch.equal(images[2:4], draw(model, 2, first=2, label="dog", exact=True, batch=4))
    for batch in (1, 2, 5):
        near = draw(model, 5, label="dog", batch=batch)
        assert (near.int() - images.int()).abs().max() <= 1
    assert not torch.equal(images, draw(model, 5, label="dog", seed=1))
    assert not torch.equal(images[0], images[1])


def test_some_of_many_images_are_drawn_as_all_are_and_handed_over_batch_by_batch(model):
    labels = ["cat", "dog", "newt", "cat", "dog"]
    images = draw(model, 5, label=labels, exact=True, batch=2)
    assert torch.equal(draw(model, 5, label=labels, exact=True, batch=2, only=[4, 1, 2]), images[[4, 1, 2]])
    found = {}
    assert (
        draw(
            model, 5, label=labels, exact=True, batch=2, only=[0, 3, 4], each=lambda at, x: found.update({tuple(at): x})
        )
        is None
    )
    assert found.keys() == {(0, 3), (4,)} and all(torch.equal(x, images[list(at)]) for at, (x,) in found.items())
    assert draw(model, 5, only=[], each=lambda at, x: 1 / 0) is None
    for wrong, words in (([], "lists no image"), ([0, 5], "lists images 0 to 5; there are 0 to 4")):
        with pytest.raises(UserError, match=words):
            draw(model, 5, only=wrong)


@pytest.mark.parametrize("sampler", SOLVERS)
def test_every_sampler_of_the_table_draws(model, sampler):
    assert draw(model, 1, sampler=sampler, steps=3).shape == (1, 16, 24, 3)
    assert draw(model, 1, sampler=sampler, steps=1).shape == (1, 16, 24, 3)


def test_images_are_watched_as_they_form_until_they_are_there(model):
    told, looks = [], []

    def watch(forming):
        told.append((forming.images, forming.done, forming.steps))
        looks.append((forming.sigma, *forming.levels()))

    images = draw(model, 5, batch=3, label=1, watch=watch)
    assert told == [([0, 1, 2], step, 4) for step in (1, 2, 3, 4)] + [([3, 4], step, 4) for step in (1, 2, 3, 4)]
    assert torch.equal(images, draw(model, 5, batch=3, label=1))
    levels = [level for level, _ in looks[:4]]
    assert levels == sorted(levels, reverse=True) and levels[0] == pytest.approx(20.0)
    last = looks[-1][1]
    assert torch.equal(last, images[3:])  # the last step goes to its estimate


def test_what_a_watcher_raises_ends_the_drawing_at_that_step(model):
    class Enough(Exception):
        pass

    steps = []

    def watch(forming):
        steps.append(forming.done)
        if forming.done == 2:
            raise Enough

    with pytest.raises(Enough):
        draw(model, 4, watch=watch)
    assert steps == [1, 2]


def test_labels_come_as_numbers_names_lists_tensors_and_rows(model):
    expected = draw(model, 3, label=[0, 1, 2])
    assert torch.equal(expected, draw(model, 3, label=["cat", "dog", "newt"]))
    assert torch.equal(expected, draw(model, 3, label=torch.tensor([0, 1, 2])))
    assert (draw(model, 3, label=torch.eye(3)).int() - expected.int()).abs().max() <= 1
    assert torch.equal(draw(model, 2, label=1), draw(model, 2, label="dog"))
    assert torch.equal(draw(model), draw(model, label=-1))


def test_guidance_of_one_is_none_and_of_zero_forgets_the_label(model):
    assert torch.equal(draw(model, label=1), draw(model, label=1, guidance=1.0))
    assert (draw(model, label=1, guidance=0.0).int() - draw(model).int()).abs().max() <= 1
    assert not torch.equal(draw(model, label=1), draw(model, label=1, guidance=5.0))


def test_other_sizes_are_drawn(model):
    assert draw(model, 1, size=32).shape == (1, 32, 32, 3)
    assert draw(model, 1, size=(8, 40)).shape == (1, 8, 40, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n": 0}, "n must be from 1"),
        ({"n": True}, "n must be from 1"),
        ({"size": 17}, "image height 17: .*16 and 20"),
        ({"label": 3}, "label 3 is out of range: this model has classes 0 to 2"),
        ({"label": "cta"}, "no class 'cta'; did you mean 'cat'"),
        ({"label": [0, 1]}, "expected one label or 3, found 2"),
        ({"label": torch.rand(3, 2)}, "expected rows of shape"),
        ({"steps": 0}, "steps must be from 1"),
        ({"steps": 2.5}, "steps must be from 1"),
        ({"sampler": "dpmpp_2msde"}, "no solver 'dpmpp_2msde'; did you mean 'dpmpp_2m_sde'"),
        ({"guidance": -1.0}, "guidance must be"),
        ({"guidance": float("nan")}, "guidance must be"),
        ({"seed": -1}, "seed must be"),
        ({"batch": 0}, "batch must be"),
        ({"first": -1}, "first must be"),
    ],
)
def test_what_cannot_be_meant_is_refused(model, given, message):
    with pytest.raises(UserError, match=message):
        draw(model, **{"n": 3, **given})


def test_a_label_for_a_model_without_classes_is_refused(model):
    plain = replace(CONFIG, backbone=replace(CONFIG.backbone, num_classes=0), classes=())
    with pytest.raises(UserError, match="has no classes"):
        draw(Model(plain, plain.backbone.build().state_dict(), "cpu"), label=0)


def test_guidance_of_a_model_with_nothing_to_guide_it_by_is_refused(model):
    config = replace(CONFIG, backbone=replace(CONFIG.backbone, num_classes=0), classes=())
    plain = Model(config, config.backbone.build().state_dict(), "cpu")
    assert model.guided and not plain.guided
    assert torch.equal(draw(plain, 1, guidance=1.0), draw(plain, 1))
    with pytest.raises(UserError, match="takes neither class nor prompt to be guided by; leave it out"):
        draw(plain, 1, guidance=3.0)


def test_denoised_is_the_preconditioned_network(model):
    x, sigma = torch.randn(2, 3, 16, 24), torch.tensor([0.3, 4.0])
    cond = {"label": torch.tensor([0, 2]), "unknown": torch.zeros(2)}
    inputs, c_noise = CONFIG.process.inputs(x, sigma)
    expected = CONFIG.process.denoised(model.backbone(inputs, c_noise, cond), x, sigma)
    torch.testing.assert_close(model.denoised(x, sigma, cond), expected)
    none = model.denoised(x, 0.5, {"label": torch.tensor([-1, 3])})
    torch.testing.assert_close(model.denoised(x, 0.5), none)


def test_a_saved_model_loads_to_the_same_bits(model, tmp_path):
    folder = model.save(tmp_path / "model")
    assert sorted(path.name for path in folder.iterdir()) == ["MANIFEST.json", "model.safetensors", "state.json"]
    again = ps.load(folder)
    assert again.config == model.config
    assert torch.equal(draw(again, label=1), draw(model, label=1))
    model.save(folder)  # over itself


def test_a_flipped_bit_or_a_foreign_folder_is_named(model, tmp_path):
    folder = model.save(tmp_path / "model")
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        ps.load(folder)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        ps.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError):
        ps.load(tmp_path)
    with pytest.raises(CheckpointError, match="expected a folder"):
        ps.load(path)


def test_importing_the_package_does_not_import_torch():
    import subprocess
    import sys

    code = "import sys, pixelspace, pixelspace.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
