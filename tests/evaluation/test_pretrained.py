import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixelspace.errors import CheckpointError, ResourceError
from pixelspace.evaluation.features import extract
from pixelspace.evaluation.pretrained import CLIP, DINOv2, hub_positions, normalised
from pixelspace.evaluation.resize import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, RESIZERS
from pixelspace.evaluation.weights import Weights, sha256_of
from tests.evaluation.tiny_models import edit_config

CPU = torch.device("cpu")
GOLDENS = Path(__file__).parents[1] / "goldens" / "metrics"
TINY_CLIP = CLIP("tiny/clip", 28, width=12)
TINY_DINOV2 = DINOv2("tiny/dinov2", width=24)
CAPTIONS = ["a red cube", "how many cats are there?", "", "the photo depicts a cat"]

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (5, 3, 60, 44), dtype=torch.uint8)


def _golden_input(name: str) -> Tensor:
    return torch.from_numpy(np.array(Image.open(GOLDENS / f"resize_input_{name}.png"))).permute(2, 0, 1)[None]


@pytest.fixture
def copied(tiny, tmp_path):
    """A copy of one of the tiny models, to be damaged."""

    def copy(name: str) -> Path:
        return shutil.copytree(tiny / "tiny" / name, tmp_path / "tiny" / name)

    return copy


def test_the_position_table_is_the_hubs():
    golden = np.load(GOLDENS / "dinov2_posembed.npz")
    found = hub_positions(torch.from_numpy(golden["pos_embed_518"]), 16)
    torch.testing.assert_close(found[0], torch.from_numpy(golden["hub_224"]), rtol=0, atol=1e-6)
    assert (found[0] - torch.from_numpy(golden["hf_size_rule_224"])).abs().max() > 1


def test_a_position_table_of_the_right_size_is_kept():
    table = torch.randn(1, 1 + 256, 8)
    assert hub_positions(table, 16) is table


def test_dinov2_is_transformers_with_the_hubs_positions(tiny, images):
    opened = TINY_DINOV2.open(Weights(tiny), CPU)
    network = hf.Dinov2Model.from_pretrained(tiny / "tiny" / "dinov2", local_files_only=True).eval()
    table = network.embeddings.position_embeddings
    pixels = normalised(RESIZERS["pil_bicubic"](images, 224), IMAGENET_MEAN, IMAGENET_STD)
    found = extract(opened, images)
    with torch.inference_mode():
        patches = network.embeddings.patch_embeddings(pixels)
        x = torch.cat([network.embeddings.cls_token.expand(5, -1, -1), patches], 1) + hub_positions(table, 16)
        expected = network.layernorm(network.encoder(x).last_hidden_state)[:, 0]
        by_transformers_rule = network(pixels).pooler_output
    assert list(found) == list(TINY_DINOV2.outputs) and found["dinov2.cls"].shape == (5, 24)
    torch.testing.assert_close(found["dinov2.cls"], expected, rtol=1e-5, atol=1e-5)
    assert (found["dinov2.cls"] - by_transformers_rule).abs().max() > 1e-4


@pytest.mark.parametrize("resize", ["pil_bicubic", "edm2_bicubic"])
def test_dinov2_reads_the_golden_pixels(resize):
    name = {"pil_bicubic": "pil_uint8_bicubic_224", "edm2_bicubic": "edm2_torch_224"}[resize]
    golden = torch.from_numpy(np.load(GOLDENS / "resize.npz")[f"down_512x400__{name}"])
    pixels = RESIZERS[resize](_golden_input("down_512x400"), 224)[0, :, 1::5, 1::5].permute(1, 2, 0)
    torch.testing.assert_close(pixels, golden.float(), rtol=0, atol=2.5e-3)


@pytest.mark.parametrize("name", ["down_512x400", "up_48x64", "same_299"])
def test_clips_pixels_are_those_of_its_image_processor(name):
    image = _golden_input(name)
    found = normalised(RESIZERS["clip_pil"](image, 224), CLIP_MEAN, CLIP_STD)
    processed = hf.CLIPImageProcessorPil()(Image.fromarray(image[0].permute(1, 2, 0).numpy()), return_tensors="pt")
    torch.testing.assert_close(found, processed["pixel_values"], rtol=0, atol=1e-6)
    golden = torch.from_numpy(np.load(GOLDENS / "resize.npz")[f"{name}__hf_clip_224_normalised"])
    torch.testing.assert_close(found[0, :, 1::5, 1::5].permute(1, 2, 0), golden, rtol=0, atol=1e-6)


