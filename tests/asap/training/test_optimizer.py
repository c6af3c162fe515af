from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from asap.model.asap import Asap
from asap.training.objective import LossWeights
from asap.training.optimizer import adamw, warmup_cosine
from asap.training.step import TrainingStep
from tests.support.tiny import tiny_model

IMAGE_SIDE = ("image_encoder", "aggregator", "image_side_attention", "box_head")


@pytest.fixture(scope="module")
def model() -> Asap:
    return tiny_model()


@pytest.fixture
def optimizer(model: Asap) -> AdamW:
    return adamw(model, 2e-5, 1e-4, 0.02)


def settings_of(optimizer: AdamW, model: nn.Module) -> dict[str, tuple[float, float]]:
    """The learning rate and weight decay of each parameter by name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_every_parameter_is_trained_once(optimizer: AdamW, model: Asap) -> None:
    assert set(settings_of(optimizer, model)) == {name for name, _ in model.named_parameters()}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_the_image_side_has_its_own_learning_rate(optimizer: AdamW, model: Asap) -> None:
    for name, (rate, _) in settings_of(optimizer, model).items():
        assert rate == (1e-4 if name.split(".")[0] in IMAGE_SIDE else 2e-5), name


def test_the_image_side_of_a_step_has_its_own_rate_and_the_twin_is_left_out() -> None:
    step = TrainingStep(tiny_model(), weights=LossWeights(cwp=0.2, mlm=0.5), queue_size=12, mask_id=4)
    found = {name: rate for name, (rate, _) in settings_of(adamw(step, 2e-5, 1e-4, 0.02), step).items()}

    assert set(found) == {name for name, _ in step.named_parameters() if not name.startswith("twin.")}
    at_the_image_rate = {name for name, rate in found.items() if rate == 1e-4}
    assert at_the_image_rate == {
        f"student.{name}" for name, _ in step.student.named_parameters() if name.split(".")[0] in IMAGE_SIDE
    }
    assert {found[name] for name in found.keys() - at_the_image_rate} == {2e-5}


def test_decay_spares_biases_norms_scalars_and_tokens(optimizer: AdamW, model: Asap) -> None:
    decays = {name: decay for name, (_, decay) in settings_of(optimizer, model).items()}
    for name in ("image_encoder.blocks.0.attn.qkv.weight", "box_head.0.weight", "aggregator.in_proj_weight",
                 "text_encoder.embeddings.word_embeddings.weight", "token_head.weight"):  # fmt: skip
        assert decays[name] == 0.02, name
    for name in ("image_encoder.cls_token", "image_encoder.pos_embed", "aggregate_token", "temperature",
                 "type_scale", "image_encoder.norm.weight", "box_head.0.bias"):  # fmt: skip
        assert decays[name] == 0, name
    assert all(decays[name] == 0 for name, parameter in model.named_parameters() if parameter.ndim < 2)


def test_frozen_parameters_are_left_out() -> None:
    model = tiny_model()
    model.image_encoder.requires_grad_(False)
    optimizer = adamw(model, 2e-5, 1e-4, 0.02)
    assert not any(name.startswith("image_encoder.") for name in settings_of(optimizer, model))


def rates(warmup: int, total: int, steps: int, held: int = 0) -> list[float]:
    optimizer = AdamW([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warmup_cosine(optimizer, warmup, total, held_steps=held)
    seen = []
    for _ in range(steps):
        seen.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return seen


def test_the_rate_rises_linearly_and_falls_as_half_a_cosine() -> None:
    seen = rates(4, 14, 15)
    assert seen[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert seen[4] == pytest.approx(1.0)
    assert seen[9] == pytest.approx((1 + 0.01) / 2)  # half way down
    assert seen[14] == pytest.approx(0.01)
    assert all(after < before for before, after in pairwise(seen[4:]))


def test_held_steps_have_the_full_rate_after_their_own_warmup() -> None:
    seen = rates(2, 10, 10, held=4)
    assert seen[:4] == pytest.approx([0.5, 1, 1, 1])
    assert seen[4:] == pytest.approx(rates(2, 6, 6))


def test_the_rate_stays_low_after_the_end_and_a_run_may_be_warmup_alone() -> None:
    assert rates(2, 4, 8)[-3:] == pytest.approx([0.01] * 3)
    assert rates(4, 4, 5) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates(8, 4, 4) == pytest.approx([0.125, 0.25, 0.375, 0.5])


def test_each_group_keeps_its_own_rate_under_the_schedule(optimizer: AdamW, model: Asap) -> None:
    schedule = warmup_cosine(optimizer, 2, 4)
    assert {round(rate, 8) for rate in schedule.get_last_lr()} == {1e-5, 5e-5}
