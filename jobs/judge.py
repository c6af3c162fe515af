"""A model judged on a split of a corpus: the DGM4 evaluation, in batches."""

from __future__ import annotations

from typing import Any

import torch

from asap.dataset import collate
from asap.metrics import Evaluation
from asap.model import Asap
from jobs.fit import Split


def judge(model: Asap, split: Split, batch_size: int = 64) -> dict[str, Any]:
    """Every figure of `asap.metrics.Evaluation` for the pairs of the split. Leaves the model in its mode."""
    evaluation, was_training = Evaluation(), model.training
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(split.pairs), batch_size):
            numbers = range(start, min(start + batch_size, len(split.pairs)))
            batch = collate([split.pairs.sample(number) for number in numbers], split.config, split.pairs.pad_id)
            batch = batch.to(device)
            output = model(batch.images, *batch.text)
            evaluation.update(output, batch.types, batch.box_cxcywh, batch.token_labels)
    model.train(was_training)
    return evaluation.compute()
