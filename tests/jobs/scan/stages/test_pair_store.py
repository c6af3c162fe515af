"""The reuse store: files of pairs that were judged, found by their keys, and never trusted blindly."""

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from asap.labels import TYPES
from asap.storage.location import Location
from jobs.scan.stages.pair_store import STORE_SCHEMA, StoreReader, folder_of, read_index, unsound, write_pairs
from jobs.scan.stages.pair_values import VALUE_SCHEMA

MODEL = "small@1", "f@1"
LONG = "the text is longer than one pass holds (50 words, 64 tokens); it was analyzed in 2 passes"
SOUND: dict[str, Any] = {
    "score": 0.75, "types": dict.fromkeys(TYPES, 0.25), "raw_box_px": {"x0": 1.0, "y0": 2.0, "x1": 3.0, "y1": 4.0},
    "word_scores": [0.5, 1.0], "text_read": 1.0, "familiarity": 0.5, "familiarity_image": 0.5,
    "familiarity_text": 0.5, "agreement_image_text": -0.5, "agreement_image_caption": None,
    "agreement_text_caption": None, "text_warnings": [LONG],
}  # fmt: skip


def key_of(number: int) -> bytes:
    """Return a key."""
    return hashlib.sha256(b"%d" % number).digest()


def values(*scores: float) -> pa.Table:
    """Return sound values with these scores."""
    return pa.Table.from_pylist([SOUND | {"score": score} for score in scores], VALUE_SCHEMA)


@pytest.fixture
def folder(tmp_path: Path) -> Location:
    """Return the folder of the model in a store of two files with 1,100 and 2 pairs."""
    folder = folder_of(Location(str(tmp_path / "store")), *MODEL)
    write_pairs(folder, [key_of(number) for number in range(1100)], values(*np.linspace(0, 1, 1100)), MODEL)
    write_pairs(folder, [key_of(2000), key_of(5)], values(0.25, 0), MODEL)
    return folder


def reader_of(folder: Location, notes: list[str] | None = None) -> StoreReader:
    """Return a reader of a folder; sentences about its files go to `notes`."""
    kept: list[str] = [] if notes is None else notes
    return StoreReader(read_index(folder, MODEL, kept.append), pafs.LocalFileSystem(), has_familiarity=True)


def test_pairs_are_found_by_their_keys_in_all_files(folder: Location) -> None:
    notes: list[str] = []
    index = read_index(folder, MODEL, notes.append)
    assert (len(index.hashes), index.hashes.nbytes + index.positions.nbytes) == (1101, 16 * 1101)
    assert notes == []
    twin = key_of(7)[:8] + bytes(24)  # the same hash, and another key
    found, wrong = reader_of(folder).find([key_of(9999), key_of(1099), twin, key_of(2000), key_of(7)])
    scores = dict(zip(found.keys, found.values["score"].to_pylist(), strict=True))
    assert scores == {key_of(1099): 1.0, key_of(2000): 0.25, key_of(7): pytest.approx(7 / 1099)}
    assert found.values["text_warnings"][0].as_py() == [LONG]
    assert wrong == {}
    assert reader_of(folder).find([])[0].keys == []


def test_an_empty_store_knows_no_pair_and_other_models_have_other_folders(folder: Location, tmp_path: Path) -> None:
    other = folder_of(Location(str(tmp_path / "store")), "small@2", None)
    assert other != folder
    assert reader_of(other).find([key_of(1)])[0].keys == []


def test_the_same_pairs_have_one_file_however_often_they_are_written(folder: Location) -> None:
    before = sorted(Path(folder.uri).iterdir())
    write_pairs(folder, [key_of(2000), key_of(5)], values(0.25, 0), MODEL)
    assert sorted(Path(folder.uri).iterdir()) == before


