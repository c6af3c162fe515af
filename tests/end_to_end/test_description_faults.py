"""Captions and explanations under faults, in each job that writes them: a fault costs its own row, and the job is done.

The endpoint is a real server that misbehaves, the models are real models of a few weights.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from asap.errors import ConfigError
from jobs.errors import JobDiffers, JobFailed
from jobs.scan.passes import ScanProgress
from tests.support.deadly import (
    DEADLY,
    DEADLY_ROW,
    HUNGRY,
    DeadlyExplainer,
    FailingAnnotator,
    FailingCaptioner,
    ReplacedCaptioner,
    stages_replaced,
)
from tests.support.description_jobs import EACH_JOB, FIRST_WIDTH, Caption, JobKind, flagging, run_job, write_pairs
from tests.support.endpoint import (
    Answer,
    Handler,
    completion,
    cut,
    drip,
    endpoint,
    hang,
    hang_up,
    refuse,
    respond,
    write,
)
from tests.support.tiny_captioners import WORDS, change_weights, save_encoder_decoder
from tests.support.waiting import HANG_S

KEY = "sk-secret-0123456789"
GOOD = "a crowd in the street"
TIMEOUT_S = 20.0
"""Bound of one try. It ends the answers that never come; the others take milliseconds."""


def _captions(address: str, **changes: Any) -> dict[str, Any]:
    way = {"address": address, "key_env": None, "timeout_s": TIMEOUT_S, "deadline_s": TIMEOUT_S, "retries": 3}
    return {"engine": "openai", "source": "tiny", "endpoint": way | changes}


def _row_of(body: dict[str, Any]) -> int | None:
    """Return the row whose picture a request has; None for the gray picture."""
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    width = Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))).width
    return width - FIRST_WIDTH if FIRST_WIDTH <= width < 200 else None


FAULTS: dict[int, tuple[Answer, Caption]] = {
    1: (hang, Caption(None, "timeout", True)),
    2: (drip, Caption(None, "timeout", True)),
    3: (respond(200, "<html>Log in</html>", "text/html"), Caption(None, "bad_answer", True)),
    4: (respond(200, '{"choices": [{"mess'), Caption(None, "bad_answer", True)),
    5: (cut, Caption(None, "unreachable", True)),
    6: (hang_up, Caption(None, "unreachable", True)),
    7: (respond(500, "oops", "text/plain"), Caption(None, "server_error", True)),
    8: (refuse, Caption(None, "refusal", False)),
    9: (write("<|im_end|></s>"), Caption(None, "special_tokens", False)),
    10: (respond(401, "{}"), Caption(None, "not_allowed", False)),
    12: (refuse, Caption(None, "refusal", False)),
}
"""By row: the answer of the endpoint, and the caption that comes of it. Rows 12 and 13 have no text."""
STORM, ROWS = 11, 14


class _Endpoint:
    """An endpoint with the faults, and a storm of 429 for one row. It is healed by `is_healed`."""

    def __init__(self) -> None:
        self.asked: Counter[int | None] = Counter()
        self.is_healed = False

    def __call__(self, handler: Handler, body: dict[str, Any]) -> None:
        row = _row_of(body)
        with handler.server.lock:
            self.asked[row] += 1
            storms = row == STORM and self.asked[row] <= 3
        if storms:
            handler.send(429, json.dumps({"error": {"message": "Slow down."}}), Retry_After="0.2")
        elif row in FAULTS and not self.is_healed:
            FAULTS[row][0](handler, body)
        else:
            handler.send(200, json.dumps(completion(GOOD)))


@pytest.mark.slow
@EACH_JOB
def test_every_fault_of_an_endpoint_costs_its_own_caption_and_another_try_gets_those_that_may_succeed(
    ray_here: None, tmp_path: Path, model_folder: Path, job: JobKind
) -> None:
    write_pairs(tmp_path, ROWS, textless=(12, 13))
    model, answer = flagging(model_folder, tmp_path), _Endpoint()
    with endpoint(answer) as (address, _):
        summary, rows, captions = run_job(job, tmp_path, model, _captions(address))
        answer.is_healed, before = True, Counter(answer.asked)
        again, rows_again, healed = run_job(job, tmp_path, model, _captions(address), retry_errors=("retryable",))
    assert captions == {row: FAULTS[row][1] if row in FAULTS else Caption(GOOD) for row in range(ROWS)}
    assert before[STORM] == 4
    assert summary["pairs"] == again["pairs"] == ROWS
    final = {row for row, (_, caption) in FAULTS.items() if not caption.retryable}
    assert healed == {row: FAULTS[row][1] if row in final else Caption(GOOD) for row in range(ROWS)}
    asked = answer.asked - before
    assert set(asked) == {None} | (set(FAULTS) - final), "only what failed and may succeed is asked for again"
    if job == "annotate":
        assert (summary["errors"], again["errors"]) == (len(FAULTS), len(final))
        assert {row for row in rows if rows[row]["status"] == "error"} == set(FAULTS)
    else:
        # A pair with a text has its verdict in any case; row 12 has neither a text nor a caption.
        assert (summary["errors"], again["errors"]) == (1, 1)
        assert {row for row in rows if rows[row]["verdict"] is None} == {12}
        assert rows[12]["error_code"] == rows_again[12]["error_code"] == "caption_failed"


@pytest.fixture
def deadly_explainer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replace the stages of annotations by `DeadlyExplainer`."""
    with stages_replaced(monkeypatch, annotate=DeadlyExplainer):
        yield


