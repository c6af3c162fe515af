"""Pairs of the same picture and text are judged once, and their rows say so."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from asap.finding import Pair
from asap.predictor import Predictor
from asap.preprocessing.images import ImageLimits
from asap.storage.fetch import FetchSettings
from jobs.scan.input.manifest import MANIFEST_SCHEMA
from jobs.scan.stages.detect import Detection, Detector
from jobs.scan.stages.pair_values import RAW_COLUMNS, VALUE_SCHEMA, ReuseContext, pair_keys, values_of
from jobs.scan.stages.prepare import Preparation, prepare_batch
from jobs.scan.stages.result_rows import RESULT_SCHEMA
from jobs.scan.stages.reuse import PairMemory, Reuse, start_memory

CONTEXT = ReuseContext("m@1", "f@1", "float32", 0.5, 1)
PREPARATION = Preparation(image_size=32, limits=ImageLimits(), fetch=FetchSettings())


def _row(**columns: Any) -> dict[str, Any]:
    return {"image_sha256": "aa", "text": "A team", "text_escapes": None, "caption": None, "error_code": None} | columns


def _keys(*rows: dict[str, Any], context: ReuseContext = CONTEXT) -> list[bytes | None]:
    schema = pa.schema(
        [("error_code", pa.string())] + [RESULT_SCHEMA.field(name) for name in _row() if name != "error_code"]
    )
    return pair_keys(pa.Table.from_pylist(list(rows), schema), context)


def test_pairs_share_a_key_only_if_picture_text_caption_and_model_are_the_same() -> None:
    others = [
        _row(image_sha256="ab"), _row(text="A team "), _row(text=None), _row(text=""), _row(caption="A team"),
        _row(caption=""), _row(text=None, caption="A team"), _row(image_sha256="aaA", text=" team"),
    ]  # fmt: skip
    keys = _keys(_row(), *others)
    assert len(set(keys)) == len(keys)
    contexts = [
        CONTEXT._replace(model_id="m@2"), CONTEXT._replace(familiarity_id=None), CONTEXT._replace(precision="bfloat16"),
        CONTEXT._replace(min_text_read=0.25), CONTEXT._replace(reading=2),
    ]  # fmt: skip
    assert len({*keys, *(_keys(_row(), context=context)[0] for context in contexts)}) == len(keys) + len(contexts)
    assert _keys(_row()) == keys[:1]


def test_rows_that_failed_have_no_key_and_texts_count_as_the_model_reads_them() -> None:
    assert _keys(_row(error_code="not_found"), _row(image_sha256=None)) == [None, None]
    escaped, read = _keys(_row(text="A\\u0000 team", text_escapes=[1]), _row(text="A\ufffd team"))
    assert escaped == read


def _values(*scores: float) -> pa.Table:
    return pa.Table.from_pylist([{"score": score} for score in scores], VALUE_SCHEMA)


def test_a_full_memory_forgets_the_oldest_pairs() -> None:
    memory = PairMemory(2000)
    for number in range(8):
        memory.add(CONTEXT, [b"%d" % number, b"same"], _values(number, -1))
    found = memory.find([b"0", b"7", b"same", b"other"])
    assert dict(zip(found.keys, found.values["score"].to_pylist(), strict=True)) == {b"7": 7, b"same": -1}
    assert memory._bytes <= 2000
    assert len(memory._positions) < 9
    assert memory.contexts() == {CONTEXT}


def test_a_memory_of_no_bytes_keeps_contexts_only() -> None:
    memory = PairMemory(0)
    memory.add(CONTEXT, [b"a"], _values(1))
    assert memory.find([b"a"]).keys == []
    assert memory.contexts() == {CONTEXT}


def test_warnings_of_the_text_are_kept_and_those_of_the_picture_and_the_row_are_not(
    model_folder: Path, jpeg: Callable[..., bytes]
) -> None:
    predictor = Predictor.from_folder(model_folder, "cpu")
    texts = ["word " * 200, "te\u0301am pr\u043esident sm\u00adiles", "-".join(["president"] * 90) + " team"]
    found = [warning for text in texts for warning in predictor.predict([Pair(jpeg(0), text)])[0].warnings]
    [image] = [predictor._prepare(Pair(jpeg(0), "a"))]
    found += predictor.predict_prepared([image], ["a team"], captioned=[True])[0].warnings
    found.append("the model cannot read the text, so a caption replaced it")
    assert len(found) > 4
    others = ["custom_id 'a' was used by an earlier row; this one is called 'a#1'", "read 'a.jpg'; there is no 'A.jpg'"]
    rows = pa.table({name: pa.nulls(1, RESULT_SCHEMA.field(name).type) for name in RAW_COLUMNS})
    rows = rows.append_column("warnings", pa.array([[*others, *found]]))
    assert values_of(rows)["text_warnings"].to_pylist() == [found]


class _Counted:
    """Counts the pairs that the model of a detector judges."""

    def __init__(self, detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pairs = 0
        judge = detector._detect

        def counted(batch: pa.Table) -> pa.Table:
            self.pairs += len(batch)
            return judge(batch)

        monkeypatch.setattr(detector, "_detect", counted)


@pytest.fixture
def prepared(tmp_path: Path, jpeg: Callable[..., bytes]) -> Callable[..., pa.Table]:
    """Return a function that prepares pairs, each the number of a picture and a text."""
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number, (80, 60)))

    def prepare(*pairs: tuple[int, str | None], start: int = 0) -> pa.Table:
        rows = [
            {"row_id": row, "custom_id": str(row), "image_uri": str(tmp_path / f"{number}.jpg"), "text": text,
             "warnings": [f"of row {row}"]}
            for row, (number, text) in enumerate(pairs, start)
        ]  # fmt: skip
        return prepare_batch(pa.Table.from_pylist(rows, MANIFEST_SCHEMA), PREPARATION)

    return prepare


@pytest.fixture
def memory(ray_here: None) -> Iterator[Any]:
    actor = start_memory(2**20)
    yield actor
    ray.kill(actor)


PAIRS: list[tuple[int, str | None]] = [
    (0, "A team"), (1, "A team"), (0, "A team"), (9, "A team"), (0, "... !!"), (0, "... !!"), (0, None), (1, "A team"),
]  # fmt: skip


def test_a_detector_judges_a_pair_once_and_its_rows_are_those_of_judging_all(
    prepared: Callable[..., pa.Table], memory: Any, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detection = Detection(str(model_folder), device="cpu", run_id="r1")
    detector = Detector(detection, reuse=Reuse(memory))
    counted = _Counted(detector, monkeypatch)
    batch, later = prepared(*PAIRS), prepared((1, "A team"), (2, "A team"), start=8)
    found = detector(batch).to_pylist() + detector(later).to_pylist()
    assert counted.pairs == 7  # two pairs, a missing picture, three broken texts, and the new pair of the second batch

    all_judged = Detector(detection)
    expected = all_judged(batch).to_pylist() + all_judged(later).to_pylist()
    sources = [row.pop("reused") for row in found]
    assert sources == [None, None, "job", None, None, None, None, "job", "job", None]
    for row, other in zip(found, expected, strict=True):
        for name in ("score", "types", "raw_box_px", "word_scores"):
            assert row[name] == pytest.approx(other[name], abs=1e-6 if name != "raw_box_px" else 1e-4), name
        same = ("row_id", "status", "error_code", "verdict", "flagged_types", "warnings", "judged_run", "policy_id")
        assert {name: row[name] for name in same} == {name: other[name] for name in same}


def test_a_detector_judges_all_pairs_once_the_memory_is_lost(
    prepared: Callable[..., pa.Table], memory: Any, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = Detector(Detection(str(model_folder), device="cpu"), reuse=Reuse(memory))
    detector(prepared((0, "A team")))
    ray.kill(memory)
    counted = _Counted(detector, monkeypatch)
    for _ in range(2):
        [row] = detector(prepared((0, "A team"))).to_pylist()
        assert (row["status"], row["reused"]) == ("ok", None)
    assert counted.pairs == 2
