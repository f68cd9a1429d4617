import torch

from pixelspace.nn.frames import as_clip, as_image


def test_a_clip_is_an_image_whose_tiles_are_its_frames_row_by_row():
    clip = torch.randn(2, 3, 16, 5, 7)
    image = as_image(clip, 4)
    assert image.shape == (2, 3, 20, 28)
    for frame in range(16):
        row, column = divmod(frame, 4)
        assert torch.equal(image[:, :, 5 * row : 5 * row + 5, 7 * column : 7 * column + 7], clip[:, :, frame])


def test_a_clip_comes_back_from_its_image():
    clip = torch.randn(2, 3, 9, 4, 6)
    assert torch.equal(as_clip(as_image(clip, 3), 3), clip)
    assert torch.equal(as_image(clip[:, :, :1], 1), clip[:, :, 0])
