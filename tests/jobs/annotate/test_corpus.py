"""A corpus in DGM4's layout as an input, and the checks of a command before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from asap.errors import AsapError, PicturesMissing
from asap.storage.location import Location
from jobs.annotate.corpus import find_corpus
from jobs.annotate.plan import find_pairs, plan_annotation
from jobs.annotate.settings import AnnotateSettings
from jobs.errors import InputNotFound


def write_corpus(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    """Write the metadata of a corpus, and a picture for each name in it."""
    (folder / "metadata").mkdir(parents=True)
    for split, rows in splits.items():
        (folder / f"metadata/{split}.json").write_text(json.dumps(rows))
        for row in rows:
            path = folder / row["image"].removeprefix("DGM4/")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(path)
    return folder


def pair(number: int, name: str = "a", fake_cls: str = "orig", text: str = "a text") -> dict[str, Any]:
    return {"id": number, "image": f"DGM4/origin/{name}.jpg", "text": text, "fake_cls": fake_cls}


def test_the_pairs_of_all_splits_are_rows_with_their_ids_and_pictures(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c", train=[pair(1), pair(1, "b")], test=[pair(2, "c")])
    source = find_corpus(Location(str(corpus)), None, 0.01)
    assert source is not None
    rows = list(source.rows())
    assert [(row.row_id, row.custom_id, Path(row.image_uri or "").name) for row in rows] == [
        (0, "1", "a.jpg"), (1, "1", "b.jpg"), (2**32, "2", "c.jpg"),
    ]  # fmt: skip
    assert json.loads(rows[2].metadata or "") == {"split": "test", "fake_cls": "orig"}
    assert source.kind == "corpus"
    assert source.describe()["splits"] == {"train": 2, "test": 1}
    limited = find_corpus(Location(str(corpus)), 1, 0.01)
    assert limited is not None
    assert len(list(limited.rows())) == 1


def test_another_label_set_is_found_from_the_classes(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c", train=[pair(1, fake_cls="swap_manipulation")])
    source = find_corpus(Location(str(corpus)), None, 0.01)
    assert source is not None
    assert [row.custom_id for row in source.rows()] == ["1"]


def test_a_change_of_the_metadata_is_another_input(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c", train=[pair(1)])
    before, same = (find_corpus(Location(str(corpus)), None, 0.01) for _ in range(2))
    (corpus / "metadata/train.json").write_text(json.dumps([pair(1), pair(2)]))
    after = find_corpus(Location(str(corpus)), None, 0.01)
    assert before is not None
    assert same is not None
    assert after is not None
    assert before.fingerprint() == same.fingerprint() != after.fingerprint()


def test_a_folder_that_is_no_corpus_is_left_to_the_inputs_of_a_scan(tmp_path: Path) -> None:
    write_corpus(tmp_path / "other", train=[pair(1) | {"fake_cls": "no class at all"}])
    assert find_corpus(Location(str(tmp_path / "other")), None, 0.01) is None
    assert find_corpus(Location(str(tmp_path)), None, 0.01) is None


def _settings(tmp_path: Path, input: str, **changes: Any) -> AnnotateSettings:
    captions = {"engine": "precomputed", "source": str(tmp_path / "c.json")}
    values: dict[str, Any] = {"input": input, "out": str(tmp_path / "out"), "captions": captions} | changes
    return AnnotateSettings(**values)


def test_a_corpus_without_its_pictures_is_refused(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c", train=[pair(1)])
    (corpus / "origin/a.jpg").unlink()
    with pytest.raises(PicturesMissing):
        find_pairs(_settings(tmp_path, str(corpus)))


@pytest.mark.parametrize("input", ["", "missing.csv", "gs://b/a.csv", "x" * 5000])
def test_an_input_that_does_not_exist_is_refused_as_by_a_scan(tmp_path: Path, input: str) -> None:
    with pytest.raises(InputNotFound):
        find_pairs(_settings(tmp_path, input))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"captions": {"engine": "precomputed", "source": "missing.json"}}, "the captions missing.json are not there"),
        ({"captions": {"engine": "transformers", "source": "./missing"}}, "is not a model folder"),
        ({"out": "c.json/out"}, "c.json"),
    ],
)
def test_engines_and_output_are_checked_with_the_command(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    (tmp_path / "c.json").write_text('{"1": "a crowd"}')
    corpus = write_corpus(tmp_path / "c", train=[pair(1)])
    changes = {name: str(tmp_path / value) if name == "out" else value for name, value in changes.items()}
    with pytest.raises(AsapError, match=sentence):
        plan_annotation(_settings(tmp_path, str(corpus), **changes))


def test_explanations_of_a_file_are_read_as_such(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('[{"id": "1", "explanation": "it is so"}]')
    corpus = write_corpus(tmp_path / "c", train=[pair(1)])
    looked_up = {"engine": "precomputed", "source": str(tmp_path / "c.json")}
    plan = plan_annotation(_settings(tmp_path, str(corpus), captions=None, explanations=looked_up))
    assert list(plan.engines) == ["explanation"]
    with pytest.raises(AsapError, match="'caption'"):
        plan_annotation(_settings(tmp_path, str(corpus)))
