"""Targets of the losses, made from a DGM4 annotation.

Manipulated is the positive class everywhere: 1 for a pair, a type, a patch or a token; 0 is authentic.
Shapes: B pairs, P patches (row by row from the top left), S patches a side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert

from asap.errors import AnnotationError
from asap.labels import DGM4, TYPES, LabelSet, shows_a_fake_face, types_of
from asap.preprocessing.images import BoxXyxy

CLASSES = tuple(DGM4.classes)
"""The nine values of `fake_cls` in DGM4."""

_ROUNDING = 1e-4
"""Pixels by which a box may cross the edge of a patch without touching the next. No annotation is that precise."""


def multi_hot(fake_cls: str, labels: LabelSet = DGM4) -> Tensor:
    """Return (4,) float32, 1 for each of `asap.labels.TYPES` in the class.

    Raises `AnnotationError` if the label set has no such class.
    """
    types = types_of(fake_cls, labels)
    return torch.tensor([float(name in types) for name in TYPES])


def face_box(
    fake_cls: str, fake_image_box: Sequence[float] | None, width: int, height: int, labels: LabelSet = DGM4
) -> BoxXyxy | None:
    """Return the box of the manipulated face, clipped to the image; None unless the class has an image type.

    The result is in pixels of the original image.

    Args:
        fake_cls: the class of the pair.
        fake_image_box: xmin, ymin, xmax, ymax in pixels; ignored unless the class has an image type.
        width: width of the original image in pixels.
        height: height of the original image in pixels.
        labels: the label set that the class belongs to.

    Raises `AnnotationError` if the box is missing, is not a box, or has no area inside the picture. A zero box would
    teach the box head that the face is in the corner.
    """
    if not shows_a_fake_face(fake_cls, labels):
        return None
    try:
        x0, y0, x1, y1 = (float(edge) for edge in fake_image_box or ())
    except (TypeError, ValueError) as error:
        raise AnnotationError(
            f"fake_image_box {fake_image_box!r} of a {fake_cls} is not xmin, ymin, xmax, ymax in pixels"
        ) from error
    clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if not all(map(math.isfinite, (x0, y0, x1, y1))) or clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        raise AnnotationError(
            f"fake_image_box {list(fake_image_box or ())} covers nothing of the {width} x {height} picture; "
            "it should be xmin, ymin, xmax, ymax in pixels"
        )
    return clipped


def resize_box(box_xyxy: BoxXyxy, width: int, height: int, image_size: int) -> BoxXyxy:
    """Convert a box from pixels of a `width` x `height` picture to pixels of the square picture."""
    x0, y0, x1, y1 = box_xyxy
    return (
        x0 * image_size / width,
        y0 * image_size / height,
        x1 * image_size / width,
        y1 * image_size / height,
    )


def stack_boxes(boxes_xyxy: Sequence[BoxXyxy | None]) -> tuple[Tensor, Tensor]:
    """Return the boxes, (B, 4) float64 with zeros where there is none, and `has_box`, (B,) bool."""
    boxes_B4 = torch.tensor([box or (0.0, 0.0, 0.0, 0.0) for box in boxes_xyxy], dtype=torch.float64).view(-1, 4)
    return boxes_B4, torch.tensor([box is not None for box in boxes_xyxy], dtype=torch.bool)


def box_targets(boxes_xyxy_B4: Tensor, image_size: int) -> Tensor:
    """Convert boxes in pixels of the square picture to the model's form: (B, 4) cxcywh in [0, 1], float32."""
    return (box_convert(boxes_xyxy_B4, "xyxy", "cxcywh") / image_size).float()


def patch_mask(boxes_xyxy_B4: Tensor, has_box_B: Tensor, image_size: int, patch_size: int) -> Tensor:
    """Return (B, P) float32, 1 where patch and box overlap, 0 elsewhere and in pairs without a box.

    This is the patch part of the targets of manipulation-guided cross attention (MGCA). Boxes are in pixels of the
    square picture.
    """
    starts = torch.arange(0, image_size, patch_size, dtype=boxes_xyxy_B4.dtype, device=boxes_xyxy_B4.device)
    x0, y0, x1, y1 = boxes_xyxy_B4[:, :, None].unbind(dim=1)
    # A patch overlaps the box if it does so along both axes.
    columns_BS = (starts < x1 - _ROUNDING) & (starts + patch_size > x0 + _ROUNDING)
    rows_BS = (starts < y1 - _ROUNDING) & (starts + patch_size > y0 + _ROUNDING)
    touched_BSS = rows_BS[:, :, None] & columns_BS[:, None, :] & has_box_B[:, None, None]
    return touched_BSS.flatten(1).float()


def patch_labels(mask_BP: Tensor, *, authentic: float = -1.0) -> Tensor:
    """Return (B, P) float32: 1 in the mask, 0 for the four neighbors around it, else -1 (ignored).

    These are the labels of manipulated patch prediction (MPP). `authentic` labels the patches of pictures whose mask
    is empty: -1 (ignored) as published, or 0, which teaches a model from scratch what authentic patches are.
    """
    side = math.isqrt(mask_BP.shape[1])
    # Add the mask to itself, shifted by one patch in each direction; the sum is positive next to the mask.
    mask_BSS = mask_BP.unflatten(1, (side, side))
    padded = F.pad(mask_BSS, (1, 1, 1, 1))
    around = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    labels_BSS = torch.where(mask_BSS > 0, 1.0, torch.where(around > 0, 0.0, -1.0))
    labels_BSS[mask_BSS.flatten(1).sum(dim=1) == 0] = authentic
    return labels_BSS.flatten(1)
