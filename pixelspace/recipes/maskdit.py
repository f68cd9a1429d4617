"""Recipes of MaskDiT (Zheng et al. 2024): masked training, then unmasked tuning, on latents or pixels."""

from dataclasses import replace

from pixelspace.backbones.maskdit import Decoder, MaskDiTConfig

# Width, depth and heads of DiT's sizes (Peebles and Xie 2023, Table 1; H of the MaskDiT code).
SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16), "H": (1280, 32, 16)}

# The original has the last one at every size, and with it a masked S is dearer than a whole DiT-S/2. Those of S, B and L
# are ours: XL's share of the encoder's width and depth, at its 32 features a head.
DECODERS = {
    "S": Decoder(160, 3, 5),
    "B": Decoder(320, 4, 10),
    "L": Decoder(448, 7, 14),
    "XL": Decoder(512, 8, 16),
    "H": Decoder(512, 8, 16),
}


def dit(name: str, patch: int = 2, *, size: tuple[int, int] = (32, 32), num_classes: int = 1000) -> MaskDiTConfig:
    """DiT of a size S, B, L, XL or H on latents of `size`."""
    width, depth, num_heads = SIZES[name]
    return MaskDiTConfig(width, depth, num_heads, size, patch, num_classes=num_classes, decoder=None)


def maskdit(
    name: str,
    patch: int = 2,
    *,
    size: tuple[int, int] = (32, 32),
    num_classes: int = 1000,
    decoder: Decoder | None = None,
) -> MaskDiTConfig:
    """MaskDiT of a size S, B, L, XL or H on latents of `size`, with the size's own decoder or another."""
    return replace(dit(name, patch, size=size, num_classes=num_classes), decoder=decoder or DECODERS[name])
