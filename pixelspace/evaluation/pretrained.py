"""DINOv2 and CLIP, computed by transformers (extra `text`) from local folders in Hugging Face's layout.

A model's folder stands below the folder of weights under its own name, `WEIGHTS/facebook/dinov2-large`; transformers
is never let on the network. Pixels are prepared here and not by it: its image processors change with what else is
installed.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from pixelspace.config import nearest, value
from pixelspace.errors import CheckpointError
from pixelspace.evaluation.features import Extractor, Opened, in_batches
from pixelspace.evaluation.resize import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, RESIZERS
from pixelspace.evaluation.weights import Weights, WeightsFile, sha256_of
from pixelspace.foreign import read_config
from pixelspace.text.huggingface import library, load_model, reading

_DINOV2_SIZE = 224
_LICENCES = {"facebook": "Apache-2.0", "openai": "MIT", "laion": "MIT"}


def find_model(weights: Weights, model: str) -> Path:
    """The local folder of a model.

    Raises:
        ResourceError: absent.
    """
    licence = _LICENCES.get(model.partition("/")[0], "its own licence")
    return weights.find(WeightsFile(model, f"hf:{model}", 0, "", licence))


def _require(folder: Path, what: str, found: Any, expected: Any, advice: str) -> None:
    if found != expected:
        raise CheckpointError(f"{folder / 'config.json'}: {what} is {found!r}, expected {expected!r}; {advice}")


def _check_resize(kind: str, resize: str) -> None:
    if resize not in RESIZERS:
        raise ValueError(f"{kind}: no resize {resize!r}; {nearest(resize, RESIZERS)}")


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images (B, 3, H, W) of 0 to 255 over 255, less `mean`, over `std`, by colour."""
    by_colour = (torch.tensor(numbers, device=images.device).reshape(3, 1, 1) for numbers in (mean, std))
    return (images / 255 - next(by_colour)) / next(by_colour)


def hub_positions(table: Tensor, side: int) -> Tensor:
    """(1, 1 + side², D) from a position table (1, 1 + n², D): bicubic by the factor (side + 0.1) / n.

    So facebookresearch/dinov2 interpolates; transformers asks for the size and samples elsewhere, which changes
    features at 224 pixels by about 0.5 %. The class token's row is kept.
    """
    own, grid = table[:, :1], table[:, 1:]
    n = math.isqrt(grid.shape[1])
    if n == side:
        return table
    grid = F.interpolate(rearrange(grid, "1 (h w) d -> 1 d h w", h=n), scale_factor=(side + 0.1) / n, mode="bicubic")
    return torch.cat([own, rearrange(grid, "1 d h w -> 1 (h w) d")], 1)


@value
class DINOv2(Extractor):
    """The class token after the last norm of a DINOv2 without registers (Oquab et al. 2023), on 224 x 224 pixels.

    `width` is its features' (small 384, base 768, large 1024, giant 1536). EDM2 resizes by `edm2_bicubic`, dgm-eval by
    `pil_bicubic`.
    """

    model: str = "facebook/dinov2-large"
    resize: str = "pil_bicubic"
    width: int = 1024

    def __post_init__(self) -> None:
        _check_resize("DINOv2", self.resize)

    @property
    def name(self) -> str:
        return f"DINOv2 {self.model}, resize {self.resize} {_DINOV2_SIZE}, positions as the hub's"

    @property
    def outputs(self) -> Mapping[str, int]:
        return {"dinov2.cls": self.width}

    def open(self, weights: Weights, device: torch.device) -> Opened:
        library()
        folder = find_model(weights, self.model)
        _require(folder, "model_type", read_config(folder).get("model_type"), "dinov2", "give the folder of a DINOv2")
        sha256, network = sha256_of(folder), load_model("Dinov2Model", folder)
        width, side = network.config.hidden_size, _DINOV2_SIZE // network.config.patch_size
        _require(folder, "hidden_size", width, self.width, f"say DINOv2(width={width})")
        positions = hub_positions(network.embeddings.position_embeddings, side)
        network.embeddings.position_embeddings = nn.Parameter(positions, requires_grad=False)
        network.to(device)

        def compute(images: Tensor) -> dict[str, Tensor]:
            pixels = normalised(RESIZERS[self.resize](images.to(device), _DINOV2_SIZE), IMAGENET_MEAN, IMAGENET_STD)
            return {"dinov2.cls": network(pixels).pooler_output.float().cpu()}

        return Opened(sha256, compute)


