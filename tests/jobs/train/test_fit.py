"""The fit of the published run to GPUs: what is chosen, what is kept, and what is refused."""

import dataclasses
from collections.abc import Set
from typing import Any

import pytest

from asap.errors import ConfigError
from jobs.train.fit import (
    Fit,
    all_gpus,
    choices_of,
    device_before_ray,
    fit_to_device,
    kept_choices,
    takes_all_gpus,
)
from jobs.train.gpus import GPU_MEMORY_GB, TrainDevice, gpu_called, smallest
from jobs.train.settings import TrainSettings
from jobs.train.trainer import model_config

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = 30_522


def published(**changes: Any) -> TrainSettings:
    return TrainSettings(**{"corpus": "c", "out": "o", "preset": "published", "vocab_size": WORDS} | changes)


def fitted(gpu: str | TrainDevice, begun: dict[str, Any] | None = None, **changes: Any) -> Fit:
    settings = published(**changes)
    device = gpu_called(gpu) if isinstance(gpu, str) else gpu
    return fit_to_device(settings, model_config(settings, WORDS), device, settings.model_fields_set, begun)


@pytest.mark.parametrize(
    ("gpu", "workers", "micro_batch", "accumulation", "checkpointed"),
    [
        ("L4", 1, 32, 32, False),
        ("L4", 8, 16, 8, False),
        ("A100-40GB", 1, 64, 16, False),
        ("A100-40GB", 8, 32, 4, False),
        ("H100", 1, 128, 8, False),
        ("H100", 8, 128, 1, False),
        ("H200", 1, 128, 8, False),
        ("H200", 8, 128, 1, False),
    ],
)
def test_the_published_batch_is_kept_on_every_gpu(
    gpu: str, workers: int, micro_batch: int, accumulation: int, checkpointed: bool
) -> None:
    fit = fitted(gpu, workers=workers)
    assert (fit.micro_batch, fit.accumulation, fit.checkpoint_activations) == (micro_batch, accumulation, checkpointed)
    assert fit.micro_batch * fit.accumulation * fit.workers == 1024
    assert sum(fit.memory.values()) <= fit.usable_bytes < GPU_MEMORY_GB[gpu] * 10**9
    assert any("precision=tf32 is kept" in note for note in fit.notes)


def test_checkpointing_is_chosen_where_only_few_pairs_fit_without_it() -> None:
    fit = fitted("L4", device_gib=12)
    assert fit.checkpoint_activations
    assert fit.micro_batch > 16
    assert any("activation checkpointing takes about a third more time" in note for note in fit.notes)


def test_given_settings_are_never_overruled() -> None:
    whole = fitted("L4", workers=8, accumulation=1)
    assert (whole.micro_batch, whole.checkpoint_activations) == (128, True)
    checkpointed = fitted("H100", checkpoint_activations=True)
    assert (checkpointed.micro_batch, checkpointed.checkpoint_activations) == (128, True)


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"accumulation": 1}, r"step of 1024 pairs .*accumulation=1\) needs .* Set accumulation=\d+, or leave"),
        ({"workers": 8, "accumulation": 1, "checkpoint_activations": False}, ".* Set accumulation=8, or leave"),
        ({"device_gib": 3}, "step of 1 pair .* Use a GPU with more memory"),
    ],
)
def test_settings_that_cannot_fit_are_refused_with_what_would(changes: dict[str, Any], advice: str) -> None:
    with pytest.raises(ConfigError, match=f"the run does not fit into L4: a {advice}"):
        fitted("L4", **changes)


def test_bfloat16_is_counted_where_the_precision_is_free() -> None:
    free, kept = fitted("H100", precision="auto"), fitted("H100")
    assert sum(free.memory.values()) < sum(kept.memory.values())
    assert not any("precision" in note for note in free.notes)
    old = dataclasses.replace(gpu_called("H100"), has_bfloat16=False)
    assert fitted(old, precision="auto").memory == kept.memory


