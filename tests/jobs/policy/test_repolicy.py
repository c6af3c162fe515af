"""Another policy for a finished scan: as if it had been scanned under it, and never for only some of its rows."""

import itertools
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from asap.errors import AsapError, ConfigError, StorageError
from asap.finding import Pair
from asap.job_records.record import read_record, results_folder
from asap.labels import TYPES
from asap.policy import Policy
from asap.predictor import Predictor
from asap.storage.files import delete_file, exists, list_files, open_seekable, read_bytes, write_bytes
from asap.storage.location import Location
from jobs.errors import JobDiffers, JobError, JobInUse
from jobs.policy import repolicy as module
from jobs.policy.repolicy import repolicy
from jobs.scan.input.manifest import MANIFEST_SCHEMA
from jobs.scan.output.job_folder import Job, check_resumable
from jobs.scan.output.summary import write_outcome
from jobs.scan.run import scan
from jobs.scan.settings import ScanSettings
from jobs.scan.stages.result_rows import RESULT_SCHEMA, failure, result_table
from tests.support.finding_rows import columns_of
from tests.support.waiting import HANG_S

BEFORE = Policy(manipulated=0.5, review=0.5)
TEXTS = (
    "A team celebrates its first title",
    "Two \0 faces, one smile",
    "Three 😀 faces, one smile",
    "  spaced   out\twords ",
    "word " * 130,
    None,
    "... !",
)


@pytest.fixture(scope="module")
def predictor(model_folder: Path) -> Predictor:
    return Predictor.from_folder(model_folder, "cpu")


def _table(predictor: Predictor, policy: Policy, jpeg: Callable[..., bytes]) -> pa.Table:
    """Return rows as a scan under the policy writes them: good ones, one with a caption for a text, and errors."""
    under_policy = Predictor.__new__(Predictor)
    under_policy.__dict__ |= vars(predictor) | {"policy": policy}
    findings = under_policy.predict([Pair(jpeg(number), text) for number, text in enumerate(TEXTS)])
    rows = [columns_of(finding) for finding in findings]
    captioned = under_policy.predict([Pair(jpeg(9), "a caption")])[0]
    types: dict[str, float | None] = dict(captioned.types or {}) | dict.fromkeys(TYPES[2:])
    flagged = [name for name in captioned.flagged_types if name in TYPES[:2]]
    box = rows[0]["raw_box_px"]
    rows.append(
        columns_of(captioned)
        | {"types": types, "flagged_types": flagged, "words": None, "word_scores": None, "raw_box_px": box}
        | {"box_px": box if flagged else None, "caption": "a caption"}
    )
    ids = {"model_id": under_policy.model_id, "policy_id": policy.policy_id}
    rows.append(ids | failure("not_found", "there is no such picture"))
    texts: list[str | None] = [*TEXTS, None, "A text"]
    texts[1], escapes = r"Two \u0000 faces, one smile", [None] * len(texts)
    escapes[1] = [4]
    callers = {name: [None] * len(texts) for name in MANIFEST_SCHEMA.names}
    callers |= {"row_id": list(range(len(texts))), "custom_id": [f"c{n}" for n in range(len(texts))]}
    callers |= {"text": texts, "text_escapes": escapes}
    return result_table(pa.table(callers, MANIFEST_SCHEMA), rows)


