"""Commands that hand a model on: export, push."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from pixelspace.errors import UserError


def export(
    model: Positional[Path],
    out: Positional[Path],
    *,
    form: Annotated[Literal["model", "diffusers", "onnx", "torch"], arg(name="as")] = "model",
    kept: Annotated[Literal["fp32", "bf16", "fp16"], arg(name="dtype")] = "fp32",
    weights: Literal["ema", "raw"] = "ema",
) -> None:
    """Write a model for other programs into a new folder; nothing of this machine is told in it.

    Args:
        model: A run, stage, checkpoint or model folder, a k-diffusion weights file, or hf://user/name.
        out: The folder to write.
        form: A model's folder, with one set of weights and no moments (model); a folder that diffusers loads as a
            pipeline (diffusers); the denoiser alone, for any number of images, as ONNX (onnx) or as a program of
            torch.export (torch), each held against the model.
        kept: In what learnt weights are stored; they are float32 again when they are read. For model and diffusers.
        weights: The averaged or the raw ones of a run.
    """
    from pixelspace import api

    if kept != "fp32" and form in ("onnx", "torch"):
        raise UserError(f"--dtype {kept}: a denoiser as {form} is float32; leave it out, or export --as model")
    opened = api.load(model, device="cpu", weights=weights) if not model.is_file() else api.open_model(model, "cpu")
    if form == "model":
        from pixelspace.exporting.weights import to_model

        to_model(opened, out, kept)
    elif form == "diffusers":
        from pixelspace.exporting.diffusers import to_diffusers

        to_diffusers(opened, out, kept)
    else:
        if form == "onnx":
            from pixelspace.exporting.onnx import to_onnx as write
        else:
            from pixelspace.exporting.program import to_program as write
        print(f"differs from the model by {write(opened, out):.1e} of its largest number at most")
    print(f"exported: {out} ({sum(path.stat().st_size for path in out.rglob('*')):,} bytes)")


def push(
    model: Positional[Path],
    name: Positional[str],
    *,
    licence: str,
    data: str = "",
    private: bool = False,
    revision: str | None = None,
    weights: Literal["ema", "raw"] = "ema",
    card_only: bool = False,
) -> None:
    """Put a model with its card and recipe onto the Hugging Face Hub, whence `hf://user/name` loads it; by the login of
    `hf auth login` or HF_TOKEN. No path of this machine is told.

    Args:
        model: A run, stage, checkpoint or model folder, or a k-diffusion weights file. Of a run the card tells recipe,
            training and what `evaluate` measured of these weights.
        name: user/name; it is made unless it is there.
        licence: Under which it may be used, as the hub has it: apache-2.0, mit, cc-by-4.0, other.
        data: In words, what it learnt from and under which licence that is.
        private: Make a new repository private.
        revision: The branch to put it on; main by default.
        weights: The averaged or the raw ones of a run.
        card_only: Print the card, and push nothing.
    """
    from pixelspace import api

    opened = api.load(model, device="cpu", weights=weights) if not model.is_file() else api.open_model(model, "cpu")
    if card_only:
        print(opened.card(name, licence, data), end="")
        return
    print(f"pushed: {opened.push_to_hub(name, licence=licence, data=data, private=private, revision=revision)}")