TEXT_FAULTS = {row: FAULTS[row] for row in (3, 4, 7, 8, 9, 10)}
"""The faults that explanations meet too, by row, beside a storm and `DEADLY_ROW`. Answers that never come are left
out: the tries of rows that share a process with a deadly one would wait for them again and again."""


class _TextEndpoint:
    """An endpoint that captions each picture, and has faults for texts. It is healed by `is_healed`."""

    def __init__(self) -> None:
        self.asked: Counter[int | None] = Counter()
        self.is_healed = False

    def __call__(self, handler: Handler, body: dict[str, Any]) -> None:
        content = body["messages"][0]["content"]
        if not isinstance(content, str):
            handler.send(200, json.dumps(completion(GOOD)))
            return
        # The published prompt ends with the text in quotes, which ends with its row. The text of the trial does not.
        found = re.search(r" (\d+)\"$", content)
        row = int(found[1]) if found else None
        with handler.server.lock:
            self.asked[row] += 1
            storms = row == STORM and self.asked[row] <= 3
        if storms:
            handler.send(429, json.dumps({"error": {"message": "Slow down."}}), Retry_After="0.2")
        elif row in TEXT_FAULTS and not self.is_healed:
            TEXT_FAULTS[row][0](handler, body)
        else:
            handler.send(200, json.dumps(completion(f"explained {row}")))


@pytest.mark.chaos
@pytest.mark.slow
def test_every_fault_costs_its_own_explanation_and_no_caption_and_another_try_gets_those_that_may_succeed(
    ray_here: None, deadly_explainer: None, tmp_path: Path
) -> None:
    textless = 12
    write_pairs(tmp_path, textless + 1, textless=(textless,))
    answer = _TextEndpoint()
    with endpoint(answer) as (address, _):
        captions = _captions(address)
        changes = {"explanations": captions | {"kind": "explanation"}}
        summary, rows, captioned = run_job("annotate", tmp_path, "", captions, **changes)
        answer.is_healed, before = True, Counter(answer.asked)
        again, rows_again, _ = run_job("annotate", tmp_path, "", captions, retry_errors=("retryable",), **changes)

    good = {row: Caption(f"explained {row}") for row in range(textless)}
    never = {DEADLY_ROW: Caption(None, "process_died", False), textless: Caption(None, "text_missing", False)}
    failed = {row: caption for row, (_, caption) in TEXT_FAULTS.items()}
    final = {row: caption for row, caption in failed.items() if not caption.retryable} | never
    assert _explanations(rows) == good | failed | never
    assert _explanations(rows_again) == good | final
    # The caption of each row stays, whatever becomes of its explanation.
    assert {row: caption.text for row, caption in captioned.items()} == dict.fromkeys(range(textless + 1), GOOD)
    assert all(row["caption_error"] is None and row["caption"] == GOOD for row in rows_again.values())
    assert (summary["pairs"], summary["errors"], again["errors"]) == (textless + 1, len(failed | never), len(final))
    assert before[STORM] >= 4
    asked = answer.asked - before
    assert set(asked) == {None} | (set(failed) - set(final)), "only what failed and may succeed is asked for again"
    written = json.loads((tmp_path / "annotate/explanations.json").read_text())
    assert written == {str(row): f"explained {row}" for row in range(textless) if row not in final}


