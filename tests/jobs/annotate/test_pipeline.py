"""The resources of the engines of a job of annotations."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from asap.errors import ConfigError
from asap.storage.location import Location
from jobs.annotate import pipeline
from jobs.annotate.pipeline import AnnotatePipeline, find_room, size_engines
from jobs.annotate.settings import AnnotateSettings
from jobs.annotate.stage import Order
from jobs.scan.pipeline import StageResources

MODEL = {"engine": "transformers", "source": "m"}
FILE = {"engine": "precomputed", "source": "f"}
VLLM = {"engine": "vllm", "source": "m", "vllm": {"gpus": 2}}


def _settings(**engines: dict[str, Any]) -> AnnotateSettings:
    return AnnotateSettings(input="/in", out="/out", **engines)  # type: ignore[arg-type]


@pytest.mark.parametrize("cpus", [1, 2, 64])
def test_two_models_fit_on_cpus_beside_a_task_that_prepares(cpus: int) -> None:
    sizes, threads = size_engines(_settings(captions=MODEL, explanations=MODEL), [cpus], on_gpu=False)
    assert sum(each.cpus for each in sizes) + 0.25 <= cpus
    assert [each.size for each in sizes] == [1, 1]
    assert threads == max(1, cpus // 2)


def test_a_model_on_cpus_needs_no_more_than_a_machine_of_the_cluster_has() -> None:
    def sizes(annotators: int | None, **engines: dict[str, str]) -> list[float]:
        settings = _settings(**engines).model_copy(update={"annotators": annotators})
        return [each.cpus for each in size_engines(settings, [8] * 4, on_gpu=False)[0]]

    assert sizes(None, captions=MODEL) == sizes(4, captions=MODEL) == [4.8]
    assert sizes(8, captions=MODEL) == [2.4]
    assert sizes(None, captions=MODEL, explanations=MODEL) == [2.4, 2.4]


@pytest.mark.parametrize("cpus", [1, 2, 7, 64])
def test_small_models_on_cpus_have_a_thread_and_there_are_as_many_as_cpus(cpus: int) -> None:
    (one,), threads = size_engines(_settings(captions=MODEL), [cpus], on_gpu=False, small=True)
    assert (one.size, threads) == (cpus, 1)
    assert one.cpus * cpus + 0.25 <= cpus
    both, threads = size_engines(_settings(captions=MODEL, explanations=MODEL), [cpus], on_gpu=False, small=True)
    assert [each.size for each in both] == [max(1, cpus // 2)] * 2
    assert threads == 1
    assert sum(each.cpus * (each.size or 1) for each in both) + 0.25 <= cpus


def test_the_number_of_small_models_can_be_given() -> None:
    settings = _settings(captions=MODEL).model_copy(update={"annotators": 2})
    (one,), threads = size_engines(settings, [8], on_gpu=False, small=True)
    assert (one.size, threads) == (2, 4)


def test_small_models_on_a_cluster_have_no_bound() -> None:
    settings = _settings(captions=MODEL).model_copy(update={"address": "auto"})
    (one,), threads = size_engines(settings, [0, 8, 8], on_gpu=False, small=True)
    assert (one.cpus, one.size, threads) == (0.6, None, 1)


def test_two_models_share_each_gpu_and_a_file_needs_none() -> None:
    both, threads = size_engines(_settings(captions=MODEL, explanations=MODEL), [8], on_gpu=True)
    assert [(each.gpus, each.size) for each in both] == [(0.5, None), (0.5, None)]
    assert threads is None
    one, _ = size_engines(_settings(captions=FILE, explanations=MODEL), [8], on_gpu=True)
    assert [each.gpus for each in one] == [0, 1]


def test_the_share_of_a_gpu_and_the_cpus_of_an_engine_can_be_given() -> None:
    def sizes(engines: dict[str, Any], **given: float) -> list[tuple[float, float]]:
        settings = _settings(**engines).model_copy(update=given)
        return [(each.cpus, each.gpus) for each in size_engines(settings, [8], on_gpu=True)[0]]

    both = {"captions": MODEL, "explanations": MODEL}
    assert sizes({"captions": MODEL}, annotator_gpus=0.25) == [(0.5, 0.25)]
    assert sizes(both, annotator_gpus=0.5, annotator_cpus=2) == [(2, 0.25), (2, 0.25)]
    assert sizes({"captions": VLLM, "explanations": FILE}, annotator_gpus=0.5, annotator_cpus=3) == [(3, 2), (3, 0)]


@pytest.mark.parametrize("small", [True, False])
def test_models_without_a_gpu_have_as_many_threads_as_cpus_are_given(small: bool) -> None:
    settings = _settings(captions=MODEL, explanations=MODEL).model_copy(update={"annotator_cpus": 3})
    sizes, threads = size_engines(settings, [8], on_gpu=False, small=small)
    assert [(each.cpus, each.size) for each in sizes] == [(3, 1), (3, 1)]
    assert threads == 3
    part, threads = size_engines(settings.model_copy(update={"annotator_cpus": 0.5}), [8], on_gpu=False, small=small)
    assert ([each.cpus for each in part], threads) == ([0.5, 0.5], 1)


@pytest.mark.parametrize(("annotator_cpus", "is_held"), [(1.75, True), (2, False)])
def test_engines_leave_room_for_the_task_that_prepares_if_their_cpus_are_given(
    monkeypatch: pytest.MonkeyPatch, annotator_cpus: float, is_held: bool
) -> None:
    """The machine has two CPUs, of which the task takes a quarter."""

    def wait(needs: dict[str, float], workers: int, wait_s: float, notify: Any, advice: str, **way: Any) -> None:
        if needs["CPU"] > 2:
            raise ConfigError(advice)

    monkeypatch.setattr(pipeline, "wait_for_resources", wait)
    monkeypatch.setattr(pipeline, "wait_until_free", lambda *arguments, **more: None)
    monkeypatch.setattr(pipeline, "machines_alive", lambda: [{"CPU": 2.0}])
    settings = _settings(captions=MODEL).model_copy(update={"annotator_cpus": annotator_cpus, "device": "cpu"})
    refusal = nullcontext() if is_held else pytest.raises(ConfigError, match=r"Lower --set annotator_cpus=N\.")
    with refusal:
        assert find_room(settings, pytest.fail).engines["caption"].cpus == annotator_cpus


def test_vllm_has_whole_gpus_of_its_own_and_its_claim_names_all_its_stages() -> None:
    settings = _settings(captions=VLLM, explanations=MODEL)
    whole, shared = size_engines(settings, [8], on_gpu=True)[0]
    assert (whole.cpus, whole.gpus, whole.size, shared.gpus) == (1, 2, None, 1)
    orders = tuple(Order(engine, Location("/in"), is_last=False) for engine in settings.engines.values())
    other: dict[str, Any] = {"preparation": None, "known": {}, "writing": None, "prepare": StageResources(0.25)}
    pipeline = AnnotatePipeline(orders=orders, batch_size=1, describe=(whole, shared), **other)
    assert [(each.cpus, each.gpus) for each in pipeline.pools] == [(1, 2), (0.25, 0), (0.25, 0), (0.1, 0), (0.5, 1)]
    alone = pipeline.without_an_engine()
    assert [[order.has_stages for order in each.orders] for each in alone] == [[True, False], [False, False]]


def test_vllm_without_a_gpu_is_refused(ray_here: None) -> None:
    settings = _settings(captions=VLLM | {"vllm": {}})
    with pytest.raises(ConfigError, match=r"1 worker with 1 CPU, 1 GPU do not fit .* whole GPUs of its own"):
        find_room(settings, pytest.fail)


def _left_out(**engines: dict[str, str]) -> list[list[str]]:
    """Return the kinds that each pipeline for rows which end their process leaves out."""
    settings = list(_settings(**engines).engines.values())
    orders = tuple(Order(engine, Location("/in"), is_last=engine is settings[-1]) for engine in settings)
    other: dict[str, Any] = {"preparation": None, "known": {}, "writing": None, "prepare": StageResources(0.25)}
    pipeline = AnnotatePipeline(orders=orders, batch_size=1, describe=(StageResources(0.1),) * len(orders), **other)
    tries = pipeline.without_an_engine()
    return [[order.settings.kind for order in each.orders if order.is_left_out] for each in tries]


def test_a_row_that_ends_its_process_is_tried_without_each_model_the_later_first() -> None:
    assert _left_out(captions=MODEL, explanations=MODEL) == [["explanation"], ["caption"]]


def test_a_row_that_ends_its_process_is_tried_without_a_model_beside_a_file_but_not_without_the_only_engine() -> None:
    assert _left_out(captions=MODEL, explanations=FILE) == [["caption"]]
    assert _left_out(captions=MODEL) == []


def test_models_on_a_cluster_are_sized_for_a_machine_and_have_no_bound() -> None:
    settings = _settings(captions=MODEL).model_copy(update={"address": "auto"})
    sizes, threads = size_engines(settings, [0, 8, 8], on_gpu=False)
    assert [(each.cpus, each.size) for each in sizes] == [(4.8, None)]
    assert threads == 8
    fixed, threads = size_engines(settings.model_copy(update={"annotators": 4}), [0, 8, 8], on_gpu=False)
    assert [(each.cpus, each.size) for each in fixed] == [(2.4, 4)]
    assert threads == 4
