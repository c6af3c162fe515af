"""How a training step is executed: the same losses and gradients with less memory, or in less time."""

from __future__ import annotations

from asap.model import Asap


def checkpoint_activations(model: Asap) -> None:
    """Keep only what goes into each layer of the encoders; the backward pass computes the rest again."""
    model.image_encoder.set_grad_checkpointing()
    model.text_encoder.checkpoints_activations = True
    model.fusion_encoder.checkpoints_activations = True


def compile_encoders(model: Asap) -> None:
    """Have `torch.compile` compile the encoders when they are first run; names of weights stay what they are.

    Pictures have one size; texts are of any length, which is why theirs are compiled for all lengths at once.
    """
    model.image_encoder.compile()
    model.text_encoder.compile(dynamic=True)
    model.fusion_encoder.compile(dynamic=True)