def _explanations(rows: dict[int, dict[str, Any]]) -> dict[int, Caption]:
    """Return the explanation of each row, or its failure, in the form of `Caption`."""
    return {
        row_id: Caption(row["explanation"], row["explanation_error"], row["retryable"])
        for row_id, row in sorted(rows.items())
    }


def test_a_wrong_key_of_the_explainer_is_found_before_a_job_folder_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(tmp_path, 2)
    monkeypatch.setenv("TEST_ENDPOINT_KEY", KEY)
    wrong = respond(401, json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}))
    with endpoint(wrong) as (address, seen):
        explanations = _captions(address, key_env="TEST_ENDPOINT_KEY") | {"kind": "explanation"}
        with pytest.raises(ConfigError, match=r"HTTP 401: Incorrect API key provided: \*\*\*") as caught:
            run_job("annotate", tmp_path, "", None, explanations=explanations)
    assert seen.keys == [f"Bearer {KEY}"], "one trial, and no other request"
    assert "Check the key in the environment variable TEST_ENDPOINT_KEY" in str(caught.value)
    assert KEY not in str(caught.value)
    assert not _files_with(KEY, tmp_path)
    assert not (tmp_path / "annotate").exists()


def _files_with(secret: str, *folders: Path) -> list[Path]:
    """Return the files below some folders that hold a secret."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if secret.encode() in path.read_bytes()]


@pytest.mark.slow
@EACH_JOB
def test_an_endpoint_that_goes_down_after_its_trial_loses_no_row(
    ray_here: None, tmp_path: Path, model_folder: Path, job: JobKind
) -> None:
    write_pairs(tmp_path, 4)
    down = {row: Caption(None, "unreachable", True) for row in range(4)}
    explanations = {"engine": "openai", "source": "tiny", "kind": "explanation"}
    with ExitStack() as first, endpoint(write("it is so")) as (other, _):
        address, _ = first.enter_context(endpoint(write(GOOD)))

        def go_down(progress: ScanProgress) -> None:
            if progress.stage == "writing the manifest":
                first.close()

        # The texts of a job of annotations are explained by another endpoint, which stays.
        changes = {"explanations": _captions(other) | explanations} if job == "annotate" else {}
        summary, rows, captions = run_job(
            job, tmp_path, flagging(model_folder, tmp_path), _captions(address, retries=1), go_down, **changes
        )
    assert captions == down
    if job == "annotate":
        assert [rows[row]["explanation"] for row in range(4)] == ["it is so"] * 4
        assert json.loads((tmp_path / "annotate/explanations.json").read_text()) == {
            str(row): "it is so" for row in rows
        }
        assert summary["errors"] == 4
    else:
        assert {row["verdict"] for row in rows.values()} == {"manipulated"}
        assert summary["errors"] == 0


@pytest.fixture
def failing_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replace the stages of both jobs by those of `tests.support.deadly`."""
    with stages_replaced(monkeypatch, scan=FailingCaptioner, annotate=FailingAnnotator):
        yield