def _policy_among(table: pa.Table) -> Policy:
    """Return a policy with thresholds among the scores, so that every kind of row changes."""
    scores = sorted(score for score in table["score"].to_pylist() if score is not None)
    words = sorted(score for row in table["word_scores"].to_pylist() for score in row or [])
    types = [row for row in table["types"].to_pylist() if row]
    middle = {name: sorted(row[name] for row in types if row[name] is not None)[len(types) // 2] for name in TYPES}
    return Policy(manipulated=scores[-2], review=scores[1], types=middle, word=words[len(words) // 2])


@pytest.fixture(params=["local", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "local":
        return Location(str(tmp_path / "jobs/a"))
    return Location(f"s3://{request.getfixturevalue('bucket')}/jobs/a")


def _finished_job(folder: Location, table: pa.Table, model_id: str) -> Location:
    """Write a job folder as a scan leaves it, with its rows in several files."""
    for number, start in enumerate(range(0, table.num_rows, 3)):
        sink = pa.BufferOutputStream()
        pq.write_table(table.slice(start, 3), sink, row_group_size=2)
        write_bytes(folder / f"results/{number:05d}.parquet", sink.getvalue().to_pybytes())
    record = {
        "kind": "scan", "job_id": folder.name, "state": "completed", "model_id": model_id, "policy": asdict(BEFORE),
        "policy_id": BEFORE.policy_id, "identity": {"model_id": model_id, "policy_id": BEFORE.policy_id},
        "pairs_per_s": 5.0,
    }  # fmt: skip
    record |= {"counts": write_outcome(folder, record).counts}
    write_bytes(folder / "job.json", json.dumps(record).encode())
    write_bytes(folder / "_SUCCESS", b"")
    return folder


def _rows(results: Location) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for info in list_files(results):
        with open_seekable(info.location) as file:
            table = pq.read_table(file)
        assert table.schema.equals(RESULT_SCHEMA), info.location
        rows += table.to_pylist()
    return sorted(rows, key=lambda row: row["row_id"])


def _written(policy: Policy, location: Location) -> str:
    write_bytes(location, policy.to_json().encode())
    return str(location)


def _tree(folder: Location) -> dict[str, bytes]:
    return {info.location.uri: read_bytes(info.location) for info in list_files(folder)}


@pytest.fixture(scope="module")
def table(predictor: Predictor, jpeg: Callable[..., bytes]) -> pa.Table:
    return _table(predictor, BEFORE, jpeg)


def test_the_job_looks_as_if_it_had_been_scanned_under_the_policy(
    location: Location, table: pa.Table, predictor: Predictor, jpeg: Callable[..., bytes]
) -> None:
    policy = _policy_among(table)
    folder = _finished_job(location, table, predictor.model_id)
    before = _rows(folder / "results")
    names = set(_tree(folder))
    summary = repolicy(str(folder), _written(policy, folder.parent / "p.json"))

    rows = _rows(folder / "results")
    assert rows == _table(predictor, policy, jpeg).to_pylist()
    assert rows != before
    assert {row["policy_id"] for row in rows} == {policy.policy_id}
    verdicts = [row["verdict"] for row in rows]
    assert {"manipulated", "review", "authentic", None} == set(verdicts)
    record = read_record(folder) or {}
    assert Policy(**record["policy"]) == policy
    assert (record["policy_id"], record["identity"]["policy_id"]) == (policy.policy_id, policy.policy_id)
    assert (record["state"], record["former_policies"][0]["policy_id"]) == ("completed", BEFORE.policy_id)
    assert summary["policy_id"] == policy.policy_id
    assert summary["verdicts"]["review"] == verdicts.count("review")
    assert record["counts"]["flagged"] == summary["flagged"] == len(verdicts) - verdicts.count("authentic") - 3
    lines = read_bytes(folder / "flagged.jsonl").splitlines()
    assert {json.loads(line)["policy_id"] for line in lines} == {policy.policy_id}
    assert policy.policy_id.encode() in read_bytes(folder / "report/index.html")
    assert set(_tree(folder)) - names == {f"{folder}/report/index.html"}, "nothing else is left behind"


def test_the_command_says_what_changed_and_the_record_keeps_it(
    tmp_path: Path, table: pa.Table, predictor: Predictor, jpeg: Callable[..., bytes]
) -> None:
    policy = _policy_among(table)
    after = _table(predictor, policy, jpeg).to_pylist()
    before = table.to_pylist()
    folder = _finished_job(Location(str(tmp_path / "a")), table, predictor.model_id)
    wanted = _written(policy, folder.parent / "p.json")
    changes = repolicy(str(folder), wanted)["changes"]

    def expected(is_in: Callable[[dict[str, Any]], bool]) -> dict[str, int]:
        pairs = [(is_in(old), is_in(new)) for old, new in zip(before, after, strict=True)]
        return {
            "before": sum(old for old, _ in pairs), "after": sum(new for _, new in pairs),
            "added": pairs.count((False, True)), "removed": pairs.count((True, False)),
        }  # fmt: skip

    assert changes["flagged"] == expected(lambda row: row["verdict"] in ("manipulated", "review"))
    assert changes["verdicts"] == {
        verdict: expected(lambda row, verdict=verdict: row["verdict"] == verdict)  # type: ignore[misc]
        for verdict in ("manipulated", "review", "authentic", "unfamiliar")
    }
    assert changes["types"] == {
        name: expected(lambda row, name=name: name in (row["flagged_types"] or ()))  # type: ignore[misc]
        for name in TYPES
    }
    assert any(moves["added"] for moves in changes["verdicts"].values())
    assert any(moves["removed"] for moves in changes["verdicts"].values())
    (former,) = (read_record(folder) or {})["former_policies"]
    assert former["changes"] == changes
    assert repolicy(str(folder), wanted)["changes"] == changes, "the same command again says the same"


@pytest.mark.parametrize("stop", ["_commit", "copy_file", "write_report"])
def test_a_resumed_command_says_the_same_changes(
    tmp_path: Path, table: pa.Table, predictor: Predictor, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    wanted = _written(_policy_among(table), Location(str(tmp_path / "p.json")))
    whole = _finished_job(Location(str(tmp_path / "a")), table, predictor.model_id)
    changes = repolicy(str(whole), wanted)["changes"]
    folder = _finished_job(Location(str(tmp_path / "b")), table, predictor.model_id)
    with monkeypatch.context() as patch:
        patch.setattr(module, stop, _raise_stopped)
        with pytest.raises(_Stopped):
            repolicy(str(folder), wanted)
    assert repolicy(str(folder), wanted)["changes"] == changes


def test_the_same_thresholds_give_the_same_rows(tmp_path: Path, table: pa.Table, predictor: Predictor) -> None:
    folder = _finished_job(Location(str(tmp_path / "a")), table, predictor.model_id)
    repolicy(str(folder), _written(_policy_among(table), folder.parent / "p.json"))
    repolicy(str(folder), _written(BEFORE, folder.parent / "b.json"))
    assert _rows(folder / "results") == table.to_pylist()


def test_rows_of_the_first_version_get_a_policy_too(tmp_path: Path, table: pa.Table, predictor: Predictor) -> None:
    kept = table.filter(pc.is_null(table["text_escapes"]))
    old = _finished_job(
        Location(str(tmp_path / "a")),
        kept.drop_columns(["given_id", "text_escapes", "image_group", "caption_error"]),
        predictor.model_id,
    )
    new = _finished_job(Location(str(tmp_path / "b")), kept, predictor.model_id)
    for folder in (old, new):
        repolicy(str(folder), _written(_policy_among(table), folder.parent / "p.json"))
    assert _rows(old / "results") == _rows(new / "results")


def _with_familiarity(table: pa.Table, values: list[float | None]) -> pa.Table:
    """Return the rows with these familiarities, as if a model with a familiarity file had judged them all."""
    position = table.schema.get_field_index("familiarity")
    return table.set_column(position, RESULT_SCHEMA.field("familiarity"), pa.array(values, pa.float32()))


def test_a_policy_decides_whether_an_unfamiliar_pair_is_judged(
    tmp_path: Path, table: pa.Table, predictor: Predictor
) -> None:
    values = [None if row["status"] == "error" else 0.001 if row["row_id"] % 2 else 0.2 for row in table.to_pylist()]
    known = _with_familiarity(table, values)
    folder = _finished_job(Location(str(tmp_path / "a")), known, predictor.model_id)
    everything = _written(Policy(manipulated=0.01, review=0.01, word=0.01, unfamiliar=0), folder.parent / "p.json")
    for policy in (Policy(manipulated=0.49, review=0.49), Policy(unfamiliar=0.3)):
        strange = {n for n, value in enumerate(values) if value is not None and value < policy.unfamiliar}
        summary = repolicy(str(folder), _written(policy, folder.parent / "s.json"))
        rows = _rows(folder / "results")
        assert {row["row_id"] for row in rows if row["verdict"] == "unfamiliar"} == strange
        for row in (rows[number] for number in strange):
            assert (row["flagged_types"], row["box_px"], row["words"] or []) == ([], None, [])
            assert row["score"] == known["score"][row["row_id"]].as_py()
        assert summary["unfamiliar"] == summary["verdicts"]["unfamiliar"] == len(strange)
        assert (read_record(folder) or {})["counts"]["unfamiliar"] == len(strange)
        lines = [json.loads(line) for line in read_bytes(folder / "unfamiliar.jsonl").splitlines()]
        assert {line["row_id"] for line in lines} == strange
        assert strange.isdisjoint(
            json.loads(line)["row_id"] for line in read_bytes(folder / "flagged.jsonl").splitlines()
        )
        assert "Unfamiliar pairs" in Path((folder / "report/index.html").uri).read_text()

        assert repolicy(str(folder), everything)["unfamiliar"] == 0
        judged = _rows(folder / "results")
        plain = module.reapply_policy(known, Policy(manipulated=0.01, review=0.01, word=0.01, unfamiliar=0)).to_pylist()
        assert judged == plain
        assert any(judged[number]["words"] for number in strange)
        assert read_bytes(folder / "unfamiliar.jsonl") == b""


def test_rows_without_familiarity_keep_the_verdict_of_their_score(
    tmp_path: Path, table: pa.Table, predictor: Predictor
) -> None:
    names = ["familiarity", "familiarity_image", "familiarity_text", "familiarity_id"]
    folder = _finished_job(Location(str(tmp_path / "a")), table.drop_columns(names), predictor.model_id)
    summary = repolicy(str(folder), _written(Policy(unfamiliar=1.0), folder.parent / "p.json"))
    assert summary["unfamiliar"] == 0
    under = Policy()
    for row in _rows(folder / "results"):
        assert row["familiarity"] is None
        if row["status"] == "ok":
            assert row["verdict"] == under.verdict(row["score"])


def test_the_policy_that_the_job_has_changes_nothing(tmp_path: Path, table: pa.Table, predictor: Predictor) -> None:
    folder = _finished_job(Location(str(tmp_path / "a")), table, predictor.model_id)
    before = _tree(folder)
    summary = repolicy(str(folder), _written(BEFORE, folder.parent / "p.json"))
    assert (summary["policy_id"], summary["changes"]) == (BEFORE.policy_id, None)
    assert _tree(folder) == before


def test_record_and_report_say_how_the_thresholds_were_calibrated(
    tmp_path: Path, table: pa.Table, predictor: Predictor
) -> None:
    folder = _finished_job(Location(str(tmp_path / "a")), table, predictor.model_id)
    calibration = {"model_id": predictor.model_id, "target_precision": 0.9, "thresholds": {"word": {"value": 0.5}}}
    repolicy(str(folder), _written(Policy(calibration=calibration), folder.parent / "p.json"))
    assert (read_record(folder) or {})["policy"]["calibration"] == calibration
    page = Path((folder / "report/index.html").uri).read_text()
    assert "target precision: 0.9" in page
    assert "{" not in page.partition("were calibrated")[2].partition("</p>")[0]


@pytest.mark.slow
def test_a_repolicied_scan_equals_a_scan_under_the_policy(ray_here: None, corpus: Path, model_folder: Path) -> None:
    shutil.copytree(model_folder, corpus / "model")
    options = {"input": str(corpus / "a.jsonl"), "out": str(corpus / "out"), "model": str(corpus / "model")}
    former = scan(ScanSettings(**options))
    scores = sorted(row["score"] for row in _rows(Location(former["folder"]) / "results"))
    policy = Policy(manipulated=scores[2], review=scores[1], types=dict.fromkeys(TYPES, 0.48), word=0.49)
    wanted = _written(policy, Location(str(corpus / "p.json")))
    repolicied = repolicy(former["folder"], wanted)
    assert repolicied.pop("changes")["flagged"]["after"] == 3

    with pytest.raises(JobDiffers, match=f"policy_id was '{policy.policy_id}'"):
        scan(ScanSettings(**options))
    policy.save(corpus / "model/policy.json")
    assert scan(ScanSettings(**options)) == repolicied, "it is a finished scan under that policy"
    again = scan(ScanSettings(**options, job="again"))
    rows, former_rows = (_rows(Location(job["folder"]) / "results") for job in (again, former))
    assert [row | {"judged_run": None} for row in rows] == [row | {"judged_run": None} for row in former_rows]
    assert again["verdicts"] == repolicied["verdicts"] == {
        "manipulated": 2, "review": 1, "authentic": 1, "unfamiliar": 0,
    }  # fmt: skip


# Stops.

STEPS = ("_write_file", "write_bytes", "delete_file", "delete_folder", "copy_file", "write_outcome", "write_report")


class _Stopped(BaseException):
    """An exception that nothing catches, as nothing catches a kill."""


def _stop_at(monkeypatch: pytest.MonkeyPatch, number: int, *, done: bool) -> list[str]:
    """Make the code stop before or after the step of that number; return the list that records the steps."""
    steps: list[str] = []
    numbers = itertools.count(1)  # copies run in parallel, and each gets its own number

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **named: Any) -> Any:
            steps.append(name)
            is_the_one = next(numbers) == number
            if is_the_one and not done:
                raise _Stopped
            result = real(*args, **named)
            if is_the_one:
                raise _Stopped
            return result

        return step

    for name in STEPS:
        monkeypatch.setattr(module, name, wrap(name, getattr(module, name)))
    return steps


def _check_consistent(folder: Location, rows_by_policy: dict[str, list[dict[str, Any]]]) -> str:
    """Check that the record and the rows that it names belong together; return the id of their policy."""
    record = read_record(folder) or {}
    assert _rows(results_folder(folder, record)) == rows_by_policy[record["policy_id"]]
    if exists(folder / "_SUCCESS"):
        summary = json.loads(read_bytes(folder / "summary.json"))
        assert _rows(folder / "results") == rows_by_policy[summary["policy_id"]]
    policies = {row["policy_id"] for row in _rows(folder / "results")}
    assert len(policies) <= 1, "there are rows of two policies"
    return str(record["policy_id"])


@pytest.mark.slow
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_a_stop_anywhere_leaves_one_policy_and_the_same_command_finishes(
    tmp_path: Path, table: pa.Table, predictor: Predictor, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    policy = _policy_among(table)
    wanted = _written(policy, Location(str(tmp_path / "p.json")))
    rows = {
        BEFORE.policy_id: table.to_pylist(),
        policy.policy_id: module.reapply_policy(table, policy).to_pylist(),
    }
    seen = []
    for number in range(1, 100):
        folder = _finished_job(Location(str(tmp_path / f"job-{number}")), table, predictor.model_id)
        before = _tree(folder)
        with monkeypatch.context() as patch:
            _stop_at(patch, number, done=done)
            try:
                repolicy(str(folder), wanted)
            except _Stopped:
                seen.append(_check_consistent(folder, rows))
            else:
                break
        if seen[-1] == BEFORE.policy_id:
            after = {uri: data for uri, data in _tree(folder).items() if "/_repolicy/" not in uri}
            assert after == before, "the job is as it was"
        repolicy(str(folder), wanted)
        assert _check_consistent(folder, rows) == policy.policy_id
        assert exists(folder / "_SUCCESS")
        assert not any("_repolicy" in uri for uri in _tree(folder))
    assert {BEFORE.policy_id, policy.policy_id} == set(seen), "stops on both sides of the commit"
    assert len(seen) > 12


def test_a_job_that_was_stopped_between_two_policies_can_be_given_a_third(
    tmp_path: Path, table: pa.Table, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _finished_job(Location(str(tmp_path / "a")), table, predictor.model_id)
    wanted = _written(_policy_among(table), folder.parent / "p.json")
    with monkeypatch.context() as patch:
        patch.setattr(module, "copy_file", _raise_stopped)
        with pytest.raises(_Stopped):
            repolicy(str(folder), wanted)
    with pytest.raises(JobDiffers, match="is being given another policy"):
        check_resumable(folder, {})
    third = Policy(manipulated=0.9, review=0.1)
    repolicy(str(folder), _written(third, folder.parent / "third.json"))
    assert {row["policy_id"] for row in _rows(folder / "results")} == {third.policy_id}
    assert len((read_record(folder) or {})["former_policies"]) == 2


def _raise_stopped(*args: object, **named: object) -> None:
    raise _Stopped


_KILLED = f"""
import sys, time
from jobs.policy import repolicy as module
module.write_outcome = lambda *args: (print("here", flush=True), time.sleep({HANG_S}))
module.repolicy(sys.argv[1], sys.argv[2])
"""


@pytest.mark.chaos
def test_the_work_of_a_killed_process_is_taken_over(tmp_path: Path, table: pa.Table, predictor: Predictor) -> None:
    folder = _finished_job(Location(str(tmp_path / "a")), table, predictor.model_id)
    policy = _policy_among(table)
    wanted = _written(policy, folder.parent / "p.json")
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(folder), wanted], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGKILL)
    stages: list[str] = []
    repolicy(str(folder), wanted, lambda stage, done, total: stages.append(stage), stale_after_s=0.5)
    assert "not ended properly" in stages[0]
    assert {row["policy_id"] for row in _rows(folder / "results")} == {policy.policy_id}
    assert exists(folder / "_SUCCESS")


# Refusals.


def test_a_job_that_another_process_gives_a_policy_is_in_use(
    tmp_path: Path, table: pa.Table, predictor: Predictor
) -> None:
    folder = _finished_job(Location(str(tmp_path / "a")), table, predictor.model_id)
    wanted = _written(_policy_among(table), folder.parent / "p.json")
    with Job(folder / "_repolicy", {}, heartbeat_s=0.05), pytest.raises(JobInUse, match="is in use"):
        repolicy(str(folder), wanted, stale_after_s=HANG_S)
    assert _rows(folder / "results") == table.to_pylist()


@pytest.mark.parametrize("state", ["running", "failed", "cancelled"])
def test_an_unfinished_job_is_refused(tmp_path: Path, table: pa.Table, predictor: Predictor, state: str) -> None:
    folder = _finished_job(Location(str(tmp_path / "a")), table, predictor.model_id)
    delete_file(folder / "_SUCCESS")
    write_bytes(folder / "job.json", json.dumps((read_record(folder) or {}) | {"state": state}).encode())
    before = _tree(folder)
    with pytest.raises(JobError, match=f"not finished: its state is '{state}'"):
        repolicy(str(folder), _written(_policy_among(table), folder.parent / "p.json"))
    assert _tree(folder) == before


@pytest.mark.parametrize(
    ("content", "error", "reason"),
    [
        ("{", ConfigError, "cannot be used"),
        ('{"threshold": 0.5}', ConfigError, "cannot be used"),
        ('{"calibration": {"model_id": "other@1"}}', ConfigError, "calibrated on other@1, the job was scanned with"),
        ('{"calibration": "by eye"}', ConfigError, "policy calibration 'by eye'"),
        (None, StorageError, "p.json does not exist"),
    ],
)
def test_a_file_that_is_not_a_policy_for_the_job_is_refused(
    tmp_path: Path, table: pa.Table, predictor: Predictor, content: str | None, error: type[AsapError], reason: str
) -> None:
    folder = _finished_job(Location(str(tmp_path / "a")), table, predictor.model_id)
    if content is not None:
        (tmp_path / "p.json").write_text(content)
    before = _tree(folder)
    with pytest.raises(error, match=reason) as caught:
        repolicy(str(folder), str(tmp_path / "p.json"))
    assert "\n" not in str(caught.value)
    assert _tree(folder) == before


def test_a_folder_that_is_not_a_scan_is_refused(tmp_path: Path) -> None:
    wanted = _written(BEFORE, Location(str(tmp_path / "p.json")))
    with pytest.raises(StorageError, match="is not the folder of a job"):
        repolicy(str(tmp_path / "nowhere"), wanted)
    (tmp_path / "job.json").write_text('{"kind": "annotate", "state": "completed"}')
    with pytest.raises(JobError, match="is the folder of a 'annotate', not of a scan"):
        repolicy(str(tmp_path), wanted)


def test_a_file_with_other_columns_is_refused_and_the_job_is_unchanged(
    tmp_path: Path, table: pa.Table, predictor: Predictor
) -> None:
    folder = _finished_job(Location(str(tmp_path / "a")), table, predictor.model_id)
    wanted = _written(_policy_among(table), folder.parent / "p.json")
    sink = pa.BufferOutputStream()
    pq.write_table(table.drop_columns(["raw_box_px"]), sink)
    write_bytes(folder / "results/zz.parquet", sink.getvalue().to_pybytes())
    with pytest.raises(StorageError, match=r"zz\.parquet has no column raw_box_px"):
        repolicy(str(folder), wanted)
    sink = pa.BufferOutputStream()
    pq.write_table(table.append_column("later", pa.nulls(table.num_rows)), sink)
    write_bytes(folder / "results/zz.parquet", sink.getvalue().to_pybytes())
    with pytest.raises(StorageError, match=r"zz\.parquet has the column later of a later version"):
        repolicy(str(folder), wanted)
    assert exists(folder / "_SUCCESS")
    assert (read_record(folder) or {})["policy_id"] == BEFORE.policy_id
