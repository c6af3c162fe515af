"""The memory of a training step on a device, counted on shapes: nothing is computed and nothing is allocated.

Weights, gradients, optimizer, twin and queues follow from the model. The activations are counted: a step of the real
code runs on fake tensors, which have a shape and a type but no data, and each storage that autograd keeps is added up.
Two batches of different sizes give the bytes that each pair adds, and those that the step keeps whatever its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Fake tensors are documented (docs.pytorch.org, "Fake tensor"), but torch has no public name for them.
from torch._subclasses.fake_tensor import FakeTensorMode

from asap.model.asap import Asap
from asap.model.config import ModelConfig
from asap.model.encoders import Attention
from asap.model.execution import checkpoint_activations
from asap.training.batch import Batch, Tokens
from asap.training.objective import LossWeights, PublishedDefects
from asap.training.step import TrainingStep, descriptions_read
from asap.training.word_prediction import MASKED_SHARE, MaskedWordHead, true_words

ACTIVATIONS = "activations of a micro batch"
_FLOAT = 4
"""Bytes of a number: weights, gradients, optimizer and queues are float32 in any precision."""
_FEW, _MORE = 2, 4
"""Pairs of the two batches that are counted."""
_ALPHA = 0.4
"""A weight of the twin's soft targets: above 0, so that they are computed."""


@dataclass(frozen=True)
class Activations:
    """Bytes of the tensors that a step keeps for its backward pass."""

    constant: int
    """Bytes that do not depend on the batch: the keys of the contrast, and the weights in bfloat16."""
    per_pair: int
    recomputed_per_pair: int = 0
    """Bytes of the layer that the backward pass computes again; only with activation checkpointing."""

    def of(self, pairs: int) -> int:
        """Return the bytes of a micro batch of so many pairs."""
        return self.constant + pairs * (self.per_pair + self.recomputed_per_pair)


@dataclass(frozen=True)
class StepMemory:
    """The memory of one worker in bytes."""

    weights: int
    queues: int
    plain: Activations
    checkpointed: Activations
    """The activations with activation checkpointing."""

    def by_purpose(self, pairs: int, *, checkpointed: bool, workers: int) -> dict[str, int]:
        """Return the bytes of a step by purpose.

        Args:
            pairs: The pairs of a micro batch.
            checkpointed: True with activation checkpointing.
            workers: The number of workers. Several copy their gradients into buckets to average them.
        """
        return {
            "weights": self.weights,
            "gradients": self.weights,
            **({"gradient buckets": self.weights} if workers > 1 else {}),
            "optimizer (two averages)": 2 * self.weights,
            "twin": self.weights,
            "queues": self.queues,
            ACTIVATIONS: (self.checkpointed if checkpointed else self.plain).of(pairs),
        }

    def needed(self, pairs: int, *, checkpointed: bool, workers: int) -> int:
        """Return the bytes of a step; the arguments are those of `by_purpose`."""
        return sum(self.by_purpose(pairs, checkpointed=checkpointed, workers=workers).values())


@cache  # a count of the base size takes seconds, and a refusal asks again
def step_memory(
    config: ModelConfig,
    weights: LossWeights,
    defects: PublishedDefects,
    queue_size: int,
    *,
    bfloat16: bool,
    fused_attention: bool,
) -> StepMemory:
    """Count the memory of a step whose texts have the maximum length.

    Args:
        config: The configuration of the model.
        weights: The weights of the terms.
        defects: The published defects to reproduce.
        queue_size: The number of features in each queue.
        bfloat16: True if the layers compute in bfloat16.
        fused_attention: True for a device whose attention keeps no map in training, as a GPU's does. A CPU keeps the
            maps of attention with dropout.
    """
    counted = _CountedStep(config, weights, defects, queue_size, bfloat16=bfloat16)
    if fused_attention:
        # Without dropout the attention of a CPU keeps what that of a GPU keeps: its inputs and its output.
        for module in counted.step.modules():
            if isinstance(module, Attention):
                module.dropout = 0.0
    plain, layer = counted.activations(), counted.largest_layer()
    checkpoint_activations(counted.step.student)
    return StepMemory(
        weights=_FLOAT * sum(parameter.numel() for parameter in counted.step.student.parameters()),
        queues=sum(buffer.numel() * buffer.element_size() for buffer in counted.step.queues.buffers()),
        plain=plain,
        checkpointed=replace(counted.activations(), recomputed_per_pair=layer),
    )


