"""Which models of transformers are text encoders, and what of each is text: see `FAMILIES`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


def _mean(found: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def _own(found: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    return found.pooler_output.float()


def _table(config: Any) -> int | None:
    return config.max_position_embeddings


@dataclass(frozen=True)
class Family:
    """transformers' class `network`; `pooled` makes a summary (B, P) of what it found, the tokens (B, L, D) and their
    mask. It takes at most `most` tokens, or always `fixed` ones with no mask. Of a checkpoint it leaves out the weights
    whose names begin with one of `unused`."""

    network: str
    pooled: Callable[[Any, Tensor, Tensor], Tensor] = _mean
    most: Callable[[Any], int | None] = _table
    unused: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    fixed: bool = False


def _t5(network: str) -> Family:
    return Family(network, most=lambda config: None, unused=("decoder.", "lm_head."))


def _bert(most: Callable[[Any], int | None] = _table, *, prefix: str, pooler: bool = True) -> Family:
    """The last hidden state and its mean; what models of this kind were trained to guess words with is left out."""
    heads = ("pooler.", "cls.", "lm_head.", "classifier.", "qa_outputs.")
    unused = (*heads, f"{prefix}.pooler.")
    return Family("AutoModel", most=most, unused=unused, settings={"add_pooling_layer": False} if pooler else {})


def _after_padding(config: Any) -> int:
    """RoBERTa counts its positions from the one after its padding token's number."""
    return config.max_position_embeddings - config.pad_token_id - 1


# CLIP's pooled text is that of the end token after the final norm, before the projection to where it is compared with
# images: a network that reads it has a linear layer of its own there, and the projection can only lose something.
_CLIP = Family("CLIPTextModel", _own, unused=("vision_model.", "visual_projection.", "text_projection.", "logit_scale"))
# SigLIP attends to what fills up its 64 tokens, and its pooled text is of the last of them: so it was trained.
_SIGLIP = {"pooled": _own, "unused": ("vision_model.", "logit_"), "fixed": True}

FAMILIES: dict[str, Family] = {
    "t5": _t5("T5EncoderModel"),
    "mt5": _t5("MT5EncoderModel"),
    "umt5": _t5("UMT5EncoderModel"),
    "clip": _CLIP,
    "clip_text_model": _CLIP,
    "siglip": Family("SiglipTextModel", **_SIGLIP),
    "siglip_text_model": Family("SiglipTextModel", **_SIGLIP),
    "siglip2": Family("Siglip2TextModel", **_SIGLIP),
    "siglip2_text_model": Family("Siglip2TextModel", **_SIGLIP),
    "bert": _bert(prefix="bert"),
    "distilbert": _bert(prefix="distilbert", pooler=False),
    "roberta": _bert(_after_padding, prefix="roberta"),
    "xlm-roberta": _bert(_after_padding, prefix="roberta"),
    "mpnet": _bert(_after_padding, prefix="mpnet"),
}
