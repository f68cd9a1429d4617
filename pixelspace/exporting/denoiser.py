"""A model's denoiser as one module of tensors, which programs that know no conditions can be made of."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pixelspace.errors import NumericalError, UserError
from pixelspace.model import Model
from pixelspace.noise.process import expand
from pixelspace.noise.pyramid import Pyramid, ask
from pixelspace.training.words import asked
from pixelspace.types import Cond

TOLERANCE = 1e-4


class Denoiser(nn.Module):
    """The estimate of x0 in model space, by inputs in the order of `names`: each level of x (B, C, H, W) = x0 + k sigma
    noise, the finest first, sigma (B,), and what the image is conditioned on. It gives as many levels, `outputs`.

    The names are `x`, of a pyramid `x_64` and so on by their height; `sigma`; and of cond `label` int64 (B,) with -1
    for none, `text` (B, L, D), `text_mask` bool (B, L), `pooled` (B, P), `size` and `corner` int64 (B, 2).
    Everything is float32 and computed in it.
    """

    def __init__(self, model: Model):
        super().__init__()
        config = model.config
        self.network, self.process = model.backbone, config.process
        self.pyramid = config.pyramid or Pyramid((1,))
        height, width = config.codec.latent_size(config.size)
        factors, tiles = config.backbone.pyramid, config.backbone.tiles
        self.shapes = [(config.backbone.channels, height * tiles // f, width * tiles // f) for f in factors]
        levels = [f"_{shape[1]}" if len(factors) > 1 else "" for shape in self.shapes]
        self.examples = _conditions(model)
        self.names = (*(f"x{level}" for level in levels), "sigma", *self.examples)
        self.outputs = tuple(f"x0{level}" for level in levels)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        count = len(self.shapes)
        xs, sigma, cond = inputs[:count], inputs[count], dict(zip(self.examples, inputs[count + 1 :], strict=True))
        each = list(zip(self.pyramid.k, self.pyramid.seen, strict=True))
        levels = [x if k == seen else x * (seen / k) for x, (k, seen) in zip(xs, each, strict=True)]
        outs = ask(self.network, *self.pyramid.inputs(self.process, levels, sigma), cond)
        sigmas = self.pyramid.sigmas(sigma)
        x0 = [self.process.denoised(out, x, expand(s, x)) for out, x, s in zip(outs, levels, sigmas, strict=True)]
        return tuple(x if k == seen else x * (k / seen) for x, (k, seen) in zip(x0, each, strict=True))

    def example(self, batch: int, tokens: int = 7, seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs of `batch` images and so many tokens of text, drawn by `seed`."""
        rng = torch.Generator().manual_seed(seed)
        x = [torch.randn(batch, *shape, generator=rng) for shape in self.shapes]
        sigma = torch.rand(batch, generator=rng) * 3 + 0.1
        return *x, sigma, *(_drawn(rows, batch, tokens, rng) for rows in self.examples.values())


def _conditions(model: Model) -> dict[str, Tensor]:
    """By name what the network is conditioned on, (1, ...), nothing of it given."""
    config, network = model.config, model.backbone
    takes: frozenset[str] = network.takes  # type: ignore[assignment]  # every backbone has it
    needs: frozenset[str] = getattr(network, "needs", takes)
    given = asked(torch.tensor([-1]), config.size, {}, _no_text(config.backbone.text_widths))[1]
    for name in sorted(needs - given.keys()):
        raise UserError(f"this network needs the condition {name!r}, and a model draws by {', '.join(given)} alone")
    return {name: rows for name, rows in given.items() if name in takes}


def _no_text(widths: tuple[int, int] | None) -> Cond:
    if widths is None:
        return {}
    width, pooled = widths
    return {
        "text": torch.zeros(1, 1, width),
        "text_mask": torch.ones(1, 1, dtype=torch.bool),
        "pooled": torch.zeros(1, pooled),
    }


def _drawn(rows: Tensor, batch: int, tokens: int, rng: torch.Generator) -> Tensor:
    """Of one condition: random numbers, the first class and none in turn, the last image of one token alone."""
    of_tokens = rows.ndim == 3 or rows.dtype == torch.bool
    shape = (batch, tokens, *rows.shape[2:]) if of_tokens else (batch, *rows.shape[1:])
    if rows.is_floating_point():
        return torch.randn(shape, generator=rng)
    many = rows.expand(shape).clone()
    if many.dtype == torch.bool:
        many[-1, 1:] = False
    elif many.ndim == 1:
        many[::2] = 0
    return many


def exported(denoiser: Denoiser) -> torch.export.ExportedProgram:
    """The denoiser as a graph of PyTorch's own operators, for any number of images, of the model's size, and tokens."""
    batch = torch.export.Dim("batch")
    tokens = torch.export.Dim("tokens")
    free = tuple({0: batch, 1: tokens} if name.startswith("text") else {0: batch} for name in denoiser.names)
    return torch.export.export(denoiser, denoiser.example(3), dynamic_shapes=(free,))


def check_alike(made: Callable[[tuple[Tensor, ...]], Sequence[Tensor]], denoiser: Denoiser, what: Path) -> float:
    """The greatest difference between `made` and the denoiser on batches of other sizes than it was made with, as a
    share of the largest number.

    Raises:
        NumericalError: it is more than `TOLERANCE`.
    """
    found = 0.0
    for batch, tokens in ((1, 3), (4, 9)):
        inputs = denoiser.example(batch, tokens, seed=batch)
        for out, wanted in zip(made(inputs), denoiser(*inputs), strict=True):
            found = max(found, float((out - wanted).abs().max() / wanted.abs().max()))
    if not found <= TOLERANCE:
        raise NumericalError(
            f"{what}: differs from the model by {found:.1e} of its largest number; at most {TOLERANCE}"
        )
    return found
