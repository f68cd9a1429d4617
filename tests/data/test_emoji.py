"""The packaged demo set."""

import pickle
from collections import Counter
from importlib.resources import files

import pytest
import torch

from pixelspace.config import from_data, to_data
from pixelspace.data.emoji import GROUPS, Emoji
from pixelspace.errors import UserError


def test_the_set_holds_1500_captioned_images_of_eight_groups_and_every_smiley():
    dataset = Emoji().open()
    counts = Counter(dataset[i].label for i in range(len(dataset)))
    assert len(dataset) == 1500 and dataset.classes == GROUPS and counts.keys() == set(range(8))
    assert counts[GROUPS.index("smileys")] == 167 and min(counts.values()) > 80
    captions = [dataset[i].texts[-1] for i in range(len(dataset))]
    assert all(captions) and len(set(captions)) == 1499  # two drawings of "eye in speech bubble"


def test_images_are_64_pixels_on_white_and_none_is_blank():
    dataset = Emoji().open()
    images = torch.stack([dataset[i].image for i in range(len(dataset))])
    assert images.shape == (1500, 3, 64, 64) and images.dtype == torch.uint8
    assert (images.flatten(1).float().std(1) > 3).all()
    assert images[:, :, 0, 0].float().mean() > 250


def test_a_sample_is_a_copy_that_leaves_the_sheet_alone():
    dataset = Emoji(("food",)).open()
    before = dataset[5].image.clone()
    dataset[5].image.zero_()
    assert torch.equal(dataset[5].image, before)


def test_groups_are_the_classes_in_the_order_given():
    dataset = Emoji(("food", "animals")).open()
    assert dataset.classes == ("food", "animals") and len(dataset) == 128 + 157
    labels = {dataset.name(i): dataset[i].label for i in range(len(dataset))}
    assert labels["pizza"] == 0 and labels["penguin"] == 1


def test_the_fingerprint_tells_sets_apart_and_stays():
    assert Emoji(("food",)).open().fingerprint == Emoji(("food",)).open().fingerprint
    assert len({Emoji(groups).open().fingerprint for groups in ((), ("food",), ("food", "animals"))}) == 3


def test_a_dataset_can_be_sent_to_a_worker():
    dataset = Emoji(("travel",)).open()
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[7].image, dataset[7].image)


def test_a_group_that_is_unknown_or_stands_twice_is_refused_with_the_nearest_name():
    given = to_data(Emoji(("food",)))
    assert from_data(given, {"Emoji": Emoji}) == Emoji(("food",))
    with pytest.raises(UserError, match="no group 'fod'; did you mean 'food'"):
        from_data({**given, "groups": ["fod"]}, {"Emoji": Emoji})
    with pytest.raises(UserError, match="'food' stands twice"):
        from_data({**given, "groups": ["food", "food"]}, {"Emoji": Emoji})


def test_the_licences_travel_with_the_images():
    folder = files("pixelspace.data.emoji")
    assert "Microsoft Corporation" in folder.joinpath("LICENSE-fluent-emoji.txt").read_text()
    assert "Miles Johnson" in folder.joinpath("LICENSE-emojibase.txt").read_text()
