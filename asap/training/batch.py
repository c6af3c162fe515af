"""The batch of a training step: padded tensors of B pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from asap.preprocessing.images import normalize
from asap.training.losses import IGNORED_TOKEN


class Tokens(NamedTuple):
    """Padded texts: ids and mask, (B, L) each."""

    input_ids: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Batch:
    """The inputs and targets of a step: B pairs, L text tokens with [CLS], P patches."""

    images: Tensor
    """(B, S, S, 3) uint8 as a feed makes them, or (B, 3, S, S) float after `normalized`."""
    text: Tokens
    caption: Tokens
    """(B, 0) if the step does not read captions; see `asap.training.step.descriptions_read`."""
    explanation: Tokens
    """(B, 0) if the step does not read explanations."""
    manipulated: Tensor
    """(B,) bool."""
    types: Tensor
    """(B, 4) float, 0 or 1 for each of `asap.labels.TYPES`."""
    box_cxcywh: Tensor
    """(B, 4) in [0, 1]; zeros where there is no box."""
    has_box: Tensor
    """(B,) bool."""
    token_labels: Tensor
    """(B, L-1) int64: 1 manipulated, 0 not, -100 padding or unknown; [CLS] left out."""
    patch_mask: Tensor
    """(B, P) float: 1 where the patch touches the box, for manipulation-guided cross attention (MGCA)."""
    patch_labels: Tensor
    """(B, P) float: 1 manipulated, 0 not, -1 ignored, for manipulated patch prediction (MPP)."""
    image_tokens: Tensor | None = None
    """(B, N, W): the image tokens of a locked image encoder, if they were computed already."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the same batch on another device.

        Args:
            device: the device.
            non_blocking: do not wait for the copy. It needs pinned memory, and a device that runs its work in order.
        """
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the same batch in pinned memory, from which a GPU copies while the host goes on. It needs CUDA."""
        return self._map(lambda tensor: tensor.pin_memory())

    def normalized(self) -> Batch:
        """Return the batch with its pictures as the model reads them; nothing else normalizes those of a batch.

        A feed leaves pictures as uint8: this takes a quarter of the memory on the way to a GPU, which then normalizes
        them in no time.
        """
        if self.images.dtype != torch.uint8:
            return self
        return dataclasses.replace(self, images=normalize(self.images))

    def rows(self, rows: slice) -> Batch:
        """Return some of the pairs, with the padding of the whole batch."""
        return self._map(lambda tensor: tensor[rows])

    def parts(self, count: int) -> list[Batch]:
        """Cut the batch into `count` batches of equal size, in order, with the padding of the whole batch."""
        pairs = len(self.images) // count
        return [self.rows(slice(start, start + pairs)) for start in range(0, count * pairs, pairs)]

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return a batch in which every tensor is changed."""
        changed: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tokens):
                changed[name] = Tokens(*map(change, value))
            elif value is not None:
                changed[name] = change(value)
        return Batch(**changed)


def stack_texts(*texts: Tokens) -> Tokens:
    """Stack batches of texts, padded to the longest, so that an encoder runs once over all of them."""
    longest = max(text.mask.shape[1] for text in texts)
    padded = [Tokens(*(F.pad(part, (0, longest - part.shape[1])) for part in text)) for text in texts]
    return Tokens(*(torch.cat(parts) for parts in zip(*padded, strict=True)))


def pad_texts(batch: Batch, multiple: int, most: int) -> Batch:
    """Pad the texts of a batch, and the labels of their tokens, to a multiple of a length.

    Compiled code then sees a few lengths instead of any. Padding is masked, so the losses change by rounding only.

    Args:
        batch: a batch.
        multiple: the length whose multiples are taken.
        most: the length that the model reads at most, which no text is padded beyond.
    """

    def missing(length: int) -> int:
        return max(0, min(-(-length // multiple) * multiple, most) - length)

    def padded(text: Tokens) -> Tokens:
        return Tokens(*(F.pad(part, (0, missing(part.shape[1]))) for part in text))

    return dataclasses.replace(
        batch,
        text=padded(batch.text),
        caption=padded(batch.caption),
        explanation=padded(batch.explanation),
        token_labels=F.pad(batch.token_labels, (0, missing(batch.text.mask.shape[1])), value=IGNORED_TOKEN),
    )
