"""What prompts do in `hdit-text-demo`: a grid of prompts and seeds, and how often a prompt's image is found again.

    python benchmarks/prompts.py runs/hdit-text-demo docs/prompts.png

Every training caption is a prompt. An image drawn by it is right if the nearest training image, by the features of
EfficientNet-Lite0 at the cosine of their angle, has that caption; its group is right if that image's group is the
prompt's. Beside it stands the same without prompts, each image held against a caption in turn: chance.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

import pixelspace as ps
from pixelspace.data.grid import grid_image, save_image
from pixelspace.data.loader import divide, read
from pixelspace.drawing import recipe_in
from pixelspace.evaluation.features import extract
from pixelspace.evaluation.lite0 import Lite0
from pixelspace.evaluation.weights import Weights

PROMPTS = (
    *("cat face", "tiger face", "octopus", "sunflower", "cactus"),
    *("pizza", "green apple", "banana", "watermelon", "cooked rice"),
)
SEEDS = 4
CPU = torch.device("cpu")


def features(images: Tensor) -> Tensor:
    found = extract(Lite0().open(Weights(Path(), False), CPU), images)["lite0.pool"]
    return torch.nn.functional.normalize(found.double(), dim=1)


def main(run: Path, picture: Path) -> None:
    model = ps.load(run, device="cpu")
    recipe = recipe_in(run)
    (stage,) = recipe.stages
    dataset = stage.data.source.open()
    ids, _ = divide(dataset, stage.data, recipe.split)
    known = read(dataset, ids.tolist(), stage.size)
    captions, groups = [dataset.texts(i)[0] for i in ids.tolist()], known.labels

    names = list(dict.fromkeys(captions))
    drawn = {
        "by prompt": model.sample(2 * len(names), text=names, seed=1, batch=64),
        "without": model.sample(2 * len(names), seed=1, batch=64),
    }
    seen = features(known.images)
    for what, images in drawn.items():
        nearest = (features(images.permute(0, 3, 1, 2)) @ seen.T).argsort(1, descending=True)[:, :5]
        said = [names[i % len(names)] for i in range(len(images))]
        right = [[captions[j] == name for j in row] for row, name in zip(nearest.tolist(), said, strict=True)]
        group = [groups[row[0]] == groups[captions.index(name)] for row, name in zip(nearest, said, strict=True)]
        first, five = sum(row[0] for row in right) / len(right), sum(map(any, right)) / len(right)
        shares = f"nearest {first:.1%}, among five {five:.1%}, group {sum(group) / len(group):.1%}"
        print(f"{what}: {len(images)} images; {shares}")
    print(f"{len(names)} captions of {len(captions)} images: chance {1 / len(names):.1%}")

    grid = model.sample(SEEDS * len(PROMPTS), text=PROMPTS, seed=2, batch=40).permute(0, 3, 1, 2)
    print(save_image(grid_image(grid, len(PROMPTS), scale=3), picture), ", ".join(PROMPTS))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
