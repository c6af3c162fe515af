"""Whole scans, with real Ray, real processes, and S3 over HTTP."""

import base64
import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from asap.errors import AsapError, CheckpointError, ConfigError, StorageError
from asap.finding import Pair
from asap.limits import Limits
from asap.policy import Policy
from asap.storage.fetch import FetchSettings
from asap.storage.files import (
    delete_folder,
    exists,
    file_info,
    list_files,
    open_seekable,
    read_bytes,
    write_bytes,
)
from asap.storage.location import Location
from asap.weights.model_folder import load_folder
from jobs.descriptions.settings import DescriptionSettings
from jobs.errors import InputNotFound, InputUnfamiliar, JobDiffers, JobError, JobFailed
from jobs.scan import passes
from jobs.scan import run as run_module
from jobs.scan.input.manifest import ManifestRow, row_tables, write_manifest
from jobs.scan.output.completeness import count_rows, repair_results
from jobs.scan.output.job_folder import Job
from jobs.scan.passes import ScanProgress, check_results, watched
from jobs.scan.plan import ScanPlan, plan_scan
from jobs.scan.run import scan
from jobs.scan.settings import ScanSettings
from jobs.scan.stages.detect import Detection, Detector
from jobs.scan.stages.result_rows import RESULT_SCHEMA
from jobs.scan.steps import check_manifest
from tests.support.deadly import Deadly
from tests.support.familiar import make_familiar
from tests.support.pictures import CAPTIONS
from tests.support.tiny_captioners import save_blip
from tests.support.uploads import upload_folder


def _results(folder: Location) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for info in list_files(folder / "results"):
        with open_seekable(info.location) as file:
            table = pq.read_table(file)
        assert table.schema.equals(RESULT_SCHEMA), info.location
        rows += table.to_pylist()
    return sorted(rows, key=lambda row: row["row_id"])


def _lines(location: Location) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_bytes(location).splitlines()]


def _names(folder: Location) -> set[str]:
    return {info.location.uri.removeprefix(f"{folder.uri}/").partition("/")[0] for info in list_files(folder)}


@pytest.fixture
def messy_bucket(bucket: str, jpeg: Callable[..., bytes]) -> dict[str, str | None]:
    """Write a manifest to S3, with broken, missing, oversized, text-less and repeated entries among good ones.

    Return what is expected of each `custom_id`: an error code, or None.
    """
    root = Location(f"s3://{bucket}")
    good = {f"good-{number}": f"images/{number}.jpg" for number in range(12)}
    for number, name in enumerate(good.values()):
        write_bytes(root / name, jpeg(number))
    objects = {
        "cut.jpg": jpeg(50)[:200],
        "empty.jpg": b"",
        "page.jpg": b"<html>",
        "large.jpg": b"\xff\xd8\xff" + b"x" * 50_000,
    }
    for name, data in objects.items():
        write_bytes(root / "images" / name, data)
    pair = {"text": "A team celebrates its first title"}
    entries: list[tuple[dict[str, Any], str | None]] = [
        *(({"id": name, "image": image} | pair, None) for name, image in good.items()),
        ({"id": "same-image", "image": "images/0.jpg", "text": "Another text"}, None),
        ({"id": "cut", "image": "images/cut.jpg"} | pair, "decode_failed"),
        ({"id": "empty", "image": "images/empty.jpg"} | pair, "empty_file"),
        ({"id": "page", "image": "images/page.jpg"} | pair, "unsupported_format"),
        ({"id": "large", "image": "images/large.jpg"} | pair, "too_large"),
        ({"id": "gone", "image": "images/gone.jpg"} | pair, "not_found"),
        ({"id": "elsewhere", "image": "s3://no-such-bucket-there/a.jpg"} | pair, "not_found"),
        ({"id": "passwd", "image": "/etc/passwd"} | pair, "row_invalid"),
        ({"id": "address", "image": "http://127.0.0.1/a.jpg"} | pair, "row_invalid"),
        ({"id": "mute", "image": "images/1.jpg"}, "text_missing"),
        ({"id": "punctuation", "image": "images/1.jpg", "text": "... !"}, "text_invalid"),
        ({"id": "blind", "text": "Only a text"}, "image_missing"),
        ({"id": "surrogate", "image": "images/2.jpg", "text": "A team \ud83d celebrates"}, None),
        ({"id": "nul", "image": "images/2.jpg", "text": "A team\0 celebrates"}, None),
    ]
    lines = [json.dumps(record) for record, _ in entries]
    lines.insert(3, "{broken")
    lines.append(json.dumps({"id": "good-3", "image": "images/0.jpg"} | pair))
    write_bytes(root / "pairs.jsonl", "\n".join(lines).encode())
    expected = {str(record["id"]): code for record, code in entries}
    return expected | {"#3": "row_invalid", f"good-3#{len(lines) - 1}": None}


