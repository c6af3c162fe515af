"""The tables of the commands cut no number, no name and no address, however narrow the terminal is."""

import io
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console, RenderableType
from rich.table import Table

from asap.job_records.status import JobStatus
from asap.storage.location import Location
from jobs.cli.display import (
    PLAIN_TABLE,
    calibration_table,
    changes_table,
    evaluation_tables,
    named_values,
    plan_tables,
    print_tables,
    shortfall_table,
    summary_table,
)
from jobs.cli.fitting import Fitted
from jobs.cli.input_tables import look_tables
from jobs.cli.job_tables import error_tables, jobs_table, rows_table
from jobs.control.result_query import ErrorCounts
from jobs.scan.look import Group, Look

_PATH = "/mnt/shared/corpora/" + "/".join(f"folder-{number:04d}" for number in range(12)) + "/picture.jpg"
_NAME = "a-name-that-somebody-gave-to-a-pair-and-that-is-longer-than-a-line-of-eighty-characters-is-wide"
_LONG_TEXT = "The president of a country with a long name opened a bridge on Monday."


def _printed(tables: RenderableType, width: int) -> str:
    file = io.StringIO()
    print_tables(Console(file=file, width=width), tables)
    return file.getvalue()


def _point(value: float) -> dict[str, Any]:
    meaning = {"prevalence": 0.000123, "right_about": 0.012345}
    names = ("precision", "precision_lower", "recall")
    rates = dict.fromkeys(names, 0.987654321) | {"false_positive_rate": 1.23e-05, "false_positive_rate_upper": 9.87e-05}
    return rates | {"value": value, "score_meaning": meaning, "band": None}


def _calibration() -> tuple[RenderableType, list[str]]:
    points = {name: _point(0.123456 + n / 10) for n, name in enumerate(("manipulated", "face_attribute", "word"))}
    return calibration_table(points), [
        "0.123456", "0.223456", "0.323456", "0.988", "1.2e-05", "9.9e-05", "0.012", "face attribute",
    ]  # fmt: skip


def _shortfall() -> tuple[RenderableType, list[str]]:
    one = {"threshold": "text_attribute", "target": 0.9995, "shown": 0.0123, "authentic": 1_234_567}
    one |= {"positive": 7_654_321, "authentic_needed": 12_345_678, "positive_needed": 87_654_321}
    none = one | {"threshold": "word", "shown": None, "authentic_needed": None, "positive_needed": None}
    return shortfall_table([one, none]), [
        "0.9995", "0.0123", "1,234,567", "7,654,321", "12,345,678", "87,654,321",
    ]  # fmt: skip


def _summary() -> tuple[RenderableType, list[str]]:
    counts = {"pairs": 1_234_567_890, "flagged": 234_567_891, "unfamiliar": 345_678_912, "errors": 456_789_123}
    summary = {"job_id": _NAME, "pairs_per_s": 12_345.6, **counts}
    return summary_table(summary), [*(f"{count:,}" for count in counts.values()), "12,345.6"]


def _changes() -> tuple[RenderableType, list[str]]:
    moves = {"before": 1_234_567_890, "after": 1_234_567_898, "added": 23_456_789, "removed": 23_456_781}
    verdicts = dict.fromkeys(("manipulated", "review", "authentic", "unfamiliar"), moves)
    changes = {"flagged": moves, "verdicts": verdicts, "types": {"face_attribute": moves}}
    return changes_table(changes), [*(f"{count:,}" for count in moves.values()), "unfamiliar", "face attribute"]


def _jobs() -> tuple[RenderableType, list[str]]:
    counts = {"done": 1_234_567_890, "total": 2_345_678_901, "errors": 345_678_912}
    now = datetime.now(UTC)
    jobs = [
        JobStatus(
            folder=Location(f"/out/{_NAME}"), kind="scan", state=state, counts=counts, error=error, heartbeat=now,
            age_s=1,
        )
        for state, error in (("completed", None), ("failed", _LONG_TEXT))
    ]  # fmt: skip
    return jobs_table(jobs), [_NAME, "1,234,567,890", "2,345,678,901", "345,678,912", "completed"]


