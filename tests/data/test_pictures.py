import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from pixelspace.data.animation import decoded
from pixelspace.data.grid import grid_image
from pixelspace.data.pictures import file_of, read_picture, save_picture, settings_in, sheet, size_name
from pixelspace.errors import DataError

SETTINGS = {"text": "Ünïcödé \u2028 <b>", "seed": 2**64 - 1, "size": [8, 4], "label": None}


def noise(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.parametrize(("fps", "seconds"), [(8, 0.5), (24, 1 / 6)])
def test_a_clip_is_an_animated_webp_without_loss_at_its_rate(tmp_path, fps, seconds):
    clip = noise(4, 6, 10, 3)
    path = save_picture(clip, tmp_path / "new" / "000000_4x6x10", fps)
    assert [p.name for p in path.parent.iterdir()] == ["000000_4x6x10.webp"]
    frames = [frame.pixels() for frame in decoded(path, 8, [])]
    assert np.array_equal(np.stack(frames), clip.numpy())
    with Image.open(path) as image:
        durations = []
        for i in range(4):
            image.seek(i)
            image.load()
            durations.append(image.info["duration"])
    assert sum(durations) == round(1000 * seconds) and max(durations) - min(durations) <= 1


@pytest.mark.parametrize("shape", [(6, 10, 3), (1, 6, 10, 3)])
def test_an_image_and_a_clip_of_one_frame_are_png_files(tmp_path, shape):
    picture = noise(*shape)
    path = save_picture(picture, tmp_path / "000000", 8)
    assert path.name == "000000.png"
    assert np.array_equal(np.asarray(Image.open(path)), picture.reshape(6, 10, 3).numpy())


def test_pictures_are_read_as_they_were_written_with_frames_that_stand_still(tmp_path):
    moving, picture = noise(5, 6, 10, 3), noise(6, 10, 3)
    halting = moving[[0, 1, 1, 1, 4]]
    for clip in (moving, halting, moving[[2] * 5], moving * torch.tensor([1, 1, 0], dtype=torch.uint8)):
        assert torch.equal(read_picture(save_picture(clip, tmp_path / "clip", 24), 5, 24), clip)
    assert torch.equal(read_picture(save_picture(picture, tmp_path / "image", 8), 1, 8), picture)
    (tmp_path / "image.png").write_bytes((tmp_path / "image.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"image.png: .*; delete it and run the same command again"):
        read_picture(tmp_path / "image.png", 1, 8)


def test_an_image_holds_the_settings_it_was_drawn_by_and_nothing_else():
    pixels = noise(8, 4, 3)
    kind, data = file_of(pixels, 8, SETTINGS)
    image = Image.open(io.BytesIO(data))
    assert kind == "png" and np.array_equal(np.array(image), pixels)
    assert settings_in(data) == SETTINGS
    assert set(image.info) == {"Software", "pixelspace"}
    assert settings_in(file_of(pixels, 8)[1]) is None


def test_a_clip_holds_the_settings_it_was_drawn_by():
    pixels = noise(5, 16, 8, 3)
    kind, data = file_of(pixels, 8, SETTINGS)
    frames = [np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(Image.open(io.BytesIO(data)))]
    assert kind == "webp" and np.array_equal(np.stack(frames), pixels)
    assert settings_in(data) == SETTINGS
    assert settings_in(file_of(pixels, 8)[1]) is None


def test_a_sheet_has_a_row_a_clip_and_rows_of_images():
    clips, images = noise(3, 4, 6, 10, 3), noise(5, 6, 10, 3)
    rows = np.concatenate([np.asarray(sheet(clip[None]))[2:] for clip in clips])
    assert np.array_equal(np.asarray(sheet(clips))[2:], rows)
    first = grid_image(clips[0].permute(0, 3, 1, 2), 4)
    assert np.array_equal(np.asarray(sheet(clips[:1])), np.asarray(first))
    square = grid_image(images.permute(0, 3, 1, 2), 3)
    for some in (images, images[:, None]):
        assert np.array_equal(np.asarray(sheet(some)), np.asarray(square))
    assert sheet(images, columns=5).width == 5 * 12 + 2


def test_sizes_name_files_and_no_two_levels_alike():
    levels = [noise(1, 16, 16, 3), noise(1, 16, 24, 3), noise(1, 4, 8, 8, 3), noise(1, 1, 8, 8, 3)]
    assert [size_name(level) for level in levels] == ["16", "16x24", "4x8x8", "1x8x8"]
