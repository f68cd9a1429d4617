"""The same eight seeds by three samplers, a row each: python examples/sample.py MODEL_OR_RUN samplers.png [STEPS]"""

import sys
from pathlib import Path

import torch

import pixelspace as ps
from pixelspace.data.grid import grid_image, save_image

SAMPLERS, COLUMNS = ("euler", "dpmpp_2m", "dpmpp_3m_sde"), 8


def main(model_or_run: str, out: str, steps: str = "20") -> None:
    model = ps.load(model_or_run)
    rows = [model.sample(COLUMNS, seed=1, sampler=sampler, steps=int(steps)) for sampler in SAMPLERS]
    images = torch.cat(rows).permute(0, 3, 1, 2)  # (n, H, W, 3) to (n, 3, H, W)
    print(save_image(grid_image(images, COLUMNS, scale=2), Path(out)))


if __name__ == "__main__":
    main(*sys.argv[1:])
