"""The commands over job folders, as a person and a script use them."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asap.storage.files import exists, read_bytes
from asap.storage.location import Location
from jobs.control import follow
from jobs.scan.passes import ScanProgress
from jobs.scan.run import scan
from jobs.scan.settings import ScanSettings
from jobs.scan.stages.result_rows import write_table
from tests.support.annotations import annotation
from tests.support.job_folders import failed, scored, seconds_ago, write_scan, write_training
from tests.support.waiting import Clock

ROWS = [
    scored(0, 0.9, "manipulated", "face_swap", text="=1+1"),
    scored(1, 0.1, "authentic"),
    failed(2, "throttled", retryable=True),
    failed(3, "decode_failed", retryable=False),
]


@pytest.fixture(params=["local", "s3"])
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """Return the folder of a finished scan."""
    folder = Location(str(tmp_path / "out" / "job"))
    if request.param == "s3":
        folder = Location(f"s3://{request.getfixturevalue('bucket')}/out/job")
    write_scan(folder, ROWS, counts={"done": 4, "total": 4, "errors": 2, "flagged": 1, "unfamiliar": 0})
    return folder


def test_status_says_how_a_job_is_and_that_it_probably_died(run: Any, job: Location) -> None:
    write_scan(job, state="running", runs=2)
    code, out, _ = run("status", job)
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == f"scan {job}: running"
    assert lines[1] == "pairs      1,200 of 2,400 (50 %), 30 flagged, 4 unfamiliar, 12 errors"
    assert lines[2] == "speed      20.0 pairs/s, about 1 min left"
    assert lines[3].startswith("process    process 4711 on ")
    assert ", start 2, last sign of life " in lines[3]
    write_scan(job, state="running", heartbeat=seconds_ago(850))
    assert f"died. `asap resume {job}` goes on." in run("status", job)[1]
    document = json.loads(run("status", job, "--json")[1])
    assert (document["state"], document["silent"], document["counts"]["done"]) == ("running", True, 1200)


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """Return the folder of a finished job of annotations."""
    write_scan(Location(str(tmp_path / "out")), kind="annotate", counts={"done": 2, "total": 2, "errors": 1})
    rows = [
        annotation(0, custom_id="a", caption="a crowd"),
        annotation(1, custom_id="b", status="error", error_code="refusal", error_detail="caption: no", retryable=False),
    ]
    write_table(pa.concat_tables(rows), Location(str(tmp_path / "out/annotations/a.parquet")))
    return tmp_path / "out"


def test_a_job_of_annotations_is_seen_and_queried_as_a_scan_is(run: Any, annotated: Path) -> None:
    assert run("status", annotated)[1].splitlines()[:2] == [
        f"annotate {annotated}: completed",
        "pairs      2 of 2 (100 %), 1 errors",
    ]
    assert "annotate" in run("list", annotated)[1]
    assert run("watch", annotated)[0] == 0
    assert "refusal" in run("errors", annotated)[1]
    assert "a crowd" in run("results", annotated, "--format", "table")[1]
    rows = run("results", annotated, "--columns", "custom_id,caption", "--code", "refusal")[1]
    assert [json.loads(line) for line in rows.splitlines()] == [{"custom_id": "b", "caption": None}]
    assert run("resume", annotated)[1] == f"{annotated} is finished\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["report"], "is a job of annotations and has no report"),
        (["results", "--verdict", "review"], "there is no column 'verdict'"),
        (["resume", "--model", "m", "--retry-errors", "retryable"], "--model are for scans"),
    ],
)
def test_what_a_job_of_annotations_lacks_is_refused(
    run: Any, annotated: Path, arguments: list[str], sentence: str
) -> None:
    code, _, err = run(arguments[0], annotated, *arguments[1:])
    assert code == 1
    assert sentence in err


def test_what_a_record_quotes_cannot_command_the_terminal(run: Any, job: Location) -> None:
    write_scan(job, state="failed", error="\x1b]0;x\x07 no column")
    assert r"\x1b]0;x\x07 no column" in run("status", job)[1]
    assert "\x1b" not in run("watch", job)[1] + run("list", job.parent)[1]


def test_list_is_a_table_or_a_document(run: Any, job: Location) -> None:
    write_training(job.parent / "run", steps=[{"pairs": 8}])
    code, out, _ = run("list", job.parent)
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines() if "train" in line] == [["run", "train", "running"]]
    assert "4 of 4" in out
    names = {entry["folder"] for entry in json.loads(run("list", job.parent, "--json")[1])["jobs"]}
    assert names == {str(job), str(job.parent / "run")}
    assert run("list", job / "results")[1] == f"there is no job folder directly below {job / 'results'}\n"


def test_watch_prints_changes_and_exits_as_the_job_does(
    run: Any, job: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    class End(Clock):
        def sleep(self, seconds: float) -> None:
            write_scan(job, state="cancelled", counts={"done": 3, "total": 4, "errors": 0})

    monkeypatch.setattr(follow, "time", End())
    write_scan(job, state="running")
    code, out, err = run("watch", job)
    assert (code, err) == (130, "")
    assert out.splitlines()[0].startswith("running  1,200 of 2,400 (50 %)")
    assert out.splitlines()[1] == "cancelled  3 of 4 (75 %), 0 errors"
    write_scan(job, state="unfamiliar", error="most pairs are unfamiliar")
    code, out, _ = run("watch", job, "--json")
    assert code == 4
    assert [json.loads(line)["note"] for line in out.splitlines()] == ["most pairs are unfamiliar"]


def test_the_phase_of_a_training_run_stands_beside_its_state(
    run: Any, job: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = job.parent / "run"
    sign = {"phase": "decoding \x1b train pictures", "phase_counts": {"done": 1200, "total": 5000}}
    write_training(folder, sign=sign)
    assert run("status", folder)[1].splitlines()[1] == "phase      decoding \\x1b train pictures: 1,200 of 5,000"
    assert "decoding \\x1b train" in " ".join(run("list", job.parent)[1].split())

    class End(Clock):
        def sleep(self, seconds: float) -> None:
            write_training(folder, finished=True)

    monkeypatch.setattr(follow, "time", End())
    code, out, _ = run("watch", folder)
    assert (code, out.splitlines()) == (
        0,
        [
            "running  decoding \\x1b train pictures: 1,200 of 5,000  0 of 64 (0 %)",
            "completed  0 of 64 (0 %)",
        ],
    )


def test_watch_that_is_interrupted_says_that_the_job_goes_on(
    run: Any, job: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Clock):
        def sleep(self, seconds: float) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(follow, "time", Interrupted())
    write_scan(job, state="running")
    assert run("watch", job)[::2] == (130, "stopped watching. The job goes on.\n")


def test_cancel_says_what_became_of_the_job(run: Any, job: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("cancel", job)[:2] == (0, f"{job} had already ended: completed\n")
    state = "cancelled"

    class Owner(Clock):
        def sleep(self, seconds: float) -> None:
            write_scan(job, state=state, counts={"done": 3, "total": 4})

    monkeypatch.setattr(follow, "time", Owner())
    write_scan(job, state="running")
    code, out, err = run("cancel", job)
    assert (code, out) == (0, f"{job} is cancelled: 3 of 4 pairs are done. `asap resume {job}` goes on.\n")
    assert err.startswith("waiting up to 1 min until process 4711 on ")
    state = "completed"
    write_scan(job, state="running")
    document = json.loads(run("cancel", job, "--json")[1])
    assert document["message"] == f"{job} ended before it could be cancelled: completed"


def test_errors_are_counted_and_shown(run: Any, job: Location) -> None:
    code, out, _ = run("errors", job, "--limit", 1)
    assert code == 0
    assert ["throttled", "1", "all"] in [line.split() for line in out.splitlines()]
    assert ["decode_failed", "1", "no"] in [line.split() for line in out.splitlines()]
    assert "1 of 2 failed rows are shown" in out
    document = json.loads(run("errors", job, "--code", "throttled", "--json")[1])
    assert document["codes"] == [{"code": "throttled", "count": 1, "retryable": 1}]
    assert document["rows"][0]["error_detail"] == "throttled at 2"
    assert run("errors", job, "--code", "timeout")[1] == "no failed rows with this code among 4\n"


def test_results_go_to_the_pipe_the_terminal_and_files(
    run: Any, job: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run("results", job, "--verdict", "manipulated", "--columns", "custom_id, flagged_types")
    assert (code, json.loads(out)) == (0, {"custom_id": "c0", "flagged_types": ["face_swap"]})
    assert [row["row_id"] for row in json.loads(run("results", job, "--json", "--limit", 3)[1])] == [0, 1, 2]
    monkeypatch.setattr("jobs.cli.control._TABLE_ROWS", 2)
    table = run("results", job, "--format", "table")[1]
    assert "c1" in table
    assert "c2" not in table
    assert "the first 2 rows; --limit shows more" in table

    to = tmp_path / "rows.csv"
    assert run("results", job, "--type", "face_swap", "--columns", "row_id,text", "--to", to)[1] == f"1 rows: {to}\n"
    assert list(csv.reader(to.open())) == [["row_id", "text"], ["0", "'=1+1"]]
    target = job.parent / "rows.parquet"
    document = json.loads(run("results", job, "--max-score", 0.5, "--to", target, "--json")[1])
    assert document == {"to": str(target), "format": "parquet", "rows": 1}
    (tmp_path / "copy").write_bytes(read_bytes(target))
    assert pq.read_table(tmp_path / "copy")["custom_id"].to_pylist() == ["c1"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--verdict", "fake"), "no verdict 'fake'"),
        (("--columns", "verdct"), "no column 'verdct'"),
        (("--format", "parquet"), "cannot be printed"),
        (("--to", "JOB/results/new.parquet"), "is in the job folder"),
    ],
)
def test_results_are_refused_in_one_line(run: Any, job: Location, options: tuple[str, ...], sentence: str) -> None:
    code, out, err = run("results", job, *(option.replace("JOB", str(job)) for option in options))
    assert (code, out) == (1, "")
    assert sentence in err
    assert err.count("\n") == 1
    assert not exists(job / "results/new.parquet")


def test_results_are_written_through_a_link(run: Any, job: Location, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("old")
    (tmp_path / "latest.csv").symlink_to(tmp_path / "rows.csv")
    assert run("results", job, "--columns", "row_id", "--to", tmp_path / "latest.csv")[0] == 0
    assert (tmp_path / "latest.csv").is_symlink()
    assert (tmp_path / "rows.csv").read_text().split() == ["row_id", "0", "1", "2", "3"]


def test_results_replace_no_folder_pipe_or_device(run: Any, job: Location, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for to in (tmp_path / "pipe", tmp_path):
        code, out, err = run("results", job, "--format", "csv", "--to", to)
        assert (code, out) == (1, "")
        assert f"--to {to} is not a file. Name a file, or leave --to out for the standard output." in err
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "table"])
def test_a_pipe_that_is_closed_early_or_a_full_disk_ends_the_command_without_a_traceback(
    tmp_path: Path, kind: str
) -> None:
    folder = Location(str(tmp_path))
    write_scan(folder, [scored(number, 0.5, "review", text="x" * 1000) for number in range(500)])
    asap = [sys.executable, "-c", "from jobs.cli.app import main; main()", "results", str(folder), "--format", kind]
    with subprocess.Popen(asap, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(asap, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    sentence = "the standard output cannot be written: No space left on device. Print to another place."
    assert (ended.returncode, ended.stderr) == (1, f"asap: {sentence}\n")


def test_rows_that_are_left_out_are_named_apart_from_the_rows(run: Any, tmp_path: Path) -> None:
    folder = Location(str(tmp_path))
    write_scan(folder, ROWS, state="running")
    (tmp_path / "results/b.parquet").write_bytes(b"PAR1")
    code, out, err = run("results", folder, "--json")
    assert (code, len(json.loads(out))) == (0, 4)
    assert err.startswith("1 files were left out, because the job changes them now")


def test_the_report_is_written_on_request_and_named(run: Any, job: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    page = job / "report" / "index.html"
    code, _, err = run("report", job)
    assert code == 1
    assert "has no report yet: its state is completed. Give --rewrite" in err
    assert run("report", job, "--rewrite")[1] == f"{page}\n"
    assert b"decode_failed" in read_bytes(page)
    assert run("report", job, "--rewrite", "--no-pictures")[0] == 0
    assert b"The report was made without pictures." in read_bytes(page)
    assert "--blur and --no-pictures exclude each other" in run("report", job, "--blur", "--no-pictures")[2]
    assert "--no-pictures changes a report. Add --rewrite." in run("report", job, "--no-pictures")[2]
    assert json.loads(run("report", job, "--json")[1]) == {"report": str(page)}
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or len(opened) == 1)
    if job.is_s3:
        assert "--open shows a report on this machine" in run("report", job, "--open")[2]
        return
    assert run("report", job, "--open")[0] == 0
    assert opened == [f"file://{page}"]
    assert "no browser was found" in run("report", job, "--open")[2]


def test_a_report_is_not_rewritten_while_the_job_runs(run: Any, tmp_path: Path) -> None:
    from jobs.scan.output.job_folder import Job

    folder = Location(str(tmp_path / "job"))
    with Job(folder, {"kind": "scan", "settings": {"stale_after_s": 900}}, heartbeat_s=0.05):
        code, _, err = run("report", folder, "--rewrite")
    assert code == 1
    assert "is in use" in err
    write_training(Location(str(tmp_path / "run")))
    assert "is a training run and has no report" in run("report", tmp_path / "run")[2]


def test_delete_asks_first(run: Any, job: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in ("n\n", "\n", ""):  # the last is a script, which nobody answers
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        code, _, err = run("delete", job)
        assert code == 1
        assert f"Delete {job}, a completed scan job of 3 files?" in err
    assert exists(job / "job.json")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert json.loads(run("delete", job, "--json")[1]) == {"folder": str(job), "files": 3}
    assert not exists(job / "job.json")
    assert "is not the folder of a job" in run("delete", job, "--yes")[2]


@pytest.mark.parametrize("verb", ["status", "watch", "cancel", "resume", "errors", "results", "report", "delete"])
def test_every_verb_refuses_a_folder_that_is_not_a_jobs(run: Any, tmp_path: Path, verb: str) -> None:
    code, out, err = run(verb, tmp_path)
    assert (code, out) == (1, "")
    assert err.startswith(f"asap: {tmp_path} is not the folder of a job")
    assert err.count("\n") == 1


@pytest.mark.parametrize("verb", ["status", "cancel", "resume", "results", "delete"])
def test_every_verb_reports_a_bucket_that_does_not_exist(run: Any, s3: str, verb: str) -> None:
    code, _, err = run(verb, "s3://no-such-bucket-for-me/out/job")
    assert code == 1
    assert "no-such-bucket-for-me" in err


def test_a_finished_job_is_not_resumed(run: Any, job: Location) -> None:
    assert run("resume", job)[:2] == (0, f"{job} is finished\n")
    assert json.loads(run("resume", job, "--json")[1])["message"] == f"{job} is finished"


def test_options_of_scans_are_refused_for_a_training_run(run: Any, tmp_path: Path) -> None:
    write_training(Location(str(tmp_path)))
    assert (
        "--allow-unfamiliar, --retry-errors and --model are for scans"
        in run("resume", tmp_path, "--allow-unfamiliar")[2]
    )


def test_a_training_run_is_resumed_with_the_display_of_its_command(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(settings: Any, progress: Any) -> Path:
        progress({"note": "started"})
        return Path(settings.out) / "model"

    monkeypatch.setattr("jobs.train.run.train", train)
    monkeypatch.setattr("jobs.train.check.check_command", lambda settings: None)  # its corpus is not here
    write_training(Location(str(tmp_path)), started_s=9999)
    assert run("resume", tmp_path)[1] == f"loading torch and Ray\nstarted\nmodel: {tmp_path}/model\n"
    code, out, err = run("resume", tmp_path, "--json")
    assert (code, json.loads(out), err) == (
        0,
        {"model": f"{tmp_path}/model"},
        "loading torch and Ray\nstarted\n",
    )


@pytest.mark.slow
def test_a_scan_that_was_stopped_is_resumed_from_another_folder_and_queried(
    ray_here: None, run: Any, corpus: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(now: ScanProgress) -> None:
        if now.stage == "starting Ray":
            raise KeyboardInterrupt

    monkeypatch.chdir(corpus)
    settings = ScanSettings(input="a.jsonl", out="scans", model=str(model_folder), batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        scan(settings, stop)
    monkeypatch.chdir("/")
    job = corpus / "scans" / "a"
    assert run("watch", job)[0] == 130
    code, out, _ = run("resume", job, "--json")
    assert code == 0
    assert json.loads(out)["pairs"] == 4
    assert json.loads(run("status", job, "--json")[1])["runs"] == 2
    rows = [json.loads(line) for line in run("results", job, "--columns", "custom_id,score")[1].splitlines()]
    assert sorted(row["custom_id"] for row in rows) == [f"pair-{number}" for number in range(4)]
    assert run("report", job)[1] == f"{job}/report/index.html\n"
