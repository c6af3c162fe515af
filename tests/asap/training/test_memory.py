"""The memory of a step, counted on shapes, against what autograd keeps of a real step on a CPU."""

from typing import Any

import pytest
import torch

from asap.model.asap import Asap
from asap.model.config import ModelConfig
from asap.model.execution import checkpoint_activations
from asap.training.memory import StepMemory, kept_bytes, longest_batch, step_memory
from asap.training.objective import LossWeights, PublishedDefects, recipe_called
from asap.training.step import TrainingStep

SMALL: dict[str, Any] = {
    "image_size": 64, "width": 48, "heads": 4, "image_layers": 2, "image_mlp_width": 96, "text_layers": 2,
    "fusion_layers": 2, "text_mlp_width": 96, "embed_dim": 16, "vocab_size": 300, "max_tokens": 24, "max_positions": 24,
}  # fmt: skip
QUEUE = 64

pytestmark = pytest.mark.usefixtures("one_thread")


def counted(config: ModelConfig, recipe: str = "asap", queue: int = QUEUE, **changes: bool) -> StepMemory:
    weights = recipe_called(recipe).weights
    return step_memory(
        config, weights, PublishedDefects(), queue, **{"bfloat16": False, "fused_attention": False} | changes
    )


def really_kept(config: ModelConfig, weights: LossWeights, pairs: int, *, bfloat16: bool, checkpointed: bool) -> int:
    torch.manual_seed(0)
    step = TrainingStep(Asap(config), weights=weights, queue_size=QUEUE, mask_id=0).train()
    if checkpointed:
        checkpoint_activations(step.student)
    batch = longest_batch(config, pairs)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        return kept_bytes(step, lambda: step(batch, 0.4))


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("recipe", ["hammer", "asap", "asap-ray"])
def test_a_real_step_keeps_what_was_counted(recipe: str, bfloat16: bool, checkpointed: bool) -> None:
    config = ModelConfig.base(**SMALL | dict(recipe_called(recipe).model))
    memory = counted(config, recipe, bfloat16=bfloat16)
    activations = memory.checkpointed if checkpointed else memory.plain
    real = really_kept(config, recipe_called(recipe).weights, 6, bfloat16=bfloat16, checkpointed=checkpointed)
    assert activations.constant + 6 * activations.per_pair == pytest.approx(real, rel=0.02)


def test_the_queue_adds_to_the_constant_and_to_each_similarity() -> None:
    config = ModelConfig.base(**SMALL)
    short, long = counted(config, queue=64).plain, counted(config, queue=1064).plain
    assert long.constant - short.constant == pytest.approx(4 * 16 * 1000 * 4, rel=0.02)  # keys of four modalities
    assert long.per_pair > short.per_pair


def test_attention_that_keeps_no_map_and_checkpointing_need_less() -> None:
    config = ModelConfig.base(**SMALL)
    maps, fused = counted(config), counted(config, fused_attention=True)
    assert fused.plain.per_pair < maps.plain.per_pair
    assert fused.checkpointed.of(4) < fused.plain.of(4)
    assert fused.checkpointed.recomputed_per_pair > 0


def test_the_memory_of_a_step_is_the_sum_of_its_purposes() -> None:
    config = ModelConfig.base(**SMALL)
    memory = counted(config)
    weights = 4 * sum(parameter.numel() for parameter in Asap(config).parameters())
    alone = memory.by_purpose(3, checkpointed=False, workers=1)
    assert (alone["weights"], alone["twin"], alone["optimizer (two averages)"]) == (weights, weights, 2 * weights)
    assert sum(alone.values()) == memory.needed(3, checkpointed=False, workers=1)
    # Several workers average their gradients in buckets, which are a copy of them.
    assert memory.needed(3, checkpointed=False, workers=2) - memory.needed(3, checkpointed=False, workers=1) == weights


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_real_step_of_the_base_size_keeps_what_was_counted(checkpointed: bool) -> None:
    config = ModelConfig.base()
    memory = counted(config)
    activations = memory.checkpointed if checkpointed else memory.plain
    real = really_kept(config, recipe_called("asap").weights, 1, bfloat16=False, checkpointed=checkpointed)
    assert activations.constant + activations.per_pair == pytest.approx(real, rel=0.02)
