"""Answers to questions about images, by networks of transformers (extra `text`) in local folders.

Scores of question answering move more with the network that answers than with most generators, so a report says which
one it was and how it was asked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from pixelspace.config import value
from pixelspace.errors import CheckpointError
from pixelspace.evaluation.features import full_precision
from pixelspace.evaluation.pretrained import find_model
from pixelspace.evaluation.weights import Weights, sha256_of
from pixelspace.foreign import read_config
from pixelspace.text.huggingface import library, load_model, reading

VQA = Callable[[Tensor, str], str]
"""(uint8 image (3, H, W), question) to an answer in lower case without spaces around it."""


def _image_processor(folder: Path) -> Any:
    # Pillow's by name: which one the plain name means depends on what else is installed.
    return library().BlipImageProcessorPil.from_pretrained(folder, local_files_only=True)


def _tokenizer(folder: Path, vocabulary: int) -> Any:
    # Without its files transformers makes an empty one.
    if not any(
        (folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "tokenizer.model", "spiece.model")
    ):
        raise CheckpointError(f"{folder}: no tokenizer.json, nor an older tokenizer's file")
    tokenizer = library().AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if len(tokenizer) > vocabulary:
        raise CheckpointError(f"{folder}: its tokenizer knows {len(tokenizer)} tokens, its network {vocabulary}")
    return tokenizer


def _blip(folder: Path, config: Any) -> Any:
    tokenizer = _tokenizer(folder, config.text_config.vocab_size)
    return library().BlipProcessor(_image_processor(folder), tokenizer)


def _instructblip(folder: Path, config: Any) -> Any:
    tokenizer = _tokenizer(folder, config.text_config.vocab_size)
    of_qformer = _tokenizer(folder / "qformer_tokenizer", config.qformer_config.vocab_size)
    if (place := tokenizer.convert_tokens_to_ids("<image>")) != config.image_token_index:
        raise CheckpointError(
            f"{folder}: its tokenizer's <image> is token {place}, in config.json image_token_index is "
            f"{config.image_token_index}; get a newer copy of the model"
        )
    return library().InstructBlipProcessor(_image_processor(folder), tokenizer, of_qformer, config.num_query_tokens)


_PROCESSORS: dict[str, Callable[[Path, Any], Any]] = {
    "BlipForQuestionAnswering": _blip,
    "InstructBlipForConditionalGeneration": _instructblip,
}


@dataclass(frozen=True)
class Answerer:
    """A network that answers, as `answer`; `name` and the SHA-256 of its weights go into reports."""

    name: str
    sha256: str
    answer: VQA


def _prepared(processor: Any, image: Tensor, text: str, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    found = processor(images=pixels, text=text, return_tensors="pt")
    return {name: (x.to(dtype) if x.is_floating_point() else x).to(device) for name, x in found.items()}


@value
class PretrainedVQA:
    """A BLIP for question answering or an InstructBLIP, asked one question at a time, its answer the likeliest found.

    `prompt` is what it reads, `{question}` replaced. DSG's authors ask `Salesforce/instructblip-vicuna-7b` with
    `beams=5, repetition_penalty=1.5`.
    """

    model: str = "Salesforce/blip-vqa-base"
    prompt: str = "{question}"
    beams: int = 1
    repetition_penalty: float = 1.0
    max_tokens: int = 20
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if "{question}" not in self.prompt:
            raise ValueError(f"PretrainedVQA: prompt must hold {{question}}, found {self.prompt!r}")
        for field in ("beams", "max_tokens"):
            if getattr(self, field) < 1:
                raise ValueError(f"PretrainedVQA: {field} must be at least 1, found {getattr(self, field)}")
        if self.repetition_penalty <= 0:
            raise ValueError(f"PretrainedVQA: repetition_penalty must be above 0, found {self.repetition_penalty}")

    @property
    def name(self) -> str:
        """What a report calls it, with all that changes its answers."""
        return (
            f"VQA {self.model}, prompt {self.prompt!r}, {self.beams} beams, repetition penalty "
            f"{self.repetition_penalty:g}, up to {self.max_tokens} tokens, {self.dtype}"
        )

    def open(self, weights: Weights, device: torch.device) -> Answerer:
        """The network on `device`.

        Raises:
            ResourceError: its weights or transformers are absent.
            CheckpointError: they are damaged or of a network that is not known here.
        """
        library()
        folder = find_model(weights, self.model)
        architectures = read_config(folder).get("architectures")
        kind = architectures[0] if isinstance(architectures, list) and len(architectures) == 1 else None
        if kind not in _PROCESSORS:
            raise CheckpointError(
                f"{folder / 'config.json'}: architectures is {architectures!r}; can be asked: {', '.join(_PROCESSORS)}"
            )
        dtype = getattr(torch, self.dtype)
        sha256, network = sha256_of(folder), load_model(kind, folder, dtype).to(device)
        with reading(folder):
            processor = _PROCESSORS[kind](folder, network.config)

        def answer(image: Tensor, question: str) -> str:
            inputs = _prepared(processor, image, self.prompt.replace("{question}", question), dtype, device)
            with full_precision():
                ids = network.generate(
                    **inputs,
                    do_sample=False,
                    num_beams=self.beams,
                    repetition_penalty=self.repetition_penalty,
                    max_new_tokens=self.max_tokens,
                )
            read = inputs["input_ids"]
            if ids[:, : read.shape[1]].equal(read):  # a network of one decoder repeats what it read
                ids = ids[:, read.shape[1] :]
            return processor.tokenizer.decode(ids[0], skip_special_tokens=True).strip().lower()

        return Answerer(self.name, sha256, answer)