def test_a_scan_over_s3_has_one_row_for_every_line_with_the_right_code(
    ray_here: None, bucket: str, messy_bucket: dict[str, str | None], model_folder: Path
) -> None:
    out = f"s3://{bucket}/out"
    settings = ScanSettings(
        input=f"s3://{bucket}/pairs.jsonl", out=out, model=str(model_folder), max_image_bytes=40_000, batch_size=8,
        rows_per_file=8, fetch=FetchSettings(attempts=2),
    )  # fmt: skip
    seen: list[ScanProgress] = []
    summary = scan(settings, seen.append)

    folder = Location(out) / "pairs"
    rows = _results(folder)
    assert {row["custom_id"]: row["error_code"] for row in rows} == messy_bucket, [row["error_detail"] for row in rows]
    assert [row["row_id"] for row in rows] == list(range(len(messy_bucket)))
    for row in rows:
        assert (row["status"] == "error") == (row["error_code"] is not None)
        assert (row["score"] is None) == (row["status"] == "error")
        assert row["model_id"] == summary["model_id"]
    by_name = {row["custom_id"]: row for row in rows}
    assert by_name["good-0"]["image_version"]
    assert by_name["good-0"]["image_sha256"] == by_name["same-image"]["image_sha256"]
    assert by_name["surrogate"]["text"] == r"A team \ud83d celebrates"
    assert by_name["nul"]["warnings"]
    assert by_name["gone"]["retryable"] is False

    errors = sum(code is not None for code in messy_bucket.values())
    assert (summary["pairs"], summary["errors"]) == (len(messy_bucket), errors)
    assert {line["custom_id"] for line in _lines(folder / "errors.jsonl")} == {
        name for name, code in messy_bucket.items() if code
    }
    flagged = {row["custom_id"] for row in rows if row["verdict"] in ("manipulated", "review")}
    assert {line["custom_id"] for line in _lines(folder / "flagged.jsonl")} == flagged
    assert summary["flagged"] == len(flagged)
    assert _names(folder) == {
        "job.json", "manifest", "results", "errors.jsonl", "flagged.jsonl", "unfamiliar.jsonl",
        "summary.json", "report", "_SUCCESS",
    }  # fmt: skip
    job = json.loads(read_bytes(folder / "job.json"))
    assert job["state"] == "completed"
    assert job["counts"]["done"] == len(messy_bucket)
    assert seen[-1].stage == "writing the summary and the report"
    assert any(progress.done == len(messy_bucket) for progress in seen)

    _check_that_a_second_run_does_nothing(settings, summary)


def _check_that_a_second_run_does_nothing(settings: ScanSettings, summary: dict[str, Any]) -> None:
    """Check that the same command changes nothing in a finished job, and that another limit or input is refused."""
    before = file_info(settings.job_folder / "job.json")
    assert scan(settings) == summary
    assert file_info(settings.job_folder / "job.json") == before
    with pytest.raises(JobDiffers, match=r"settings\.limit was None and is 3"):
        scan(settings.model_copy(update={"limit": 3}))
    source = Location.parse(settings.input)
    write_bytes(source, read_bytes(source) + b"\n{}\n")
    with pytest.raises(JobDiffers, match="the content of the input has changed"):
        scan(settings)


