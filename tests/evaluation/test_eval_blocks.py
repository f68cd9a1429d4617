"""Features on disk: in order, whole, and the same however the work was cut."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pixelspace.errors import DataError, UserError
from pixelspace.evaluation.blocks import BEGUN, Rows, compute
from pixelspace.evaluation.custom import Custom
from pixelspace.evaluation.stats import moments
from tests.evaluation.judged import OUTPUT, Projected, computing, made, noise, projection
from tests.mutants import mutants

COUNT = 600  # two blocks and a part of one
PIXELS = noise(COUNT)


def networks(projected: Projected):
    return [(projected.extractor, projected.extractor.open(computing().weights, computing().device))]


def filled(folder: Path, **more) -> Rows:
    return compute(made(PIXELS), networks(Projected()), folder, **more)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A complete folder, not to be written in."""
    folder = tmp_path_factory.mktemp("features") / "whole"
    return filled(folder)


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    return shutil.copytree(whole.folder, tmp_path / "features")


def test_rows_are_the_features_of_the_images_in_their_order(whole):
    key, expected = Projected().extractor.key(OUTPUT), projection(PIXELS)
    assert torch.equal(whole.rows(key), expected) and len(whole) == COUNT and whole.complete
    assert [len(part) for part in whole.parts(key)] == [256, 256, 88]
    found, once = whole.moments(key), moments([expected])
    torch.testing.assert_close(found.mean, once.mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.cov, once.cov, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 32, 100, 1000])
def test_blocks_do_not_depend_on_how_many_images_are_read_at_once(whole, tmp_path, chunk):
    compute(made(PIXELS, chunk=chunk), networks(Projected()), tmp_path)
    assert contents(tmp_path) == contents(whole.folder)


def test_few_are_read_at_once_but_no_fewer_than_a_network_sees(tmp_path):
    wanted, projected = [], Projected()
    compute(made(PIXELS[:300], chunk=5, read=wanted.append), networks(projected), tmp_path)
    assert {len(numbers) for numbers in wanted} == {32, 12}
    assert projected.seen == 32 * 10, "batches were filled up more than once a block"


@pytest.mark.parametrize("ranks", [(0, 1), (1, 0)])
def test_blocks_do_not_depend_on_how_many_processes_share_the_work(whole, tmp_path, ranks):
    shares = [filled(tmp_path, rank=rank, world=2).complete for rank in ranks]
    assert shares == [False, True]
    assert contents(tmp_path) == contents(whole.folder)


def test_a_process_leaves_the_blocks_of_others_alone(tmp_path):
    filled(tmp_path, rank=1, world=2)
    assert set(contents(tmp_path)) == {BEGUN, "block-00001.safetensors"}


