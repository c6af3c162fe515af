import math
from itertools import pairwise

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from asap.model.asap import Asap
from asap.training.objective import LossWeights
from asap.training.optimizer import adamw, published_schedule, warmup_cosine
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


# The published groups and schedule.

IMAGE_RATE_AS_PUBLISHED = {
    "image_encoder", "box_head", "aggregator", "aggregate_token", "image_side_attention", "aggregate_norm",
    "image_side_norm",
}  # fmt: skip
TEXT_RATE_AS_PUBLISHED = {
    "text_encoder", "fusion_encoder", "token_head", "image_projection", "text_projection", "temperature",
    "real_fake_head", "type_head",
}  # fmt: skip
ONLY_ASAP = {"explanation_head", "patch_head", "real_fake_scale", "type_scale"}


@pytest.mark.parametrize("variant", ["asap", "hammer"])
def test_the_published_groups_are_two_and_everything_decays(variant: str) -> None:
    step = TrainingStep(
        tiny_model(variant=variant), weights=LossWeights(mgca=0, ied=0, mpp=0), queue_size=12, mask_id=4
    )
    optimizer = adamw(step, 2e-5, 1e-4, 0.02, published_groups=True)
    found = settings_of(optimizer, step)

    assert len(optimizer.param_groups) == 2
    assert set(found) == {f"student.{name}" for name, _ in step.student.named_parameters()}
    parts: dict[tuple[float, float], set[str]] = {}
    for name, group in found.items():
        parts.setdefault(group, set()).add(name.split(".")[1])
    text = TEXT_RATE_AS_PUBLISHED | (ONLY_ASAP if variant == "asap" else set())
    assert parts == {(1e-4, 0.02): IMAGE_RATE_AS_PUBLISHED, (2e-5, 0.02): text}
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)


PEAKS = (1e-4, 2e-5)


def published(steps_an_epoch: int, epochs: int = 50) -> LambdaLR:
    optimizer = AdamW([{"params": [nn.Parameter(torch.zeros(1))], "lr": peak} for peak in PEAKS])
    return published_schedule(optimizer, steps_an_epoch, epochs)


def rates_at(schedule: LambdaLR, step: int) -> list[float]:
    return [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]


def rates_of_the_published_loop(steps_an_epoch: int, epochs: int) -> list[list[list[float]]]:
    """Drive timm's scheduler as the published loop drives its copy of it: rates by epoch, step and group."""
    optimizer = AdamW([{"params": [nn.Parameter(torch.zeros(1))], "lr": peak} for peak in PEAKS])
    scheduler = CosineLRScheduler(
        optimizer, t_initial=epochs, lr_min=1e-6, warmup_t=10, warmup_lr_init=1e-6, warmup_prefix=True, cycle_limit=1
    )
    seen = []
    for epoch in range(epochs):
        in_epoch = []
        for step in range(steps_an_epoch):
            in_epoch.append([group["lr"] for group in optimizer.param_groups])
            if epoch == 0 and step % 100 == 0 and step <= 1000:
                scheduler.step(step // 100)
        scheduler.step(epoch + 11)
        seen.append(in_epoch)
    return seen


@pytest.mark.parametrize(("steps_an_epoch", "epochs"), [(7, 50), (177, 50), (1500, 50), (1001, 3)])
def test_the_published_schedule_is_that_of_the_published_loop(steps_an_epoch: int, epochs: int) -> None:
    expected = rates_of_the_published_loop(steps_an_epoch, epochs)
    schedule, total = published(steps_an_epoch, epochs), steps_an_epoch * epochs
    edges = {stair + offset for stair in range(0, 1101, 100) for offset in (0, 1)} | {steps_an_epoch, total - 1}
    sampled = {number * (total - 1) // 99 for number in range(100)}
    for step in sorted(step for step in edges | sampled if step < total):
        epoch, number = divmod(step, steps_an_epoch)
        assert rates_at(schedule, step) == pytest.approx(expected[epoch][number], rel=1e-9), step


def test_the_published_first_epoch_rises_in_stairs_to_the_full_rate() -> None:
    schedule = published(1500)
    stairs = {0: 0.0, 1: 0.0, 100: 0.0, 101: 0.1, 200: 0.1, 201: 0.2, 1000: 0.9, 1001: 1.0, 1499: 1.0}
    for step, risen in stairs.items():
        assert rates_at(schedule, step) == pytest.approx([1e-6 + risen * (peak - 1e-6) for peak in PEAKS]), step
    for step, cosine in {1500: math.cos(math.pi / 50), 2999: math.cos(math.pi / 50), 37_500: 0.0, 75_000: -1.0}.items():
        assert rates_at(schedule, step) == pytest.approx([1e-6 + (peak - 1e-6) * (1 + cosine) / 2 for peak in PEAKS])


def test_a_run_takes_the_published_rates_step_by_step() -> None:
    schedule = published(7)
    optimizer, seen = schedule.optimizer, []
    for _ in range(350):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    expected = [rates for epoch in rates_of_the_published_loop(7, 50) for rates in epoch]
    assert seen == [pytest.approx(rates, rel=1e-9) for rates in expected]
    assert schedule.get_last_lr() == pytest.approx([1e-6, 1e-6])
