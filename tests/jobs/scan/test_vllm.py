"""Scans whose captions and explanations come through the stages of vLLM, with another model behind them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.scan.run import scan
from jobs.scan.settings import ScanSettings
from tests.support.description_jobs import FIRST_WIDTH, flagging, write_pairs
from tests.support.fake_vllm import SETTINGS, fake_vllm

ROWS, BROKEN, TEXTLESS = 7, 1, 4


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], list[str]]]:
    with fake_vllm(monkeypatch, tmp_path) as asked:
        yield asked


@pytest.mark.slow
@pytest.mark.parametrize("pairs", ["all", "flagged"])
def test_the_stages_caption_and_explain_each_pair_once_and_the_detector_judges_it(
    ray_here: None, tmp_path: Path, model_folder: Path, asked: Callable[[], list[str]], pairs: str
) -> None:
    write_pairs(tmp_path, ROWS, textless=(TEXTLESS,))
    (tmp_path / f"{BROKEN}.jpg").write_bytes(b"\xff\xd8 broken")
    settings = ScanSettings(
        input=str(tmp_path / "pairs.jsonl"), out=str(tmp_path / "out"), model=flagging(model_folder, tmp_path),
        batch_size=2, captions=SETTINGS, explanations=SETTINGS, caption_pairs=pairs,
    )  # type: ignore[arg-type]  # fmt: skip
    summary = scan(settings)
    table = pq.read_table(Path(summary["folder"]) / "results")
    rows = {row["row_id"]: row for row in table.to_pylist()}
    assert sorted(rows) == list(range(ROWS))
    assert len(rows) == table.num_rows
    for number, row in rows.items():
        if number == BROKEN:
            assert (row["status"], row["caption"], row["explanation"]) == ("error", None, None)
            continue
        assert row["verdict"] == "manipulated"
        assert row["caption"] == f"a picture of width {FIRST_WIDTH + number}"
        assert row["agreement_image_caption"] is not None
        assert row["explanation"] == (None if number == TEXTLESS else f"this is about {row['text']}")
    counts = Counter(asked())
    assert set(counts.values()) == {1}
    assert len(counts) == 2 + (ROWS - 1) + (ROWS - 2), "two trials, the pictures, and the texts"
    record = json.loads((Path(summary["folder"]) / "job.json").read_text())
    assert (record["captioner"]["wrote"], record["explainer"]["revision"]) == ("a picture of width 256", "0123abc")
