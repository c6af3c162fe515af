"""Metrics, read over HTTP from the page of a real Ray."""

import json
import re
import urllib.request
from pathlib import Path

import pytest

from jobs.annotate.run import annotate
from jobs.annotate.settings import AnnotateSettings
from jobs.metrics import DetectorTime, PairMetrics, count, count_step, metrics_targets, targets_announced
from jobs.scan.run import scan
from jobs.scan.settings import ScanSettings
from tests.support.waiting import HANG_S, wait_until


def _values(name: str, job: str) -> dict[tuple[str, ...], float]:
    """Return a job's samples of a metric on the page of this Ray, summed over processes, by the other tags of our own.

    The Ray is shared with other tests, whose jobs are on the page too.
    """
    with urllib.request.urlopen(f"http://{metrics_targets()[0]}/metrics") as page:
        text = page.read().decode()
    values: dict[tuple[str, ...], float] = {}
    for tags, value in re.findall(rf"^ray_{name}{{(.*)}} (\S+)$", text, re.M):
        own = dict(re.findall(r'(job|status|code|stage|state|term)="([^"]*)"', tags))
        if own["job"] == job:
            key = tuple(own[tag] for tag in ("status", "code", "stage", "state", "term") if tag in own)
            values[key] = values.get(key, 0) + float(value)
    return values


@pytest.mark.slow
def test_a_scan_shows_its_rows_bytes_and_seconds_to_prometheus(
    ray_here: None, corpus: Path, model_folder: Path
) -> None:
    with (corpus / "a.jsonl").open("a") as manifest:
        manifest.write(json.dumps({"custom_id": "gone", "image": "images/gone.jpg", "text": "A text"}) + "\n")
    log = corpus / "log.jsonl"
    settings = ScanSettings(
        input=str(corpus / "a.jsonl"), out=str(corpus / "out"), job="counted", model=str(model_folder),
        log_file=str(log), stall_after_s=HANG_S,
    )  # fmt: skip
    scan(settings)
    rows = {("ok", ""): 4.0, ("error", "not_found"): 1.0}
    wait_until(lambda: _values("asap_scan_rows_total", "counted") == rows)
    pictures = sum(path.stat().st_size for path in (corpus / "images").iterdir())
    wait_until(lambda: _values("asap_scan_fetched_bytes_total", "counted") == {(): pictures})
    assert set(_values("asap_scan_stage_seconds_total", "counted")) == {("prepare",), ("detect",)}
    seconds = _values("asap_scan_detector_seconds_total", "counted")
    assert set(seconds) == {("loading",), ("busy",), ("idle",)}
    assert all(value > 0 for value in seconds.values())
    # The states of the job were logged as it ran.
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["state"] for line in lines] == ["validating", "running", "finalizing", "completed"]
    record = json.loads((corpus / "out/counted/job.json").read_text())
    assert {line["run_id"] for line in lines} == {record["run_id"]}
    assert lines[-1]["counts"]["errors"] == 1
    assert "log_file" not in record["settings"]


@pytest.mark.slow
def test_a_job_of_annotations_shows_its_rows_under_its_own_name(ray_here: None, corpus: Path) -> None:
    captions = {f"pair-{number}": f"caption {number}" for number in range(3)}
    (corpus / "captions.json").write_text(json.dumps(captions))
    engine = {"engine": "precomputed", "source": str(corpus / "captions.json")}
    annotate(AnnotateSettings(input=str(corpus / "a.jsonl"), out=str(corpus / "described"), captions=engine))  # type: ignore[arg-type]
    rows = {("ok", ""): 3.0, ("error", "no_entry"): 1.0}
    wait_until(lambda: _values("asap_annotate_rows_total", "described") == rows)
    assert set(_values("asap_annotate_stage_seconds_total", "described")) == {("prepare",), ("caption",)}
    assert not _values("asap_scan_rows_total", "described")


def test_a_detector_with_two_batches_is_busy_until_the_last_of_them_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[str] = []
    monkeypatch.setattr("jobs.metrics.count", lambda name, value, *, job, state: states.append(state))
    detector = DetectorTime("job")
    detector.leave("loading")
    for step in (detector.enter, detector.enter, detector.exit, detector.exit, detector.enter, detector.exit):
        step()
    assert states == ["loading", "idle", "busy", "idle", "busy"]


def test_training_steps_and_retries_are_shown_to_prometheus(ray_here: None) -> None:
    import ray

    def work() -> None:
        count_step("a-run", {"total": 3.0, "seconds": 0.5}, 8, 0.25)
        count_step("a-run", {"total": 2.0, "seconds": 0.25}, 8, 0.5)
        for kind in ("scan", "annotate"):
            rows = [{"attempt": 3, "fetched_bytes": 7}, {"attempt": 1}, {"attempt": None}, {}]
            PairMetrics(kind, "a-job").count_fetches(rows)  # type: ignore[arg-type]

    ray.get(ray.remote(num_cpus=0)(work).remote())
    wait_until(lambda: _values("asap_train_loss", "a-run") == {("total",): 2.0})
    assert _values("asap_train_pairs_total", "a-run") == {(): 16.0}
    assert _values("asap_train_steps_total", "a-run") == {(): 2.0}
    assert _values("asap_train_step_seconds_total", "a-run") == {(): 0.75}
    assert _values("asap_train_done_ratio", "a-run") == {(): 0.5}
    for kind in ("scan", "annotate"):
        assert _values(f"asap_{kind}_fetch_retries_total", "a-job") == {(): 2.0}
        assert _values(f"asap_{kind}_fetched_bytes_total", "a-job") == {(): 7.0}


def test_a_metric_that_cannot_be_recorded_is_one_warning(ray_here: None, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        count("asap_scan_fetch_retries_total", 1, no_such_tag="x")
    assert caplog.text.count("the metric asap_scan_fetch_retries_total is not recorded") == 1


def test_prometheus_finds_the_page_while_the_job_runs(ray_here: None, tmp_path: Path) -> None:
    file = tmp_path / "prometheus" / "asap.json"
    with targets_announced(str(file)):
        [group] = json.loads(file.read_text())
        assert group == {"labels": {"job": "asap"}, "targets": metrics_targets()}
        with urllib.request.urlopen(f"http://{group['targets'][0]}/metrics") as page:
            assert page.status == 200
    assert not file.exists()


def test_a_file_of_targets_that_cannot_be_written_is_a_warning(
    ray_here: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with targets_announced(str(tmp_path / "file" / "asap.json")):
        assert "asap.json cannot be written: " in caplog.text
