"""Images that are made when wanted are functions of their number."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelspace.data.emoji import Emoji
from pixelspace.data.transforms import Cut, fit
from pixelspace.evaluation.views import Made, chosen, resized, samples
from tests.evaluation.judged import made, noise

PIXELS = noise(40, shape=(3, 12, 16))
FOOD = Emoji(("food",)).open()
IDS = [5, 3, 60, 3]


def views():
    base = made(PIXELS)
    return {
        "samples": samples(FOOD, IDS, (24, 20), "center"),
        "resized": resized(base, (6, 6)),
        "chosen": chosen(base, 9, seed=1),
        "chosen of resized": chosen(resized(base, (5, 9)), 9, seed=1),
    }


@pytest.mark.parametrize("view", views())
def test_an_image_is_a_function_of_its_number(view):
    images, again = views()[view], views()[view]
    whole = images.read(range(len(images)))
    assert whole.dtype == torch.uint8 and whole.shape == (len(images), *images.shape)
    for start, stop in ((0, 1), (1, 4), (2, 3), (len(images) - 1, len(images))):
        assert torch.equal(again.read(range(start, stop)), whole[start:stop])
    assert images.fingerprint == again.fingerprint


def test_samples_are_cut_and_named_as_the_data_set_has_them():
    images = samples(FOOD, IDS, (24, 20), "center")
    expected = [fit(FOOD[i].image, Cut((24, 20), "center")) for i in IDS]
    assert torch.equal(images.read(range(4)), torch.stack(expected))
    assert [images.name(i) for i in range(4)] == [FOOD.name(i) for i in IDS]
    assert images.shape == (3, 24, 20) and len(images) == 4


@pytest.mark.parametrize(
    "other",
    [
        samples(FOOD, [3, 5, 60, 3], (24, 20), "center"),
        samples(FOOD, IDS, (20, 24), "center"),
        samples(FOOD, IDS, (24, 20), "adm"),
        samples(Emoji(("animals",)).open(), IDS, (24, 20), "center"),
    ],
    ids=["ids", "size", "crop", "data"],
)
def test_other_samples_have_another_fingerprint(other):
    assert other.fingerprint != samples(FOOD, IDS, (24, 20), "center").fingerprint


def test_resized_images_are_fitted_and_noted():
    images = resized(made(PIXELS), (6, 6))
    assert torch.equal(images.read(range(3)), torch.stack([fit(image, Cut((6, 6))) for image in PIXELS[:3]]))
    assert images.notes == ("brought from 12x16 to 6x6",) and images.shape == (3, 6, 6)
    assert images.name(7) == "image 7" and images.source == "noise"
    assert len({made(PIXELS).fingerprint, images.fingerprint, resized(made(PIXELS), (6, 7)).fingerprint}) == 3


def test_notes_add_up():
    images = chosen(resized(made(PIXELS), (6, 6)), 9, seed=1)
    assert images.notes == ("brought from 12x16 to 6x6", "9 of 40 images, drawn by seed 1")


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 40), st.integers(0, 5), st.data())
def test_chosen_images_are_different_ones_in_their_order(count, seed, data):
    taken = data.draw(st.integers(1, count))
    numbered = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 2, 2)
    base = Made("numbered", "n", (3, 2, 2), count, lambda some: numbered[some.start : some.stop], 7, "no {}".format)
    images = chosen(base, taken, seed)
    numbers = images.read(range(taken))[:, 0, 0, 0].tolist()
    assert numbers == sorted(set(numbers)) and len(numbers) == taken and set(numbers) <= set(range(count))
    assert [images.name(i) for i in range(taken)] == [f"no {number}" for number in numbers]


def test_each_image_is_chosen_as_often():
    picked = torch.zeros(10)
    for seed in range(600):
        numbers = chosen(made(PIXELS[:10]), 3, seed)
        for i in range(3):
            picked[int(numbers.name(i).split()[1])] += 1
    # Each 180 times, with a standard deviation of 11.
    assert (picked - 180).abs().max() < 45


def test_another_seed_or_count_is_another_choice():
    choices = [chosen(made(PIXELS), 20, seed=seed) for seed in (0, 1)] + [chosen(made(PIXELS), 21, seed=0)]
    assert len({images.fingerprint for images in choices}) == 3
    assert not torch.equal(choices[0].read(range(20)), choices[1].read(range(20)))
