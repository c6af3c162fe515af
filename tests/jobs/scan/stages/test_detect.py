import dataclasses
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from asap.errors import ConfigError
from asap.finding import Pair
from asap.predictor import Predictor
from asap.preprocessing.images import ImageLimits, prepare_image
from asap.preprocessing.text import read_reader_source
from asap.storage.fetch import FetchSettings
from asap.storage.location import Location
from asap.weights.model_folder import load_folder
from jobs.scan.input.manifest import MANIFEST_SCHEMA, ManifestRow, row_tables, write_manifest
from jobs.scan.stages.detect import Detection, Detector
from jobs.scan.stages.prepare import Preparation, prepare_batch
from jobs.scan.stages.result_rows import RESULT_SCHEMA, result_table
from tests.support.familiar import make_familiar
from tests.support.finding_rows import columns_of

PREPARATION = Preparation(image_size=32, limits=ImageLimits(), fetch=FetchSettings())


@pytest.fixture(scope="module")
def detector(model_folder: Path) -> Detector:
    return Detector(Detection(str(model_folder), device="cpu"))


def _prepared(folder: Path, *rows: dict[str, object]) -> pa.Table:
    filled = [{"row_id": number, "custom_id": str(number), "warnings": []} | row for number, row in enumerate(rows)]
    for row in filled:
        if row.get("image_uri"):
            row["image_uri"] = str(folder / str(row["image_uri"]))
    return prepare_batch(pa.Table.from_pylist(filled, MANIFEST_SCHEMA), PREPARATION)


@pytest.fixture
def folder(tmp_path: Path, jpeg: Callable[..., bytes]) -> Path:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number, (80, 60)))
    return tmp_path


def test_rows_get_the_findings_of_the_predictor(folder: Path, detector: Detector, model_folder: Path) -> None:
    texts = ["The president smiles", "Angry workers leave the factory after talks fail", "A team"]
    batch = _prepared(folder, *({"image_uri": f"{number}.jpg", "text": text} for number, text in enumerate(texts)))
    found = detector(batch)
    pairs = [Pair(folder / f"{number}.jpg", text) for number, text in enumerate(texts)]
    expected = Predictor.from_folder(model_folder, "cpu").predict(pairs)
    assert found.schema.equals(RESULT_SCHEMA)
    for row, finding in zip(found.to_pylist(), expected, strict=True):
        assert row["status"] == "ok"
        assert row["score"] == pytest.approx(finding.score, abs=1e-5)
        assert row["types"] == pytest.approx(finding.types, abs=1e-5)
        assert row["word_scores"] == pytest.approx(finding.word_scores, abs=1e-5)
        assert row["raw_box_px"] == pytest.approx(
            dict(zip(("x0", "y0", "x1", "y1"), finding.raw_box_px, strict=True)), abs=1e-2
        )  # type: ignore[arg-type]
        assert (row["image_sha256"], row["model_id"], row["attempt"]) == (finding.image_sha256, finding.model_id, 1)


LONG = "Angry workers leave the factory after talks fail. " * 12


def _with_reader(model_folder: Path) -> Preparation:
    config = load_folder(model_folder).config
    source = read_reader_source(model_folder / "tokenizer", max_words=config.max_words, max_tokens=config.max_tokens)
    assert source is not None
    return dataclasses.replace(PREPARATION, reader=source)


def test_columns_hold_what_the_findings_hold_whoever_read_the_texts(
    folder: Path, detector: Detector, model_folder: Path
) -> None:
    texts = ["The president smiles", LONG, "A team", "Angry workers -- leave", "... !!", "x" * 400, "A te\u200bam"]
    rows = [
        {"row_id": number, "custom_id": str(number), "warnings": [], "image_uri": str(folder / "0.jpg"), "text": text}
        for number, text in enumerate(texts)
    ]
    manifest = pa.Table.from_pylist(rows, MANIFEST_SCHEMA)
    image = prepare_image((folder / "0.jpg").read_bytes(), 32)
    findings = Predictor.from_folder(model_folder, "cpu").predict_prepared([image] * len(texts), texts)
    for preparation in (PREPARATION, _with_reader(model_folder)):
        batch = prepare_batch(manifest, preparation)
        assert batch["encoded_text"].null_count == (1 if preparation.reader else len(texts))
        expected = result_table(batch, [columns_of(finding) | {"attempt": 1} for finding in findings])
        assert detector(batch).equals(expected)


def test_batches_may_be_detected_side_by_side(folder: Path, detector: Detector, model_folder: Path) -> None:
    batches = [
        prepare_batch(
            pa.Table.from_pylist(
                [{"row_id": 0, "custom_id": "a", "warnings": [], "image_uri": str(folder / f"{number % 3}.jpg"),
                  "text": f"A team wins {number}"}],
                MANIFEST_SCHEMA,
            ),
            _with_reader(model_folder),
        )
        for number in range(6)
    ]  # fmt: skip
    expected = list(map(detector, batches))
    with ThreadPoolExecutor(3) as pool:
        for found, alone in zip(pool.map(detector, batches), expected, strict=True):
            assert found.equals(alone)


def test_pictures_for_another_model_stop_the_work(folder: Path, detector: Detector) -> None:
    row = {"row_id": 0, "custom_id": "a", "warnings": [], "image_uri": str(folder / "0.jpg"), "text": "A team"}
    larger = dataclasses.replace(PREPARATION, image_size=64)
    batch = prepare_batch(pa.Table.from_pylist([row], MANIFEST_SCHEMA), larger)
    with pytest.raises(ConfigError, match="prepared for another model, whose image_size is not 32"):
        detector(batch)


