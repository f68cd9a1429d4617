"""Folders of tiny random text encoders in Hugging Face's layout, with tokenizers trained on a few captions."""

import json
from pathlib import Path

import tokenizers as tk
import torch
import transformers as hf

CORPUS = (
    *("a red cat on a mat", "the quick brown fox jumps over the lazy dog", "eine Katze, die schläft", "two red cats"),
    *("an oil painting of a lighthouse at dawn", "photo of 3 dogs; sharp focus, 50mm", "a blue cube on a red sphere"),
)
LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def _save(network, tokenizer, folder: Path) -> Path:
    for name, weights in network.named_parameters():
        if weights.ndim > 1 and "position" not in name:
            torch.nn.init.normal_(weights, std=0.7)
    folder.mkdir(parents=True)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _unigram(extra_ids: int = 5):
    """T5's tokenizer with pieces trained on the captions."""
    trained = tk.Tokenizer(tk.models.Unigram())
    trained.pre_tokenizer = tk.pre_tokenizers.Metaspace()
    trainer = tk.trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    trained.train_from_iterator(CORPUS, trainer)
    pieces = [(piece, score) for piece, score in json.loads(trained.to_str())["model"]["vocab"] if piece != "<unk>"]
    ends = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    extra = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(extra_ids))]
    return hf.T5Tokenizer(vocab=[*ends, *pieces, *extra], extra_ids=extra_ids)


def _words(start: str, end: str, pad_id: int = 0):
    """A WordPiece trained on the captions, whose padding token is `pad_id`."""
    special = ["[PAD]", "[UNK]", "[MASK]"] if pad_id == 0 else ["[UNK]", "[PAD]", "[MASK]"]
    trained = tk.Tokenizer(tk.models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = tk.normalizers.Lowercase()
    trained.pre_tokenizer = tk.pre_tokenizers.BertPreTokenizer()
    special += [token for token in (start, end) if token]
    trainer = tk.trainers.WordPieceTrainer(vocab_size=80, special_tokens=special, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    template = " ".join(part for part in (start, "$A", end) if part)
    ends = [(token, trained.token_to_id(token)) for token in (start, end) if token]
    trained.post_processor = tk.processors.TemplateProcessing(single=template, special_tokens=ends)
    named = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]", "eos_token": end}
    return hf.PreTrainedTokenizerFast(tokenizer_object=trained, **named)


def _t5(config, network, folder: Path) -> Path:
    tokenizer = _unigram()
    settings = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": len(tokenizer) + 3}
    made = config(**settings, decoder_start_token_id=0)
    return _save(network(made), tokenizer, folder)


def t5(folder: Path) -> Path:
    """Encoder and decoder, as the published ones are."""
    return _t5(hf.T5Config, hf.T5ForConditionalGeneration, folder)


def umt5(folder: Path) -> Path:
    return _t5(hf.UMT5Config, hf.UMT5EncoderModel, folder)


def mt5(folder: Path) -> Path:
    return _t5(hf.MT5Config, hf.MT5EncoderModel, folder)


def _clip_tokenizer():
    letters = [chr(code) for code in range(33, 127)]
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return hf.CLIPTokenizer({name: i for i, name in enumerate(names)}, [])


def _clip_text(tokenizer) -> dict:
    ends = {"bos_token_id": len(tokenizer) - 2, "eos_token_id": len(tokenizer) - 1, "pad_token_id": len(tokenizer) - 1}
    return {**LAYERS, **ends, "vocab_size": len(tokenizer)}


def clip(folder: Path) -> Path:
    """With its half that sees images."""
    tokenizer = _clip_tokenizer()
    vision = {**LAYERS, "image_size": 16, "patch_size": 8}
    config = hf.CLIPConfig(text_config=_clip_text(tokenizer), vision_config=vision, projection_dim=12)
    return _save(hf.CLIPModel(config), tokenizer, folder)


def clip_text(folder: Path) -> Path:
    """As Stable Diffusion XL's second, with a projection."""
    tokenizer = _clip_tokenizer()
    config = hf.CLIPTextConfig(**_clip_text(tokenizer), projection_dim=12)
    return _save(hf.CLIPTextModelWithProjection(config), tokenizer, folder)


def siglip(folder: Path) -> Path:
    tokenizer = _words("", "</s>")
    text = {**LAYERS, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": 12}
    config = hf.SiglipConfig(text_config=text, vision_config={**LAYERS, "image_size": 16, "patch_size": 8})
    return _save(hf.SiglipModel(config), tokenizer, folder)


def siglip2(folder: Path) -> Path:
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *(chr(code) for code in range(33, 127))]
    tokenizer = hf.Siglip2Tokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[], padding_side="right")
    ends = tk.processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.backend_tokenizer.post_processor = ends
    text = {**LAYERS, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": 12}
    config = hf.Siglip2Config(text_config=text, vision_config={**LAYERS, "num_patches": 16, "patch_size": 4})
    return _save(hf.Siglip2Model(config), tokenizer, folder)


def bert(folder: Path) -> Path:
    """With the head that guesses words."""
    tokenizer = _words("[CLS]", "[SEP]")
    config = hf.BertConfig(**LAYERS, vocab_size=len(tokenizer), max_position_embeddings=40)
    return _save(hf.BertForMaskedLM(config), tokenizer, folder)


def distilbert(folder: Path) -> Path:
    tokenizer = _words("[CLS]", "[SEP]")
    sizes = {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 40}
    return _save(hf.DistilBertModel(hf.DistilBertConfig(**sizes, vocab_size=len(tokenizer))), tokenizer, folder)


def _roberta(config, network, folder: Path) -> Path:
    tokenizer = _words("<s>", "</s>", pad_id=1)
    made = config(**LAYERS, vocab_size=len(tokenizer), max_position_embeddings=42, pad_token_id=1)
    return _save(network(made), tokenizer, folder)


def roberta(folder: Path) -> Path:
    return _roberta(hf.RobertaConfig, hf.RobertaModel, folder)


def xlm_roberta(folder: Path) -> Path:
    return _roberta(hf.XLMRobertaConfig, hf.XLMRobertaForMaskedLM, folder)


def mpnet(folder: Path) -> Path:
    return _roberta(hf.MPNetConfig, hf.MPNetModel, folder)


MODELS = {
    made.__name__: made
    for made in (t5, mt5, umt5, clip, clip_text, siglip, siglip2, bert, distilbert, roberta, xlm_roberta, mpnet)
}


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