def test_clips_embeddings_are_those_of_transformers(tiny, images):
    opened = TINY_CLIP.open(Weights(tiny), CPU)
    network = hf.CLIPModel.from_pretrained(tiny / "tiny" / "clip", local_files_only=True).eval()
    tokenizer = hf.CLIPTokenizer.from_pretrained(tiny / "tiny" / "clip", local_files_only=True)
    pixels = normalised(RESIZERS["cmmd_crop"](images, 28), CLIP_MEAN, CLIP_STD)
    tokens = tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = network(pixel_values=pixels, **tokens)
    found = extract(opened, images)["clip.image"]
    assert opened.embed_text is not None and found.shape == (5, 12)
    texts = opened.embed_text(CAPTIONS)
    normal = torch.nn.functional.normalize
    torch.testing.assert_close(normal(found), expected.image_embeds, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(normal(texts), expected.text_embeds, rtol=1e-5, atol=1e-5)
    assert (found.norm(dim=1) - 1).abs().min() > 1e-3, "not normalised"
    assert opened.sha256 == sha256_of(tiny / "tiny" / "clip")


@pytest.mark.parametrize("extractor", [TINY_CLIP, TINY_DINOV2], ids=lambda extractor: extractor.model)
def test_an_images_features_do_not_depend_on_the_others(tiny, images, extractor):
    opened = extractor.open(Weights(tiny), CPU)
    for name, rows in extract(opened, images, 8).items():
        assert torch.equal(extract(opened, images[3:4], 8)[name], rows[3:4])
        torch.testing.assert_close(extract(opened, images[3:4], 1)[name], rows[3:4], rtol=1e-5, atol=1e-5)


def test_a_captions_embedding_does_not_depend_on_the_others(tiny):
    embed_text = TINY_CLIP.open(Weights(tiny), CPU).embed_text
    assert embed_text is not None
    assert torch.equal(embed_text(CAPTIONS[:1]), embed_text(CAPTIONS * 20)[:1])
    assert embed_text([]).shape == (0, 12)


def test_the_prompt_stands_before_each_caption(tiny):
    plain = TINY_CLIP.open(Weights(tiny), CPU).embed_text
    prompted = CLIP("tiny/clip", 28, width=12, prompt="A photo depicts ").open(Weights(tiny), CPU).embed_text
    assert plain is not None and prompted is not None
    assert torch.equal(prompted(["a cube"]), plain(["A photo depicts a cube"]))
    assert not torch.equal(prompted(["a cube"]), plain(["a cube"]))


def test_captions_longer_than_77_tokens_are_cut_and_said_to_be(tiny):
    opened = TINY_CLIP.open(Weights(tiny), CPU)
    assert opened.embed_text is not None and opened.cut_off is not None
    letters = "abcdefghijklmnopqrstuvwxyz" * 3  # one token each, and one to begin with and one to end with
    assert opened.cut_off([letters[:75], letters[:76], "", letters]).tolist() == [False, True, False, True]
    long, longer = opened.embed_text([letters[:76], letters])
    assert torch.equal(long, longer)


def test_names_tell_apart_all_that_changes_numbers():
    values = [DINOv2(), DINOv2(resize="edm2_bicubic"), DINOv2("facebook/dinov2-base", width=768)]
    values += [CLIP(), CLIP(prompt="A photo depicts "), CLIP("openai/clip-vit-large-patch14", 224, "clip_pil")]
    assert len({value.name for value in values}) == len(values)
    assert CLIP().outputs == {"clip.image": 768} and DINOv2().outputs == {"dinov2.cls": 1024}


def test_a_folder_as_openai_published_it_gives_the_same(copied, tiny, tmp_path, images):
    """A pickle of weights with position_ids among them, and a tokenizer in two files."""
    folder = copied("clip")
    weights = load_file(folder / "model.safetensors")
    for tower, count in (("text", 77), ("vision", 5)):
        weights[f"{tower}_model.embeddings.position_ids"] = torch.arange(count)[None]
    torch.save(weights, folder / "pytorch_model.bin")
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).unlink()
    found, expected = (TINY_CLIP.open(Weights(root), CPU) for root in (tmp_path, tiny))
    assert torch.equal(found.compute(images)["clip.image"], expected.compute(images)["clip.image"])
    assert found.embed_text is not None and expected.embed_text is not None
    assert torch.equal(found.embed_text(CAPTIONS), expected.embed_text(CAPTIONS))