@pytest.mark.chaos
@pytest.mark.slow
@EACH_JOB
def test_a_picture_that_kills_its_process_and_one_that_takes_all_memory_cost_only_their_captions(
    ray_here: None, failing_models: None, tmp_path: Path, model_folder: Path, job: JobKind
) -> None:
    write_pairs(tmp_path, 8)
    source = save_encoder_decoder(tmp_path / "captioner")
    captions_of = {"engine": "transformers", "source": source, "max_new_tokens": 4, "batch_size": 2}
    explanations = {str(row): f"explanation {row}" for row in range(8)}
    (tmp_path / "explanations.json").write_text(json.dumps(explanations))
    explained = {"engine": "precomputed", "source": str(tmp_path / "explanations.json")}
    changes = {"explanations": explained} if job == "annotate" else {}
    summary, rows, captions = run_job(job, tmp_path, flagging(model_folder, tmp_path), captions_of, **changes)
    assert Path(f"{source}.died").exists()
    hungry, deadly = HUNGRY - FIRST_WIDTH, DEADLY - FIRST_WIDTH
    assert set(rows) == set(range(8))
    for row in set(rows) - {hungry, deadly}:
        text = captions[row].text
        assert text is not None
        assert set(text.split()) <= set(WORDS)
    assert captions[hungry] == Caption(None, "out_of_memory", False)
    assert captions[deadly] == Caption(None, "process_died", False)
    if job == "annotate":
        assert {str(row): rows[row]["explanation"] for row in rows} == explanations
        assert (rows[deadly]["error_code"], summary["errors"]) == ("process_died", 2)
        assert "caption: the process died each time" in rows[deadly]["error_detail"]
    else:
        assert {row["verdict"] for row in rows.values()} == {"manipulated"}
        assert "died each time" in rows[deadly]["caption_error"]["detail"]
        assert summary["errors"] == 0


@pytest.mark.slow
@EACH_JOB
@pytest.mark.parametrize("fault", ["no captioner", "only special tokens"])
def test_a_model_that_cannot_caption_is_found_before_a_job_folder_is_written(
    tmp_path: Path, model_folder: Path, job: JobKind, fault: str
) -> None:
    write_pairs(tmp_path, 2)
    source = tmp_path / "captioner"
    if fault == "no captioner":
        source.mkdir()
        (source / "config.json").write_text('{"model_type": "bert"}')
        sentence = r"type bert\) cannot write captions\. Give an image-text-to-text model"
    else:
        save_encoder_decoder(source, words_only=False)
        sentence = "the model wrote only special tokens. Give another prompt, or another model"
    captions_of = {"engine": "transformers", "source": str(source), "max_new_tokens": 4}
    with pytest.raises(ConfigError, match=sentence) as caught:
        run_job(job, tmp_path, str(model_folder), captions_of)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "annotate").exists()
    assert not (tmp_path / f"scan-{job}").exists()


