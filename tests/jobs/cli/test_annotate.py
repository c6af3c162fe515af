"""`asap annotate` as a person uses it; the work itself is replaced."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.annotate.preview import Pilot, Preview
from jobs.scan.passes import ScanProgress

_COUNTS = {"described": 1234, "new": 1000, "repeated": 234, "cut": 5, "failed": 2, "input_tokens": 99_000,
           "output_tokens": 7_000, "entries": 1200, "left_out": 3, "cost": 1.5}  # fmt: skip
_SUMMARY: dict[str, Any] = {
    "job_id": "out", "pairs": 1236, "errors": 2, "error_codes": {"refusal": 2}, "captions": _COUNTS,
    "folder": "/out", "errors_file": "/out/errors.jsonl", "files": {"captions": "/out/captions.json"},
}  # fmt: skip
_COMMAND = ("annotate", "corpus", "--out", "/out", "--caption-engine", "openai", "--captioner", "m",
            "--set", 'captions={"endpoint": {"address": "http://host/v1"}}')  # fmt: skip


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replace the work, and return the list that gets its settings."""
    settings_seen: list[Any] = []

    def pretend(settings: Any, watch: Any) -> dict[str, Any]:
        settings_seen.append(settings)
        watch(ScanProgress("describing", 5, 10, 1, None, 33.0))
        return _SUMMARY

    monkeypatch.setattr("jobs.annotate.run.annotate", pretend)
    return settings_seen


def test_the_options_and_further_settings_of_an_engine_are_joined(run: Any, seen: list[Any]) -> None:
    code, out, _ = run(
        *_COMMAND, "--explanation-engine", "transformers", "--explainer", "/m", "--annotators", 2, "--limit", 7,
        "--set", 'explanations={"max_new_tokens": 9}', "--retry-errors", "retryable",
    )  # fmt: skip
    assert code == 0
    settings = seen[0]
    assert (settings.captions.source, settings.captions.endpoint.address) == ("m", "http://host/v1")
    assert (settings.explanations.kind, settings.explanations.max_new_tokens) == ("explanation", 9)
    assert (settings.annotators, settings.limit, settings.retry_errors) == (2, 7, ("retryable",))
    assert out.splitlines()[0] == "describing  5/10 pairs  33 pairs/s  1 errors"


def test_the_summary_is_a_table_with_errors_cost_files_and_how_training_reads_them(run: Any, seen: list[Any]) -> None:
    out = run(*_COMMAND)[1]
    assert all(words in out for words in ("1,236 pairs", "1,234", "99,000", "output tokens"))
    assert "errors: 2 refusal; see /out/errors.jsonl" in out
    assert "cost: captions 1.5" in out
    assert "captions: /out/captions.json (3 rows are only in annotations/, because others share their id)" in out
    assert """to train on them: asap train CORPUS --set 'captions=["/out"]'""" in out


def test_errors_beyond_the_allowed_share_have_an_exit_code_of_their_own(run: Any, seen: list[Any]) -> None:
    code, _, err = run(*_COMMAND, "--max-error-rate", 0.001)
    assert code == 3
    assert "2 of 1,236 pairs failed, more than --max-error-rate allows (0.001). See /out/errors.jsonl." in err


def test_a_job_whose_pairs_all_fail_is_a_failure(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.annotate.run.annotate", lambda *_: _SUMMARY | {"errors": 1236})
    code, _, err = run(*_COMMAND)
    assert code == 1
    assert "all 1236 pairs failed. See /out/errors.jsonl." in err


def test_a_plan_is_shown_and_nothing_is_run(run: Any, seen: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pilot = Pilot(12, 1, (100, 90, 110), (7, 6, 8), (3.5, 3, 4.25), (1.5, 1.25, 1.75), "a crowd")
    found = Preview({}, 1236, {"caption": 1000}, {"caption": 4}, {"caption": pilot})
    monkeypatch.setattr("jobs.annotate.preview.preview", lambda _: found)
    code, out, _ = run(*_COMMAND, "--plan")
    assert code == 0
    assert seen == []
    for words in ("1,236", "1,000; 4 rows have none", "100 (90 to 110)", "3.5 (3 to 4.25)", "1.5 (1.25 to 1.75)",
                  "1 of 12", "a crowd", "12 pictures"):  # fmt: skip
        assert words in out
