"""A run that is judged while it trains, from what it shows of itself."""

from dataclasses import replace

import pytest
import torch

from pixelspace.config import from_data, to_data
from pixelspace.errors import UserError
from pixelspace.evaluation.frechet import frechet_distance
from pixelspace.evaluation.monitor import Monitor
from pixelspace.evaluation.protocols import PROTOCOLS, quick
from pixelspace.evaluation.report import read_report
from pixelspace.evaluation.stats import moments
from pixelspace.recipes.values import VALUES
from pixelspace.types import Held, Look
from tests.evaluation.judged import SHAPE, Projected, noise, projection, protocol

KNOWN = noise(500, seed=1)


def pictures(seed: int, numbers: range, labels: torch.Tensor, captions=()) -> torch.Tensor:
    """Noise that the label darkens, by number."""
    return noise(300, seed)[numbers.start : numbers.stop] - labels.clamp(min=0).byte()[:, None, None, None]


@pytest.fixture
def look(tmp_path) -> Look:
    return Look(
        draw=pictures,
        drawn="weights of step 1",
        read=lambda numbers: KNOWN[numbers.start : numbers.stop],
        trained_on="known",
        count=len(KNOWN),
        shape=SHAPE,
        classes=5,
        folder=tmp_path / "0000000001",
        shared=tmp_path / "training-images",
        weights=tmp_path / "weights",
        device=torch.device("cpu"),
        progress=False,
    )


def test_a_run_is_judged_against_its_training_images(look):
    projected = Projected()
    small = replace(protocol(projected.extractor, 300), labels="balanced")
    numbers = Monitor(small).evaluate(look)
    drawn = pictures(0, range(300), small.label_of(range(300), 5, 0))
    expected = frechet_distance(moments([projection(drawn)]), moments([projection(KNOWN)]))
    assert [number.name for number in numbers][:3] == ["FD", "KD", "precision"]
    assert numbers[0].value == pytest.approx(expected, abs=1e-9) and numbers[0].lower_is_better
    assert not numbers[2].lower_is_better and numbers[2].details["k"] == 3
    assert read_report(look.folder).numbers == {number.name: number.value for number in numbers}


def test_only_the_report_is_left_and_what_is_shared_is_kept(look):
    projected = Projected()
    monitor = Monitor(protocol(projected.extractor, 300, repeats=2))
    first = monitor.evaluate(look)
    assert sorted(path.name for path in look.folder.iterdir()) == ["report.json", "report.md"]
    assert projected.seen == 2 * 320 + 512 and look.shared.is_dir()
    again = monitor.evaluate(replace(look, folder=look.folder.with_name("0000000002"), drawn="weights of step 2"))
    assert projected.seen == 4 * 320 + 512, "training images are looked at once"
    assert [number.value for number in again] == [number.value for number in first]


def test_images_without_classes_have_no_labels(look):
    asked = []

    def draw(seed, numbers, labels, captions):
        asked.append(labels)
        return pictures(seed, numbers, labels)

    Monitor(protocol(Projected().extractor, 300)).evaluate(replace(look, draw=draw, classes=0))
    assert torch.equal(torch.cat(asked), torch.full((300,), -1))


def test_a_stopped_look_goes_on(look):
    seen = Projected()
    monitor = Monitor(protocol(seen.extractor, 300))

    def stop(seed, numbers, labels, captions):
        if 290 in numbers:
            raise KeyboardInterrupt
        return pictures(seed, numbers, labels)

    with pytest.raises(KeyboardInterrupt):
        monitor.evaluate(replace(look, draw=stop))
    before = seen.seen
    monitor.evaluate(look)
    assert seen.seen - before == 64, "only the second block"


def test_other_weights_do_not_go_on_with_what_was_begun(look):
    monitor = Monitor(protocol(Projected().extractor, 300))

    def stop(seed, numbers, labels, captions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        monitor.evaluate(replace(look, draw=stop))
    with pytest.raises(UserError, match="fingerprint: 'weights of step 1, seed 0' -> 'weights of step 2, seed 0'"):
        monitor.evaluate(replace(look, drawn="weights of step 2"))


def test_latents_are_not_judged(look):
    with pytest.raises(UserError, match="small: this stage has latents, no images, to be compared with"):
        Monitor(protocol(Projected().extractor, 300)).evaluate(replace(look, read=None))


@pytest.mark.parametrize("held", [200, 400])
def test_a_protocol_of_captions_judges_by_those_held_out_against_their_images(look, held):
    asked, unseen = [], noise(held, seed=2)

    def draw(seed, numbers, labels, captions):
        asked.extend(captions)
        return pictures(seed, numbers, labels)

    captions = [f"caption {i}" for i in range(held)]
    shown = Held(captions, lambda numbers: unseen[numbers.start : numbers.stop], "held out")
    by_captions = replace(protocol(Projected().extractor, 300), labels="captions")
    numbers = Monitor(by_captions).evaluate(replace(look, draw=draw, held=shown))
    count = min(held, 300)
    assert asked == captions[:count]
    drawn = pictures(0, range(count), torch.full((count,), -1))
    expected = frechet_distance(moments([projection(drawn)]), moments([projection(unseen)]))
    assert numbers[0].value == pytest.approx(expected, abs=1e-9)


def test_a_protocol_of_captions_needs_some_held_out(look):
    monitor = Monitor(replace(protocol(Projected().extractor, 300), labels="captions"))
    for judge in (lambda: monitor.check(True, False, look.weights), lambda: monitor.evaluate(look)):
        with pytest.raises(UserError, match=r"small: draws by captions of held-out images, .* set data.holdout"):
            judge()
    Monitor(PROTOCOLS["captions10k"]())


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("webvid-fvd", {}, "Monitor: webvid-fvd judges clips, and a stage makes images"),
        ("quick", {"every_images": 0}, "Monitor: every_images must be at least 1, found 0"),
    ],
)
def test_what_cannot_be_judged_while_training_is_refused(name, settings, said):
    with pytest.raises(ValueError, match=said):
        Monitor(PROTOCOLS[name](), **settings)


def test_a_size_of_its_own_is_refused():
    with pytest.raises(ValueError, match=r"Monitor: quick judges at \(64, 64\), a stage at its own size"):
        Monitor(replace(quick(), size=(64, 64)))


def test_a_monitor_is_a_value_and_goes_by_its_protocols_name():
    monitor = Monitor(quick(), 64_000, "KD-Lite0")
    assert from_data(to_data(monitor), VALUES) == monitor and monitor.name == "quick"
