"""Gradient accumulation: the weights of micro batches whose gradients add up to that of the whole batch.

A term is a mean over what it counts: pairs, boxes, words or patches. The mean over the whole batch is the sum, over
micro batches, of the term times the micro batch's share of that count (over all workers).

Two things depend on the micro batch. The negatives of the contrast are the queue and the micro batch; the queue holds
the earlier micro batches. The statistics of a convolutional stem are those of the pairs that it sees together.

The shares follow the `PublishedDefects` of the losses. One defect depends on the micro batch too: the words of the
batch that MGCA marks in every sample are those of the micro batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from asap.training.batch import Batch
from asap.training.distributed import add_over_workers
from asap.training.losses import IGNORED_PATCH, IGNORED_TOKEN, has_both_labels, has_word_labels
from asap.training.objective import PublishedDefects
from asap.training.step import TERMS
from asap.training.word_prediction import caption_words, has_false_text, true_words


def term_shares(
    parts: Sequence[Batch],
    defects: PublishedDefects = PublishedDefects(),  # noqa: B008
) -> list[dict[str, Tensor]]:
    """Return, for each micro batch, its share of the count of each term, as scalars.

    The shares of a term add up to 1 over the micro batches. They are all 0 if no worker has anything that it counts.
    """
    counts_PT = add_over_workers(torch.stack([_counts(part, defects) for part in parts]))
    shares_PT = counts_PT / counts_PT.sum(dim=0).clamp(min=1)
    return [dict(zip(TERMS, shares_T, strict=True)) for shares_T in shares_PT]


def separate_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give every gradient its own memory; a backward pass may leave two in the same storage.

    Code compiled by `torch.compile` returns the class token's gradient as a view of the position embedding's. Adding to
    both, or clipping both, would then happen twice.
    """
    taken: set[int] = set()
    for parameter in parameters:
        if parameter.grad is None:
            continue
        address = parameter.grad.untyped_storage().data_ptr()
        if address in taken:
            parameter.grad = parameter.grad.clone()
        taken.add(address)


def _counts(batch: Batch, defects: PublishedDefects) -> Tensor:
    """Return the count that each of `TERMS` averages over, (terms,)."""
    pairs = torch.tensor(len(batch.images), device=batch.images.device)
    boxes = pairs if defects.boxless_pairs else batch.has_box.sum()
    # Every micro batch has the padding of the whole batch, so a mean over padding has the same share in each.
    labeled_B = has_word_labels(batch.token_labels)
    words = labeled_B.sum() if defects.mgca_padding else batch.text.mask[labeled_B].sum()
    patches = pairs if defects.mpp_ignored_patches else (batch.patch_labels != IGNORED_PATCH).sum()
    counts = {
        "tmg": (batch.token_labels != IGNORED_TOKEN).sum(),
        "mgca": words,
        "bbox_l1": boxes,
        "giou": boxes,
        "cwp": caption_words(batch).mask[:, 1:].any(dim=1).sum(),
        "mlm": true_words(batch).mask[:, 1:].any(dim=1).sum(),
        "mpp": patches,
        "mgca_patches": batch.text.mask[batch.patch_mask.any(dim=1)].sum(),
        "mgca_words": (batch.token_labels == 1).any(dim=1).sum(),
        "patch_consistency": has_both_labels(batch.patch_mask).sum(),
        "word_consistency": has_both_labels(batch.token_labels).sum(),
        "hard_negative": has_false_text(batch).sum(),
    }
    # The other terms average over pairs.
    return torch.stack([counts.get(term, pairs) for term in TERMS]).double()
