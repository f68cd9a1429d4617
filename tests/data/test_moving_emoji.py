import pickle

import pytest
import torch

from pixelspace.config import from_data, to_data
from pixelspace.data.emoji import Emoji
from pixelspace.data.emoji.moving import MovingEmoji
from pixelspace.data.transforms import Cut, fit
from pixelspace.errors import UserError

WAYS = {"down": (4, 0), "right": (0, 4), "up": (-4, 0), "left": (0, -4)}


def test_each_emoji_drifts_the_way_its_captions_say():
    still, moving = Emoji(("food",)).open(), MovingEmoji(("food",)).open()
    assert len(moving) == len(still) and moving.classes == still.classes
    for i in range(8):
        sample, caption = moving[i], moving.texts(i)[0]
        name, _, way = caption.rpartition(", moving ")
        assert sample.image.shape == (3, 16, 64, 64) and sample.texts[0] == caption and name == still.name(i)
        for k in (0, 1, 15):
            back = sample.image[:, k].roll(tuple(-k * step for step in WAYS[way]), (1, 2))
            assert torch.equal(back, still[i].image)
    assert {moving.texts(i)[0].rpartition(" ")[2] for i in range(4)} == {*WAYS}


def test_every_frame_is_cut_alike():
    dataset, cut = pickle.loads(pickle.dumps(MovingEmoji(frames=4).open())), Cut((24, 16), flip=True)
    whole, sample = dataset[7], dataset.cut(7, cut)
    assert sample.size == (64, 64) and sample.label == whole.label
    assert torch.equal(sample.image, torch.stack([fit(frame, cut) for frame in whole.image.unbind(1)], 1))


def test_the_fingerprint_tells_numbers_of_frames_apart():
    assert len({MovingEmoji(frames=n).open().fingerprint for n in (1, 4, 16)}) == 3


@pytest.mark.parametrize(
    ("given", "message"), [({"frames": 0}, "at least 1, found 0"), ({"groups": ["fod"]}, "'food'")]
)
def test_what_cannot_be_meant_is_refused(given, message):
    values = {"MovingEmoji": MovingEmoji}
    assert from_data(to_data(MovingEmoji(("food",), 4)), values) == MovingEmoji(("food",), 4)
    with pytest.raises(UserError, match=message):
        from_data({**to_data(MovingEmoji()), **given}, values)