def test_broken_and_foreign_files_are_named_and_left_out(folder: Location) -> None:
    root = Path(folder.uri)
    [first, second] = sorted(root.iterdir(), key=lambda file: -file.stat().st_size)
    whole = pq.read_table(first)
    (root / "cut.parquet").write_bytes(first.read_bytes()[:-100])
    pq.write_table(pa.table({"a": [1]}), root / "foreign.parquet")
    write_pairs(Location(str(root)), [key_of(1)], values(0.5), ("other@1", None))
    pq.write_table(whole, root / "groups.parquet", row_group_size=100)
    pq.write_table(whole.drop_columns(["score"]), root / "columns.parquet", row_group_size=1024)
    (root / ".pairs.parquet.0123456789abcdef").write_bytes(b"PAR1")
    notes: list[str] = []
    assert len(read_index(folder, MODEL, notes.append).hashes) == 1101
    assert len(notes) == 5
    by_name = {note.split(" ")[0].rpartition("/")[2]: note for note in notes}
    assert "it cannot be read" in by_name["cut.parquet"]
    assert "it is not a file of pairs of this model and version" in by_name["foreign.parquet"]
    assert "its row groups are not those of pairs" in by_name["groups.parquet"]
    assert "its columns are not those of pairs" in by_name["columns.parquet"]
    assert second.exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"score": 1.5}, "score"),
        ({"score": math.nan}, "score"),
        ({"score": None}, "score"),
        ({"types": SOUND["types"] | {"face_swap": None}}, "face_swap"),
        ({"types": SOUND["types"] | {"text_swap": 7}}, "text_swap"),
        ({"types": None}, "face_swap"),
        ({"word_scores": [0.5, None]}, "word_scores"),
        ({"word_scores": [-0.5]}, "word_scores"),
        ({"text_read": 2}, "text_read"),
        ({"familiarity": None}, "familiarity"),
        ({"familiarity_text": -1}, "familiarity_text"),
        ({"agreement_image_text": 1.5}, "agreement_image_text"),
        ({"raw_box_px": None}, "raw_box_px"),
        ({"raw_box_px": SOUND["raw_box_px"] | {"x1": math.inf}}, "raw_box_px"),
        ({"text_warnings": ["call 555-0199 to unlock this pair"]}, "text_warnings"),
    ],
)
def test_a_file_with_values_out_of_range_is_named_and_not_used_again(
    folder: Location, change: dict[str, Any], reason: str
) -> None:
    bad = pa.Table.from_pylist([SOUND, SOUND | change], VALUE_SCHEMA)
    write_pairs(folder, [key_of(3000), key_of(3001)], bad, MODEL)
    reader = reader_of(folder)
    found, wrong = reader.find([key_of(3000), key_of(1)])
    assert found.keys == [key_of(1)]
    assert list(wrong) == [key_of(3000)]
    assert wrong[key_of(3000)].startswith(f"{folder}/pairs-")
    assert reason in wrong[key_of(3000)]
    assert reader.find([key_of(3000)]) == reader.find([])


def test_what_a_caption_replaced_and_a_model_without_familiarity_are_sound() -> None:
    caption = {"word_scores": None, "text_read": None, "familiarity_text": None, "agreement_image_text": None}
    types = SOUND["types"] | {"text_swap": None, "text_attribute": None}
    known = pa.Table.from_pylist([SOUND, SOUND | caption | {"types": types}], VALUE_SCHEMA)
    assert unsound(known, has_familiarity=True) is None
    unknown = {"familiarity": None, "familiarity_image": None, "familiarity_text": None}
    assert unsound(pa.Table.from_pylist([SOUND | unknown], VALUE_SCHEMA), has_familiarity=False) is None


def test_a_deleted_file_is_named_and_a_store_that_is_away_is_left_alone(folder: Location) -> None:
    reader = reader_of(folder)
    for file in Path(folder.uri).iterdir():
        if pq.read_metadata(file).num_rows == 2:
            file.unlink()
    found, wrong = reader.find([key_of(2000), key_of(1)])
    assert found.keys == [key_of(1)]
    assert "it was deleted; the pair was judged" in wrong[key_of(2000)]

    class Away:
        asked = 0

        def open_input_file(self, path: str) -> object:
            self.asked += 1
            raise OSError("connection refused")

    away = Away()
    reader = StoreReader(read_index(folder, MODEL, print), away, has_familiarity=True)
    for _ in range(3):
        assert reader.find([key_of(1)]) == reader.find([])
    assert away.asked == 1


def test_the_columns_of_a_file_are_declared() -> None:
    assert STORE_SCHEMA.names == ["hash", "key", *VALUE_SCHEMA.names]
