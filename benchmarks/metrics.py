"""What judging costs: images a second of the networks, and seconds of the mathematics, in one run.

    python benchmarks/metrics.py [--device cpu] [--repeats 5] [--images 64]

Networks have random weights but for EfficientNet-Lite0's, if that is installed, and see 256-pixel images in the
batches of 32 that evaluation uses. The Fréchet distance is timed by three forms at 2048 features: the library's
Cholesky form, two symmetric eigenvalue problems, and the eigenvalues of the product; each on the same 4,096 rows.
Repeats go round all rows in turn, so that a busy moment of the machine hits all of them. Prints a Markdown table:
median (fastest to slowest).
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pixelspace.evaluation.features import Opened, extract
from pixelspace.evaluation.frechet import frechet_distance
from pixelspace.evaluation.inception import Inception, InceptionNetwork
from pixelspace.evaluation.kernel import cmmd, kid
from pixelspace.evaluation.neighbours import manifolds
from pixelspace.evaluation.stats import Moments, moments


def by_eigh(a: Moments, b: Moments) -> float:
    """tr (S1 S2)^1/2 as the trace of (S1^1/2 S2 S1^1/2)^1/2."""
    values, vectors = torch.linalg.eigh(a.cov)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    across = torch.linalg.eigvalsh(root @ b.cov @ root).clamp(min=0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * across)


def by_eigvals(a: Moments, b: Moments) -> float:
    """The same by the eigenvalues of the product, which is not symmetric."""
    across = torch.linalg.eigvals(a.cov @ b.cov).real.clamp(min=0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * across)


def networks(images: Tensor, device: torch.device) -> dict[str, Callable[[], object]]:
    """Passes over all images."""
    network = InceptionNetwork().eval().requires_grad_(False).to(device)
    view = Inception("tf1")
    found = {}

    def inception(pixels: Tensor) -> dict[str, Tensor]:
        return {name: rows.cpu() for name, rows in network(view.normalised(pixels.to(device))).items()}

    found["Inception, resize tf1"] = lambda: extract(Opened("", inception), images)
    from pixelspace.errors import ResourceError
    from pixelspace.evaluation.lite0 import Lite0
    from pixelspace.evaluation.weights import Weights

    try:
        from pathlib import Path

        lite0 = Lite0().open(Weights(Path()), device)
        found["EfficientNet-Lite0"] = lambda: extract(lite0, images)
    except ResourceError as error:
        print(error)
    return found


def mathematics() -> dict[str, Callable[[], object]]:
    """The distances, on rows that look like Inception's."""
    rows = torch.randn(2, 4096, 2048, generator=torch.Generator().manual_seed(0)).relu_() * torch.linspace(0.1, 1, 2048)
    a, b = moments([rows[0]]), moments([rows[1]])
    few = rows[:, :, :768]
    return {
        "moments of 4,096 x 2,048": lambda: moments([rows[0]]),
        "Fréchet, Cholesky": lambda: frechet_distance(a, b),
        "Fréchet, two eigh": lambda: by_eigh(a, b),
        "Fréchet, eigvals": lambda: by_eigvals(a, b),
        "KID, 10 subsets of 1,000": lambda: kid(rows[0], rows[1], subsets=10, size=1000),
        "CMMD, 4,096 x 768": lambda: cmmd(few[0], few[1]),
        "precision, recall, 4,096 x 2,048": lambda: manifolds(rows[0], rows[1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=64)
    given = parser.parse_args()
    images = torch.randint(0, 256, (given.images, 3, 256, 256), dtype=torch.uint8)
    seen, computed = networks(images, torch.device(given.device)), mathematics()
    every = {**seen, **computed}
    times: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(given.repeats):
        for name, run in every.items():
            since = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - since)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("\n| network | images/s |\n|---|---|")
    for name in seen:
        rates = sorted(given.images / seconds for seconds in times[name])
        print(f"| {name} | {statistics.median(rates):.1f} ({rates[0]:.1f} - {rates[-1]:.1f}) |")
    print("\n| mathematics | seconds |\n|---|---|")
    for name in computed:
        low, *_, high = sorted(times[name])
        print(f"| {name} | {statistics.median(times[name]):.2f} ({low:.2f} - {high:.2f}) |")


if __name__ == "__main__":
    main()