def test_half_precision_weights_are_computed_in_float32(copied, tmp_path, images):
    folder = copied("clip")
    hf.CLIPModel.from_pretrained(folder, local_files_only=True).half().save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    rows = extract(TINY_CLIP.open(Weights(tmp_path), CPU), images)["clip.image"]
    assert not torch.equal(rows, rows.half().float())


@pytest.mark.parametrize("extractor", [CLIP(), DINOv2()], ids=["clip", "dinov2"])
def test_an_absent_folder_says_what_to_put_where(tmp_path, extractor):
    with pytest.raises(ResourceError, match=rf"{tmp_path}/{extractor.model}: no such weights; get {extractor.model} "):
        extractor.open(Weights(tmp_path), CPU)


@pytest.mark.parametrize("extractor", [TINY_CLIP, TINY_DINOV2], ids=lambda extractor: extractor.model)
def test_absent_transformers_names_the_extra(tiny, monkeypatch, extractor):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ResourceError, match=r"pip install 'pixelspace\[text\]'"):
        extractor.open(Weights(tiny), CPU)


@pytest.mark.parametrize(
    ("extractor", "said"),
    [
        (CLIP("tiny/dinov2"), "model_type is 'dinov2', expected 'clip'"),
        (DINOv2("tiny/clip"), "model_type is 'clip', expected 'dinov2'"),
        (CLIP("tiny/clip", width=12), r"image_size is 28, expected 336; say CLIP\(size=28\)"),
        (CLIP("tiny/clip", 28), r"projection_dim is 12, expected 768; say CLIP\(width=12\)"),
        (DINOv2("tiny/dinov2"), r"hidden_size is 24, expected 1024; say DINOv2\(width=24\)"),
    ],
)
def test_another_model_is_refused(tiny, extractor, said):
    with pytest.raises(CheckpointError, match=said):
        extractor.open(Weights(tiny), CPU)


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": Path("code")}, folder / "pytorch_model.bin")


def _add_a_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"classifier": torch.zeros(3)}, path, {"format": "pt"})


DAMAGES = {
    "no config.json": lambda folder: (folder / "config.json").unlink(),
    "not readable as JSON": lambda folder: (folder / "config.json").write_text("{"),
    "expected a JSON object, found list": lambda folder: (folder / "config.json").write_text("[]"),
    "a folder without weights": lambda folder: (folder / "model.safetensors").unlink(),
    "transformers cannot read it": _cut,
    "transformers cannot read it: Unsupported": _as_pickle,
    r"36 missing .*0 unknown": lambda folder: edit_config(folder, num_hidden_layers=4),
    r"0 missing .*1 unknown \['classifier'\]": _add_a_tensor,
    "cannot read it: .*size": lambda folder: edit_config(folder, mlp_ratio=2),
    "cannot read it: .*hidden_size": lambda folder: edit_config(folder, hidden_size="wide"),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line(copied, tmp_path, capfd, said):
    DAMAGES[said](copied("dinov2"))
    with pytest.raises(CheckpointError, match=said) as error:
        TINY_DINOV2.open(Weights(tmp_path), CPU)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("gone", [("tokenizer.json",), ("tokenizer.json", "tokenizer_config.json")])
def test_images_need_no_tokenizer_but_captions_do(copied, tmp_path, images, gone):
    folder = copied("clip")
    for name in gone:
        (folder / name).unlink()
    opened = TINY_CLIP.open(Weights(tmp_path), CPU)
    assert extract(opened, images)["clip.image"].shape == (5, 12)
    assert opened.embed_text is not None
    with pytest.raises(CheckpointError, match=r"no tokenizer.json and no vocab.json"):
        opened.embed_text(CAPTIONS)


def test_a_tokenizer_of_another_model_is_refused(copied, tmp_path):
    folder = copied("clip")
    names = {name: i for i, name in enumerate([*map(str, range(200)), "<|startoftext|>", "<|endoftext|>"])}
    hf.CLIPTokenizer(names, []).save_pretrained(folder)
    opened = TINY_CLIP.open(Weights(tmp_path), CPU)
    assert opened.embed_text is not None
    with pytest.raises(CheckpointError, match="its tokenizer knows 202 tokens, its network 54"):
        opened.embed_text(CAPTIONS)


@pytest.mark.parametrize("kind", [CLIP, DINOv2])
def test_an_unknown_resize_is_refused_with_the_known_ones(kind):
    with pytest.raises(ValueError, match=r"no resize 'bicubic'; .*pil_bicubic"):
        kind(resize="bicubic")
