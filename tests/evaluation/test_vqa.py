import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from PIL import Image
from torch import Tensor

from pixelspace.errors import CheckpointError, ResourceError
from pixelspace.evaluation.vqa import PretrainedVQA
from pixelspace.evaluation.weights import Weights, sha256_of
from tests.evaluation.tiny_models import WORDS, edit_config

CPU = torch.device("cpu")
QUESTIONS = ("how many cats are there?", "is the cube red?", "is the photo red?", "red?")
BLIP, INSTRUCTBLIP = PretrainedVQA("tiny/blip", max_tokens=6), PretrainedVQA("tiny/instructblip", max_tokens=6)

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture
def images() -> Tensor:
    """A grey one, a dark one, a bright one and one between."""
    noise = torch.randint(0, 256, (4, 3, 40, 50), dtype=torch.uint8)
    return torch.stack([noise[0], noise[1] // 4, 255 - noise[2] // 4, noise[3]])


@pytest.mark.parametrize("vqa", [BLIP, INSTRUCTBLIP], ids=lambda vqa: vqa.model)
def test_answers_are_words_and_always_the_same(tiny, images, vqa):
    answerers = [vqa.open(Weights(tiny), CPU) for _ in range(2)]
    found = [[answerer.answer(image, text) for image in images for text in QUESTIONS] for answerer in answerers]
    assert found[0] == found[1]
    by_image = [found[0][i : i + len(QUESTIONS)] for i in range(0, len(found[0]), len(QUESTIONS))]
    assert any(len(set(answers)) > 1 for answers in by_image), "the question matters"
    assert any(len(set(answers)) > 1 for answers in zip(*by_image, strict=True)), "the image matters"
    assert set(" ".join(found[0]).replace("?", " ? ").split()) <= set(WORDS)
    assert answerers[0].sha256 == sha256_of(tiny / "tiny" / vqa.model.rpartition("/")[2])
    assert answerers[0].name == vqa.name


def test_blips_answer_is_that_of_transformers(tiny, images):
    folder = tiny / "tiny" / "blip"
    network = hf.BlipForQuestionAnswering.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = hf.BertTokenizer.from_pretrained(folder, local_files_only=True)
    prepare = hf.BlipImageProcessorPil.from_pretrained(folder, local_files_only=True)
    answer = BLIP.open(Weights(tiny), CPU).answer
    for image in images:
        for question in QUESTIONS:
            pixels = prepare(Image.fromarray(image.permute(1, 2, 0).numpy()), return_tensors="pt")
            tokens = tokenizer(question, return_tensors="pt", return_token_type_ids=False)
            ids = network.generate(**pixels, **tokens, do_sample=False, max_new_tokens=6)
            assert answer(image, question) == tokenizer.decode(ids[0], skip_special_tokens=True)


def test_an_answer_does_not_repeat_the_question(tiny, images):
    # The OPT of the tiny InstructBLIP returns what it read before what it says.
    limited = PretrainedVQA("tiny/instructblip", max_tokens=1).open(Weights(tiny), CPU)
    assert all(len(limited.answer(image, question).split()) <= 1 for image in images for question in QUESTIONS)


def test_the_prompt_is_what_is_read(tiny, images):
    prompted = PretrainedVQA("tiny/blip", prompt="is the photo {question}", max_tokens=6).open(Weights(tiny), CPU)
    plain = BLIP.open(Weights(tiny), CPU)
    found = [prompted.answer(image, "red?") for image in images]
    assert found == [plain.answer(image, "is the photo red?") for image in images]
    assert found != [plain.answer(image, "red?") for image in images]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "yes or no?"}, r"prompt must hold \{question\}, found 'yes or no\?'"),
        ({"beams": 0}, "beams must be at least 1, found 0"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, found 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
    ],
)
def test_impossible_settings_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        PretrainedVQA(**changes)


def test_names_tell_apart_all_that_changes_answers():
    dsg = PretrainedVQA("Salesforce/instructblip-vicuna-7b", beams=5, repetition_penalty=1.5)
    values = [PretrainedVQA(), dsg, PretrainedVQA(prompt="{question} Short answer:"), PretrainedVQA(max_tokens=5)]
    values.append(PretrainedVQA(dtype="bfloat16"))
    assert len({value.name for value in values}) == len(values)


def test_an_absent_folder_says_what_to_put_where(tmp_path):
    with pytest.raises(ResourceError, match="Salesforce/blip-vqa-base: no such weights"):
        PretrainedVQA().open(Weights(tmp_path), CPU)


def test_absent_transformers_names_the_extra(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ResourceError, match=r"pip install 'pixelspace\[text\]'"):
        BLIP.open(Weights(tiny), CPU)


def test_a_network_that_cannot_be_asked_is_refused_with_those_that_can(tiny):
    with pytest.raises(CheckpointError, match=r"architectures is \['CLIPModel'\]; can be asked: BlipForQuestionAns"):
        PretrainedVQA("tiny/clip").open(Weights(tiny), CPU)


def _more_layers(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit_config(folder, text_config=text | {"num_hidden_layers": 3})


def _more_words(folder: Path) -> None:
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "two", "more")
    hf.BertTokenizer({name: i for i, name in enumerate(names)}).save_pretrained(folder)


DAMAGES = {
    "no tokenizer.json": lambda folder: (folder / "tokenizer.json").unlink(),
    "preprocessor_config.json": lambda folder: (folder / "preprocessor_config.json").unlink(),
    "the weights are not those of its config.json": _more_layers,
    "its tokenizer knows 22 tokens, its network 20": _more_words,
}


@pytest.mark.parametrize("said", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line(tiny, tmp_path, said):
    DAMAGES[said](shutil.copytree(tiny / "tiny" / "blip", tmp_path / "tiny" / "blip"))
    with pytest.raises(CheckpointError, match=said) as error:
        BLIP.open(Weights(tmp_path), CPU)
    assert "\n" not in str(error.value)


def test_an_instructblip_with_another_image_token_is_refused(tiny, tmp_path):
    folder = shutil.copytree(tiny / "tiny" / "instructblip", tmp_path / "tiny" / "instructblip")
    edit_config(folder, image_token_index=7)
    with pytest.raises(CheckpointError, match=r"<image> is token 20, in config\.json image_token_index is 7"):
        INSTRUCTBLIP.open(Weights(tmp_path), CPU)
