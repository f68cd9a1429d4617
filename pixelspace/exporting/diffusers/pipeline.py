"""A pixelspace model as a pipeline of diffusers. This file is copied into the folder it is loaded from."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput  # pyright: ignore
from PIL import Image

from pixelspace.model import Forming


class PixelspacePipeline(DiffusionPipeline):
    """Draws as `pixelspace sample` does: the same images by the same settings and seed."""

    def __init__(self, denoiser: Any):
        super().__init__()
        self.register_modules(denoiser=denoiser)
        self.vae: str | None = None
        self.encoder: str | None = None

    def use_vae(self, path: str) -> "PixelspacePipeline":
        """Takes the VAE of a model of latents from `path`."""
        self.vae = path
        return self

    def use_text(self, path: str) -> "PixelspacePipeline":
        """Takes the text encoder from `path`; it must be the one trained with."""
        self.encoder = path
        return self

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        *,
        label: Any = None,
        num_images: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        generator: torch.Generator | None = None,
        batch: int = 16,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, float, dict[str, Any]], Any] | None = None,
    ) -> Any:
        """Images by prompt or class; None means as the model says.

        Image i of a generator's seed (`torch.Generator().manual_seed(s)`) is image i of `--seed s`; without one a seed
        is drawn. `output_type` is pil, np (floats in [0, 1], (n, H, W, C)) or pt ((n, C, H, W)); a clip is a list of
        frames. `callback_on_step_end(pipeline, step, sigma, {})` is told of every step; what it raises ends the
        drawing.

        Raises:
            ValueError: an argument that the model has no use for.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type: expected pil, np or pt, found {output_type!r}")
        model = self.denoiser.model()
        if self.vae is not None:
            model.use_vae(self.vae)
        if self.encoder is not None:
            model.use_text(self.encoder)
        size = model.config.size
        seed = generator.initial_seed() if generator is not None else int(torch.randint(2**31, ()))
        plan = model.plan(num_inference_steps, sampler, guidance_scale)
        with self.progress_bar(total=plan.steps) as bar:  # pyright: ignore

            def watch(forming: Forming) -> None:
                bar.n = forming.done
                bar.refresh()
                if callback_on_step_end is not None:
                    callback_on_step_end(self, forming.done - 1, forming.sigma, {})

            images = model.sample(
                num_images,
                size=(height or size[0], width or size[1]),
                label=label,
                text=prompt,
                negative=negative_prompt,
                steps=num_inference_steps,
                sampler=sampler,
                guidance=guidance_scale,
                seed=seed,
                batch=batch,
                progress=False,
                watch=watch,
            )
        found = _as(images, output_type)
        return ImagePipelineOutput(images=found) if return_dict else (found,)


def _as(images: torch.Tensor, output_type: str) -> Any:
    if output_type == "pt":
        return images.movedim(-1, -3).float() / 255
    if output_type == "np":
        return images.float().numpy() / 255
    if images.ndim == 5:
        return [_as(clip, output_type) for clip in images]
    return [Image.fromarray(image.numpy().squeeze(-1) if image.shape[-1] == 1 else image.numpy()) for image in images]
