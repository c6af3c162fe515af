"""Rows of metadata are checked and repaired."""

from typing import Any

import pytest

from asap.corpus.annotations import DEFAULT_RULES, STRICT, ReadRules, read_row, repair_row
from asap.corpus.report import CorpusReport
from asap.errors import AnnotationError, ConfigError
from asap.labels import DGM4

ROW: dict[str, Any] = {
    "id": 7, "image": "a.png", "text": "an angry woman leaves", "fake_cls": "face_swap&text_attribute",
    "fake_image_box": [10, 10, 30, 40], "fake_text_pos": [1],
}  # fmt: skip

BAD_BOXES: list[list[Any]] = [
    [], [1, 2, 3], [1, 2, 3, 4, 5], ["a", 1, 2, 3], [[1], 2, 3, 4], [True, 0, 5, 5], [None, 0, 5, 5], [10, 10, 10, 40],
    [50, 10, 10, 40], [0, 0, 0, 0], [-40, 0, 0, 40], [0, -40, 40, -1], [float("nan"), 0, 9, 9], [0, 0, float("inf"), 9],
]  # fmt: skip
BAD_POSITIONS: list[list[Any]] = [[4], [-1], [1, 99], ["1"], [1.0], [True], [None], [[1]], [1, True]]


def repair(rules: ReadRules = DEFAULT_RULES, **changes: Any) -> tuple[Any, CorpusReport]:
    report = CorpusReport("", "", "")
    return repair_row(read_row(ROW | changes, "record 3 of train.json", DGM4), rules, report), report


def test_a_good_row_is_kept_as_it_is() -> None:
    row, report = repair(STRICT)
    assert (row.id, row.fake_image_box, row.fake_text_pos) == ("7", (10, 10, 30, 40), (1,))
    assert report == CorpusReport("", "", "")


@pytest.mark.parametrize("box", BAD_BOXES)
def test_a_malformed_box_is_dropped_or_drops_the_pair_or_is_refused(box: list[Any]) -> None:
    row, report = repair(fake_image_box=box)
    assert (row.fake_image_box, row.fake_text_pos) == ((), (1,))
    assert (report.boxless.count, report.skipped.count) == (1, 0)
    assert "record 3 of train.json" in report.boxless.examples[0]

    row, report = repair(ReadRules(bad_boxes="skip"), fake_image_box=box)
    assert row is None
    assert (report.boxless.count, report.skipped.count) == (0, 1)

    with pytest.raises(AnnotationError, match=r"record 3 of train\.json: record 7: fake_image_box .* is not xmin"):
        repair(STRICT, fake_image_box=box)


@pytest.mark.parametrize("box", [[-5, -3.5, 120, 9000], [0.5, 0, 1, 1]])
def test_a_box_that_may_reach_into_a_picture_is_kept_until_it_is_decoded(box: list[float]) -> None:
    row, report = repair(STRICT, fake_image_box=box)
    assert row.fake_image_box == tuple(box)
    assert not report.boxless


def test_a_malformed_box_without_a_manipulated_face_is_not_reported() -> None:
    for box in BAD_BOXES:
        _, report = repair(STRICT, fake_cls="text_attribute", fake_image_box=box)
        assert not report.boxless


@pytest.mark.parametrize("positions", BAD_POSITIONS)
def test_positions_beyond_the_text_are_dropped_or_drop_the_pair_or_are_refused(positions: list[Any]) -> None:
    row, report = repair(fake_text_pos=positions)
    # A manipulated text that is left without a position has words that nobody knows.
    assert row.fake_text_pos == ((1,) if positions[0] == 1 and len(positions) == 2 else None)
    assert report.stray_positions.count == 1
    assert "of 4 words (record 3 of train.json)" in report.stray_positions.examples[0]

    row, report = repair(ReadRules(stray_positions="skip"), fake_text_pos=positions)
    assert row is None
    assert (report.stray_positions.count, report.skipped.count) == (0, 1)

    with pytest.raises(
        AnnotationError, match=r"record 7: fake_text_pos has .*, but the text has words 0 to 3: 'an angry"
    ):
        repair(STRICT, fake_text_pos=positions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"missing_images": 1.5}, "missing_images 1.5 is not a share between 0 and 1"),
        ({"missing_images": float("nan")}, "missing_images nan is not a share"),
        ({"bad_boxes": "drop"}, "bad_boxes 'drop' is unknown; boxless, skip, refuse are known"),
        ({"stray_positions": "boxless"}, "stray_positions 'boxless' is unknown; drop, skip, refuse are known"),
        ({"label_set": "coco"}, "label set 'coco' is unknown"),
    ],
)
def test_invalid_rules_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReadRules(**changes)


@pytest.mark.parametrize("positions", [[], None])
def test_the_words_of_a_manipulated_text_without_positions_are_unknown(positions: list[int] | None) -> None:
    row, report = repair(STRICT, fake_text_pos=positions)
    assert row.fake_text_pos is None
    assert report.unplaced_words.examples == ["record 3 of train.json"]


@pytest.mark.parametrize("fake_cls", ["orig", "face_swap"])
def test_the_words_of_an_authentic_text_are_known_without_positions(fake_cls: str) -> None:
    row, report = repair(fake_cls=fake_cls, fake_text_pos=None)
    assert row.fake_text_pos == ()
    assert not report.unplaced_words
