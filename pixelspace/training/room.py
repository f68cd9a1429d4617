"""What to say when memory ends: what a step needs by prediction, and what would need less."""

from dataclasses import fields, replace

import torch

from pixelspace.training.low_memory import AdamW8bit
from pixelspace.training.memory import Memory, gib, predicted
from pixelspace.training.stage import Stage

_SAYS_SO = ("DefaultCPUAllocator: ", "MPS backend out of memory", "CUDA out of memory")
_WORTH = 0.97  # of what is needed now: what saves less is no way out


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, of a device or of the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAYS_SO)


def _fewer(stage: Stage, held: Memory, device_bytes: int | None) -> int:
    """How many images to compute at once: the most that fit, by an even share for each, or half of those now."""
    now = stage.micro or stage.batch
    left = held.activations / 2 if device_bytes is None else device_bytes - (held.total - held.activations)
    most = max(1, min(now - 1, int(now * left / held.activations)))
    return max(count for count in range(1, most + 1) if stage.batch % count == 0)


def _ways(stage: Stage, held: Memory, device_bytes: int | None) -> dict[str, Stage]:
    """What may be set otherwise."""
    ways = {}
    if (stage.micro or stage.batch) > 1:
        micro = _fewer(stage, held, device_bytes)
        ways[f"micro={micro}"] = replace(stage, micro=micro)
    if not stage.checkpointing:
        ways["checkpointing=true"] = replace(stage, checkpointing=True)
    if stage.precision == "fp32":
        ways["precision=bf16"] = replace(stage, precision="bf16")
    if stage.ema_device == "same":
        ways["ema_device=cpu"] = replace(stage, ema_device="cpu")
    if not isinstance(stage.optimizer, AdamW8bit):
        settings = {field.name: getattr(stage.optimizer, field.name) for field in fields(stage.optimizer)}
        ways["optimizer.type=AdamW8bit"] = replace(stage, optimizer=AdamW8bit(**settings))
    return ways


def no_room(stage: Stage, device_bytes: int | None = None) -> str:
    """In one line, what a step of the stage holds, of `device_bytes` that there are, and how to need less: the settings
    that save most, and more devices."""
    held = predicted(stage)
    has = "" if device_bytes is None else f", and there are {gib(device_bytes)}"
    parts = {"weights": held.weights, "gradients": held.gradients, "moments": held.moments, "EMA": held.average}
    parts[f"activations of {stage.micro or stage.batch:,} images at once"] = held.activations
    listed = ", ".join(f"{name} {gib(size)}" for name, size in parts.items() if size)
    needs = {setting: predicted(other).total for setting, other in _ways(stage, held, device_bytes).items()}
    best = sorted((need, setting) for setting, need in needs.items() if need < _WORTH * held.total)[:3]
    ways = "".join(f"--set stages.*.{setting} ({gib(need)}), " for need, setting in best)
    return (
        f"stage {stage.name!r}: out of memory: a step holds {gib(held.total)} ({listed}){has}; ways out: "
        f"{ways}or share it among more devices (torchrun)"
    )
