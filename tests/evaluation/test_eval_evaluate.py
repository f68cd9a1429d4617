"""From images to a report: the same numbers whoever computes them, and no number of things that cannot be compared."""

import json
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pixelspace.data.emoji import Emoji
from pixelspace.errors import DataError, UserError
from pixelspace.evaluation.custom import Custom
from pixelspace.evaluation.evaluate import evaluate
from pixelspace.evaluation.frechet import frechet_distance
from pixelspace.evaluation.kernel import kid
from pixelspace.evaluation.metrics import CMMD, CLIPScore, Vendi
from pixelspace.evaluation.neighbours import manifolds
from pixelspace.evaluation.pretrained import CLIP
from pixelspace.evaluation.protocols import Protocol, quick
from pixelspace.evaluation.reference_file import read_own
from pixelspace.evaluation.reference_making import reference_of
from pixelspace.evaluation.report import Report, fingerprint, read_report
from pixelspace.evaluation.scores import cosines, vendi_score
from pixelspace.evaluation.stats import moments
from pixelspace.evaluation.views import samples
from pixelspace.evaluation.weights import Weights
from tests.evaluation.judged import (
    COUNT,
    KNOWN,
    OUTPUT,
    PIXELS,
    Projected,
    X,
    Y,
    close,
    computing,
    judged,
    made,
    noise,
    noted,
    projection,
    protocol,
)


def test_each_number_is_its_function_of_the_features(usual):
    distance, kernel = frechet_distance(moments([X]), moments([Y])), kid(X, Y, subsets=4, size=50, seed=0)
    three, five = manifolds(X, Y, 3), manifolds(X, Y, 5)
    expected = {
        **{"FD": distance, "KD": kernel.mean, "precision": three.precision, "recall": three.recall},
        **{"density": five.density, "coverage": five.coverage, "Vendi": vendi_score(X)},
    }
    assert usual.numbers == pytest.approx(expected, rel=0, abs=1e-9)
    assert [row["better"] for row in usual.data["numbers"]] == ["lower"] * 2 + ["higher"] * 5


def test_a_report_says_what_made_the_numbers(usual):
    small = protocol(Projected().extractor)
    assert usual.data["fingerprint"] == fingerprint(small)
    assert usual.data["protocol"]["metrics"][0]["extractor"] == {
        **{"type": "Custom", "name": "projection", "outputs": {OUTPUT: 8}}
    }
    assert usual.data["images"] == {
        **{"source": "noise", "count": COUNT, "shape": [3, 6, 8], "seeds": [0]},
        "fingerprints": [made(PIXELS).fingerprint],
    }
    assert usual.data["reference"] == {
        **{"source": "known", "images": 700, "fingerprint": made(KNOWN, "known").fingerprint}
    }
    assert usual.data["networks"] == [{"name": "projection", "sha256": "ab" * 32}]
    assert usual.data["notes"] == [] and usual.data["software"]["processes"] == 1
    assert usual.line.startswith(f"small [{fingerprint(small)}], 600 images against known, pixelspace ")


@pytest.mark.parametrize("chunk", [1, 37, 500])
def test_numbers_do_not_depend_on_how_many_images_are_read_at_once(usual, tmp_path, chunk):
    close(judged(tmp_path, chunk=chunk), usual)


@pytest.mark.parametrize("ranks", [(0, 1), (1, 0), (2, 0, 1)])
def test_numbers_do_not_depend_on_how_many_processes_share_the_work(usual, tmp_path, ranks):
    found = [judged(tmp_path, rank=rank, world=len(ranks)) for rank in ranks]
    assert [report is None for report in found] == [True] * (len(ranks) - 1) + [False]
    close(found[-1], usual)
    assert found[-1] is not None and found[-1].data["software"]["processes"] == len(ranks)


def _process(rank: int, out: Path) -> None:
    torch.set_num_threads(1)
    judged(out / "judged", rank=rank, world=2)
    extractor = Projected().extractor
    for i in range(8):  # both end at the same time, and one of them has to write
        reference_of(
            made(PIXELS[: 512 + i]), protocol(extractor), out / f"{i}.safetensors", computing(rank, 2), crop="x"
        )


