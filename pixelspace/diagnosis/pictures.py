"""What can be seen of images without looking at them: colour, sharpness, and the grid of a network's patches.

Each is a pure function of images (n, C, H, W) in any unit. What it means comes from the same number of real images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_NOTHING = 1e-9  # of the mean power: less than this of a frequency is rounding
_STILL = 1e-3  # of the images' deviation: by so much two flat surfaces may differ before their edge is called a step


def contrast(images: Tensor) -> float:
    """The mean over images of the deviation of their pixels' brightness."""
    return float(images.double().mean(1).flatten(1).std(1, correction=0).mean())


def colour(images: Tensor) -> float:
    """The mean distance of the largest channel of a pixel from its smallest; 0 of grey images."""
    x = images.double()
    return float((x.amax(1) - x.amin(1)).mean())


def variety(images: Tensor) -> float:
    """The mean over pixels and channels of their deviation over images; 0 of images that are all the same."""
    return float(images.double().std(0, correction=0).mean())


def _power(images: Tensor) -> Tensor:
    """(H, W): the mean power of each frequency, whose sum is the mean square of the images, each without its mean."""
    x = images.double()
    x = x - x.mean((2, 3), keepdim=True)
    return torch.fft.fft2(x, norm="forward").abs().square().mean((0, 1))


def _frequencies(height: int, width: int) -> Tensor:
    """(H, W): the higher of the two axes' frequencies, in cycles a pixel, up to 1/2."""
    down, across = (torch.fft.fftfreq(side, dtype=torch.float64).abs() for side in (height, width))
    return torch.maximum(down[:, None], across[None])


def octaves(images: Tensor) -> list[float]:
    """The power in each octave of frequency, the finest first (1/4 to 1/2 cycles a pixel), down to that of 4 cycles an
    image. White noise of variance v has about 3/4 v in the finest, and a quarter as much in each one below."""
    power, frequency = _power(images), _frequencies(*images.shape[-2:])
    found, high = [], 0.5
    while high * min(images.shape[-2:]) >= 4:
        inside = (frequency <= high) & (frequency > high / 2) if high < 0.5 else frequency > high / 2
        found.append(float(power[inside].sum()))
        high /= 2
    return found


def seams(images: Tensor, period: int) -> Tensor:
    """(n,): how much larger, in each image, the mean step from pixel to pixel is where two patches of `period` pixels a
    side meet than inside of them; 1 where nothing is special there.

    If every patch of noise of deviation s is shifted by its own amount of deviation o, it is (1 + o^2 / s^2)^1/2.
    """
    x = images.double()
    meeting, inside = torch.zeros(len(x), dtype=torch.float64), torch.zeros(len(x), dtype=torch.float64)
    for axis in (2, 3):
        side = x.shape[axis] // period * period
        steps = x.narrow(axis, 0, side).diff(dim=axis).abs().mean((1, 5 - axis))
        patches = F.pad(steps, (0, 1)).unflatten(1, (-1, period))  # of each the steps in it, then the one after it
        meeting += patches[:, :-1, -1].mean(1)
        near = min(period - 1, 3)  # on either side, lest it be told that images are busier in their middle
        before, after = patches[:, :-1, -1 - near : -1], patches[:, 1:, :near]
        inside += torch.cat([before, after], 2).mean((1, 2))
    still = _STILL * float(x.std())
    return (meeting + still) / (inside + still)


def pattern(images: Tensor, period: int) -> float:
    """How much more power the frequencies of a pattern have that repeats every `period` pixels than those beside them,
    the mean over these frequencies; 1 where nothing is special at them, as in noise or photographs.

    A checkerboard of amplitude a on noise of deviation s gives 1 + H W a^2 / (3 s^2) at period 2.

    Raises:
        ValueError: sides that are no multiples of the period, or with fewer than three of them.
    """
    height, width = images.shape[-2:]
    if height % period or width % period or min(height, width) < 3 * period:
        raise ValueError(f"images of {height} x {width} do not hold three whole patches of {period} a side")
    power = _power(images)
    power = (power + _NOTHING * power.mean()).clamp(min=torch.finfo(torch.float64).tiny).log()
    down, across = ((power.roll(1, axis) + power.roll(-1, axis)) / 2 for axis in (0, 1))
    beside = (down + across) / 2
    # On the two axes lies what comes of edges that do not meet: there only what is on the axis, too, is alike.
    beside[0], beside[:, 0] = across[0], down[:, 0]
    at = torch.zeros(height, width, dtype=torch.bool)
    at[:: height // period, :: width // period] = True
    at[0, 0] = False
    return float((power - beside)[at].exp().mean())


def periods(height: int, width: int) -> list[int]:
    """The patches that are looked for in images of this size: 2 to 32 pixels, at least four a side."""
    return [p for p in (2, 4, 8, 16, 32) if not (height % p or width % p) and min(height, width) >= 4 * p]