def _errors() -> tuple[RenderableType, list[str]]:
    counts = ErrorCounts(rows_read=9, codes=Counter({"unsupported_format": 1_234_567, "not_found": 234_567_891}))
    counts.retryable = Counter({"not_found": 34_567_891})
    detail = "11,234,567 bytes, the limit is 10,234,567; it was not read"
    counts.first = [
        {"custom_id": _NAME, "image_uri": _PATH, "error_code": "unsupported_format", "error_detail": detail}
    ]
    return error_tables(counts), [
        "1,234,567", "234,567,891", "34,567,891", _NAME, _PATH, "unsupported_format", "11,234,567", "10,234,567",
    ]  # fmt: skip


def _rows() -> tuple[RenderableType, list[str]]:
    row = {
        "custom_id": _NAME,
        "verdict": "manipulated",
        "score": 0.98765,
        "row_id": 18_446_744_073_709,
        "text": "one two",
    }
    columns = ("custom_id", "verdict", "score", "row_id", "text")
    return rows_table(columns, [row]), [_NAME, "manipulated", "0.9877", "18446744073709"]


def _look() -> tuple[RenderableType, list[str]]:
    look = Look({"files": 1_234_567, "address": _PATH, "columns": ["image", "text"]}, rows=1_234_567_890)
    look.first = [{"id": _NAME, "image": _PATH, "text": "one two three"}]
    look.invalid = {"row_invalid": Group("row 7 has 1,234 cells", 3_456_789, [2**32 + 1_234_567])}
    look.sampled, look.widths, look.heights = 12_345, [12_345, 23_456], [34_567, 45_678]
    return look_tables(look), [
        "1,234,567", "1,234,567,890", _NAME, _PATH, "3,456,789", "12,345 of 12,345", "12,345 to 23,456 pixels",
    ]  # fmt: skip


def _evaluation() -> tuple[RenderableType, list[str]]:
    from tests.asap.evaluation.test_table import report

    made = report("orig", "face_swap", "text_swap", "face_attribute&text_attribute")
    tables = evaluation_tables({"about": {"model_id": "asap-demo@0123456789ab", "split": "val"}, **made})
    return tables, ["asap-demo@0123456789ab", "face_attribute&text_attribute", "AUC 100.00", "IoUmean"]


def _evaluation_with_intervals() -> tuple[RenderableType, list[str]]:
    from tests.asap.evaluation.test_table import report

    made = report("orig", "face_swap", "text_swap", "face_attribute&text_attribute")
    limits = {name: [0.1234, 0.9876] for name in ("AUC", "EER", "ACC", "token_precision", "IoU_mean")}
    by_type = {name: [limits["AUC"]] * 4 for name in ("AP", "AP_elsewhere")}
    about = {"confidence": 0.95, "resamples": 1_000, "seed": 0, "method": "percentiles", "items": 3_456}
    made |= {"AP_elsewhere": made["AP"], "intervals": about | {"figures": limits | by_type}}
    tables = evaluation_tables({"about": {"model_id": "asap-demo@0123456789ab", "split": "val"}, **made})
    return tables, ["AUC 100.00", "IoUmean", "1,000", "3,456"]


