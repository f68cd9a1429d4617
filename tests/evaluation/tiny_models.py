"""Folders of tiny random networks in Hugging Face's layout, as transformers itself writes them."""

import json
from pathlib import Path

import torch
import transformers as hf

WORDS = ("how", "many", "cats", "are", "there", "a", "red", "cube", "?", "is", "the", "photo", "depicts", "yes", "no")


def _save(network, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(folder)
    return folder


def clip(folder: Path, image_size: int = 28) -> Path:
    """Hidden width 16, embeddings of 12, with a tokenizer of single letters."""
    torch.manual_seed(1)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(names) - 2, "eos_token_id": len(names) - 1, "pad_token_id": len(names) - 1}
    config = hf.CLIPConfig(
        text_config={**layers, **ends, "vocab_size": len(names)},
        vision_config={**layers, "image_size": image_size, "patch_size": 14},
        projection_dim=12,
    )
    _save(hf.CLIPModel(config), folder)
    hf.CLIPTokenizer({name: i for i, name in enumerate(names)}, []).save_pretrained(folder)
    return folder


def dinov2(folder: Path) -> Path:
    """Hidden width 24, and the position table of 37 x 37 patches that the published ones have."""
    torch.manual_seed(2)
    config = hf.Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=518, patch_size=14)
    network = hf.Dinov2Model(config)
    waves = torch.linspace(0, 6, 37)
    smooth = (waves[:, None] * torch.rand(24)).sin()[:, None] + (waves[:, None] * torch.rand(24)).cos()[None]
    network.embeddings.position_embeddings.data[0, 1:] = smooth.reshape(37 * 37, 24)
    return _save(network, folder)


def _words(folder: Path, *more: str) -> hf.PreTrainedTokenizerBase:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
    tokenizer = hf.BertTokenizer({name: i for i, name in enumerate(names)})
    tokenizer.add_special_tokens({"additional_special_tokens": list(more)})
    tokenizer.save_pretrained(folder)
    return tokenizer


def blip(folder: Path) -> Path:
    """A BLIP for question answering that knows fifteen words."""
    torch.manual_seed(8)
    layers = {
        **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        "initializer_range": 1.0,  # so that answers differ
    }
    size = len(WORDS) + 5
    ends = {"bos_token_id": 2, "pad_token_id": 0, "sep_token_id": 3, "eos_token_id": 3}
    config = hf.BlipConfig(
        text_config={**layers, **ends, "vocab_size": size, "encoder_hidden_size": 16, "is_decoder": True},
        vision_config={**layers, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    _save(hf.BlipForQuestionAnswering(config), folder)
    _words(folder)
    hf.BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def instructblip(folder: Path) -> Path:
    """An InstructBLIP whose language model is an OPT that knows fifteen words."""
    torch.manual_seed(4)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = _words(folder, "<image>")
    _words(folder / "qformer_tokenizer")
    config = hf.InstructBlipConfig(
        vision_config={**layers, "image_size": 32, "patch_size": 16},
        qformer_config={**layers, "vocab_size": len(WORDS) + 5, "encoder_hidden_size": 16},
        text_config={
            **{
                "model_type": "opt",
                "hidden_size": 16,
                "ffn_dim": 32,
                "num_hidden_layers": 2,
                "word_embed_proj_dim": 16,
            },
            **{"num_attention_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 64},
            **{"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "init_std": 1.0},
        },
        num_query_tokens=4,
        image_token_index=len(tokenizer) - 1,
    )
    network = hf.InstructBlipForConditionalGeneration(config)
    for name, parameter in network.named_parameters():  # so that the image matters
        if name.startswith(("vision_model", "qformer", "language_projection", "query")) and parameter.ndim > 1:
            torch.nn.init.normal_(parameter)
    _save(network, folder)
    hf.BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
