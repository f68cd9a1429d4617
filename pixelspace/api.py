"""Models come in: ours from where they stand, other systems' from their files."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from pixelspace import hub, store
from pixelspace.card import Origin
from pixelspace.config import from_data, nearest
from pixelspace.errors import CheckpointError, UserError
from pixelspace.interop import k_diffusion, maskdit, ml_mdm
from pixelspace.model import KIND, Model
from pixelspace.model_config import ModelConfig
from pixelspace.recipes.values import VALUES
from pixelspace.training import checkpoint
from pixelspace.training.stage import Recipe

TYPES = {**VALUES, "ModelConfig": ModelConfig}


def _typed(data: Any, cls: type, path: Path) -> Any:
    try:
        found = from_data(data, TYPES)
    except UserError as error:
        raise CheckpointError(f"{path}: its description is not understood: {error}") from error
    if not isinstance(found, cls):
        raise CheckpointError(f"{path}: expected the description of a {cls.__name__}, found {type(found).__name__}")
    return found


def read_config(data: Any, path: Path | str = "a model") -> ModelConfig:
    """The configuration that `data` describes, as model folders and exports have it.

    Raises:
        CheckpointError: it is not understood, naming `path`.
    """
    return _typed(data, ModelConfig, Path(path))


def _from_checkpoint(path: Path, contents: store.Contents, weights: str, device: str) -> Model:
    recipe: Recipe = _typed(contents.state["recipe"], Recipe, path)
    stage = next(stage for stage in recipe.stages if stage.name == contents.state["stage"])
    config = ModelConfig.of(stage, tuple(contents.state["classes"]), contents.state.get("text", ""))
    part = {"ema": "ema", "raw": "model"}[weights]
    folder, images, samples = path.resolve().parents[1], contents.state["images"], contents.state["samples"]
    origin = Origin(recipe, stage, folder, images, samples, weights)
    return Model(config, contents.parts[part], device, contents.parts.get("nothing"), origin)


def _newest_stage(run: Path) -> Path:
    folders = [path for path in sorted(run.iterdir()) if path.is_dir()]
    stages = [path for path in folders if checkpoint.candidates(path / "checkpoints")]
    if not stages:
        raise CheckpointError(f"{run}: a run without a checkpoint yet")
    return stages[-1]


def _require_model(path: Path) -> None:
    """Raises CheckpointError where a folder is something else than a model's, which is not its damage."""
    if (path / store.MANIFEST).exists() or (path / "state.json").exists():
        return
    runs = sorted(one.parent.name for one in path.glob("*/recipe.json"))
    if runs:
        raise CheckpointError(f"{path}: holds runs, and is none: give one of them: {', '.join(runs[:10])}")
    if (path / "model_index.json").exists() or any(path.glob("denoiser.*")):
        raise CheckpointError(f"{path}: is an export for other programs; give the run or model that it was made of")
    raise CheckpointError(f"{path}: holds no model: expected a run's folder, a checkpoint's or a model's")


def load(path: Path | str, *, device: str = "auto", weights: Literal["ema", "raw"] = "ema") -> Model:
    """The model in `path`: a model folder, a run, one of its stages or one of their checkpoints; or `hf://user/name`
    and `hf://user/name@revision`, one that was pushed to the Hugging Face Hub.

    Of a run the newest good checkpoint of the last trained stage is taken; `weights` chooses its averaged or raw ones.

    Raises:
        CheckpointError: nothing there, damaged, or something else.
        ResourceError: of the hub: no connection, no right to it, or no package `huggingface_hub`.
    """
    if hub.is_address(path):
        with hub.fetched(path) as folder:
            return load(folder, device=device)
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if not path.is_dir():
        raise CheckpointError(f"{path}: expected a folder; weights of other systems come in by `pixelspace import`")
    if re.fullmatch(r"step-[0-9]+", path.name):
        return _from_checkpoint(path, store.read(path, kind=checkpoint.KIND), weights, device)
    if (path / "recipe.json").exists():
        path = _newest_stage(path)
    if (path / "checkpoints").is_dir():
        resumed = checkpoint.resume(path / "checkpoints")
        if resumed is None:
            raise CheckpointError(f"{path}: a stage without a checkpoint yet")
        return _from_checkpoint(resumed.path, resumed.contents, weights, device)
    _require_model(path)
    contents = store.read(path, kind=KIND)
    return Model(read_config(contents.state, path), contents.parts["model"], device, contents.parts.get("nothing"))


Weights = Path | str | Mapping[str, Tensor]
Chosen = Literal["ema", "raw"]


def _from_k_diffusion(source: Weights, config: Mapping[str, Any] | None, chosen: Chosen, device: str) -> Model:
    if isinstance(source, Mapping):
        weights, own = source, None
    else:
        weights, own = k_diffusion.read_checkpoint(Path(source), chosen)
    described = config if config is not None else own
    if described is None:
        raise UserError("config: this checkpoint carries no configuration; give the original's JSON")
    read = k_diffusion.read_config(described)
    return Model(ModelConfig(read.backbone, read.objective.process, read.sampling, read.size), weights, device)


def _from_maskdit(source: Weights, config: Mapping[str, Any] | None, chosen: Chosen, device: str) -> Model:
    weights = source if isinstance(source, Mapping) else maskdit.read_checkpoint(Path(source), chosen)
    read = maskdit.read_model(weights, config)
    return Model(ModelConfig(read.backbone, read.process, read.sampling, read.size, read.codec), read.weights, device)


def _from_ml_mdm(source: Weights, config: Mapping[str, Any] | None, chosen: Chosen, device: str) -> Model:
    weights, own = (source, None) if isinstance(source, Mapping) else ml_mdm.read_checkpoint(Path(source))
    read = ml_mdm.read_model(weights, config if config is not None else own)
    described = ModelConfig(read.backbone, read.process, read.sampling, read.size, pyramid=read.pyramid, text=read.text)
    return Model(described, read.weights, device)


SYSTEMS = {"k-diffusion": _from_k_diffusion, "maskdit": _from_maskdit, "ml-mdm": _from_ml_mdm}


def import_checkpoint(
    path_or_state_dict: Weights,
    *,
    system: str = "k-diffusion",
    config: Mapping[str, Any] | Path | str | None = None,
    weights: Chosen = "ema",
    device: str = "auto",
) -> Model:
    """A model of another system as ours; `config` is its own configuration, where the checkpoint carries none.

    `weights` chooses the averaged or raw ones of a training checkpoint that has both.

    Raises:
        UserError: an unknown system or a configuration that is not understood.
        CheckpointError: the file is damaged, not only data, or of another architecture.
    """
    if system not in SYSTEMS:
        raise UserError(f"system: no such system {system!r}; {nearest(system, SYSTEMS)}")
    if weights not in ("ema", "raw"):
        raise UserError(f"weights: expected 'ema' or 'raw', found {weights!r}")
    return SYSTEMS[system](path_or_state_dict, k_diffusion.open_config(config), weights, device)


def open_model(path: Path, device: str) -> Model:
    """The model at `path`: ours as `load` finds it, or k-diffusion's in a file.

    Raises:
        CheckpointError: nothing there, damaged, or something else.
    """
    return import_checkpoint(path, device=device) if path.is_file() else load(path, device=device)
