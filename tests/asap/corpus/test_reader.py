"""Corpora are read into records."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asap.corpus.annotations import DEFAULT_RULES, STRICT, ReadRules
from asap.corpus.folder import LocalFolder
from asap.corpus.reader import Corpus, Record, fingerprint, read_corpus, read_split
from asap.errors import AnnotationError, ConfigError, CorpusError

ROWS: list[dict[str, Any]] = [
    {"id": 1, "image": "images/a.png", "text": "a calm man waits", "fake_cls": "orig", "fake_image_box": [],
     "fake_text_pos": []},
    {"id": 2, "image": "images/b.png", "text": "an angry woman leaves the house",
     "fake_cls": "face_swap&text_attribute", "fake_image_box": [10, 10, 30, 40], "fake_text_pos": [1]},
    {"id": "three", "image": "images/a.png", "text": "people dance", "fake_cls": "text_swap", "fake_image_box": [],
     "fake_text_pos": [0, 1]},
]  # fmt: skip
SAMM_ROW = {
    "id": 13, "image": "emotion_jpg/65039.jpg", "text": "A woman was clearly upset",
    "fake_cls": "attribute_manipulation", "fake_image_box": [665, 249, 999, 671], "fake_text_pos": [3, 4],
    "cap_texts": {"A Name": "A Name Gender: Female"}, "idx_cap_texts": [1],
}  # fmt: skip


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A corpus whose picture files are empty, because nothing decodes them."""
    folder = tmp_path / "corpus"
    for name in ("a", "b"):
        put(folder / f"images/{name}.png", "")
    put(folder / "metadata/train.json", ROWS)
    put(folder / "captions.json", {"1": "a man in a coat", "three": "two people"})
    put(folder / "explanations.json", {"2": "a woman goes away"})
    return folder


def write(corpus: Path, rows: Any) -> None:
    put(corpus / "metadata/train.json", rows)


@pytest.fixture
def read(corpus: Path) -> Callable[..., Corpus]:
    def reader(rules: ReadRules = DEFAULT_RULES, **options: Any) -> Corpus:
        return read_corpus(LocalFolder(corpus), "train", rules, **options)

    return reader


def test_records_have_their_captions_and_explanations(corpus: Path) -> None:
    first, second, third = read_split(corpus, "train")
    assert second == Record(
        id="2", image=corpus / "images/b.png", text="an angry woman leaves the house",
        fake_cls="face_swap&text_attribute", fake_image_box=(10, 10, 30, 40), fake_text_pos=(1,),
        caption="an angry woman leaves the house", explanation="a woman goes away",
    )  # fmt: skip
    assert (first.caption, first.explanation) == ("a man in a coat", "a calm man waits")
    assert third.caption == "two people"


def test_a_corpus_is_named_by_its_folder_its_path_or_its_address(corpus: Path) -> None:
    records = read_corpus(LocalFolder(corpus), "train").records
    assert read_corpus(corpus, "train").records == records
    assert read_corpus(str(corpus), "train", pictures=corpus).records == records


def test_a_corpus_without_captions_describes_pairs_by_their_text(corpus: Path) -> None:
    (corpus / "captions.json").unlink()
    (corpus / "explanations.json").unlink()
    assert all(record.caption == record.explanation == record.text for record in read_split(corpus, "train"))


def test_an_authentic_pair_may_have_no_box_and_no_positions_in_its_row(corpus: Path) -> None:
    write(
        corpus, [{"id": 1, "image": "images/a.png", "text": "a man waits", "fake_cls": "orig", "fake_image_box": None}]
    )
    assert read_split(corpus, "train")[0].fake_image_box == ()


def test_paths_may_start_from_the_folder_around_the_corpus(corpus: Path) -> None:
    # DGM4's own files say DGM4/origin/..., and lie in DGM4/metadata.
    write(corpus, [row | {"image": f"corpus/{row['image']}"} for row in ROWS])
    assert read_split(corpus, "train")[0].image == corpus.parent / "corpus/images/a.png"


def test_an_unknown_split_is_refused(corpus: Path) -> None:
    with pytest.raises(ConfigError, match="split 'dev' is unknown; train, val, test are known"):
        read_split(corpus, "dev")


def test_a_missing_split_says_what_a_corpus_has(corpus: Path) -> None:
    with pytest.raises(CorpusError, match=r"val\.json does not exist; a corpus has metadata/train\.json"):
        read_split(corpus, "val")


@pytest.mark.parametrize("content", ["", "[", "{}", "[]", '{"train": []}', '"text"', "\xff\xfe"])
def test_a_file_that_is_not_dgm4s_is_named(corpus: Path, content: str) -> None:
    (corpus / "metadata/train.json").write_text(content, encoding="latin-1")
    with pytest.raises(CorpusError, match=r"train\.json (is not a list of DGM4 records|cannot be read as JSON)"):
        read_split(corpus, "train")


