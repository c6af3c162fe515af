"""How the machines are divided among the stages of a scan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from asap.errors import ConfigError
from jobs.descriptions.settings import DescriptionSettings
from jobs.scan.pipeline import Describer, Shares, StageResources, find_room, size_pipeline, size_stages
from jobs.scan.settings import ScanSettings

MODEL = {"engine": "transformers", "source": "m"}
VLLM = {"engine": "vllm", "source": "m", "vllm": {"gpus": 2}}
ENDPOINT = {"engine": "openai", "source": "m", "endpoint": {"address": "http://host/v1"}}


def _sized(
    captions: dict[str, Any] | None, *, on_gpu: bool, cpus: int = 8, machines: int = 1, **changes: Any
) -> Shares:
    settings = ScanSettings(input="/a.csv", out="/out", **changes)
    engines = {"caption": DescriptionSettings(**captions)} if captions else {}
    return size_stages(settings, engines, [0, *[cpus] * machines], on_gpu=on_gpu)


def _stages(sized: Shares) -> list[StageResources]:
    return [sized.prepare, *sized.describe.values(), sized.detect]


def _both(captions: dict[str, Any], explanations: dict[str, Any]) -> dict[str, DescriptionSettings]:
    explained = DescriptionSettings(**({"kind": "explanation"} | explanations))
    return {"caption": DescriptionSettings(**captions), "explanation": explained}


@pytest.mark.parametrize("cpus", [1, 2, 3, 8, 64])
def test_a_captioner_and_an_explainer_share_what_one_of_them_would_have(cpus: int) -> None:
    settings = ScanSettings(input="/a.csv", out="/out")
    sized = size_stages(settings, _both(MODEL, MODEL), [cpus], on_gpu=True)
    assert {kind: stage.gpus for kind, stage in sized.describe.items()} == {"caption": 0.25, "explanation": 0.25}
    assert sized.detect.gpus == 0.5

    sized = size_stages(settings, _both(MODEL, MODEL), [cpus], on_gpu=False)
    alone = size_stages(settings, {"caption": DescriptionSettings(**MODEL)}, [cpus], on_gpu=False)  # type: ignore[arg-type]
    assert sum(stage.cpus for stage in sized.describe.values()) == pytest.approx(alone.describe["caption"].cpus)
    assert sized.detect == alone.detect
    assert sized.describe_threads == max(1, cpus // 4)


def test_vllm_has_whole_gpus_beside_those_of_the_detectors() -> None:
    settings = ScanSettings(input="/a.csv", out="/out", captions=VLLM)  # type: ignore[arg-type]
    sized = size_stages(settings, _both(VLLM, MODEL), [8], on_gpu=True)
    assert settings.needs_gpu
    assert (sized.describe["caption"].cpus, sized.describe["caption"].gpus) == (1, 2)
    assert (sized.describe["explanation"].gpus, sized.detect.gpus) == (0.5, 0.5)
    one = Describer(settings.describers["caption"], sized.describe["caption"])
    assert [(each.cpus, each.gpus) for each in one.pools] == [(1, 2), (0.25, 0), (0.25, 0), (0.1, 0)]
    assert replace(one, is_left_out=True).pools == (one.resources,)


def test_vllm_without_a_gpu_is_refused(ray_here: None) -> None:
    settings = ScanSettings(input="/a.csv", out="/out", captions=VLLM)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"1 worker with 1 CPU, 2 GPUs do not fit .* whole GPUs of its own"):
        find_room(settings, settings.describers, pytest.fail)


def test_an_explainer_at_an_endpoint_takes_nothing_from_a_captioner_with_a_model() -> None:
    settings = ScanSettings(input="/a.csv", out="/out")
    for on_gpu in (True, False):
        sized = size_stages(settings, _both(MODEL, ENDPOINT), [8], on_gpu=on_gpu)
        alone = _sized(MODEL, on_gpu=on_gpu)
        assert sized.describe["caption"] == alone.describe["caption"]
        assert (sized.detect, sized.describe_threads) == (alone.detect, alone.describe_threads)
        endpoint = sized.describe["explanation"]
        assert (endpoint.cpus, endpoint.gpus, endpoint.size) == (0.1 if on_gpu else 0.05, 0, 1)


@pytest.mark.parametrize("cpus", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("engines", [(MODEL, MODEL), (MODEL, ENDPOINT), (ENDPOINT, MODEL), (ENDPOINT, ENDPOINT)])
def test_a_captioner_and_an_explainer_fit_beside_the_other_stages(engines: tuple[Any, Any], cpus: int) -> None:
    sized = size_stages(ScanSettings(input="/a.csv", out="/out"), _both(*engines), [cpus], on_gpu=False)
    assert sum(stage.cpus * (stage.size or 1) for stage in _stages(sized)) <= cpus + 1e-9


def test_a_model_that_captions_shares_its_gpu_with_a_detector() -> None:
    sized = _sized(MODEL, on_gpu=True)
    assert (sized.describe["caption"].gpus, sized.detect.gpus) == (0.5, 0.5)
    assert (sized.describe["caption"].size, sized.detect.size) == (None, None)  # as many as there are GPUs
    large = _sized(MODEL, on_gpu=True, captioner_gpus=0.9, captioners=2, captioner_cpus=1.5)
    assert (large.describe["caption"].gpus, large.detect.gpus) == (0.9, 0.1)
    assert (large.describe["caption"].size, large.describe["caption"].cpus) == (2, 1.5)


@pytest.mark.parametrize("captions", [ENDPOINT, {"engine": "precomputed", "source": "c.json"}])
def test_endpoints_and_files_take_no_gpu_and_hardly_a_core(captions: dict[str, Any]) -> None:
    for on_gpu in (True, False):
        sized = _sized(captions, on_gpu=on_gpu)
        assert (sized.describe["caption"].cpus, sized.describe["caption"].gpus, sized.describe["caption"].size) == (
            0.1,
            0,
            1,
        )
        assert sized.describe_threads is None
        plain = _sized(None, on_gpu=on_gpu)
        assert (sized.detect, sized.prepare, sized.threads) == (plain.detect, plain.prepare, plain.threads)
        assert _sized(captions, on_gpu=on_gpu, captioners=3).describe["caption"].size == 3


@pytest.mark.parametrize("cpus", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("captioners", [1, 2])
def test_a_model_that_captions_on_cpus_leaves_cores_for_decoding(cpus: int, captioners: int) -> None:
    sized = _sized(MODEL, on_gpu=False, cpus=cpus, captioners=captioners)
    assert sized.describe_threads is not None
    assert sized.threads is not None
    used = [stage.cpus * (stage.size or 1) for stage in _stages(sized)]
    assert sum(used) <= cpus + 1e-9, "all stages fit beside each other"
    if cpus >= 8:
        threads = sized.describe_threads * captioners + sized.threads * (sized.detect.size or 1)
        assert sized.describe_threads == cpus // (2 * captioners)
        assert threads <= 3 * cpus / 4


@pytest.mark.parametrize("cpus", [1, 2, 3, 8, 64])
def test_small_captioners_on_cpus_have_a_thread_each_and_leave_cores_too(cpus: int) -> None:
    settings = ScanSettings(input="/a.csv", out="/out")
    captions = DescriptionSettings(**MODEL)  # type: ignore[arg-type]
    sized = size_stages(settings, {"caption": captions}, [cpus], on_gpu=False, small=True)
    assert (sized.describe["caption"].size, sized.describe_threads) == (max(1, cpus // 2), 1)
    assert sum(stage.cpus * (stage.size or 1) for stage in _stages(sized)) <= cpus + 1e-9


def test_a_captioner_needs_no_more_than_a_machine_of_the_cluster_has() -> None:
    settings = ScanSettings(input="/a.csv", out="/out", captioners=2)
    sized = size_stages(settings, {"caption": DescriptionSettings(**MODEL)}, [8] * 8, on_gpu=False)  # type: ignore[arg-type]
    assert (sized.describe["caption"].cpus, sized.describe_threads) == (pytest.approx(2.4), 4)


def test_the_cores_of_a_captioner_can_be_set() -> None:
    sized = _sized(MODEL, on_gpu=False, captioner_cpus=3)
    assert (sized.describe["caption"].cpus, sized.describe_threads) == (3, 3)


@pytest.mark.parametrize("captions", [None, MODEL])
@pytest.mark.parametrize("cpus", [1, 2, 3, 16])
def test_pools_on_a_cluster_are_sized_for_a_machine_and_have_no_bound(captions: Any, cpus: int) -> None:
    sized = _sized(captions, on_gpu=False, cpus=cpus, machines=5, address="auto")
    alone = _sized(captions, on_gpu=False, cpus=cpus)
    assert (sized.detect.size, sized.prepare.size) == (None, None)
    assert (sized.detect.cpus, sized.threads) == (alone.detect.cpus, alone.threads)
    assert 0 < sized.detect.cpus <= cpus
    if captions:
        assert (sized.describe["caption"].size, sized.describe["caption"].cpus) == (
            None,
            alone.describe["caption"].cpus,
        )
    assert sum(stage.cpus for stage in _stages(sized)) <= cpus, "one of each stage fits on a machine"


@pytest.mark.parametrize("detectors", [1, 2, 64])
def test_a_number_of_detectors_is_for_the_cluster_and_each_fits_on_a_machine(detectors: int) -> None:
    sized = _sized(None, on_gpu=False, cpus=4, machines=4, address="auto", detectors=detectors)
    assert sized.detect.size == detectors
    assert 0 < sized.detect.cpus <= 4
    assert sized.detect.cpus * detectors <= 16
    assert sized.threads == max(1, min(4, 16 // detectors))


def test_a_detector_on_machines_without_a_whole_cpu_asks_for_more_than_nothing() -> None:
    settings = ScanSettings(input="/a.csv", out="/out", address="auto")
    assert size_stages(settings, {}, [], on_gpu=False).detect.cpus > 0
    assert size_stages(settings, {}, [0, 0.5], on_gpu=False).detect.cpus > 0


def test_a_scan_without_captions_gives_them_nothing() -> None:
    assert (_sized(None, on_gpu=True).describe, _sized(None, on_gpu=True).detect.gpus) == ({}, 1)


def test_a_captioner_that_takes_many_batches_with_it_may_lose_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"CPU": 8.0}
    monkeypatch.setattr("ray.cluster_resources", lambda: machine)
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": machine}])
    monkeypatch.setattr("jobs.scan.pipeline.wait_until_free", lambda *_, **__: None)
    way = {"address": "http://host/v1", "key_env": None, "concurrency": 4096}
    captions = {"engine": "openai", "source": "m", "endpoint": way}
    settings = ScanSettings(input="a.jsonl", out="out", captions=captions)  # type: ignore[arg-type]
    pipeline = size_pipeline(settings, "demo", 32, 100)
    assert pipeline.describers[0].resources.at_a_time == 16
    assert pipeline.lost_batches >= 8 * 2 * pipeline.describers[0].resources.at_a_time, (
        "two batches wait for each that is described"
    )


def test_a_detector_with_a_gpu_stages_a_batch_beside_another_and_a_lone_row_has_it_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = {"CPU": 8.0, "GPU": 1.0}
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": machine}])
    monkeypatch.setattr("jobs.scan.pipeline.wait_until_free", lambda *_, **__: None)
    pipeline = size_pipeline(ScanSettings(input="a.jsonl", out="out"), "demo", 32, 100)
    assert pipeline.detect.at_a_time == 2
    assert pipeline.lost_batches >= 8 * 2 * 2
    alone = pipeline.one_row_at_a_time()
    assert (alone.detect.at_a_time, alone.detect.ahead) == (1, 1)
    assert _sized(None, on_gpu=False).detect.at_a_time == 1


@pytest.mark.parametrize("with_captions", [False, True])
def test_flagged_pairs_are_captioned_by_a_pipeline_of_their_own(
    monkeypatch: pytest.MonkeyPatch, with_captions: bool
) -> None:
    machine = {"CPU": 8.0, "GPU": 1.0}
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": machine}])
    waits: list[Any] = []
    monkeypatch.setattr("jobs.scan.pipeline.wait_until_free", lambda *_, beside, **__: waits.append(beside))
    settings = ScanSettings(
        input="a.jsonl",
        out="out",
        captions=MODEL,  # type: ignore[arg-type]
        caption_pairs="flagged",
    )
    pipeline = size_pipeline(settings, "demo", 32, 100, with_captions=with_captions)
    assert bool(pipeline.describers) == with_captions
    assert pipeline.detect.gpus == (0.5 if with_captions else 1)
    assert pipeline.preparation.leaves_textless != with_captions
    assert (pipeline.preparation.thumbnail_side is not None) == with_captions
    assert waits == [{"CPU": 0.35, "GPU": 0.5} if with_captions else {"CPU": 0.25}]


@pytest.mark.parametrize(("address", "cpus"), [(None, 4), (None, 3), ("auto", 4)])
def test_a_captioner_that_no_machine_holds_is_refused_at_once_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, address: str | None, cpus: float
) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}])
    monkeypatch.setattr("jobs.cluster.node_types", list)
    monkeypatch.setattr("jobs.scan.pipeline.wait_until_free", lambda *_, **__: pytest.fail("it waits"))
    settings = ScanSettings(
        input="a.jsonl",
        out="out",
        captions=MODEL,  # type: ignore[arg-type]
        captioner_cpus=cpus,
        address=address,
        device="cpu",
    )
    with pytest.raises(ConfigError, match=r"4\.\d+ CPUs.* 1 x \(4 CPUs, 0 GPUs\).*Lower --set captioner_cpus=N\."):
        size_pipeline(settings, "demo", 32, 100)
