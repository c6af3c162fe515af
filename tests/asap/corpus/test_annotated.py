"""Captions and explanations from a folder of annotations, joined to a corpus."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from asap.corpus.reader import read_corpus
from asap.errors import CorpusError
from asap.storage.location import Location
from tests.support.annotations import annotation, write_annotations

PAIRS: list[dict[str, Any]] = [
    {"id": 7, "image": "DGM4/origin/a.jpg", "text": "one text", "fake_cls": "orig"},
    {"id": 7, "image": "DGM4/origin/b.jpg", "text": "two texts", "fake_cls": "orig"},
    {"id": 8, "image": "DGM4/origin/a.jpg", "text": "one text", "fake_cls": "orig"},
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    for name in ("metadata", "origin"):
        (folder / name).mkdir(parents=True)
    (folder / "metadata/train.json").write_text(json.dumps(PAIRS))
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(folder / f"origin/{name}.jpg")
    return folder


def _annotate(corpus: Path) -> Path:
    rows = [
        annotation(
            number, custom_id=f"{pair['id']}#{number}", given_id=str(pair["id"]), text=pair["text"],
            image=str(corpus / "origin" / Path(pair["image"]).name), caption=f"caption of {pair['image'][-5]}",
            explanation=f"why {pair['text']}", image_name=pair["image"].removeprefix("DGM4/"),
        )
        for number, pair in enumerate(PAIRS)
    ]  # fmt: skip
    write_annotations(Location(str(corpus.parent / "out")), rows)
    return corpus.parent / "out"


def test_pairs_that_share_an_id_get_their_own_captions_and_explanations(corpus: Path) -> None:
    out = _annotate(corpus)
    read = read_corpus(corpus, "train", captions=[str(out)], explanations=[str(out)])
    assert [record.caption for record in read.records] == ["caption of a", "caption of b", "caption of a"]
    assert [record.explanation for record in read.records] == ["why one text", "why two texts", "why one text"]
    assert (read.report.captions.by_id, read.report.captions.fallback) == (3, 0)
    assert (read.report.explanations.by_id, read.report.explanations.fallback) == (3, 0)


def test_a_corpus_that_was_moved_finds_its_captions_by_their_names_below_it(corpus: Path) -> None:
    out = _annotate(corpus)
    moved = corpus.rename(corpus.parent / "moved")
    read = read_corpus(moved, "train", captions=[str(out)])
    assert [record.caption for record in read.records] == ["caption of a", "caption of b", "caption of a"]


def test_a_relative_folder_is_found_from_the_working_directory_and_in_the_corpus(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = _annotate(corpus)
    monkeypatch.chdir(corpus.parent)
    assert read_corpus("corpus", "train", captions=["out"]).report.captions.by_id == 3
    monkeypatch.chdir(os.sep)
    out.rename(corpus / "described")
    assert read_corpus(corpus, "train", captions=["described"]).report.captions.by_id == 3


def test_a_folder_whose_job_is_not_done_is_refused(corpus: Path) -> None:
    out = _annotate(corpus)
    (out / "annotations.json").unlink()
    with pytest.raises(CorpusError, match=r"its job is not done\. Run `asap resume"):
        read_corpus(corpus, "train", captions=[str(out)])


def test_a_folder_without_descriptions_of_the_kind_is_refused(corpus: Path) -> None:
    rows = [annotation(0, custom_id="7", caption="a caption")]
    write_annotations(Location(str(corpus.parent / "out")), rows)
    with pytest.raises(CorpusError, match="holds no explanations"):
        read_corpus(corpus, "train", explanations=[str(corpus.parent / "out")])


def test_a_broken_file_is_named(corpus: Path) -> None:
    out = _annotate(corpus)
    (out / "annotations/a.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(CorpusError, match=r"a\.parquet cannot be read as a file of annotations"):
        read_corpus(corpus, "train", captions=[str(out)])


def test_an_explanation_whose_stored_text_is_not_that_of_the_pair_is_left_out(corpus: Path) -> None:
    row = annotation(0, custom_id="8", text="one \ud800 text", explanation="why", caption="c")
    write_annotations(Location(str(corpus.parent / "out")), [row])
    with pytest.raises(CorpusError, match="holds no explanations"):
        read_corpus(corpus, "train", explanations=[str(corpus.parent / "out")])