@pytest.mark.parametrize("content", ["[1, 2]", '"text"', "{"])
def test_captions_that_are_not_a_table_are_named(corpus: Path, content: str) -> None:
    (corpus / "captions.json").write_text(content)
    with pytest.raises(CorpusError, match=r"captions\.json (is not a JSON object from record id|cannot be read)"):
        read_split(corpus, "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"fake_cls": "deepfake"},
            r"record 1 of .*train\.json: fake_cls 'deepfake' is unknown; DGM4 has orig, face_swap",
        ),
        ({"fake_cls": None}, "record 1 of .*fake_cls None"),
        ({"fake_cls": ["orig"]}, "record 1 of "),
        ({"image": None}, "record 1 of .* is not a DGM4 record"),
        ({"image": 7}, "record 1 of .* is not a DGM4 record"),
        ({"text": None}, "record 1 of .* is not a DGM4 record.*text"),
        ({"text": 7}, "record 1 of .* is not a DGM4 record.*text"),
        ({"fake_image_box": 7}, "record 1 of .* is not a DGM4 record"),
        ({"fake_text_pos": 7}, "record 1 of .* is not a DGM4 record"),
    ],
)
def test_a_record_that_is_not_dgm4s_is_named_with_its_line(corpus: Path, change: dict[str, Any], message: str) -> None:
    write(corpus, [ROWS[0], ROWS[1] | change])
    with pytest.raises(AnnotationError, match=message):
        read_split(corpus, "train")


@pytest.mark.parametrize("row", [{"id": 1, "image": "images/a.png", "text": "x"}, "orig", None, ["orig"]])
def test_a_record_without_its_fields_is_named_with_its_line(corpus: Path, row: Any) -> None:
    write(corpus, [ROWS[0], row])
    with pytest.raises(AnnotationError, match=r"record 1 of .*train\.json is not a DGM4 record"):
        read_split(corpus, "train")


def test_the_report_counts_what_was_read_and_from_where(read: Callable[..., Corpus]) -> None:
    report = read().report
    assert (report.rows, report.records, report.files) == (3, 3, ["metadata/train.json"])
    assert report.classes == {"orig": 1, "face_swap&text_attribute": 1, "text_swap": 1}
    assert (report.captions.by_id, report.captions.fallback) == (2, 1)
    assert (report.explanations.by_id, report.explanations.fallback) == (1, 2)
    assert len(report.lines()) == 3


# Files of metadata


@pytest.mark.parametrize(
    "names",
    [
        ["metadata/train.jsonl"],
        ["metadata/train-00000-of-00002.json", "metadata/train-00001-of-00002.json"],
        ["metadata/train_0.jsonl", "metadata/train_1.jsonl"],
        ["metadata/train/a.json", "metadata/train/b.json"],
        ["jsons/train.json"],
        ["train.json"],
    ],
)
def test_a_split_is_found_in_one_file_or_several(corpus: Path, read: Callable[..., Corpus], names: list[str]) -> None:
    (corpus / "metadata/train.json").unlink()
    put(corpus / "metadata/test.json", ROWS)
    for name, rows in zip(names, (ROWS[:2], ROWS[2:]) if len(names) > 1 else (ROWS,), strict=True):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        put(corpus / name, lines if name.endswith("l") else rows)
    found = read()
    assert found.report.files == names
    assert [record.id for record in found.records] == ["1", "2", "three"]


def test_a_whole_file_takes_precedence_over_its_parts(corpus: Path, read: Callable[..., Corpus]) -> None:
    put(corpus / "metadata/train-0.json", ROWS)
    put(corpus / "metadata/train.jsonl", "")
    assert read().report.files == ["metadata/train.json"]


def test_the_files_of_a_split_may_be_named(corpus: Path, read: Callable[..., Corpus], tmp_path: Path) -> None:
    put(tmp_path / "more.json", ROWS[:1])
    found = read(files=["metadata/train.json", str(tmp_path / "more.json")])
    assert [record.id for record in found.records] == ["1", "2", "three", "1"]
    with pytest.raises(CorpusError, match=r"corpus/metadata/none\.json does not exist"):
        read(files=["metadata/none.json"])