def test_two_real_processes_find_the_same_numbers(usual, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_process, args=(rank, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    close(read_report(tmp_path / "judged"), usual)
    for i in range(8):
        header, found, _ = read_own(tmp_path / f"{i}.safetensors")
        assert header.count == 512 + i
        torch.testing.assert_close(found[f"projection/{OUTPUT}"].mean, X[: 512 + i].double().mean(0))
    assert {path.suffix for path in tmp_path.iterdir()} == {"", ".safetensors"}, "nothing is left beside them"


def test_a_stopped_evaluation_goes_on_to_the_same_numbers(usual, tmp_path):
    def stop(numbers):
        if 300 in numbers:
            raise KeyboardInterrupt

    first, second = Projected(), Projected()
    small = protocol(first.extractor)
    with pytest.raises(KeyboardInterrupt):
        evaluate(small, [made(PIXELS, read=stop)], tmp_path, computing(), reference=made(KNOWN, "known"))
    close(judged(tmp_path, projected=second), usual)
    assert first.seen == 704 + 256 and second.seen == 256 + 96, "the reference and a block stood already"
    third = Projected()
    close(judged(tmp_path, projected=third), usual)
    assert third.seen == 0


def test_features_of_a_reference_are_shared(tmp_path):
    first, second = Projected(), Projected()
    judged(tmp_path / "a", projected=first, reference_features=tmp_path / "known")
    judged(tmp_path / "b", noise(300), projected=second, reference_features=tmp_path / "known")
    assert (first.seen, second.seen) == (704 + 608, 320)


def test_the_protocol_in_a_folder_may_not_change_its_images(tmp_path):
    judged(tmp_path)
    with pytest.raises(UserError, match=r"features: was begun with other settings: .*count: 600 -> 599"):
        judged(tmp_path, PIXELS[:599])


# What cannot be compared.


def test_a_reference_is_needed_where_a_metric_wants_one(tmp_path):
    with pytest.raises(UserError, match="reference: FD, KD, precision, recall, density, coverage needs one: give"):
        judged(tmp_path, reference=None)


def test_a_metric_without_a_reference_needs_none_and_names_none(tmp_path):
    extractor = Projected().extractor
    for reference in (None, made(KNOWN, "known")):
        report = judged(tmp_path, metrics=[Vendi(extractor, OUTPUT)], reference=reference)
        assert report is not None and report.numbers == {"Vendi": vendi_score(X)}
        assert report.data["reference"] is None and "against" not in report.line
    assert not (tmp_path / "reference").exists()


def test_images_of_another_size_than_the_reference_are_refused(tmp_path):
    projected = Projected()
    with pytest.raises(DataError, match="known: the reference is 5x8, the images are 6x8; make both of one size"):
        judged(tmp_path, projected=projected, reference=made(noise(600, shape=(3, 5, 8)), "known"))
    assert projected.seen == 0


def test_equal_images_are_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(DataError, match="noise: all 40 images are equal; there is nothing to measure"):
        judged(tmp_path, PIXELS[:1].expand(40, -1, -1, -1))


@pytest.mark.parametrize(
    ("count", "said"),
    [(1, "noise: 1 images; two or more are needed"), (5, "generated features: 6 rows or more are needed, found 5")],
)
def test_too_few_images_are_refused(tmp_path, count, said):
    extractor = Projected().extractor
    small = replace(protocol(extractor), count=2)
    with pytest.raises(DataError, match=said):
        evaluate(small, [made(PIXELS[:count])], tmp_path, computing(), reference=made(KNOWN, "known"))


def test_features_that_are_not_finite_name_the_image(tmp_path):
    bad = Custom(lambda x: x.flatten(1).float().log()[:, :8], name="logs", output=OUTPUT, width=8, sha256="")
    with pytest.raises(DataError, match=r"known: image \d+: its logs/pixels.projected is not finite"):
        evaluate(protocol(bad), [made(PIXELS)], tmp_path, computing(), reference=made(noise(700), "known"))


# What a reader should know.


def test_copies_among_the_images_are_noted(tmp_path):
    pixels = PIXELS.clone()
    pixels[7] = pixels[500] = pixels[3]
    assert noted(judged(tmp_path, pixels)) == ["2 of the 600 images are copies of another"]


def test_a_reference_that_is_the_images_themselves_is_noted(tmp_path):
    assert "the images are the reference itself" in noted(judged(tmp_path, reference=made(PIXELS)))


def test_a_covariance_that_is_not_of_full_rank_is_noted(tmp_path):
    (note,) = noted(judged(tmp_path, PIXELS[:8]))
    assert note.startswith("FD: 8 images for 8 features: the covariance is not of full rank")
    assert noted(judged(tmp_path / "more", PIXELS[:9])) == []


def test_notes_about_images_and_reference_are_kept(tmp_path):
    small = protocol(Projected().extractor)
    images, known = replace(made(PIXELS), notes=("JPEG",)), replace(made(KNOWN, "known"), notes=("JPEG too",))
    assert noted(evaluate(small, [images], tmp_path, computing(), reference=known)) == ["JPEG", "reference: JPEG too"]


def test_another_count_than_the_protocols_is_in_every_name(tmp_path):
    small = replace(protocol(Projected().extractor), count=50_000)
    report = evaluate(small, [made(PIXELS)], tmp_path, computing(), reference=made(KNOWN, "known"))
    assert report is not None
    assert list(report.numbers)[:2] == ["FD (600 images, not 50,000)", "KD (600 images, not 50,000)"]
    assert all(name.endswith(" (600 images, not 50,000)") for name in report.numbers)


def test_more_reference_images_than_a_protocol_takes_are_drawn_from(tmp_path):
    projected = Projected()
    small = replace(protocol(projected.extractor), references=100)
    report = evaluate(small, [made(PIXELS)], tmp_path, computing(), reference=made(KNOWN, "known"))
    assert projected.seen == 608 + 128 and report is not None
    assert report.data["reference"]["images"] == 100
    assert report.data["notes"] == ["reference: 100 of 700 images, drawn by seed 0"]
    few = evaluate(small, [made(PIXELS)], tmp_path / "few", computing(), reference=made(KNOWN[:90], "known"))
    assert few is not None and few.data["reference"]["images"] == 90


def test_repeats_give_mean_deviation_and_least(tmp_path):
    projected = Projected()
    small = protocol(projected.extractor, repeats=3, seed=4)
    sets = [noise(COUNT, seed) for seed in (0, 2, 3)]
    report = evaluate(small, [made(x) for x in sets], tmp_path, computing(), reference=made(KNOWN, "known"))
    assert report is not None and report.data["images"]["seeds"] == [4, 5, 6]
    values = torch.tensor([frechet_distance(moments([projection(x)]), moments([Y])) for x in sets])
    row = report.data["numbers"][0]
    assert row["runs"]["values"] == pytest.approx(values.tolist(), rel=1e-6)
    assert row["value"] == row["runs"]["mean"] == pytest.approx(float(values.mean()), rel=1e-6)
    assert row["runs"]["std"] == pytest.approx(float(values.std()), rel=1e-5)
    assert row["runs"]["minimum"] == min(row["runs"]["values"])
    kernel = report.data["numbers"][1]
    assert kernel["details"] == {"subsets": 4, "subset size": 50}, "what differs is not said of all"
    assert [own["seed"] for own in kernel["runs"]["details"]] == [4, 5, 6]
    assert projected.seen == 3 * 608 + 704, "the reference once"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        *(f"features-seed-{seed}" for seed in (4, 5, 6)),
        "reference",
    ]


def test_one_set_of_images_for_several_repeats_is_noted(tmp_path):
    small = protocol(Projected().extractor, repeats=3)
    report = evaluate(small, [made(PIXELS)], tmp_path, computing(), reference=made(KNOWN, "known"))
    assert noted(report) == ["1 set of images, where small judges 3, one a seed"]
    assert report is not None and "runs" not in report.data["numbers"][0]


# References in files.


CAPTIONS = ["a red cube", "how many cats are there?", "the photo depicts a cat"] * 3


def captioned(tiny: Path, out: Path, captions, **more) -> Report | None:
    small_clip = CLIP("tiny/clip", 28, "clip_pil", width=12)
    metrics = (CLIPScore(small_clip, small_clip.output), CMMD(small_clip, small_clip.output))
    coco = Protocol("captioned", "", 9, metrics, labels="captions")
    more.setdefault("reference", made(noise(9, 1, (3, 40, 50)), "known"))
    images = made(noise(9, shape=(3, 40, 50)))
    return evaluate(coco, [images], out, computing(weights=tiny), captions=captions, **more)


def test_clipscore_is_that_of_each_image_with_its_own_caption(tiny, tmp_path):
    report = captioned(tiny, tmp_path, CAPTIONS)
    opened = CLIP("tiny/clip", 28, "clip_pil", width=12).open(Weights(tiny), torch.device("cpu"))
    assert report is not None and report.data["notes"] == [] and opened.embed_text is not None
    images = opened.compute(noise(9, shape=(3, 40, 50)))["clip.image"]
    expected = 100 * float(cosines(images, opened.embed_text(CAPTIONS)).mean())
    assert report.numbers["CLIPScore (100 cos)"] == pytest.approx(expected, abs=1e-4)
    assert len(report.data["images"]["captions sha256"]) == 64
    with pytest.raises(UserError, match="features: was begun with other settings: captions: "):
        captioned(tiny, tmp_path, CAPTIONS[::-1])


def test_captions_that_are_too_long_are_noted(tiny, tmp_path):
    report = captioned(tiny, tmp_path, ["a" * 40 + " " + "b" * 40, "c " * 76, *CAPTIONS[2:]])
    assert noted(report) == [
        "2 captions are longer than CLIP tiny/clip, resize clip_pil 28 reads; their ends are left out"
    ]


def test_captions_are_embedded_only_by_networks_that_are_asked_about_them(tiny, tmp_path):
    weights = tmp_path / "weights"
    shutil.copytree(tiny / "tiny" / "clip", weights / "tiny" / "clip")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (weights / "tiny" / "clip" / name).unlink()
    small_clip = CLIP("tiny/clip", 28, "clip_pil", width=12)
    alone = [CMMD(small_clip, small_clip.output)]
    report = captioned(weights, tmp_path / "out", CAPTIONS, metrics=alone)
    assert report is not None and list(report.numbers) == ["CMMD"]
    assert "captions sha256" not in report.data["images"]


def test_clipscore_without_captions_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="prompts: CLIPScore compares images with their captions: give them by"):
        captioned(tiny, tmp_path, None)