def _plan() -> tuple[RenderableType, list[str]]:
    from asap.training.objective import LossWeights
    from jobs.train.plan import Plan
    from jobs.train.speed import GpuSpeed
    from jobs.train.stages import Stage

    weights = dict.fromkeys(LossWeights.__dataclass_fields__, 0.125)
    plan = Plan(
        pairs={split: {"face_attribute&text_attribute": 123_456_789, "orig": 1} for split in ("train", "val", "test")},
        described={split: {"caption": 123_456_789, "explanation": 7} for split in ("train", "val", "test")},
        steps=12_345_678, epochs=123.45, left_out_an_epoch=12_345,
        batch={"pairs of a step": 1_024, "workers": 128, "pairs of a worker": 8},
        stages=[Stage(0, 12_345_678, weights, True)], rates={"text": 1e-3}, parameters={"image_encoder": 123_456_789},
        memory={"activations of a micro batch": 123 * 2**30}, memory_note="Activations were counted.",
        fit=None, workers_note="all 8 GPUs of this machine", cpus={"decoding": 123.0},
        hours="1,234.5 (987.6 to 2,345.6)", flops_a_pair=1.23e12, precision="bfloat16",
        speeds=[
            GpuSpeed(
                "H200 SXM 141 GB", 12_345.6, 10_000.0, 14_000.0, 0.43, 123.4,
                "decoding the pictures on the CPUs of the machine",
            )
        ],
        checkpoint_bytes=2**32, checkpoints_written=20, checkpoint_every_s=900, checkpoints_kept=2,
        cache_bytes=77 * 2**30, init=(_PATH,), out=_PATH,
    )  # fmt: skip
    return plan_tables(plan), [
        "123,456,789", "123,456,790", "12,345,678", "1,024", "123.0 GiB", "77.0 GiB", "1,234.5", "2,345.6",
        "12,346", "123.4", "43%", _PATH,
        "face_attribute&text_attribute", "4.0 GiB",
    ]  # fmt: skip


def _named() -> tuple[RenderableType, list[str]]:
    return named_values("writes", {"run folder": _PATH, "checkpoints": "1,234,567 written"}), [_PATH, "1,234,567"]


@pytest.mark.parametrize("width", [120, 80, 60, 40])
@pytest.mark.parametrize(
    "table",
    [
        _calibration, _shortfall, _summary, _changes, _jobs, _errors, _rows, _look, _evaluation,
        _evaluation_with_intervals, _plan, _named,
    ],
)  # fmt: skip
def test_a_table_keeps_every_number_and_address_whole(
    table: Callable[[], tuple[RenderableType, list[str]]], width: int
) -> None:
    tables, whole = table()
    out = _printed(tables, width)
    assert "…" not in out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for text in whole:
        assert any(re.search(rf"(?<![\w.,/-]){re.escape(text)}(?![\w/-])", line) for line in lines), text
    # A line that is wider holds something to copy, which the terminal wraps.
    wide = [line for line in out.splitlines() if len(line.rstrip()) > width]
    assert all(_PATH in line or _NAME in line or len(line.split()) < 8 for line in wide)


def test_figures_with_intervals_stay_a_table_on_80_columns() -> None:
    lines = [" ".join(line.split()) for line in _printed(_evaluation_with_intervals()[0], 80).splitlines()]
    limits = "12.34 to 98.76"
    for row, below in (
        ("real/fake AUC 100.00 EER 0.00 ACC 100.00", f"{limits} {limits} {limits}"),
        ("words corrected precision 100.00 recall 100.00 F1 100.00", f"alignment {limits} – –"),
        ("texts another pair's AP swap 100.00 AP attribute 100.00", f"picture {limits} {limits}"),
    ):
        assert lines[lines.index(row) + 1] == below


def test_a_table_that_fits_stays_a_table_and_one_that_does_not_becomes_lines() -> None:
    def table() -> Fitted:
        made = Table(title="counts", **PLAIN_TABLE)
        made.add_column("name")
        made.add_column("pairs", justify="right")
        made.add_row("a b c", "1,234,567")
        made.add_row("d", "")
        return Fitted(made)

    assert [line.rstrip() for line in _printed(table(), 20).splitlines()] == [
        "counts", "name       pairs", "────────────────", "a b c  1,234,567", "d",
    ]  # fmt: skip
    assert [line.rstrip() for line in _printed(table(), 15).splitlines()][3:] == ["a b   1,234,567", "c", "d"]
    assert [line.rstrip() for line in _printed(table(), 9).splitlines()] == [
        "counts", "name   a", "b c", "pairs", "1,234,567", "", "name   d", "",
    ]  # fmt: skip