def test_captions_and_explanations_may_be_named_too(corpus: Path, read: Callable[..., Corpus], tmp_path: Path) -> None:
    put(corpus / "caption_train.json", {"images/a.png": "a coat"})
    put(tmp_path / "llm_0.json", '[{"images/b.png": "she is furious"},\n]')
    found = read(captions=["caption_train.json"], explanations=[str(tmp_path / "llm_0.json"), "explanations.json"])
    assert [record.caption for record in found.records] == ["a coat", "an angry woman leaves the house", "a coat"]
    assert found.records[1].explanation == "she is furious"  # from the first file, though the second has it by id
    assert found.report.captions.by_path == 2


# Other data sets


def test_samm_is_read_with_its_label_set(tmp_path: Path) -> None:
    put(tmp_path / "jsons/train.json", [SAMM_ROW])
    put(tmp_path / "emotion_jpg/65039.jpg", "")
    record = read_corpus(LocalFolder(tmp_path), "train", ReadRules(label_set="samm")).records[0]
    assert (record.image, record.label_set) == (tmp_path / "emotion_jpg/65039.jpg", "samm")
    assert record.labels.types_of(record.fake_cls) == ("face_attribute", "text_attribute")
    with pytest.raises(AnnotationError, match=r"record 0 .*'attribute_manipulation' is unknown; DGM4 has .*'samm'"):
        read_split(tmp_path, "train")


def test_dgm4_plus_is_read_from_the_file_that_its_generator_writes(tmp_path: Path) -> None:
    row = {"id": 1, "image": "origin/generated/0a.jpg", "text": "A mayor speaks", "fake_cls": "origin",
           "fake_image_box": [], "fake_text_pos": [], "mtcnn_boxes": [[1, 2, 3, 4]]}  # fmt: skip
    put(tmp_path / "metadata.jsonl", json.dumps(row))
    put(tmp_path / "origin/generated/0a.jpg", "")
    found = read_corpus(LocalFolder(tmp_path), "val", ReadRules(label_set="dgm4+"), files=["metadata.jsonl"])
    assert found.report.classes == {"origin": 1}
    assert "label set dgm4+" in str(found.report)


# Pictures


def test_pictures_of_other_spelling_and_doubled_folders_are_found_and_reported(
    corpus: Path, read: Callable[..., Corpus]
) -> None:
    names = {
        "DGM4/origin/gardian/1.jpg": "origin/guardian/1.jpg",
        "DGM4/origin/bbc/2.jpg": "DGM4/DGM4/origin/bbc/2.jpg",
        "DGM4/origin/bbc/3.jpg": "origin/bbc/3.jpg",
    }
    for file in names.values():
        put(corpus / file, "")
    write(corpus, [row | {"image": name} for row, name in zip(ROWS, names, strict=True)])
    found = read(STRICT)
    assert [record.image for record in found.records] == [corpus / file for file in names.values()]
    assert found.report.relocated_images.count == 2  # a path that starts at the folder above is what DGM4 means
    assert "DGM4/origin/gardian/1.jpg at origin/guardian/1.jpg" in str(found.report)


def test_pictures_may_lie_in_another_folder(corpus: Path, read: Callable[..., Corpus], tmp_path: Path) -> None:
    shutil.move(corpus / "images", tmp_path / "elsewhere/images")
    found = read(pictures=LocalFolder(tmp_path / "elsewhere"))
    assert found.records[0].image == tmp_path / "elsewhere/images/a.png"
    assert found.report.captions.by_id == 2


def test_a_few_missing_pictures_are_listed_and_left_out(corpus: Path, read: Callable[..., Corpus]) -> None:
    (corpus / "images/b.png").unlink()
    found = read(ReadRules(missing_images=0.4))
    assert [record.id for record in found.records] == ["1", "three"]
    assert (found.report.rows, found.report.records, found.report.missing_pairs) == (3, 2, 1)
    assert found.report.missing_images == ["images/b.png"]
    assert "pictures missing of 1 pairs (33.33%), left out: images/b.png" in str(found.report)


def test_more_missing_pictures_than_allowed_are_refused_with_their_share(
    corpus: Path, read: Callable[..., Corpus]
) -> None:
    (corpus / "images/a.png").unlink()
    with pytest.raises(
        CorpusError, match=r"2 of 3 pairs of metadata/train.json are not in .*66.67%.*: images/a\.png\. Check"
    ):
        read(ReadRules(missing_images=0.66))
    assert len(read(ReadRules(missing_images=0.67)).records) == 1
    with pytest.raises(CorpusError, match=r"66\.67% where missing_images allows 0\.00%"):
        read_split(corpus, "train")


def test_a_split_without_a_pair_to_use_is_refused_with_the_report(corpus: Path, read: Callable[..., Corpus]) -> None:
    write(corpus, [ROWS[1] | {"fake_image_box": []}])
    with pytest.raises(CorpusError, match=r"(?s)no pair of metadata/train.json.* can be used:.*1 pairs were left out"):
        read(ReadRules(bad_boxes="skip"))