def test_a_resumed_run_keeps_its_micro_batch_on_other_gpus() -> None:
    begun = choices_of(published(accumulation=32))  # as chosen on one L4
    fit = fitted("H100", begun, workers=8)
    assert (fit.micro_batch, fit.accumulation) == (32, 4)
    assert not any("the run began" in note for note in fit.notes)


def test_a_resumed_run_checkpoints_before_it_changes_its_micro_batch() -> None:
    begun = choices_of(published(workers=8, accumulation=1))  # as chosen on eight H100
    fit = fitted("L4", begun, workers=8)
    assert (fit.micro_batch, fit.checkpoint_activations) == (128, True)
    assert any("goes on with activation checkpointing" in note for note in fit.notes)
    tight = fitted("L4", begun, workers=8, device_gib=12)
    assert tight.micro_batch < 128
    assert any("the run began with micro batches of 128 pairs and goes on with" in note for note in tight.notes)


def test_choices_are_kept_on_another_number_of_workers() -> None:
    begun = {"micro_batch": 128, "checkpoint_activations": True}
    assert kept_choices(published(), frozenset(), begun) == {"accumulation": 8, "checkpoint_activations": True}
    assert kept_choices(published(workers=16), frozenset(), begun)["accumulation"] == 1
    given: Set[str] = {"accumulation", "checkpoint_activations"}
    assert kept_choices(published(), given, begun) == {}


def test_the_published_run_takes_every_gpu_that_divides_its_batch() -> None:
    assert [all_gpus(published(), gpus) for gpus in (0, 1, 3, 6, 8)] == [1, 1, 2, 4, 8]
    assert takes_all_gpus(published(), published().model_fields_set)
    for given in (published(workers=1), published(device="cpu"), published(preset="base")):
        assert not takes_all_gpus(given, given.model_fields_set)


@pytest.mark.parametrize(
    ("gpus", "changes", "name"),
    [
        (None, {"gpu": "L4"}, "L4"),
        (1, {"gpu": "L4"}, "L4"),
        (0, {"gpu": "L4", "device": "cuda"}, "L4"),
        (None, {"device": "cuda", "device_gib": 3}, "a GPU of 3 GiB"),
        (1, {"device_gib": 3}, "a GPU of 3 GiB"),
        (0, {"gpu": "L4"}, "CPU"),
        (1, {"device": "cpu", "gpu": "L4"}, "CPU"),
        (1, {"workers": 2, "device_gib": 3}, "CPU"),
        (1, {"workers": 2, "min_workers": 1, "device_gib": 3}, "a GPU of 3 GiB"),
        (0, {"preset": "tiny", "device_gib": 3}, "CPU"),
        # Only Ray can tell, or anything fits.
        (None, {"device_gib": 3, "address": "auto"}, None),
        (None, {"device": "cuda", "address": "auto"}, None),
        (None, {"device": "cpu", "address": "auto"}, None),
        (1, {"device": "cuda"}, None),
        (0, {"preset": "tiny"}, None),
    ],
)
def test_the_settings_and_the_machine_may_name_the_device(
    gpus: int | None, changes: dict[str, Any], name: str | None
) -> None:
    device = device_before_ray(published(**changes), gpus)
    assert (device and device.name) == name


@pytest.mark.parametrize(
    ("name", "memory_gib", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", 79, "H100"),
        ("NVIDIA A100-SXM4-80GB", 79, "A100"),
        ("NVIDIA A100-PCIE-40GB", 39, "A100-40GB"),
        ("NVIDIA GeForce RTX 4090", 23, "RTX-4090"),
        ("NVIDIA L4", 22, "L4"),
        ("NVIDIA L40S", 44, None),
        ("Tesla V100-SXM2-32GB", 32, None),
    ],
)
def test_the_kind_of_a_gpu_follows_from_its_name_and_memory(name: str, memory_gib: int, kind: str | None) -> None:
    seen = smallest([("NVIDIA H200", 141 * 2**30, True), (name, memory_gib * 2**30, True)])
    assert seen is not None
    assert (seen.name, seen.kind, seen.count) == (name, kind, 2)


def test_an_unknown_kind_of_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gpu 'V100' is unknown\. Give one of H200, .* or the memory as device_gib"):
        published(gpu="V100")