@pytest.mark.slow
def test_a_folder_scan_captions_the_pairs_without_text(
    ray_here: None, tmp_path: Path, jpeg: Callable[..., bytes], model_folder: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    (folder / "0.txt").write_text("A team celebrates")
    (tmp_path / "captions.json").write_text(json.dumps({"0.jpg": "a team", "1.jpg": "a crowd", "2.jpg": "a child"}))
    captions = DescriptionSettings(engine="precomputed", source=str(tmp_path / "captions.json"))
    summary = scan(
        ScanSettings(input=str(folder), out=str(tmp_path / "out"), model=str(model_folder), captions=captions)
    )
    rows = {row["custom_id"]: row for row in _results(Location(summary["folder"]))}
    assert [rows[f"{number}.jpg"]["caption"] for number in range(4)] == ["a team", "a crowd", "a child", None]
    assert [rows[f"{number}.jpg"]["error_code"] for number in range(4)] == [None, None, None, "caption_failed"]
    assert rows["0.jpg"]["words"] is not None
    assert rows["1.jpg"]["words"] is None
    assert "caption" in rows["1.jpg"]["warnings"][0]
    (tmp_path / "captions.json").write_text(json.dumps({"0.jpg": "a team"}))
    with pytest.raises(JobDiffers, match="captioner was"):
        scan(ScanSettings(input=str(folder), out=str(tmp_path / "out"), model=str(model_folder), captions=captions))
    assert rows["1.jpg"]["types"]["text_swap"] is None
    assert Path(summary["report"]).read_text().startswith("<!")


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from ray import cloudpickle

    from jobs.scan import pipeline

    by_value = sys.modules[__name__], sys.modules[Deadly.__module__]
    for module in by_value:
        cloudpickle.register_pickle_by_value(module)
    monkeypatch.setattr(pipeline, "Detector", Deadly)
    monkeypatch.setattr(pipeline, "TRIES", 1)
    yield
    for module in by_value:
        cloudpickle.unregister_pickle_by_value(module)


class _Bounded(Detector):
    """A detector that ends its process at more rows than a batch has."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        import os

        if len(batch) > 8:
            os._exit(1)
        return super().__call__(batch)


@pytest.mark.slow
def test_blocks_of_more_rows_than_a_batch_are_scanned_in_batches(
    ray_here: None, deadly: None, monkeypatch: pytest.MonkeyPatch, corpus: Path, model_folder: Path
) -> None:
    monkeypatch.setattr("jobs.scan.pipeline.Detector", _Bounded)
    monkeypatch.setattr("jobs.scan.stages.read._MOST_TASKS", 2)
    records = [{"id": number, "image": f"images/{number % 4}.jpg", "text": "A team"} for number in range(50)]
    (corpus / "b.jsonl").write_text("\n".join(map(json.dumps, records)))
    out = str(corpus / "out")
    summary = scan(ScanSettings(input=str(corpus / "b.jsonl"), out=out, model=str(model_folder), batch_size=8))
    assert (summary["pairs"], summary["errors"]) == (50, 0)
    assert [row["custom_id"] for row in _results(Location(summary["folder"]))] == [str(n) for n in range(50)]


@pytest.mark.slow
def test_missing_gpus_are_reported_and_the_same_scan_runs_without_them(
    ray_here: None, corpus: Path, model_folder: Path
) -> None:
    (corpus / "b.jsonl").write_text(json.dumps({"id": 1, "image": "images/0.jpg", "text": "A team"}))
    common = {"input": str(corpus / "b.jsonl"), "out": str(corpus / "out"), "model": str(model_folder)}
    with pytest.raises(ConfigError, match=r"1000 workers with 0\.5 CPUs, 1 GPU each .*\. Give fewer --detectors"):
        scan(ScanSettings(**common, device="cuda", detectors=1000))
    assert scan(ScanSettings(**common, device="cpu"))["pairs"] == 1


@pytest.mark.parametrize(("address", "waits"), [(None, False), ("auto", True)])
def test_a_scan_waits_for_a_gpu_on_a_cluster_only(
    monkeypatch: pytest.MonkeyPatch, address: str | None, *, waits: bool
) -> None:
    from jobs.scan.pipeline import size_pipeline

    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}])
    reservations: list[Any] = []
    monkeypatch.setattr("jobs.cluster._reserve", lambda *request: reservations.append(request))
    notes: list[str] = []
    settings = ScanSettings(input="a.jsonl", out="out", device="cuda", address=address, wait_for_machines_s=120)
    with pytest.raises(ConfigError, match=r"1 worker with 0\.5 CPUs, 1 GPU do not fit .*\. Use --device auto"):
        size_pipeline(settings, "demo", 32, 100, notes.append)
    assert reservations == ([([{"CPU": 0.5, "GPU": 1}], 120)] if waits else [])
    assert bool(notes) == waits


def test_a_scan_on_busy_machines_says_what_it_waits_for_and_gives_up(
    ray_here: None, busy: None, corpus: Path, model_folder: Path
) -> None:
    stages: list[str] = []
    settings = ScanSettings(
        input=str(corpus / "a.jsonl"), out=str(corpus / "out"), model=str(model_folder), wait_for_machines_s=3
    )
    with pytest.raises(
        JobError, match=r"the machines are busy: 1 worker with 0\.75 CPUs, and 0\.25 CPUs for tasks had"
    ):
        scan(settings, lambda now: stages.append(now.stage))
    assert stages[-1].startswith("waiting up to 3 s for other jobs to free 1 worker with 0.75 CPUs, and 0.25 CPUs")
    assert stages[-1].endswith(": 0 CPUs are free of 1 x (2 CPUs, 0 GPUs)")


@pytest.mark.parametrize(
    ("gpus", "device", "wanted"),
    [(2, "auto", ("cuda", 256)), (2, "cuda", ("cuda", 256)), (2, "cpu", ("cpu", 64)), (0, "auto", ("cpu", 64))],
)
def test_models_run_on_the_gpus_that_ray_counts_in_batches_as_large_as_blocks(
    monkeypatch: pytest.MonkeyPatch, gpus: int, device: Any, wanted: tuple[str, int]
) -> None:
    from jobs.scan.pipeline import size_pipeline

    machine = {"CPU": 8.0} | ({"GPU": float(gpus)} if gpus else {})
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": machine}])
    monkeypatch.setattr("jobs.scan.pipeline.wait_until_free", lambda *_, **__: None)
    pipeline = size_pipeline(ScanSettings(input="a.jsonl", out="out", device=device), "demo", 32, 100)
    assert (pipeline.detection.device, pipeline.detection.batch_size) == wanted
    assert pipeline.batch_size == wanted[1]
    assert bool(pipeline.detect.gpus) == (wanted[0] == "cuda")


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("tasks", [100, 2], ids=["blocks of one batch", "blocks of several batches"])
def test_rows_that_end_every_process_become_errors_and_no_other_row_is_lost(
    ray_here: None, deadly: None, monkeypatch: pytest.MonkeyPatch, corpus: Path, model_folder: Path, tasks: int
) -> None:
    monkeypatch.setattr("jobs.scan.stages.read._LEAST_TASKS", tasks)
    records = [{"id": number, "image": f"images/{number % 4}.jpg", "text": "A team"} for number in range(24)]
    records[5]["text"] = "this is poison"
    (corpus / "b.jsonl").write_text("\n".join(map(json.dumps, records)))
    settings = ScanSettings(
        input=str(corpus / "b.jsonl"), out=str(corpus / "out"), model=str(model_folder), batch_size=4
    )
    rows = _results(Location(scan(settings)["folder"]))
    assert [row["row_id"] for row in rows] == list(range(24))
    assert [row["custom_id"] for row in rows if row["error_code"]] == ["5"]
    assert rows[5]["error_code"] == "model_error"
    assert "died each time" in rows[5]["error_detail"]


@pytest.mark.slow
def test_a_fault_on_the_workers_fails_the_job_with_one_line_and_the_job_can_be_resumed(
    ray_here: None, corpus: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ScanSettings(input=str(corpus / "a.jsonl"), out=str(corpus / "out"), model=str(model_folder))
    plan = plan_scan(settings)
    broken = corpus / "no-model-on-the-workers"
    monkeypatch.setattr("jobs.scan.run.plan_scan", lambda _: ScanPlan(**(vars(plan) | {"model": str(broken)})))
    with pytest.raises(
        JobFailed, match=r"the work stopped: .*no-model-on-the-workers.*run the same command again"
    ) as caught:
        scan(settings)
    assert "\n" not in str(caught.value)
    job = json.loads((corpus / "out/a/job.json").read_text())
    assert job["state"] == "failed"
    assert "no-model-on-the-workers" in job["error"]
    monkeypatch.undo()
    assert scan(settings)["pairs"] == 4


# Inputs that are unfamiliar to the model.


@pytest.fixture(scope="module")
def familiar_model(model_folder: Path, jpeg: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the small model, with a familiarity file of the pairs of `corpus` and limits."""
    folder = Path(shutil.copytree(model_folder, tmp_path_factory.mktemp("familiar") / "model"))
    make_familiar(folder, [Pair(jpeg(number), caption) for number, caption in enumerate(CAPTIONS)])
    (folder / "limits.json").write_text(Limits(made_from="soft noise").to_json())
    return folder


def _pairs(corpus: Path, familiar: int, unfamiliar: int) -> str:
    """Write a manifest of so many pairs like those that the model knows, and then others; return its path."""
    Image.new("RGB", (64, 48), "red").save(corpus / "images/red.jpg")
    names = [f"{number % 4}.jpg" for number in range(familiar)] + ["red.jpg"] * unfamiliar
    records = [{"image": f"images/{name}", "text": CAPTIONS[number % 4]} for number, name in enumerate(names)]
    (corpus / "pairs.jsonl").write_text("\n".join(map(json.dumps, records)))
    return str(corpus / "pairs.jsonl")


@pytest.mark.slow
def test_a_small_input_is_scanned_whole_and_its_unfamiliar_pairs_are_counted_apart(
    ray_here: None, corpus: Path, familiar_model: Path
) -> None:
    settings = ScanSettings(input=_pairs(corpus, 3, 12), out=str(corpus / "out"), model=str(familiar_model))
    seen: list[ScanProgress] = []
    summary = scan(settings, seen.append)
    assert (summary["pairs"], summary["unfamiliar"], summary["errors"]) == (15, 12, 0)
    assert summary["verdicts"]["unfamiliar"] == 12
    assert summary["limits"].startswith("small was made from soft noise")
    assert max(progress.unfamiliar for progress in seen) == 12
    folder = settings.job_folder
    rows, listed = _results(folder), _lines(folder / "unfamiliar.jsonl")
    assert [row["row_id"] for row in rows if row["verdict"] == "unfamiliar"] == list(range(3, 15))
    assert [line["row_id"] for line in listed] == list(range(3, 15))
    assert listed[0]["familiarity_image"] < 0.005 < listed[0]["familiarity_text"]
    assert {line["row_id"] for line in _lines(folder / "flagged.jsonl")} <= {0, 1, 2}
    job = json.loads(read_bytes(folder / "job.json"))
    assert (job["state"], job["counts"]["unfamiliar"], job["limits"]) == ("completed", 12, summary["limits"])
    assert job["identity"]["familiarity_id"] == rows[0]["familiarity_id"]
    assert "12 of 15 pairs were not judged, because small has seen nothing" in Path(summary["report"]).read_text()

    (familiar_model / "familiarity.safetensors").rename(corpus / "kept")
    with pytest.raises(JobDiffers, match="familiarity_id was"):
        scan(settings)
    (corpus / "kept").rename(familiar_model / "familiarity.safetensors")


@pytest.mark.slow
def test_a_large_input_that_is_unfamiliar_stops_after_its_sample_and_goes_on_when_that_is_allowed(
    ray_here: None, corpus: Path, familiar_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"input": _pairs(corpus, 10, 200), "out": str(corpus / "out"), "model": str(familiar_model)}
    settings = ScanSettings(**options, device="cpu")
    with pytest.raises(InputUnfamiliar) as stopped:
        scan(settings)
    folder = settings.job_folder
    sampled = _results(folder)
    strange = sum(row["verdict"] == "unfamiliar" for row in sampled)
    assert len(sampled) == 200
    assert str(stopped.value) == (
        f"{strange} of 200 sampled pairs look like nothing that small was made from (soft noise); its verdicts mean "
        "nothing here. --allow-unfamiliar scans all the same."
    )
    job = json.loads(read_bytes(folder / "job.json"))
    assert (job["state"], job["error"]) == ("unfamiliar", str(stopped.value))
    assert (job["counts"]["done"], job["counts"]["total"], job["counts"]["unfamiliar"]) == (200, 210, strange)
    assert len(_lines(folder / "unfamiliar.jsonl")) == strange
    assert "The scan stopped after it" in Path((folder / "report/index.html").uri).read_text()
    assert _names(folder) == {
        "job.json", "manifest", "results", "errors.jsonl", "flagged.jsonl", "unfamiliar.jsonl",
        "summary.json", "report",
    }  # fmt: skip

    with monkeypatch.context() as patch:
        patch.setattr("jobs.scan.steps.ray_running", lambda *_, **__: pytest.fail("the scan was started again"))
        with pytest.raises(InputUnfamiliar, match=re.escape(str(stopped.value))):
            scan(settings)
        # As a run with the flag leaves it that was killed while it judged failed pairs again.
        write_bytes(folder / "job.json", json.dumps(job | {"state": "cancelled", "error": None}).encode())
        write_bytes(folder / "_retry/manifest/0.parquet", b"rows")
        with pytest.raises(InputUnfamiliar, match=re.escape(str(stopped.value))):
            scan(settings)
        assert exists(folder / "_retry/manifest/0.parquet"), "a retry goes on if it may"
        delete_folder(folder / "_retry")
    assert json.loads(read_bytes(folder / "job.json"))["state"] == "unfamiliar"

    files = {info.location.uri for info in list_files(folder / "results")}
    summary = scan(ScanSettings(**options, device="cpu", allow_unfamiliar=True))
    assert (summary["pairs"], summary["unfamiliar"]) == (210, 200)
    assert files <= {info.location.uri for info in list_files(folder / "results")}, "sampled rows are kept"
    assert [row["row_id"] for row in _results(folder)] == list(range(210))
    assert json.loads(read_bytes(folder / "job.json"))["state"] == "completed"
    assert "_SUCCESS" in _names(folder)


@pytest.mark.slow
def test_a_large_familiar_input_is_scanned_to_its_end_and_no_row_twice(
    ray_here: None, corpus: Path, familiar_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ScanSettings(input=_pairs(corpus, 205, 5), out=str(corpus / "out"), model=str(familiar_model))
    runs: list[int] = []
    real = run_module.run_once

    def stop_after_the_sample(job: Any, pipeline: Any, manifest: Location, *others: Any) -> None:
        runs.append(count_rows(manifest))
        real(job, pipeline, manifest, *others)
        if len(runs) == 1:
            raise KeyboardInterrupt

    for module in (run_module, passes):  # the sample, and the rest
        monkeypatch.setattr(module, "run_once", stop_after_the_sample)
    with pytest.raises(KeyboardInterrupt):
        scan(settings)
    assert json.loads(read_bytes(settings.job_folder / "job.json"))["state"] == "cancelled"
    summary = scan(settings)
    assert runs == [200, 10], "the sample is not scanned again"
    assert (summary["pairs"], summary["unfamiliar"]) == (210, 5)
    assert [row["row_id"] for row in _results(settings.job_folder)] == list(range(210))
    job = json.loads(read_bytes(settings.job_folder / "job.json"))
    assert job["sample"]["judged"] == 200
    assert "_sample" not in _names(settings.job_folder)


@pytest.mark.parametrize(
    ("rows", "changes", "sampled"),
    [
        (201, {}, True), (200, {}, False), (201, {"familiarity_id": None}, False),
        (201, {"policy": Policy(unfamiliar=0)}, False), (201, {"allowed": True}, False), (201, {"taken": True}, False),
    ],
)  # fmt: skip
def test_a_sample_is_taken_of_a_large_input_by_a_model_that_knows_its_own(
    corpus: Path, familiar_model: Path, rows: int, changes: dict[str, Any], *, sampled: bool
) -> None:
    settings = ScanSettings(
        input=str(corpus / "a.jsonl"), out=str(corpus / "out"), model=str(familiar_model),
        allow_unfamiliar="allowed" in changes,
    )  # fmt: skip
    plan = plan_scan(settings)
    plan = dataclasses.replace(plan, **{name: changes[name] for name in changes.keys() & vars(plan).keys()})
    record = {"sample": {"judged": 200, "unfamiliar": 3}} if "taken" in changes else {}
    job = Job(Location(str(corpus / "out/a")), record, heartbeat_s=10)
    assert run_module._needs_sample(job, plan, rows) == sampled


def test_a_manifest_that_lost_rows_after_it_was_written_fails_the_job(corpus: Path) -> None:
    write_manifest(row_tables(ManifestRow(row_id=n, custom_id=str(n)) for n in range(5)), Location(str(corpus)))
    check_manifest(Location(str(corpus)), 5)
    with pytest.raises(JobFailed, match=r"holds 5 rows, but 7 were written.*Choose another folder"):
        check_manifest(Location(str(corpus)), 7)


def test_a_lost_counter_does_not_stop_the_job(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    class Lost:
        read = property(lambda self: self)

        def remote(self) -> None:
            raise ray.exceptions.ActorDiedError

    monkeypatch.setattr("jobs.scan.stages.progress.start_counter", Lost)
    job = Job(Location(str(corpus / "out/a")), {}, heartbeat_s=10)
    with watched(job, 0, 4, lambda progress: pytest.fail("progress was reported without counts"), 60):
        pass


def test_results_with_fewer_rows_than_the_manifest_fail_the_job(corpus: Path) -> None:
    write_manifest(row_tables(ManifestRow(row_id=n, custom_id=str(n)) for n in range(5)), Location(str(corpus)))
    check_results(Location(str(corpus)), 5)
    with pytest.raises(JobFailed, match=r"holds 5 rows, but the manifest was written with 7"):
        check_results(Location(str(corpus)), 7)


@pytest.fixture(scope="module")
def finished(
    ray_here: None, tmp_path_factory: pytest.TempPathFactory, jpeg: Callable[..., bytes], model_folder: Path
) -> ScanSettings:
    """Run a scan of two pairs to its end."""
    folder = tmp_path_factory.mktemp("finished")
    for number in range(2):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    lines = [json.dumps({"id": str(number), "image": f"{number}.jpg", "text": "A team"}) for number in range(2)]
    (folder / "a.jsonl").write_text("\n".join(lines))
    settings = ScanSettings(input=str(folder / "a.jsonl"), out=str(folder / "out"), model=str(model_folder))
    scan(settings)
    return settings


@pytest.fixture
def interrupted(finished: ScanSettings, tmp_path: Path) -> ScanSettings:
    """Copy the job of `finished`, as it was before its last file was written."""
    settings = finished.model_copy(update={"out": str(tmp_path / "out")})
    shutil.copytree(finished.job_folder.uri, settings.job_folder.uri)
    folder = tmp_path / "out/a"
    (folder / "_SUCCESS").unlink()
    job = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps(job | {"state": "failed"}))
    return settings


@pytest.mark.slow
def test_a_job_that_died_after_its_last_row_scans_nothing_again(
    interrupted: ScanSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = _results(interrupted.job_folder)
    monkeypatch.setattr("jobs.scan.pipeline.run_pipeline", lambda *_: pytest.fail("the rows were scanned again"))
    assert scan(interrupted)["pairs"] == 2
    assert _results(interrupted.job_folder) == rows
    assert (tmp_path / "out/a/_SUCCESS").exists()


@pytest.mark.slow
def test_half_written_files_of_a_killed_run_are_neither_read_nor_kept(
    interrupted: ScanSettings, tmp_path: Path
) -> None:
    rows, folder = _results(interrupted.job_folder), tmp_path / "out/a"
    (whole,) = (folder / "results").glob("*.parquet")
    data = whole.read_bytes()
    pq.write_table(pq.read_table(whole).slice(1), whole)
    # A kill cut short a results file, the manifest of the missing rows, and the checkpoint of an earlier version.
    (folder / f"results/{7:032x}_000001-0.parquet").write_bytes(data[:-1])
    for name in ("_remaining/00000.parquet", "_checkpoint/7-000001.pending.parquet", "_alone/00000.parquet"):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(data[: len(data) // 2])
    assert scan(interrupted)["pairs"] == 2
    again, kept = _results(interrupted.job_folder)
    assert kept == rows[1]
    assert (again["row_id"], again["verdict"]) == (0, rows[0]["verdict"])
    assert again["score"] == pytest.approx(rows[0]["score"], abs=1e-4)  # alone in its batch, not one of two
    assert not [path.name for path in folder.iterdir() if path.is_dir() and path.name.startswith("_")]


@pytest.mark.slow
def test_a_resumed_scan_takes_the_missing_rows_in_whole_batches(
    ray_here: None, corpus: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, fault, results = corpus / "calls", corpus / "fault", corpus / "out/b/results"

    class Counting(Detector):
        """A detector that logs the rows of each call. While `fault` exists, it fails at later rows after others."""

        def __call__(self, batch: pa.Table) -> pa.Table:
            if fault.exists() and min(batch["row_id"].to_pylist()) >= 160:
                for _ in range(1200):
                    if any(results.glob("*.parquet")):
                        break
                    time.sleep(0.1)
                raise RuntimeError("a fault")
            with calls.open("a") as file:
                file.write(f"{len(batch)}\n")
            return super().__call__(batch)

    monkeypatch.setattr("jobs.scan.pipeline.Detector", Counting)
    records = [{"id": number, "image": f"images/{number % 4}.jpg", "text": "A team"} for number in range(320)]
    (corpus / "b.jsonl").write_text("\n".join(map(json.dumps, records)))
    settings = ScanSettings(
        input=str(corpus / "b.jsonl"), out=str(corpus / "out"), model=str(model_folder), batch_size=8, rows_per_file=8
    )
    fault.touch()
    with pytest.raises(JobFailed, match="a fault"):
        scan(settings)
    repair_results(settings.job_folder / "results")
    done = count_rows(settings.job_folder / "results")
    assert 0 < done <= 160
    fault.unlink()
    calls.unlink()
    assert scan(settings)["pairs"] == 320
    assert [row["row_id"] for row in _results(settings.job_folder)] == list(range(320))
    sizes = [int(size) for size in calls.read_text().split()]
    assert set(sizes) == {8}
    assert 160 <= sum(sizes) <= 320 - done


def _unstartable(corpus: Path, model_folder: Path, **changes: Any) -> ScanSettings:
    fields = {"input": str(corpus / "a.jsonl"), "out": str(corpus / "out"), "model": str(model_folder)}
    return ScanSettings(**(fields | changes))


@pytest.mark.slow
def test_a_model_and_a_captioner_in_a_bucket_scan_as_their_folders_do_and_another_version_is_another_job(
    ray_here: None, corpus: Path, model_folder: Path, bucket: str, tmp_path: Path
) -> None:
    save_blip(tmp_path / "blip")
    captioner = upload_folder(tmp_path / "blip", bucket, "captioner")
    model = upload_folder(model_folder, bucket, "model")
    there = ScanSettings(
        input=str(corpus / "a.jsonl"), out=str(tmp_path / "there"), model=model, device="cpu",
        captions=DescriptionSettings(engine="transformers", source=captioner),
    )  # fmt: skip
    here = there.model_copy(update={
        "out": str(tmp_path / "here"), "model": str(model_folder),
        "captions": DescriptionSettings(engine="transformers", source=str(tmp_path / "blip")),
    })  # fmt: skip
    summary, wanted = scan(there), scan(here)
    assert (summary["pairs"], summary["errors"]) == (len(CAPTIONS), 0)
    assert summary["model_id"] == wanted["model_id"]
    rows = [_results(settings.job_folder) for settings in (there, here)]
    for column in ("score", "verdict", "caption"):
        assert [row[column] for row in rows[0]] == [row[column] for row in rows[1]]

    assert plan_scan(there).identity() == json.loads(read_bytes(there.job_folder / "job.json"))["identity"]
    policy = dataclasses.asdict(Policy(manipulated=0.9))
    write_bytes(Location(f"{model}/policy.json"), json.dumps(policy).encode())
    with pytest.raises(JobDiffers, match="policy_id"):
        scan(there)


def test_a_model_that_differs_on_a_machine_is_refused_there(model_folder: Path) -> None:
    found = load_folder(model_folder)
    ids = (found.model_id, found.policy.policy_id, None)
    Detector(Detection(str(model_folder), "cpu", ids=ids))
    with pytest.raises(CheckpointError, match=r"has changed, or differs on the machine .*: it is small@.* and was o@0"):
        Detector(Detection(str(model_folder), "cpu", ids=("o@0", "p", None)))


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"input": "/nowhere.jsonl"}, InputNotFound, "/nowhere.jsonl is not there"),
        ({"input": "s3://unknown-bucket-77/a.jsonl"}, StorageError, "does not exist"),
        ({"out": "s3://unknown-bucket-77/out"}, StorageError, "'unknown-bucket-77' does not exist"),
        ({"model": "/nowhere"}, CheckpointError, "'/nowhere' does not exist"),
        ({"model": "tests"}, CheckpointError, "has no"),
        ({"captions": {"engine": "precomputed", "source": "/nowhere.json"}}, InputNotFound, "captions /nowhere.json"),
    ],
)
def test_an_error_in_the_command_is_reported_before_any_work(
    s3: str, corpus: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any], error: type[AsapError], reason: str,
) -> None:  # fmt: skip
    def never(*args: object, **named: object) -> None:
        raise AssertionError("work was started")

    monkeypatch.setattr("jobs.scan.steps.ray_running", never)
    with pytest.raises(error) as caught:
        scan(_unstartable(corpus, model_folder, **changes))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (corpus / "out").exists()


def test_starting_a_scan_does_not_load_torch() -> None:
    code = "import sys, jobs.scan.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_output_folder_with_other_files_is_refused(corpus: Path, model_folder: Path) -> None:
    (corpus / "out/a").mkdir(parents=True)
    (corpus / "out/a/thesis.txt").write_text("x")
    with pytest.raises(JobDiffers, match="holds files that are not a job's"):
        scan(_unstartable(corpus, model_folder))


def test_a_scan_of_which_every_sampled_pair_would_fail_starts_nothing(tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": "gone.jpg", "text": "a text"}))
    out = tmp_path / "out"
    with pytest.raises(InputNotFound, match=r"all 1 pairs of it would fail: 1 not_found .*--allow-unreadable"):
        scan(ScanSettings(input=str(tmp_path / "a.jsonl"), out=str(out), model=str(model_folder)))
    assert not out.exists()


def _check_embedded(settings: ScanSettings, summary: dict[str, Any], pictures: list[bytes]) -> list[dict[str, Any]]:
    """Check that rows of a scan have these pictures, and that the report shows those that were flagged."""
    rows = _results(settings.job_folder)
    assert [row["image_sha256"] for row in rows] == [hashlib.sha256(picture).hexdigest() for picture in pictures]
    assert (summary["pairs"], summary["errors"], summary["flagged"]) == (len(pictures), 0, len(pictures))
    report = Path(summary["report"]).read_text()
    assert report.count('src="data:image/webp;base64,') == len(pictures)
    assert "could not be read again" not in report
    return rows


@pytest.fixture
def flagging_model(model_folder: Path, tmp_path: Path) -> Path:
    """Return a model whose policy flags every pair."""
    folder = shutil.copytree(model_folder, tmp_path / "flagging")
    policy = dataclasses.asdict(Policy(manipulated=0, review=0))
    (folder / "policy.json").write_text(json.dumps(policy))
    return folder


@pytest.mark.slow
def test_a_scan_of_a_table_of_pictures_judges_each_and_shows_them_again(
    ray_here: None, tmp_path: Path, flagging_model: Path, jpeg: Callable[..., bytes]
) -> None:
    pictures = [jpeg(number) for number in range(50)]
    images = [{"bytes": picture, "path": f"{number}.jpg"} for number, picture in enumerate(pictures)]
    table = pa.table({"image": images, "caption": [CAPTIONS[number % 4] for number in range(50)]})
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=20)
    settings = ScanSettings(
        input=str(tmp_path / "train.parquet"), out=str(tmp_path / "out"), model=str(flagging_model), batch_size=8
    )
    rows = _check_embedded(settings, scan(settings), pictures)
    assert [(row["image_group"], row["image_row"]) for row in rows] == [divmod(row, 20) for row in range(50)]
    assert {row["image_column"] for row in rows} == {"image.bytes"}
    report = (tmp_path / "out/train/report/index.html").read_text()
    assert "train.parquet, row group 2, row 9, image.bytes" in report


@pytest.mark.slow
def test_a_scan_of_pictures_in_base64_judges_each_and_shows_them_again(
    ray_here: None, tmp_path: Path, flagging_model: Path, jpeg: Callable[..., bytes]
) -> None:
    pictures = [jpeg(number) for number in range(20)]
    texts = [base64.b64encode(picture).decode() for picture in pictures]
    records = [
        {"id": number, "image": f"data:image/jpeg;base64,{text}" if number % 2 else text, "text": CAPTIONS[number % 4]}
        for number, text in enumerate(texts)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    settings = ScanSettings(input=str(tmp_path / "a.jsonl"), out=str(tmp_path / "out"), model=str(flagging_model))
    rows = _check_embedded(settings, scan(settings), pictures)
    assert {row["image_encoding"] for row in rows} == {"base64"}
