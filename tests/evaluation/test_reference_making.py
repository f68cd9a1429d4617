"""Statistics are made of images, written once and hold what was asked for."""

import pytest

from pixelspace.errors import UserError
from pixelspace.evaluation.metrics import Vendi
from pixelspace.evaluation.reference_file import AS_THEY_ARE, read_own
from pixelspace.evaluation.reference_making import reference_of
from pixelspace.evaluation.references import read_reference
from tests.evaluation.judged import KNOWN, OUTPUT, Projected, computing, judged, made, noted, protocol


def test_a_reference_file_holds_what_was_asked_for(tmp_path):
    small = protocol(Projected().extractor)
    path = tmp_path / "known.safetensors"
    reference_of(made(KNOWN, "known"), small, path, computing(), crop=AS_THEY_ARE)
    header, found, features = read_own(path)
    assert (header.crop, header.size, header.count, header.quantise) == (AS_THEY_ARE, (6, 8), 700, "8 bits")
    assert list(found) == [f"projection/{OUTPUT}"] and not features
    with pytest.raises(UserError, match=r"known.safetensors: has no features of projection/pixels.projected for KD, "):
        judged(tmp_path / "out", reference=read_reference(path))
    report = judged(tmp_path / "out", reference=read_reference(path), metrics=small.metrics[:1])
    assert noted(report) == [], "of any crop"


@pytest.mark.parametrize(
    ("name", "stands", "said"),
    [
        ("known.safetensors", True, "exists already, and is not overwritten"),
        ("known.npz", False, r"are written as \.safetensors, not \.npz"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_computed(tmp_path, name, stands, said):
    if stands:
        (tmp_path / name).write_bytes(b"")
    projected = Projected()
    with pytest.raises(UserError, match=said):
        reference_of(made(KNOWN), protocol(projected.extractor), tmp_path / name, computing(), crop="center")
    assert projected.seen == 0


def test_statistics_that_nothing_reads_are_not_made(tmp_path):
    vendi = [Vendi(Projected().extractor, OUTPUT)]
    with pytest.raises(UserError, match="nothing that is asked of small is compared with a reference"):
        reference_of(
            made(KNOWN),
            protocol(Projected().extractor),
            tmp_path / "a.safetensors",
            computing(),
            metrics=vendi,
            crop="x",
        )
