import pytest
import torch

from pixelspace import store
from pixelspace.errors import CheckpointError, ResourceError
from pixelspace.training import checkpoint


def parts(step):
    rand = torch.Generator().manual_seed(step)
    weight = torch.randn(4, 3, generator=rand)
    return {
        "model": {"weight": weight},
        "ema": {"weight": weight * 0.5},
        "optimizer": {"weight.exp_avg": weight**2, "weight.step": torch.tensor(float(step))},
    }


def save(folder, *steps):
    return [checkpoint.save(folder, step, parts(step), {"step": step}) for step in steps]


def steps(folder):
    return [int(path.name[5:]) for path in checkpoint.candidates(folder)]


def resumed(folder):
    found = checkpoint.resume(folder)
    assert found is not None
    return found


def damage(path, name="model.safetensors"):
    data = bytearray((path / name).read_bytes())
    data[-1] ^= 1
    (path / name).write_bytes(data)


def assert_is(contents, step):
    assert contents.state == {"step": step}
    for part, tensors in parts(step).items():
        assert contents.parts[part].keys() == tensors.keys()
        assert all(torch.equal(contents.parts[part][name], tensor) for name, tensor in tensors.items())


def test_the_highest_step_is_resumed_whatever_the_order_of_saves(tmp_path):
    save(tmp_path, 1000, 99999999, 100000000, 20)
    assert steps(tmp_path) == [100000000, 99999999, 1000, 20]
    assert checkpoint.newest(tmp_path) == (tmp_path / "step-100000000", ())
    found = resumed(tmp_path)
    assert found.path.name == "step-100000000" and found.refused == ()
    assert_is(found.contents, 100000000)


def test_images_seen_are_told_without_reading_tensors(tmp_path):
    assert checkpoint.images_seen(tmp_path) == (None, 0)
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, parts(step), {"step": step, "images": 8 * step})
    damage(tmp_path / "step-00000003")  # within a tensor; it is found when the weights are read
    assert checkpoint.images_seen(tmp_path) == (tmp_path / "step-00000003", 24)
    damage(tmp_path / "step-00000003", "state.json")
    assert checkpoint.images_seen(tmp_path) == (tmp_path / "step-00000002", 16)
    for step in (1, 2):
        damage(tmp_path / f"step-{step:08d}", "state.json")
    with pytest.raises(CheckpointError, match="none of its 3 checkpoints is good"):
        checkpoint.images_seen(tmp_path)


def test_a_stage_without_checkpoints_starts_anew(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        assert checkpoint.newest(folder) == (None, ())
        assert checkpoint.resume(folder) is None


def test_each_damaged_step_is_refused_by_name_and_the_next_lower_taken(tmp_path):
    _, good, cut, flipped = save(tmp_path, 1, 2, 3, 4)
    damage(flipped, "ema.safetensors")
    (cut / "MANIFEST.json").unlink()
    (tmp_path / "step-00000005").mkdir()
    path, refused = checkpoint.newest(tmp_path)
    assert path == good
    assert [line.split(":")[0].removeprefix(f"{tmp_path}/") for line in refused] == [
        "step-00000005/MANIFEST.json",
        "step-00000004/ema.safetensors",
        "step-00000003/MANIFEST.json",
    ]
    found = resumed(tmp_path)
    assert (found.path, found.refused) == (path, refused)
    assert_is(found.contents, 2)


def test_training_never_starts_anew_when_every_checkpoint_is_damaged(tmp_path):
    for path in save(tmp_path, 1, 2):
        damage(path)
    for resume in (checkpoint.newest, checkpoint.resume):
        with pytest.raises(
            CheckpointError, match=r"none of its 2 checkpoints is good.*step-00000002/model\.safetensors"
        ):
            resume(tmp_path)


def test_a_store_folder_of_another_kind_is_no_checkpoint(tmp_path):
    store.publish(tmp_path / "step-00000003", parts(3), {}, kind="model")
    save(tmp_path, 2)
    path, refused = checkpoint.newest(tmp_path)
    assert path == tmp_path / "step-00000002"
    assert "holds a 'model'; expected a 'checkpoint'" in refused[0]


def test_other_names_are_no_candidates(tmp_path):
    save(tmp_path, 1)
    for name in ("step-1", "step-0000000001", "step-00000002.bak", ".tmp-step-00000003", "latest", "step-0000000x"):
        (tmp_path / name).mkdir()
    assert steps(tmp_path) == [1]


def test_a_step_saved_again_is_replaced(tmp_path):
    save(tmp_path, 1, 2)
    checkpoint.save(tmp_path, 2, parts(5), {"step": 5})
    assert_is(resumed(tmp_path).contents, 5)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000001", "step-00000002"}


def test_a_damaged_step_saved_again_is_kept_out_of_sight(tmp_path):
    _, path = save(tmp_path, 1, 2)
    damage(path)
    save(tmp_path, 2)
    assert_is(resumed(tmp_path).contents, 2)
    assert steps(tmp_path) == [2, 1]
    assert len(list(tmp_path.glob(".damaged-step-00000002-*/model.safetensors"))) == 1


def test_a_step_whose_replacement_was_cut_short_still_counts(tmp_path):
    _, path = save(tmp_path, 1, 2)
    path.rename(tmp_path / f".old-step-00000002-{'0' * 32}")
    assert steps(tmp_path) == [2, 1]
    assert_is(resumed(tmp_path).contents, 2)
    save(tmp_path, 3)
    assert checkpoint.prune(tmp_path, keep_last=2) == [tmp_path / "step-00000001"]
    assert_is(store.read(path, kind="checkpoint"), 2)


def test_pruning_keeps_the_last_the_regular_and_the_protected_steps(tmp_path):
    save(tmp_path, *range(10, 130, 10))
    gone = checkpoint.prune(tmp_path, keep_last=3, keep_every=50, protect={20, 999})
    assert [path.name for path in gone] == [f"step-{step:08d}" for step in (90, 80, 70, 60, 40, 30, 10)]
    assert steps(tmp_path) == [120, 110, 100, 50, 20]
    assert {path.name for path in tmp_path.iterdir()} == {f"step-{step:08d}" for step in steps(tmp_path)}
    assert checkpoint.prune(tmp_path, keep_last=3, keep_every=50, protect={20}) == []


def test_pruning_counts_whole_checkpoints_only_and_leaves_damaged_ones(tmp_path):
    saved = save(tmp_path, 1, 2, 3, 4)
    for path in saved[2:]:
        (path / "state.json").write_text("")
    assert checkpoint.prune(tmp_path, keep_last=1) == [saved[0]]
    assert steps(tmp_path) == [4, 3, 2]


@pytest.mark.parametrize("keep_last", [0, 1])
def test_pruning_never_deletes_the_last_checkpoint(tmp_path, keep_last):
    save(tmp_path, 1, 2)
    checkpoint.prune(tmp_path, keep_last=keep_last)
    assert steps(tmp_path) == [2]


def test_a_save_clears_what_killed_saves_and_prunes_left(tmp_path):
    save(tmp_path, 1)
    for name in (f".tmp-step-00000002-{'a' * 32}", f".del-step-00000000-{'b' * 32}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
    assert checkpoint.newest(tmp_path) == (tmp_path / "step-00000001", ())
    save(tmp_path, 3)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000001", "step-00000003"}


def test_checkpoints_below_a_file_are_a_resource_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot look for checkpoints"):
        checkpoint.newest(tmp_path / "file")
    with pytest.raises(ResourceError, match="cannot save"):
        save(tmp_path / "file", 1)
