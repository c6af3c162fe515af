"""Whole scans that judge nothing twice."""

import json
from pathlib import Path

import pytest

from asap.errors import StorageError
from asap.storage.files import list_files, write_bytes
from asap.storage.location import Location
from jobs.scan.passes import ScanProgress
from jobs.scan.plan import plan_scan
from jobs.scan.reusing import Reusing
from jobs.scan.run import scan
from jobs.scan.settings import ScanSettings
from tests.support.results import read_results

SAME = ("score", "types", "raw_box_px", "word_scores", "verdict", "flagged_types", "words", "warnings", "text_read")


@pytest.mark.slow
def test_pairs_of_earlier_jobs_and_of_the_same_job_are_not_judged_again(
    ray_here: None, bucket: str, corpus: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (corpus / "a.jsonl").open("a") as file:
        text = json.loads((corpus / "a.jsonl").read_text().splitlines()[0])["text"]
        file.write(json.dumps({"custom_id": "again", "image": "images/0.jpg", "text": text}) + "\n")
        file.write(json.dumps({"custom_id": "gone", "image": "images/gone.jpg", "text": text}) + "\n")
    store = Location(f"s3://{bucket}/store")
    settings = ScanSettings(
        input=str(corpus / "a.jsonl"), out=str(tmp_path / "out"), job="first", model=str(model_folder),
        reuse=store.uri, device="cpu",
    )  # fmt: skip

    # The first job is stopped at its end, and adds what it judged all the same. The next run has nothing to add.
    def stop(self: Reusing) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Reusing, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            scan(settings)
    files = [info.location for info in list_files(store)]
    assert len(files) == 1
    summary = scan(settings)
    assert [info.location for info in list_files(store)] == files
    first = read_results(settings.job_folder)
    assert summary["reused"] == {"job": 1}
    assert [row["reused"] for row in first] == [None] * 4 + ["job", None]

    write_bytes(files[0].parent / "foreign.parquet", b"PAR1")
    seen: list[ScanProgress] = []
    again = settings.model_copy(update={"job": "second"})
    summary = scan(again, seen.append)
    second = read_results(again.job_folder)
    assert summary["reused"] == {"store": 5}
    assert [row["reused"] for row in second] == ["store"] * 5 + [None]
    assert [{name: row[name] for name in SAME} for row in second] == [
        {name: row[name] for name in SAME} for row in first
    ]
    assert {row["judged_run"] for row in second}.isdisjoint(row["judged_run"] for row in first)
    notes = [now.stage for now in seen if "reuse store" in now.stage]
    assert any("foreign.parquet of the reuse store is not used" in note for note in notes)
    assert any("the reuse store has 4 pairs of this model" in note for note in notes)
    assert "Not judged again" in Path(f"{again.job_folder}/report/index.html").read_text()


@pytest.mark.slow
def test_a_scan_since_an_earlier_one_judges_what_is_new_or_changed(
    ray_here: None, corpus: Path, model_folder: Path, tmp_path: Path
) -> None:
    table = corpus / "a.jsonl"
    settings = ScanSettings(input=str(table), out=str(tmp_path / "out"), job="first", model=str(model_folder))
    scan(settings)
    first = read_results(settings.job_folder)
    assert all(row["image_version"] for row in first)

    lines = table.read_text().splitlines()
    (corpus / "images/1.jpg").write_bytes((corpus / "images/2.jpg").read_bytes() + b" ")
    new = json.loads(lines[2]) | {"custom_id": "new", "text": "Another text"}
    table.write_text("\n".join([json.dumps(new), *reversed(lines)]) + "\n")
    again = settings.model_copy(update={"job": "second", "since": settings.job_folder.uri})
    summary = scan(again)
    assert (summary["pairs"], summary["errors"], summary["reused"]) == (5, 0, {"since": 3})
    second = {row["custom_id"]: row for row in read_results(again.job_folder)}
    assert {name for name, row in second.items() if row["reused"] is None} == {"new", "pair-1"}
    for row in first:
        if row["custom_id"] != "pair-1":
            assert {name: row[name] for name in SAME} == {name: second[row["custom_id"]][name] for name in SAME}
    assert second["pair-0"]["row_id"] == 4


def test_a_store_that_cannot_be_reached_is_refused_before_work(
    s3: str, corpus: Path, model_folder: Path, tmp_path: Path
) -> None:
    settings = ScanSettings(input=str(corpus / "a.jsonl"), out=str(tmp_path / "out"), model=str(model_folder))
    (tmp_path / "file").write_text("")
    for store in ("s3://no-such-bucket-there/store", str(tmp_path / "file" / "store")):
        with pytest.raises(StorageError, match=r"no-such-bucket-there|is a file"):
            plan_scan(settings.model_copy(update={"reuse": store}))
