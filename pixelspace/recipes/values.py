"""Every value that a recipe or a model may hold, by class name: what JSON is read back into."""

from pixelspace.backbones.hdit import Global, HDiTConfig, Level, Neighborhood, ShiftedWindow
from pixelspace.backbones.maskdit import Decoder, MaskDiTConfig
from pixelspace.backbones.nested import NestedUNetConfig
from pixelspace.backbones.unet import UNetConfig, UNetText
from pixelspace.backbones.unet_body import Micro, UNetBody, UNetLevel
from pixelspace.backbones.uvit import CoreConfig, ShallowUViTConfig, UViTConfig
from pixelspace.data.buckets import Buckets
from pixelspace.data.clips import Clips
from pixelspace.data.coco import Coco
from pixelspace.data.codec import Pixels
from pixelspace.data.emoji import Emoji
from pixelspace.data.emoji.moving import MovingEmoji
from pixelspace.data.folder import Folder
from pixelspace.data.huggingface import HuggingFace
from pixelspace.data.keep import Keep
from pixelspace.data.latents import Latents
from pixelspace.data.loader import Data
from pixelspace.data.mixture import Mixture, Part
from pixelspace.data.parquet import Parquet
from pixelspace.data.shards import Shards
from pixelspace.evaluation.i3d import I3D
from pixelspace.evaluation.inception import Inception
from pixelspace.evaluation.lite0 import Lite0
from pixelspace.evaluation.metrics import (
    CMMD,
    CLIPScore,
    DensityCoverage,
    Frechet,
    InceptionScore,
    Kernel,
    PrecisionRecall,
    Vendi,
)
from pixelspace.evaluation.monitor import Monitor
from pixelspace.evaluation.pretrained import CLIP, DINOv2
from pixelspace.evaluation.protocols import Protocol
from pixelspace.growth.transfer import Rule
from pixelspace.interop.kl_vae import KLVAE
from pixelspace.nn.text import Text
from pixelspace.noise.clock import LogSigma, TableIndex
from pixelspace.noise.levels import (
    IDDPM,
    VP,
    Cosine,
    CosineInterpolated,
    Karras,
    LogLogistic,
    LogNormal,
    LogUniform,
    SplitLogNormal,
)
from pixelspace.noise.process import EDM, VPV, X0, Process, RectifiedFlow, VPEps
from pixelspace.noise.pyramid import Pyramid
from pixelspace.noise.tables import LimitedCosine, LinearBeta, SquaredCosine
from pixelspace.noise.weighting import SNR, VDM, EDMWeight, MinSNR, SoftMinSNR, Unit
from pixelspace.objectives.denoising import Denoising
from pixelspace.objectives.masked import Masked, MaskRatio
from pixelspace.objectives.nested import NestedDenoising
from pixelspace.sampling.generate import Sampling
from pixelspace.text.bytes import Bytes
from pixelspace.text.cache import Cached
from pixelspace.text.minilm import MiniLM
from pixelspace.text.pretrained import Pretrained
from pixelspace.training.ema import EMA
from pixelspace.training.low_memory import AdamW8bit
from pixelspace.training.optim import AdamW, Constant, Exponential, Group, Inverse
from pixelspace.training.stage import Inherit, Recipe, Stage

VALUES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        *(Recipe, Stage, Inherit, Rule, AdamW, AdamW8bit, Group, Constant, Inverse, Exponential, EMA),
        *(HDiTConfig, Level, Global, Neighborhood, ShiftedWindow),
        *(MaskDiTConfig, Decoder),
        *(CoreConfig, ShallowUViTConfig, UViTConfig),
        *(UNetConfig, NestedUNetConfig, UNetBody, UNetLevel, UNetText, Micro),
        *(Text, Bytes, MiniLM, Pretrained, Cached),
        *(Denoising, Masked, MaskRatio, NestedDenoising, Pyramid),
        *(Process, EDM, VPEps, VPV, X0, RectifiedFlow, LogSigma, TableIndex),
        *(Unit, EDMWeight, SNR, MinSNR, SoftMinSNR, VDM),
        *(Karras, LogUniform, VP, IDDPM, LogNormal, SplitLogNormal, LogLogistic, Cosine, CosineInterpolated),
        *(SquaredCosine, LinearBeta, LimitedCosine),
        *(Data, Keep, Buckets, Mixture, Part, Folder, Shards, Parquet, HuggingFace, Coco, Clips, Latents),
        *(Emoji, MovingEmoji),
        *(Pixels, KLVAE, Sampling),
        *(Monitor, Protocol, Inception, DINOv2, CLIP, Lite0, I3D),
        *(Frechet, Kernel, CMMD, PrecisionRecall, DensityCoverage, InceptionScore, CLIPScore, Vendi),
    )
}
