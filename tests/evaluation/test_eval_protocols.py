"""Protocols are values with names, and draw labels by the number of an image."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelspace.config import from_data, to_data
from pixelspace.errors import UserError
from pixelspace.evaluation.inception import Inception
from pixelspace.evaluation.metrics import Frechet
from pixelspace.evaluation.protocols import PROTOCOLS, QUESTIONS, Protocol, Questions, of_name, only, quick
from pixelspace.recipes.values import VALUES

# What each is published as: images, seeds, metrics by the networks that they read.
PUBLISHED = {
    "adm50k": (50_000, 1, {"FID": "tf1", "sFID": "tf1", "IS": "tf1", "precision, recall": "tf1"}),
    "edm2": (50_000, 3, {"FID": "tf1", "FD-DINOv2": "edm2_bicubic"}),
    "coco30k": (
        *(30_000, 1),
        {
            **{"FID (clean)": "clean", "FID (tf1)": "tf1", "FD-DINOv2": "pil_bicubic"},
            **{"CMMD": "large-patch14-336, resize cmmd_crop 336", "CLIPScore": "large-patch14, resize clip_pil 224"},
        },
    ),
    "captions10k": (10_000, 1, {"FID": "clean", "CLIPScore": "large-patch14, resize clip_pil 224"}),
    "ffhq50k": (50_000, 1, {"FID": "clean", "FD-DINOv2": "dinov2-large", "KD-DINOv2": "dinov2-large"}),
    "clean50k": (50_000, 1, {"FID": "clean", "KID": "clean"}),
    "ucf-fvd": (2048, 1, {"FVD": "I3D"}),
    "webvid-fvd": (2048, 1, {"FVD": "I3D"}),
    "quick": (
        *(1000, 1),
        dict.fromkeys(("FD-Lite0", "KD-Lite0", "precision, recall", "density, coverage"), "EfficientNet-Lite0"),
    ),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_is_a_value_that_survives_json(name):
    protocol = PROTOCOLS[name]()
    assert from_data(json.loads(json.dumps(to_data(protocol))), VALUES) == protocol
    assert hash(protocol) == hash(PROTOCOLS[name]())


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_has_the_metrics_that_its_name_promises(name):
    protocol, (count, repeats, metrics) = of_name(name), PUBLISHED[name]
    assert isinstance(protocol, Protocol) and protocol.name == name and protocol.about
    assert (protocol.count, protocol.repeats) == (count, repeats)
    assert [metric.name for metric in protocol.metrics] == list(metrics)
    for metric in protocol.metrics:
        assert metrics[metric.name] in metric.extractor.name and metric.output in metric.extractor.outputs


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_go_by_their_name(name):
    asked = of_name(name)
    assert isinstance(asked, Questions) and asked.name == name
    assert asked.kind == {"dsg1k": "dsg"}.get(name, name) and asked.dependencies == "direct"


def test_an_unknown_protocol_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="protocol: no 'adm50'; did you mean 'adm50k'"):
        of_name("adm50")


def test_some_of_a_protocols_metrics_are_taken_by_name():
    protocol = PROTOCOLS["adm50k"]()
    assert {metric.name for metric in only(protocol, ("IS", "FID"))} == {"IS", "FID"}
    assert only(protocol, ()) == protocol.metrics
    with pytest.raises(UserError, match="metric: adm50k has no 'KID'; it has: FID, sFID, IS, precision, recall"):
        only(protocol, ("FID", "KID"))


FID = Frechet("FID", Inception(), "inception.pool")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"count": 1}, "count must be at least 2, found 1"),
        ({"repeats": 0}, "repeats must be at least 1, found 0"),
        ({"references": 1}, "references must be at least 2, found 1"),
        ({"metrics": ()}, "give at least one metric"),
        ({"metrics": (FID, FID)}, r"two metrics of one name among \['FID', 'FID'\]"),
        ({"labels": "some"}, "labels"),
        ({"count": 2.0}, "count"),
    ],
)
def test_impossible_protocols_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        replace(quick(), **changes)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 9))
def test_balanced_labels_give_each_class_equally_often(classes, each, seed):
    count = max(2, classes * each)
    labels = replace(quick(), count=count).label_of(range(count), classes, seed)
    found = labels.bincount(minlength=classes)
    assert found.max() - found.min() <= (count % classes > 0) and len(found) == classes


def test_balanced_labels_are_mixed():
    labels = quick().label_of(range(1000), 10, 0)
    follows = (labels[1:] == labels[:-1]).double().mean()
    # A tenth where they are in no order, with a standard deviation of 0.01; 0.99 or 0 in order of class or in turns.
    assert 0.05 < follows < 0.15
    assert labels[:500].bincount(minlength=10).min() > 30, "the first half has all classes"


@pytest.mark.parametrize("labels", ["balanced", "uniform"])
def test_a_label_is_a_function_of_seed_and_number(labels):
    protocol = replace(quick(), labels=labels)
    whole = protocol.label_of(range(100), 7, 3)
    assert torch.equal(torch.cat([protocol.label_of(range(i, i + 10), 7, 3) for i in range(0, 100, 10)]), whole)
    assert not torch.equal(protocol.label_of(range(100), 7, 4), whole)
    assert whole.dtype == torch.int64 and whole.shape == (100,)


@given(st.integers(1, 2000), st.integers(0, 2**32), st.integers(0, 10**6))
def test_uniform_labels_are_in_range(classes, seed, first):
    labels = replace(quick(), labels="uniform").label_of(range(first, first + 3), classes, seed)
    assert ((labels >= 0) & (labels < classes)).all()


def test_uniform_labels_are_drawn_one_by_one():
    found = replace(quick(), labels="uniform").label_of(range(4000), 4, 0).bincount(minlength=4)
    # 1000 each with a standard deviation of 27: near, and yet not balanced.
    assert (found - 1000).abs().max() < 110 and found.min() < found.max()


@pytest.mark.parametrize(("labels", "classes"), [("none", 10), ("captions", 10), ("balanced", 0), ("uniform", 0)])
def test_there_are_no_labels_without_classes(labels, classes):
    assert replace(quick(), labels=labels).label_of(range(3), classes, 0).tolist() == [-1] * 3