# With the command line, and a Ray of its own: whose processes have the key in their environment.


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Set a folder for the files of Ray, with a path short enough for its sockets."""
    folder = Path(tempfile.mkdtemp(prefix="r"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    monkeypatch.setenv("TEST_ENDPOINT_KEY", KEY)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _asap(job: JobKind, folder: Path, model: str, address: str, *more: object) -> subprocess.CompletedProcess[str]:
    way = {"address": address, "key_env": "TEST_ENDPOINT_KEY", "timeout_s": HANG_S, "deadline_s": HANG_S}
    words: list[object] = ["scan", "--job", f"scan-{job}", "--out", folder, "--model", model, "--captions", job]
    if job == "annotate":
        words = ["annotate", "--out", folder / "annotate"]
    words += [folder / "pairs.jsonl", "--caption-engine", "openai", "--captioner", "tiny", "--device", "cpu",
              "--log-file", folder / "log.jsonl", "--set", f"captions={json.dumps({'endpoint': way})}",
              *more]  # fmt: skip
    code = "from jobs.cli.app import main\nmain()\n"
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False, env=dict(os.environ))


@pytest.mark.slow
@EACH_JOB
def test_a_wrong_key_ends_the_command_before_work_and_is_nowhere_to_be_read(
    tmp_path: Path, model_folder: Path, ray_folder: Path, job: JobKind
) -> None:
    write_pairs(tmp_path, 2)
    wrong = respond(401, json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}))
    with endpoint(wrong) as (address, seen):
        done = _asap(job, tmp_path, str(model_folder), address)
    assert seen.keys == [f"Bearer {KEY}"], "one trial, and no other request"
    assert done.returncode == 1
    said = " ".join((done.stderr + done.stdout).split())
    assert "HTTP 401: Incorrect API key provided: ***" in said
    assert "Check the key in the environment variable TEST_ENDPOINT_KEY" in said
    assert KEY not in said
    assert not _files_with(KEY, tmp_path, ray_folder)
    assert not (tmp_path / "annotate").exists()
    assert not (tmp_path / f"scan-{job}").exists()


@pytest.mark.slow
@EACH_JOB
def test_a_key_that_ends_in_the_middle_costs_rows_below_the_allowed_rate_and_is_nowhere_to_be_read(
    tmp_path: Path, model_folder: Path, ray_folder: Path, job: JobKind
) -> None:
    write_pairs(tmp_path, 4, textless=(3,))

    def end_the_key(handler: Handler, body: dict[str, Any]) -> None:
        row = _row_of(body)
        if row == 3:
            handler.send(401, json.dumps({"error": {"message": f"Expired: {KEY}"}}))
        else:
            handler.send(200, json.dumps(completion(f"{GOOD} {KEY}" if row == 0 else GOOD)))

    with endpoint(end_the_key) as (address, seen):
        done = _asap(job, tmp_path, str(model_folder), address, "--max-error-rate", 0.5)
        assert done.returncode == 0, done.stderr
        fewer = _asap(job, tmp_path, str(model_folder), address, "--max-error-rate", 0.1)
    assert fewer.returncode == 3
    assert set(seen.keys) == {f"Bearer {KEY}"}
    assert "1 of 4 pairs failed, more than --max-error-rate allows (0.1)" in " ".join(fewer.stderr.split())
    for output in (done.stdout, done.stderr, fewer.stdout, fewer.stderr):
        assert KEY not in output
    assert not _files_with(KEY, tmp_path, ray_folder)
    errors = tmp_path / ("annotate" if job == "annotate" else f"scan-{job}") / "errors.jsonl"
    assert "HTTP 401: Expired: ***" in errors.read_text()


@pytest.mark.slow
@EACH_JOB
def test_a_captioner_that_is_replaced_during_a_job_fails_it_and_no_row_gets_a_caption_of_another_model(
    ray_here: None, tmp_path: Path, model_folder: Path, job: JobKind
) -> None:
    write_pairs(tmp_path, 4)
    folder, kept = tmp_path / "captioner", tmp_path / "kept"
    captions = {"engine": "transformers", "source": save_encoder_decoder(folder), "max_new_tokens": 4}
    shutil.copytree(folder, kept)
    model = flagging(model_folder, tmp_path)

    def replace_after_its_trial(progress: ScanProgress) -> None:
        if progress.stage == "starting Ray":
            change_weights(folder)

    sentence = rf"the work stopped: .*the captioner {folder} has changed, or differs on the machine"
    with pytest.raises(JobFailed, match=sentence):
        run_job(job, tmp_path, model, captions, replace_after_its_trial)
    written = [
        row
        for part in ("annotations", "results", "_captions/results")
        for file in tmp_path.glob(f"*/{part}/*.parquet")
        for row in pq.read_table(file).to_pylist()
    ]
    assert all(row["caption"] is None for row in written)
    assert len(written) == (4 if job == "flagged" else 0)

    with pytest.raises(JobDiffers, match="belongs to another job"):
        run_job(job, tmp_path, model, captions)
    shutil.copy2(kept / "model.safetensors", folder / "model.safetensors")
    _, rows, found = run_job(job, tmp_path, model, captions)
    assert len(rows) == 4
    assert all(caption.text for caption in found.values())


@pytest.mark.slow
def test_a_captioner_whose_process_is_started_again_after_the_model_was_replaced_fails_the_job(
    ray_here: None, failing_models: None, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(tmp_path, 4)
    captions = {"engine": "transformers", "source": save_encoder_decoder(tmp_path / "captioner"), "max_new_tokens": 4}
    monkeypatch.setattr("jobs.scan.pipeline.DescriptionStage", ReplacedCaptioner)
    with pytest.raises(JobFailed, match="has changed, or differs on the machine"):
        run_job("all", tmp_path, str(model_folder), captions)
    assert not list(tmp_path.glob("*/results/*.parquet"))