def kept_bytes(step: TrainingStep, run: Callable[[], object]) -> int:
    """Return the bytes that autograd keeps of what `run` computes, without the parameters of the step."""
    parameters = {parameter.untyped_storage()._cdata for parameter in step.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage  # holding it keeps its address from being used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in kept.values())


def longest_batch(config: ModelConfig, pairs: int, tokens: int | None = None) -> Batch:
    """Return a batch of zeros whose texts have so many tokens; by default the maximum length."""
    patches = config.patches_per_side**2
    ids = torch.ones(pairs, tokens or config.max_tokens, dtype=torch.long)
    text = Tokens(ids, torch.ones_like(ids))
    return Batch(
        images=torch.zeros(pairs, 3, config.image_size, config.image_size),
        text=text,
        caption=text,
        explanation=text,
        manipulated=torch.zeros(pairs, dtype=torch.bool),
        types=torch.zeros(pairs, 4),
        box_cxcywh=torch.full((pairs, 4), 0.5),
        has_box=torch.ones(pairs, dtype=torch.bool),
        token_labels=torch.zeros_like(ids[:, 1:]),
        patch_mask=torch.zeros(pairs, patches),
        patch_labels=torch.zeros(pairs, patches),
    )


class _ShapesOfStep(TrainingStep):
    """A step without the two operations whose results have a shape that depends on data."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Box losses keep a few numbers for each pair, and torchvision selects among them.
        cast("Any", self.criterion).boxes = lambda predicted, *_: {
            "bbox_l1": predicted.mean(),
            "giou": predicted.mean(),
        }

    def _masked_words_term(self, batch: Batch, image_BNW: Tensor, head: MaskedWordHead) -> Tensor:
        """Hide the first tokens of each text: as many as would be drawn."""
        words, student = true_words(batch), self.student
        hidden = math.ceil(MASKED_SHARE * (words.mask.shape[1] - 1))
        text_BLW = student.encode_text(words.input_ids, words.mask)
        tokens_BLW, _ = student.fusion_encoder(text_BLW, words.mask, image_BNW)
        embeddings_VW = student.text_encoder.embeddings.word_embeddings.weight
        logits_TV = head(tokens_BLW[:, :hidden].flatten(0, 1), embeddings_VW)
        return F.cross_entropy(logits_TV.float(), words.input_ids[:, :hidden].flatten())


class _CountedStep:
    """A step whose weights and batches are fake tensors."""

    def __init__(
        self, config: ModelConfig, weights: LossWeights, defects: PublishedDefects, queue_size: int, *, bfloat16: bool
    ) -> None:
        self._config, self._in_bfloat16 = config, bfloat16
        with torch.device("meta"):  # timm reads numbers while it builds, which fake tensors do not have
            step = _ShapesOfStep(Asap(config), weights=weights, defects=defects, queue_size=queue_size, mask_id=0)
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self._mode:
            self.step = step.to_empty(device="cpu").train()

    def activations(self) -> Activations:
        """Count the bytes that a step keeps: a line through two batches."""
        few, more = (self._kept_of_batch(pairs) for pairs in (_FEW, _MORE))
        per_pair = (more - few) // (_MORE - _FEW)
        return Activations(constant=max(0, few - _FEW * per_pair), per_pair=per_pair)

    def largest_layer(self) -> int:
        """Return the bytes that the largest of the layers keeps for each pair."""
        few, more = (self._kept_of_layers(pairs) for pairs in (_FEW, _MORE))
        return max(b - a for a, b in zip(few, more, strict=True)) // (_MORE - _FEW)

    def _kept_of_layers(self, pairs: int) -> list[int]:
        """Return the bytes that one layer of the image, text and fusion encoder keeps of a batch."""
        student, config = self.step.student, self._config
        texts = 1 + len(descriptions_read(config, self.step.criterion.weights))
        with self._mode, self._autocast():
            image_BNW = torch.zeros(pairs, config.patches_per_side**2 + 1, config.width)
            text_BLW = torch.zeros(pairs, config.max_tokens, config.width)
            mask_B11L = torch.ones(pairs, 1, 1, config.max_tokens, dtype=torch.bool)
            stacked = (part.repeat(texts, *[1] * (part.ndim - 1)) for part in (text_BLW, mask_B11L))
            layers: list[Callable[[], object]] = [
                partial(cast("nn.Sequential", student.image_encoder.blocks)[0], image_BNW),
                partial(student.text_encoder.layers[0].read, *stacked),
                partial(student.fusion_encoder.layers[0].fuse, text_BLW, mask_B11L, image_BNW, False),
            ]
            return [kept_bytes(self.step, layer) for layer in layers]

    def _kept_of_batch(self, pairs: int) -> int:
        with self._mode, self._autocast():
            batch = longest_batch(self._config, pairs)
            return kept_bytes(self.step, lambda: self.step(batch, _ALPHA, update_twin=False))

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self._in_bfloat16)