def _tokenizer(folder: Path, vocabulary: int) -> Any:
    if not (folder / "tokenizer.json").is_file():  # without it, or these, transformers makes an empty tokenizer
        for name in ("vocab.json", "merges.txt"):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder}: no tokenizer.json and no {name}; captions cannot be read without")
    with reading(folder):
        tokenizer = library().CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    if len(tokenizer) > vocabulary:
        raise CheckpointError(f"{folder}: its tokenizer knows {len(tokenizer)} tokens, its network {vocabulary}")
    return tokenizer


@value
class CLIP(Extractor):
    """The projected embeddings, not normalised, of images and captions by a CLIP (Radford et al. 2021).

    `size` and `width` are the model's image size and projection. CMMD takes ViT-L/14@336 and `cmmd_crop`; CLIPScore
    mostly another model with `clip_pil`, in the paper with the `prompt` "A photo depicts " before each caption.
    """

    model: str = "openai/clip-vit-large-patch14-336"
    size: int = 336
    resize: str = "cmmd_crop"
    width: int = 768
    prompt: str = ""

    def __post_init__(self) -> None:
        _check_resize("CLIP", self.resize)

    @property
    def name(self) -> str:
        prompt = f", prompt {self.prompt!r}" if self.prompt else ""
        return f"CLIP {self.model}, resize {self.resize} {self.size}{prompt}"

    @property
    def output(self) -> str:
        """The name of what it makes of images."""
        return "clip.image"

    @property
    def text_output(self) -> str:
        return "clip.text"

    @property
    def outputs(self) -> Mapping[str, int]:
        return {self.output: self.width}

    def open(self, weights: Weights, device: torch.device) -> Opened:
        library()
        folder = find_model(weights, self.model)
        _require(folder, "model_type", read_config(folder).get("model_type"), "clip", "give the folder of a CLIP")
        sha256, network = sha256_of(folder), load_model("CLIPModel", folder)
        size, width = network.config.vision_config.image_size, network.config.projection_dim
        _require(folder, "image_size", size, self.size, f"say CLIP(size={size})")
        _require(folder, "projection_dim", width, self.width, f"say CLIP(width={width})")
        length = network.config.text_config.max_position_embeddings  # 77
        network.to(device)

        def compute(images: Tensor) -> dict[str, Tensor]:
            pixels = normalised(RESIZERS[self.resize](images.to(device), self.size), CLIP_MEAN, CLIP_STD)
            seen = network.vision_model(pixel_values=pixels).pooler_output
            return {self.output: network.visual_projection(seen).float().cpu()}

        @cache  # not sooner: CMMD needs no tokenizer, nor its files
        def tokenizer() -> Any:
            return _tokenizer(folder, network.config.text_config.vocab_size)

        def prompted(captions: Sequence[str]) -> list[str]:
            return [self.prompt + caption for caption in captions]

        def embed(ids: Tensor) -> dict[str, Tensor]:
            read = network.text_model(input_ids=ids.to(device)).pooler_output
            return {self.text_output: network.text_projection(read).float().cpu()}

        def embed_text(captions: Sequence[str]) -> Tensor:
            if not captions:
                return torch.zeros(0, self.width)
            found = tokenizer()(prompted(captions), padding="max_length", truncation=True, max_length=length)
            return in_batches(embed, torch.tensor(found["input_ids"]))[self.text_output]

        def cut_off(captions: Sequence[str]) -> Tensor:
            ids = tokenizer()(prompted(captions), verbose=False)["input_ids"] if captions else []
            return torch.tensor([len(row) > length for row in ids], dtype=torch.bool)

        return Opened(sha256, compute, embed_text, cut_off)