# Boxes and positions


def test_repairs_are_reported_and_the_strict_rules_refuse_instead(corpus: Path, read: Callable[..., Corpus]) -> None:
    write(corpus, [ROWS[0], ROWS[1] | {"fake_image_box": [30, 10, 10, 40], "fake_text_pos": [1, 6]}, ROWS[2]])
    found = read()
    assert (found.records[1].fake_image_box, found.records[1].fake_text_pos) == ((), (1,))
    assert "1 boxes are no boxes; their pairs are kept without one: [30, 10, 10, 40]" in str(found.report)
    assert "1 pairs have positions beyond their text, which were dropped: [6] of 6 words" in str(found.report)
    with pytest.raises(
        AnnotationError, match=r"record 1 of .*train\.json: record 2: fake_image_box \[30, 10, 10, 40\]"
    ):
        read_split(corpus, "train")

    skipping = read(ReadRules(bad_boxes="skip"))
    assert [record.id for record in skipping.records] == ["1", "three"]
    assert (skipping.report.records, skipping.report.captions.by_id) == (2, 2)


# Fingerprints


def test_a_fingerprint_does_not_change_with_the_location(corpus: Path, tmp_path: Path) -> None:
    records = read_split(corpus, "train")
    print_ = fingerprint(records)
    assert len(print_) == 16
    assert fingerprint(read_split(corpus, "train")) == print_
    corpus.rename(tmp_path / "moved")
    assert fingerprint(read_split(tmp_path / "moved", "train")) == print_


@pytest.mark.parametrize(
    "change",
    [{"id": "other"}, {"image": Path("elsewhere.png")}, {"text": "another"}, {"fake_cls": "text_swap"},
     {"fake_image_box": (1.0, 2.0, 3.0, 5.0)}, {"fake_text_pos": (0,)}, {"caption": "a cat"}, {"explanation": "a dog"},
     {"label_set": "dgm4+"}],
)  # fmt: skip
def test_a_fingerprint_changes_with_each_field(corpus: Path, change: dict[str, Any]) -> None:
    first, *others = read_split(corpus, "train")
    assert fingerprint([dataclasses.replace(first, **change), *others]) != fingerprint([first, *others])


def test_a_fingerprint_changes_with_the_order_and_the_number(corpus: Path) -> None:
    records = read_split(corpus, "train")
    assert len({fingerprint(records), fingerprint(records[::-1]), fingerprint(records[1:])}) == 3


def without_positions(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Return rows as MDSM has them."""
    mdsm = [{name: value for name, value in row.items() if name != "fake_text_pos"} for row in rows]
    return [row | {"mtcnn_boxes": [[64, 48, 145, 159]]} for row in mdsm]


def test_a_corpus_without_word_positions_has_no_labels_of_words(corpus: Path, read: Callable[..., Corpus]) -> None:
    write(corpus, without_positions(*ROWS))
    found = read()
    assert [record.fake_text_pos for record in found.records] == [None, None, None]
    assert [record.fake_cls for record in found.records] == [row["fake_cls"] for row in ROWS]
    assert (
        "word positions: none of the 2 manipulated texts has any (fake_text_pos). No word of this split is trained on "
        "or evaluated; pairs, types and boxes are."
    ) in found.report.lines()
    assert found.report.to_dict()["has_word_positions"] is False


def test_in_a_mixed_corpus_only_the_texts_without_positions_have_no_labels_of_words(
    corpus: Path, read: Callable[..., Corpus]
) -> None:
    write(corpus, [*ROWS[:2], *without_positions(ROWS[2])])
    found = read()
    assert [record.fake_text_pos for record in found.records] == [(), (1,), None]
    assert (
        "word positions: 1 manipulated texts have none (fake_text_pos), and their words are neither trained on nor "
        f"evaluated: record 2 of {corpus / 'metadata/train.json'}"
    ) in found.report.lines()


def test_a_corpus_without_manipulated_texts_needs_no_word_positions(corpus: Path, read: Callable[..., Corpus]) -> None:
    write(corpus, without_positions(ROWS[0], ROWS[1] | {"fake_cls": "face_swap"}))
    found = read()
    assert [record.fake_text_pos for record in found.records] == [(), ()]
    assert "word positions" not in str(found.report)


def test_absent_and_empty_positions_have_the_same_fingerprint(corpus: Path, read: Callable[..., Corpus]) -> None:
    write(corpus, without_positions(*ROWS))
    absent = fingerprint(read().records)
    write(corpus, [row | {"fake_text_pos": []} for row in ROWS])
    assert fingerprint(read().records) == absent
    write(corpus, ROWS)
    assert fingerprint(read().records) != absent
