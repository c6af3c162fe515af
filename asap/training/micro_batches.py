"""A batch in micro batches: what each of them is worth, so that their gradients add up to the whole batch's.

A term is a mean over what it counts: pairs, boxes, words, patches. The sum over micro batches of the term times the
micro batch's share of that count, over all workers, is the mean over the whole. Two things are of a micro batch alone:
the contrast, whose negatives are the queue and the micro batch (the queue holds the micro batches before it), and the
statistics of a convolutional stem, which normalises over the pairs that it sees together. The shares are those of the
losses as they are by default, without `PublishedDefects`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from asap.training.batch import Batch
from asap.training.distributed import add_over_workers
from asap.training.losses import IGNORED_PATCH, IGNORED_TOKEN
from asap.training.step import TERMS
from asap.training.word_prediction import caption_words, true_words


def term_shares(parts: Sequence[Batch]) -> list[dict[str, Tensor]]:
    """For each micro batch, the share of each term: scalars that add up to 1 over the micro batches, or are all 0
    where nobody has what the term counts."""
    counts_PT = torch.stack([_counts(part) for part in parts])
    counts_PT = add_over_workers(counts_PT)
    shares_PT = counts_PT / counts_PT.sum(dim=0).clamp(min=1)
    return [dict(zip(TERMS, shares_T, strict=True)) for shares_T in shares_PT]


def separate_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give every gradient memory of its own, where a backward pass left two in one place.

    Code of `torch.compile` returns the class token's gradient as a part of the position embedding's; what is added to
    both, or cut from both, would be added and cut twice.
    """
    taken: set[int] = set()
    for parameter in parameters:
        if parameter.grad is None:
            continue
        place = parameter.grad.untyped_storage().data_ptr()
        if place in taken:
            parameter.grad = parameter.grad.clone()
        taken.add(place)


def _counts(batch: Batch) -> Tensor:
    """What each of `TERMS` averages over, (terms,)."""
    boxes = batch.has_box.sum()
    counts = {
        "tmg": (batch.token_labels != IGNORED_TOKEN).sum(),
        "mgca": batch.text.mask.sum(),
        "bbox_l1": boxes,
        "giou": boxes,
        "cwp": caption_words(batch).mask[:, 1:].any(dim=1).sum(),
        "mlm": true_words(batch).mask[:, 1:].any(dim=1).sum(),
        "mpp": (batch.patch_labels != IGNORED_PATCH).sum(),
    }
    pairs = torch.tensor(len(batch.images), device=batch.images.device)
    return torch.stack([counts.get(term, pairs) for term in TERMS]).double()
