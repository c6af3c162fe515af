"""The momentum twin and the feature queues (MoCo, ALBEF): stable targets and many negatives for the contrast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from asap.errors import ConfigError
from asap.model.asap import Asap
from asap.model.config import ModelConfig

MODALITIES = ("image", "text", "caption", "explanation")


class MomentumTwin(AveragedModel):
    """An exponential moving average of the whole model.

    The contrast reads only the encoders and projections. Averaging the heads too costs little and makes the twin a
    complete model, which often evaluates better than the student.
    """

    def __init__(self, student: Asap, momentum: float, *, has_dropout: bool = False) -> None:
        """Copy the student.

        Args:
            student: the model to average.
            momentum: decay of the average.
            has_dropout: compute targets with dropout, as published: the twin is in train mode when the step is.
        """
        super().__init__(student, multi_avg_fn=get_ema_multi_avg_fn(momentum))
        # AveragedModel copies the student at its first update. This twin is a copy already (or is loaded later), so
        # its first update must average.
        self.n_averaged.fill_(1)
        self.requires_grad_(False)
        self.has_dropout = has_dropout
        self.eval()

    def train(self, mode: bool = True) -> MomentumTwin:
        """Stay in eval mode, in which targets are computed without dropout, unless the twin has dropout."""
        return super().train(mode and self.has_dropout)

    @property
    def model(self) -> Asap:
        """The averaged model."""
        assert isinstance(self.module, Asap)  # noqa: S101  # set by __init__
        return self.module


class FeatureQueues(nn.Module):
    """The last `size` features of each modality, as columns of unit length: (E, size)."""

    image: Tensor
    text: Tensor
    caption: Tensor
    explanation: Tensor
    pointer: Tensor

    def __init__(self, config: ModelConfig, size: int, *, copies_text: bool = False) -> None:
        """Fill the queues with noise of unit length.

        Args:
            config: the configuration of the model.
            size: features of each modality.
            copies_text: start the queues of captions and explanations as copies of the text's, as published.
        """
        super().__init__()
        if size < 1:
            raise ConfigError(f"queue size {size} is not at least 1")
        self.size = size
        for modality in MODALITIES:
            copied = copies_text and modality in ("caption", "explanation")
            noise = self.text.clone() if copied else F.normalize(torch.randn(config.embed_dim, size), dim=0)
            self.register_buffer(modality, noise)
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    def keys(self, modality: str, gathered_GE: Tensor) -> Tensor:
        """Return the features of this step, gathered from all workers, then the queue: (E, G + size)."""
        queue_EK: Tensor = getattr(self, modality)
        return torch.cat([gathered_GE.t(), queue_EK.to(gathered_GE.dtype)], dim=1)

    @torch.no_grad()
    def enqueue(self, gathered: dict[str, Tensor]) -> None:
        """Overwrite the oldest features with the newest, (G, E) each; a batch of any size fits."""
        count = len(next(iter(gathered.values())))
        # Of a batch larger than the queue, only the last `size` features are kept.
        kept = min(count, self.size)
        columns = (self.pointer + torch.arange(count - kept, count, device=self.pointer.device)) % self.size
        for modality, features_GE in gathered.items():
            queue_EK: Tensor = getattr(self, modality)
            queue_EK[:, columns] = features_GE[count - kept :].t().to(queue_EK.dtype)
        self.pointer.copy_((self.pointer + count) % self.size)