@pytest.mark.parametrize("at", [0, 256, 300, 599])
def test_a_run_that_was_stopped_goes_on_and_computes_no_finished_block_again(whole, tmp_path, at):
    def stop(numbers):
        if at in numbers:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute(made(PIXELS, read=stop), networks(Projected()), tmp_path)
    assert set(contents(tmp_path)) == {BEGUN, *(f"block-{block:05d}.safetensors" for block in range(at // 256))}
    wanted = []
    compute(made(PIXELS, read=wanted.append), networks(Projected()), tmp_path)
    assert wanted[0].start == at // 256 * 256
    assert contents(tmp_path) == contents(whole.folder)


def test_a_complete_folder_is_not_computed_again(copied):
    wanted, projected = [], Projected()
    assert compute(made(PIXELS, read=wanted.append), networks(projected), copied).complete
    assert not wanted and not projected.seen


def _flipped(place: float):
    def flip(data: bytes) -> bytes:
        at = int(place * (len(data) - 1))
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    return flip


DAMAGES = {
    "empty": lambda data: b"",
    "cut in its header": lambda data: data[:100],
    "cut by a byte": lambda data: data[:-1],
    "longer by a byte": lambda data: data + b"\0",
    "not safetensors": lambda data: b"\xff" * len(data),
    **{f"flipped at {place:.0%}": _flipped(place) for place in (0, 0.005, 0.02, 0.1, 0.5, 0.9, 1)},
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_block_is_found_and_computed_anew(whole, copied, how):
    path = copied / "block-00001.safetensors"
    path.write_bytes(DAMAGES[how](path.read_bytes()))
    damaged = Rows(copied, whole.described)
    assert not damaged.complete and damaged.stands(0) and damaged.stands(2) and not damaged.stands(1)
    with pytest.raises(DataError, match=f"{path}: .*; run the same command again") as error:
        damaged.rows(Projected().extractor.key(OUTPUT))
    assert "\n" not in str(error.value)
    wanted = []
    compute(made(PIXELS, read=wanted.append), networks(Projected()), copied)
    assert (wanted[0].start, wanted[-1].stop) == (256, 512)
    assert contents(copied) == contents(whole.folder)


def test_no_damage_is_taken_for_features(whole, copied):
    path = copied / "block-00001.safetensors"
    data = path.read_bytes()
    head, rest = data[:700], data[700:]  # rows are many, and what describes them is not
    for damaged in [*mutants(data, 100, "whole"), *(mutant + rest for mutant in mutants(head, 200, "header"))]:
        path.write_bytes(damaged)
        if damaged != data:
            assert not Rows(copied, whole.described).stands(1)


def test_a_block_that_does_not_vouch_for_itself_is_damaged(copied, whole):
    path = copied / "block-00000.safetensors"
    save_file(load_file(path), path)
    with pytest.raises(DataError, match="is damaged: its SHA-256 is not the one it states"):
        Rows(copied, whole.described).moments(Projected().extractor.key(OUTPUT))


def test_a_block_that_vanished_is_named(copied, whole):
    rows = Rows(copied, whole.described)
    assert rows.complete
    (copied / "block-00002.safetensors").unlink()
    assert not rows.complete
    with pytest.raises(DataError, match=r"block-00002\.safetensors: cannot be read as features"):
        rows.rows(Projected().extractor.key(OUTPUT))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"images": made(noise(COUNT, seed=1))}, r"fingerprint: 'noise \d+ 600' -> 'noise \d+ 600'"),
        ({"images": made(PIXELS, name="other")}, "source: 'noise' -> 'other'"),
        ({"images": made(PIXELS[:500])}, "count: 600 -> 500"),
        ({"networks": networks(Projected(name="mine"))}, r"networks: \[\['projection', .* -> \[\['mine', "),
        ({"networks": networks(Projected(sha256="cd"))}, r"networks: .*'abab.* -> \[\['projection', 'cd'\]\]"),
        ({"captions": ["a"] * COUNT}, "captions: '' -> '"),
    ],
    ids=["images", "source", "count", "network", "weights", "captions"],
)
def test_a_folder_of_other_features_is_refused_by_the_difference(copied, whole, other, said):
    arguments = {"images": made(PIXELS), "networks": networks(Projected()), **other}
    with pytest.raises(UserError, match=f"{copied}: was begun with other settings: .*{said}"):
        compute(folder=copied, **arguments)
    assert contents(copied) == contents(whole.folder)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "holiday.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds something else \('holiday.png'\)"):
        filled(tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_name_the_image(tmp_path, bad):
    marked = PIXELS.clone()
    marked[300] = 0

    def spoilt(images):
        return torch.where((images == 0).flatten(1).all(1)[:, None], bad, projection(images))

    extractor = Custom(spoilt, name="spoilt", output=OUTPUT, width=8, sha256="")
    with pytest.raises(DataError, match=r"noise: image 300: its spoilt/pixels\.projected is not finite"):
        compute(made(marked), [(extractor, extractor.open(computing().weights, computing().device))], tmp_path)
    assert set(contents(tmp_path)) == {BEGUN, "block-00000.safetensors"}


@pytest.mark.parametrize("shape", [(3, 6, 8), (3, 4, 6, 8)], ids=["images", "clips"])
def test_kept_images_are_those_that_were_judged(tmp_path, shape):
    pixels = noise(5, shape=shape)
    compute(made(pixels), networks(Projected()), tmp_path, keep=True)
    files = sorted((tmp_path / "images").iterdir())
    assert [file.name for file in files] == [f"{number:06d}.png" for number in range(5)]
    for file, image in zip(files, pixels, strict=True):
        frames = image[:, None] if len(shape) == 3 else image  # (3, T, H, W)
        found = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
        assert torch.equal(found, torch.cat(list(frames.unbind(1)), 2))


def test_images_may_be_kept_later_and_no_more(tmp_path):
    pixels, drawn = noise(COUNT), []

    def keep(yes):
        compute(made(pixels, read=drawn.append), networks(Projected()), tmp_path, keep=yes)
        return {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}

    blocks = keep(False)
    assert keep(True) == blocks
    shown = sorted((tmp_path / "images").iterdir())
    assert len(shown) == COUNT
    drawn.clear()
    assert keep(False) == keep(True) == blocks and not drawn
    before = shown[300].read_bytes()
    shown[300].unlink()
    assert keep(True) == blocks and shown[300].read_bytes() == before
    assert {number for some in drawn for number in some} == set(range(256, 512))


def test_copies_are_counted(tmp_path):
    pixels = noise(300)
    pixels[10] = pixels[299] = pixels[0]
    pixels[20] = pixels[21]
    assert compute(made(pixels), networks(Projected()), tmp_path).repeated == 3


def test_two_networks_see_the_same_pixels_once(tmp_path):
    wanted = []
    both = networks(Projected()) + networks(Projected(3, name="narrow"))
    rows = compute(made(PIXELS, read=wanted.append), both, tmp_path)
    assert sum(map(len, wanted)) == COUNT
    assert torch.equal(rows.rows(f"narrow/{OUTPUT}"), projection(PIXELS, 3))
