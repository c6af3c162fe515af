"""Targets made from annotations."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from asap.errors import AnnotationError
from asap.labels import is_manipulated, types_of
from asap.training.targets import (
    CLASSES,
    box_targets,
    face_box,
    multi_hot,
    patch_labels,
    patch_mask,
    resize_box,
    stack_boxes,
)

GOLDEN = Path(__file__).parents[2] / "golden"
PATCHES = json.loads((GOLDEN / "labels_0.json").read_text(encoding="utf-8"))["patches"]


def xyxy(box_xywh):
    x, y, width, height = box_xywh
    return (x, y, x + width, y + height)


def mask_of(*boxes, image_size=256, patch_size=16):
    return patch_mask(*stack_boxes(boxes), image_size, patch_size)


def test_there_are_nine_classes_and_their_types_are_known():
    assert len(set(CLASSES)) == 9
    assert types_of("orig") == ()
    assert types_of("face_attribute&text_swap") == ("face_attribute", "text_swap")


@pytest.mark.parametrize(
    ("fake_cls", "expected"),
    [
        ("orig", [0, 0, 0, 0]),
        ("face_swap", [1, 0, 0, 0]),
        ("text_attribute", [0, 0, 0, 1]),
        ("face_swap&text_swap", [1, 0, 1, 0]),
        ("face_attribute&text_attribute", [0, 1, 0, 1]),
    ],
)
def test_a_class_becomes_four_labels_in_the_order_of_types(fake_cls, expected):
    assert multi_hot(fake_cls).tolist() == expected
    assert multi_hot(fake_cls).dtype == torch.float32
    assert is_manipulated(fake_cls) == bool(sum(expected))


@pytest.mark.parametrize("fake_cls", ["Orig", "text_swap&face_swap", "face_swap&face_attribute", "", "deepfake", None])
def test_an_unknown_class_is_an_annotation_error_that_lists_the_known_classes(fake_cls):
    for read in (multi_hot, is_manipulated, types_of):
        with pytest.raises(AnnotationError, match="face_attribute&text_attribute") as caught:
            read(fake_cls)
        assert repr(fake_cls) in str(caught.value)


def test_manipulated_is_the_positive_class_of_the_published_outputs():
    spec = json.loads((GOLDEN / "asap_small_0.json").read_text(encoding="utf-8"))
    with np.load(GOLDEN / "asap_small_0.npz") as arrays:
        logits = torch.from_numpy(arrays["out_logits_real_fake"])
        types = torch.from_numpy(arrays["out_logits_multilabel"])
    labels = torch.tensor([is_manipulated(name) for name in spec["labels"]]).long()
    losses = spec["losses"]["corrected/alpha=0.0/token_momentum=False"]
    assert F.cross_entropy(logits, labels).item() == pytest.approx(losses["bic"], abs=1e-5)
    wanted = torch.stack([multi_hot(name) for name in spec["labels"]])
    assert F.binary_cross_entropy_with_logits(types, wanted).item() == pytest.approx(losses["mlc"], abs=1e-5)


def test_only_classes_with_an_image_type_have_a_box():
    box = [10, 20, 50, 60]
    assert face_box("face_swap", box, 100, 80) == (10, 20, 50, 60)
    assert face_box("face_attribute&text_swap", box, 100, 80) == (10, 20, 50, 60)
    for fake_cls in ("orig", "text_swap", "text_attribute"):
        assert face_box(fake_cls, box, 100, 80) is None
        assert face_box(fake_cls, [], 100, 80) is None


def test_a_box_that_reaches_out_of_the_picture_is_clipped():
    assert face_box("face_swap", (-5, -3.5, 120, 90), 100, 80) == (0, 0, 100, 80)


@pytest.mark.parametrize(
    "box",
    [
        [],
        None,
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        ["a", 1, 2, 3],
        7,
        [[1, 2], [3, 4], 5, 6],
        [10, 10, 10, 40],
        [10, 40, 20, 40],
        [50, 10, 10, 40],
        [0, 0, 0, 0],
        [100, 0, 140, 40],
        [-40, 0, 0, 40],
        [float("nan"), 0, 10, 10],
        [0, 0, float("inf"), 10],
    ],
)
def test_a_box_that_covers_nothing_of_the_picture_is_an_annotation_error(box):
    with pytest.raises(AnnotationError, match="fake_image_box"):
        face_box("face_swap", box, 100, 80)


def test_the_box_target_is_center_and_size_as_fractions():
    box = resize_box((10, 20, 50, 60), 100, 80, image_size=256)
    boxes, has_box = stack_boxes([box, None])
    targets = box_targets(boxes, 256)
    assert targets.dtype == torch.float32
    assert torch.allclose(targets, torch.tensor([[0.3, 0.5, 0.4, 0.5], [0, 0, 0, 0]]))
    assert has_box.tolist() == [True, False]


def test_an_empty_batch_has_empty_targets():
    boxes, has_box = stack_boxes([])
    assert boxes.shape == (0, 4)
    assert patch_labels(patch_mask(boxes, has_box, 64, 16)).shape == (0, 16)


@pytest.mark.parametrize("case", PATCHES, ids=lambda case: "-".join(f"{edge:.0f}" for edge in case["box_xywh_256"]))
def test_patch_masks_and_labels_are_the_published_ones(case):
    mask = mask_of(xyxy(case["box_xywh_256"]))
    assert mask[0].tolist() == case["mgca_patch_mask"]
    assert patch_labels(mask)[0].tolist() == case["mpp_patch_label"]


def test_boxes_give_the_same_masks_together_and_alone():
    masks = mask_of(*(xyxy(case["box_xywh_256"]) for case in PATCHES))
    assert masks.int().tolist() == [case["mgca_patch_mask"] for case in PATCHES]


def test_other_sizes_follow_the_same_rule():
    mask = mask_of((33, 0, 64, 20), image_size=96, patch_size=32)
    assert mask.tolist() == [[0, 1, 0, 0, 0, 0, 0, 0, 0]]
    assert patch_labels(mask).tolist() == [[0, 1, 0, -1, 0, -1, -1, -1, -1]]


def test_a_box_on_the_patch_grid_touches_no_neighbor_at_any_original_size():
    for size in (96, 128, 224, 256):
        for width in (300, 333, 517, 1000):
            patch = size / 16
            exact = (2 * patch, 3 * patch, 5 * patch, 4 * patch)
            original = tuple(edge * width / size for edge in exact)
            mask = mask_of(resize_box(original, width, width, size), image_size=size, patch_size=size // 16)
            assert mask.sum() == 3


def test_a_picture_without_a_box_has_an_empty_mask_and_ignored_or_authentic_patches():
    mask = mask_of(None, (0, 0, 16, 16), image_size=32)
    assert mask.tolist() == [[0, 0, 0, 0], [1, 0, 0, 0]]
    assert patch_labels(mask).tolist() == [[-1, -1, -1, -1], [1, 0, 0, -1]]
    assert patch_labels(mask, authentic=0).tolist() == [[0, 0, 0, 0], [1, 0, 0, -1]]
