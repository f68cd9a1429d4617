import numpy as np
import torch
from PIL import Image

from pixelspace.data.grid import grid_image, save_image


def test_a_grid_holds_each_image_in_its_place():
    images = torch.randint(0, 256, (5, 3, 4, 6), dtype=torch.uint8)
    sheet = np.asarray(grid_image(images, columns=3, gap=1, scale=2))
    assert sheet.shape == (2 * 9 + 1, 3 * 13 + 1, 3)
    fourth = sheet[10:18:2, 1:13:2]
    assert np.array_equal(fourth, images[3].permute(1, 2, 0).numpy())
    assert (sheet[:, 0] == 255).all() and (sheet[10:, 27:] == 255).all()


def test_a_picture_appears_whole(tmp_path):
    path = save_image(grid_image(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), 1), tmp_path / "deep" / "a.png")
    with Image.open(path) as image:
        assert image.size == (12, 12)
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