def test_a_text_with_unstorable_characters_is_read_as_the_predictor_reads_it(
    folder: Path, detector: Detector, model_folder: Path
) -> None:
    text = "A team\0 celebrates \ud83d its first title"
    row = ManifestRow(row_id=0, custom_id="a", image_uri=str(folder / "0.jpg"), text=text)
    write_manifest(row_tables([row]), Location(str(folder / "manifest")))
    manifest = pq.read_table(folder / "manifest")
    found = detector(prepare_batch(manifest, PREPARATION)).to_pylist()[0]
    expected = Predictor.from_folder(model_folder, "cpu").predict([Pair(folder / "0.jpg", text)])[0]
    assert found["word_scores"] == pytest.approx(expected.word_scores, abs=1e-5)
    words = [(word["start"], word["end"], word["word"]) for word in found["words"]]
    assert words == [(word.start, word.end, word.word.replace("\0", "\ufffd")) for word in expected.words or []]
    assert any(word[0] > text.index("\0") for word in words), "no flagged word follows the escape"


def test_an_unfamiliar_pair_has_no_evidence_and_every_row_the_id_of_the_file(
    folder: Path, tmp_path: Path, model_folder: Path
) -> None:
    copy = Path(shutil.copytree(model_folder, tmp_path / "familiar"))
    known = make_familiar(copy, [Pair(folder / f"{number}.jpg", "A team") for number in range(3)])
    Image.new("RGB", (80, 60), "red").save(folder / "red.jpg")
    batch = _prepared(
        folder,
        {"image_uri": "0.jpg", "text": "A team"},
        {"image_uri": "red.jpg", "text": "A team"},
        {"image_uri": "none.jpg", "text": "A team"},
    )
    usual, strange, error = Detector(Detection(str(copy), device="cpu"))(batch).to_pylist()
    assert usual["verdict"] != "unfamiliar"
    assert usual["familiarity"] > 0.005
    assert strange["verdict"] == "unfamiliar"
    assert (strange["flagged_types"], strange["box_px"], strange["words"]) == ([], None, [])
    assert strange["familiarity_image"] < 0.005 < strange["familiarity_text"]
    assert strange["score"] is not None
    assert error["verdict"] is None
    assert {row["familiarity_id"] for row in (usual, strange, error)} == {known.familiarity_id}


def test_failures_of_earlier_stages_and_of_texts_keep_their_rows(folder: Path, detector: Detector) -> None:
    batch = _prepared(
        folder,
        {"image_uri": "0.jpg", "text": "A team"},
        {"image_uri": "none.jpg", "text": "A team"},
        {"image_uri": "1.jpg", "text": None},
        {"image_uri": "1.jpg", "text": "... !!"},
        {"row_error": "broken line"},
        {"image_uri": "2.jpg", "text": "A team", "warnings": ["kept"]},
    )
    rows = detector(batch).to_pylist()
    assert [row["error_code"] for row in rows] == [
        None,
        "not_found",
        "text_missing",
        "text_invalid",
        "row_invalid",
        None,
    ]
    assert [row["row_id"] for row in rows] == list(range(6))
    assert all(row["model_id"] and row["policy_id"] for row in rows)
    assert rows[5]["warnings"] == ["kept"]
    assert rows[2]["width"] == 80


def test_a_caption_replaces_a_missing_text_and_a_warning_says_so(folder: Path, detector: Detector) -> None:
    batch = _prepared(folder, {"image_uri": "0.jpg", "text": None}, {"image_uri": "0.jpg", "text": "A team"})
    position = batch.schema.get_field_index("caption")
    batch = batch.set_column(position, "caption", pa.array(["a man smiles", "a man smiles"]))
    without, with_text = detector(batch).to_pylist()
    assert without["status"] == "ok"
    assert (without["words"], without["word_scores"], without["text"]) == (None, None, None)
    assert without["types"]["text_swap"] is None
    assert without["types"]["face_swap"] is not None
    assert any("caption" in warning for warning in without["warnings"])
    assert (without["caption"], with_text["caption"]) == ("a man smiles", "a man smiles")
    assert with_text["words"] is not None
    assert with_text["warnings"] == []


HEADLINE = "الرئيس يفتتح الجسر الجديد"


def test_a_text_that_the_model_cannot_read_is_an_error_or_gets_a_caption(folder: Path, detector: Detector) -> None:
    batch = _prepared(folder, *({"image_uri": "0.jpg", "text": HEADLINE} for _ in range(2)))
    position = batch.schema.get_field_index("caption")
    batch = batch.set_column(position, "caption", pa.array([None, "a man smiles"], pa.string()))
    unread, captioned = detector(batch).to_pylist()
    assert (unread["error_code"], unread["verdict"], unread["retryable"]) == ("text_unreadable", None, False)
    assert (captioned["status"], captioned["words"], captioned["text_read"]) == ("ok", None, None)
    assert captioned["warnings"][0] == "the model cannot read the text, so a caption replaced it"


def test_a_batch_of_failures_passes_through(folder: Path, detector: Detector) -> None:
    rows = detector(_prepared(folder, {"row_error": "x"}, {"image_uri": None, "text": "t"})).to_pylist()
    assert [row["error_code"] for row in rows] == ["row_invalid", "image_missing"]


def test_a_broken_device_ends_the_process_so_that_another_process_retries(
    folder: Path, detector: Detector, monkeypatch: pytest.MonkeyPatch, process_end: type[BaseException]
) -> None:
    def break_down(*args: object, **named: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(detector._predictor, "score_in_steps", break_down)
    with pytest.raises(process_end):
        detector(_prepared(folder, {"image_uri": "0.jpg", "text": "A team"}))


def test_a_detector_sets_the_threads_of_torch(model_folder: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        Detector(Detection(str(model_folder), device="cpu", threads=1))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
