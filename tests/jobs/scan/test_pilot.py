"""Tests of the pilot of a scan, and of the forecast that follows from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from asap.errors import CheckpointError, ConfigError
from asap.finding import Pair
from asap.predictor import Predictor
from jobs.errors import JobError
from jobs.scan.input.manifest import ManifestRow
from jobs.scan.input.sources import find_source
from jobs.scan.look import look_at
from jobs.scan.pilot import Fleet, Pilot, _gets, forecast, interval, run_pilot
from jobs.scan.settings import ScanSettings

PILOT = Pilot(
    device="cuda",
    pairs=64,
    failed=0,
    verdicts={"authentic": 64},
    pairs_per_s=(1000.0, 800.0, 1250.0),
    prepare_cpu_s=(0.012, 0.010, 0.014),
    detect_cpu_s=(0.001, 0.001, 0.001),
    gets_per_row=1.0,
)


@pytest.fixture
def settings(tmp_path: Path, model_folder: Path) -> ScanSettings:
    return ScanSettings(input=str(tmp_path / "pairs.jsonl"), out="OUT", model=str(model_folder), device="cpu")


@pytest.fixture
def rows(tmp_path: Path, jpeg: Callable[..., bytes]) -> list[ManifestRow]:
    names = [f"{number}.jpg" for number in range(12)]
    for number, name in enumerate(names[:-1]):  # the last one is missing
        (tmp_path / name).write_bytes(jpeg(number, (80, 60)))
    records = [{"id": name, "image": name, "text": "The president smiles"} for name in names]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, records)))
    return list(find_source(str(tmp_path / "pairs.jsonl")).rows())


def test_a_pilot_judges_its_pairs_as_a_scan_does_and_times_them(
    settings: ScanSettings, rows: list[ManifestRow], model_folder: Path
) -> None:
    pilot = run_pilot(settings, rows, Fleet())
    assert (pilot.device, pilot.pairs, pilot.failed) == ("cpu", 12, 1)
    pairs = [Pair(str(row.image_uri), row.text) for row in rows[:-1]]
    expected = [finding.verdict for finding in Predictor.from_folder(model_folder, "cpu").predict(pairs)]
    assert pilot.verdicts == {verdict: expected.count(verdict) for verdict in set(expected)}
    for middle, low, high in (pilot.pairs_per_s, pilot.prepare_cpu_s, pilot.detect_cpu_s):
        assert 0 <= low <= middle <= high
        assert middle > 0
    assert pilot.gets_per_row == 0
    assert json.loads(json.dumps(pilot.to_json()))["pairs"] == 12


def test_requests_are_those_of_pictures_and_texts_in_a_bucket() -> None:
    rows = [
        ManifestRow(row_id=0, image_uri="s3://b/a.jpg", text="a"),
        ManifestRow(row_id=1, image_uri="s3://b/a.tar", image_offset=512, image_length=9, text_uri="s3://b/a.txt"),
        ManifestRow(row_id=2, image_uri="s3://b/a.parquet", image_group=0, image_row=1, image_column="image"),
        ManifestRow(row_id=3, image_uri="/a.jpg", text_uri="/a.txt"),
        ManifestRow(row_id=4, text="no picture"),
    ]
    assert _gets(rows) == 3


def test_a_pilot_without_a_pair_that_can_be_judged_says_why(settings: ScanSettings, tmp_path: Path) -> None:
    gone = [ManifestRow(row_id=0, image_uri=str(tmp_path / "gone.jpg"), text="a")]
    with pytest.raises(JobError, match=r"no pair of the pilot of 1 could be judged: .*gone.jpg.* Look at the input\."):
        run_pilot(settings, gone, Fleet())
    with pytest.raises(JobError, match="the pilot has no pair"):
        run_pilot(settings, [], Fleet())


def test_what_cannot_be_measured_here_is_refused_before_the_model_is_loaded(
    settings: ScanSettings, rows: list[ManifestRow], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="--machine-gpus 2 cannot be forecast: the pilot runs on a CPU"):
        run_pilot(settings, rows, Fleet(gpus=2))
    on_gpu = settings.model_copy(update={"device": "cuda"})
    with pytest.raises(ConfigError, match=r"--machine-gpus 0 cannot be forecast: .* Add --device cpu"):
        run_pilot(on_gpu, rows, Fleet())
    with pytest.raises(CheckpointError):
        run_pilot(settings.model_copy(update={"model": str(tmp_path / "nothing")}), rows, Fleet())


def test_an_interval_is_two_standard_errors_wide_on_both_sides_and_not_below_zero() -> None:
    assert interval([1.0, 3.0]) == pytest.approx((2.0, 0.0, 4.0))
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)
    assert interval([2.0]) == (2.0, 0.0, 4.0)  # nothing is known of one value's spread


def test_the_slower_of_gpus_and_cpus_decides_the_hours() -> None:
    enough = forecast(PILOT, 3_600_000, Fleet(machines=2, cpus=16, gpus=1))
    assert enough.bound == "gpu"
    assert enough.hours == pytest.approx((0.5, 0.4, 0.625))
    assert enough.cpus_per_gpu == pytest.approx(13)
    starved = forecast(PILOT, 3_600_000, Fleet(machines=2, cpus=4, gpus=1))
    assert starved.bound == "cpu"
    assert starved.hours[0] == pytest.approx(3_600_000 * 0.013 / 8 / 3600)


def test_on_cpus_all_cpu_seconds_are_shared_by_all_cpus() -> None:
    whole = forecast(replace(PILOT, device="cpu"), 36_000, Fleet(machines=3, cpus=2))
    assert (whole.bound, whole.cpus_per_gpu) == ("cpu", None)
    assert whole.hours[0] == pytest.approx(36_000 * 0.013 / 6 / 3600)


def test_a_price_is_that_of_machines_and_requests_and_none_without_prices() -> None:
    fleet = Fleet(machines=2, cpus=16, gpus=1, machine_price=3.0, get_price=0.0004)
    whole = forecast(PILOT, 3_600_000, fleet)
    assert whole.gets == 3_600_000
    assert whole.price is not None
    assert whole.price[0] == pytest.approx(0.5 * 2 * 3.0 + 3600 * 0.0004)
    assert forecast(PILOT, 3_600_000, Fleet()).price is None


def test_a_look_keeps_a_seeded_sample_of_rows_that_can_be_understood(settings: ScanSettings, tmp_path: Path) -> None:
    lines = [json.dumps({"id": number, "image": f"{number}.jpg", "text": "a"}) for number in range(500)]
    lines[7] = "{ broken"
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    source = find_source(settings.input)
    first, second = (look_at(source, settings, seconds=None, pictures=False, kept=100).kept for _ in range(2))
    ids = [row.row_id for row in first]
    assert ids == [row.row_id for row in second] == sorted(ids)
    assert len(set(ids)) == 100
    assert 7 not in ids
    assert max(ids) > 250
    assert not look_at(source, settings, seconds=None, pictures=False).kept