def test_captions_are_as_many_as_images(tiny, tmp_path):
    with pytest.raises(UserError, match="prompts: 8 lines for 9 images"):
        captioned(tiny, tmp_path, CAPTIONS[:8])


def test_captions_that_nothing_reads_are_refused(tmp_path):
    with pytest.raises(UserError, match="prompts: nothing that is asked of small reads captions; leave them out"):
        judged(tmp_path, captions=["a"] * COUNT)


# The whole, with a network that was trained.


def test_quick_tells_one_kind_of_emoji_from_itself_and_from_another(tmp_path):
    faces, food = (Emoji((group,)).open() for group in ("smileys", "food"))
    known = samples(faces, range(0, 48, 2), (32, 32), "center")
    values = []
    for name, images in (
        ("faces", samples(faces, range(1, 48, 2), (32, 32), "center")),
        ("food", samples(food, range(24), (32, 32), "center")),
    ):
        report = evaluate(
            quick(), [images], tmp_path / name, computing(), reference=known, reference_features=tmp_path / "known"
        )
        assert report is not None
        values.append(report.data["numbers"])
        assert json.loads((tmp_path / name / "report.json").read_text()) == report.data
    names = ["FD-Lite0", "KD-Lite0", "precision", "recall", "density", "coverage"]
    assert [row["name"] for row in values[0]] == [f"{name} (24 images, not 1,000)" for name in names]
    for same, other in zip(*values, strict=True):
        assert same["value"] < other["value"] if same["better"] == "lower" else same["value"] > other["value"]
    assert values[0][0]["details"] == {"width": 1280}
