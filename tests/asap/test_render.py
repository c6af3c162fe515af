"""The evidence that a person sees: the box, the marked words, and HTML that executes nothing of the text."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw, ImageFont

from asap import render
from asap.errors import DecodeFailed
from asap.finding import NO_EVIDENCE, Finding, Word
from asap.labels import VERDICTS
from asap.render import (
    INK,
    LEVEL_COLORS,
    MIN_WIDTH,
    PAPER,
    QUIET,
    VERDICT_COLORS,
    WHITE,
    draw_evidence,
    level,
    mark_words_html,
    segments,
)

RED = VERDICT_COLORS["manipulated"]
TYPES = {"face_swap": 0.91, "face_attribute": 0.12, "text_swap": 0.04, "text_attribute": 0.88}


def words_of(text: str, scores: dict[int, float]) -> list[Word]:
    found = enumerate(re.finditer(r"\S+", text))
    return [Word(i, m.start(), m.end(), m.group(), scores[i]) for i, m in found if i in scores]


def finding(**changes) -> Finding:
    fields = {
        "verdict": "manipulated", "score": 0.97, "types": TYPES, "flagged_types": ["face_swap", "text_attribute"],
        "box_px": (100.0, 80.0, 180.0, 190.0), "width": 480, "height": 320, "model_id": "m@0", "policy_id": "p",
    }  # fmt: skip
    return Finding(**(fields | changes))


def plain(size: tuple[int, int] = (480, 320), color: str | tuple[int, int, int] = "grey") -> Image.Image:
    return Image.new("RGB", size, color)


def pixels_of(image: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    """Return y, x of the pixels of this color, (N, 2)."""
    return np.argwhere((np.asarray(image) == color).all(axis=-1))


# Pieces of text.


def test_pieces_join_to_the_text_and_words_are_at_their_offsets():
    text = "A gleeful mayor 🎈 opens\nthe bridge"
    pieces = segments(text, words_of(text, {1: 0.9, 3: 0.7, 6: 0.6}))
    assert "".join(piece for piece, _ in pieces) == text
    assert [(piece, word.word) for piece, word in pieces if word] == [(w, w) for w in ("gleeful", "🎈", "bridge")]


def test_words_may_come_in_any_order():
    text = "one two three"
    words = words_of(text, {0: 0.9, 2: 0.8})
    assert segments(text, words[::-1]) == segments(text, words)


@pytest.mark.parametrize(
    ("spans", "marked"),
    [
        ([(0, 3), (2, 6)], ["abc", "def"]),
        ([(0, 6), (2, 4)], ["abcdef"]),
        ([(2, 2)], []),
        ([(4, 3)], []),
        ([(4, 99)], ["ef"]),
        ([(50, 60)], []),
        ([(-3, 2)], ["ab"]),
        ([(0, 3), (3, 6)], ["abc", "def"]),
    ],
)
def test_overlapping_empty_and_overlong_spans_lose_and_repeat_no_text(spans, marked):
    words = [Word(i, start, end, "w", 0.9) for i, (start, end) in enumerate(spans)]
    pieces = segments("abcdef", words)
    assert "".join(piece for piece, _ in pieces) == "abcdef"
    assert [piece for piece, word in pieces if word] == marked


@pytest.mark.parametrize("words", [None, []])
def test_a_text_without_flagged_words_is_one_piece(words):
    assert segments("some text", words) == [("some text", None)]
    assert segments("", words) == []


def test_a_word_with_a_higher_score_is_marked_more_strongly():
    assert [level(score) for score in (0.0, 0.5, 0.6, 0.75, 0.9, 1.0)] == [1, 1, 2, 3, 4, 4]


# HTML.


def test_html_marks_the_flagged_words_with_their_scores():
    text = "A gleeful mayor"
    html = mark_words_html(text, words_of(text, {1: 0.934}))
    assert html == 'A <mark data-level="4" title="manipulated: 0.93">gleeful</mark> mayor'


def test_html_in_the_text_is_escaped_inside_and_outside_of_marked_words():
    text = "<script>alert(1)</script> \"'><img src=x onerror=alert(2)> &amp;"
    html = str(mark_words_html(text, words_of(text, {0: 0.9, 2: 0.8})))
    assert re.findall(r"<(/?\w+)", html) == ["mark", "/mark", "mark", "/mark"]
    assert unescape(re.sub(r"</?mark[^>]*>", "", html)) == text


# The image.


def test_the_original_image_is_not_changed():
    image = plain()
    draw_evidence(image, finding(), "some text")
    assert image.tobytes() == plain().tobytes()


def test_the_box_is_drawn_on_its_pixels():
    drawn = draw_evidence(plain(), finding(types=None, flagged_types=[]))
    y, x = pixels_of(drawn, RED).T
    assert (x.min(), y.min(), x.max() + 1, y.max() + 1) == (100, 80, 180, 190)
    assert drawn.getpixel((140, 135)) == (128, 128, 128)


def test_the_box_is_scaled_to_a_smaller_copy_of_the_image():
    drawn = draw_evidence(plain((240, 160)), finding(types=None, flagged_types=[]))
    y, x = pixels_of(drawn, RED).T
    assert (x.min(), y.min(), x.max() + 1, y.max() + 1) == (50, 40, 90, 95)


def test_the_box_of_a_finding_without_a_size_is_in_pixels_of_the_image():
    drawn = draw_evidence(plain(), finding(types=None, flagged_types=[], width=None, height=None))
    assert pixels_of(drawn, RED).min(axis=0).tolist() == [80, 100]


@pytest.mark.parametrize("background", ["white", "black", "red", RED])
def test_the_box_is_visible_on_any_background(background):
    drawn = np.asarray(draw_evidence(plain(color=background), finding(flagged_types=[]))).astype(int)
    across = drawn[130, 90:115]
    assert np.abs(np.diff(across, axis=0)).sum(axis=1).max() > 200


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_images_of_every_mode_are_drawn_in_rgb(mode):
    assert draw_evidence(Image.new(mode, (480, 320)), finding()).mode == "RGB"


def test_the_image_is_unchanged_without_a_box():
    assert draw_evidence(plain(), finding(box_px=None)).tobytes() == plain().tobytes()


@pytest.mark.parametrize(
    "box",
    [(0, 0, 0, 0), (480, 320, 480, 320), (-50, -50, -10, -10), (900, 900, 999, 999), (200, 200, 100, 100),
     (0, 0, 480, 320), (99.6, 79.6, 100.4, 80.4)],
)  # fmt: skip
def test_a_degenerate_or_outlying_box_is_drawn_inside_the_image(box):
    drawn = draw_evidence(plain(), finding(box_px=box, flagged_types=[]))
    assert drawn.size == (480, 320)
    assert len(pixels_of(drawn, RED)) > 0


@pytest.mark.parametrize(("x", "y"), list(product((0, 200, 470), (0, 150, 310))))
def test_the_label_never_leaves_the_image(x, y):
    def label(box: tuple[float, float, float, float]) -> tuple[int, int]:
        with_label = draw_evidence(plain(), finding(box_px=box))
        without = draw_evidence(plain(), finding(box_px=box, flagged_types=[]))
        x0, y0, x1, y1 = ImageChops.difference(with_label, without).getbbox()
        return x1 - x0, y1 - y0

    assert label((x, y, x + 10, y + 10)) == label((200, 150, 210, 160))


def test_a_label_is_beside_the_face_if_there_is_room():
    def inside(box: tuple[int, int, int, int]) -> Image.Image:
        return draw_evidence(plain(), finding(box_px=box)).crop((box[0] + 5, box[1] + 5, box[2] - 5, box[3] - 5))

    for box in ((200, 100, 300, 200), (200, 2, 300, 100), (380, 100, 478, 200)):
        assert inside(box).getcolors() == [(inside(box).width * inside(box).height, (128, 128, 128))]


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (40, 400), (400, 12), (64, 64)])
def test_a_tiny_or_narrow_image_can_be_drawn_on(size):
    assert draw_evidence(plain(size), finding(box_px=(0, 0, 5, 5), width=None, height=None)).size == size


def test_more_image_types_make_a_taller_label_and_text_types_make_none():
    def label_pixels(*types: str) -> int:
        return len(pixels_of(draw_evidence(plain(), finding(flagged_types=list(types))), RED))

    assert label_pixels() == label_pixels("text_swap", "text_attribute")
    assert label_pixels() < label_pixels("face_swap") < label_pixels("face_swap", "face_attribute")


# The strip.


def test_the_strip_is_below_the_image_which_keeps_its_size():
    with_text = draw_evidence(plain((700, 320)), finding(width=700), "A short text")
    assert with_text.width == 700
    assert with_text.height > 320 + 60
    assert with_text.crop((0, 0, 700, 320)).tobytes() == draw_evidence(plain((700, 320)), finding(width=700)).tobytes()
    assert with_text.getpixel((1, with_text.height - 1)) == PAPER


def test_a_small_image_is_enlarged_with_its_box_so_that_the_words_fit():
    drawn = draw_evidence(plain((100, 50)), finding(box_px=(20, 10, 60, 40), width=100, height=50, types=None), "text")
    assert drawn.width == MIN_WIDTH
    y, x = pixels_of(drawn.crop((0, 0, MIN_WIDTH, MIN_WIDTH // 2)), RED).T
    assert (x.max() + 1) / MIN_WIDTH == pytest.approx(0.6, abs=0.002)
    assert (y.max() + 1) / MIN_WIDTH == pytest.approx(0.4, abs=0.002)


def test_a_tall_narrow_image_is_centered_above_its_strip():
    drawn = draw_evidence(plain((10, 1000), "blue"), finding(box_px=None), "text")
    assert drawn.width == MIN_WIDTH
    assert pixels_of(drawn, (0, 0, 255))[:, 1].min() == (MIN_WIDTH - 10) // 2


def test_flagged_words_are_marked_in_the_color_of_their_score():
    text = "A gleeful mayor opens"
    drawn = draw_evidence(plain(), finding(words=words_of(text, {1: 0.95, 3: 0.5})), text)
    assert [len(pixels_of(drawn, color)) > 0 for color in LEVEL_COLORS] == [True, False, False, True]


@pytest.mark.parametrize("words", [None, []])
def test_nothing_is_marked_if_no_word_is_flagged(words):
    drawn = draw_evidence(plain(), finding(words=words), "A gleeful mayor")
    assert not any(len(pixels_of(drawn, color)) for color in LEVEL_COLORS)


@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_verdict_is_shown_in_its_color(verdict):
    drawn = draw_evidence(plain(), finding(verdict=verdict, box_px=None), "text")
    present = {name for name in VERDICTS if len(pixels_of(drawn, VERDICT_COLORS[name])) > 50}
    assert present == {verdict}


def test_a_pair_with_an_error_is_shown_in_gray():
    failed = Finding(model_id="m@0", policy_id="p", words=None, error=DecodeFailed("truncated JPEG, " * 40))
    drawn = draw_evidence(plain(), failed, "text")
    assert drawn.width == MIN_WIDTH
    assert len(pixels_of(drawn, VERDICT_COLORS[None])) > 50
    assert draw_evidence(plain(), replace(failed, error=None), "text").width == MIN_WIDTH


def test_white_space_and_an_empty_text_leave_only_the_headline():
    assert draw_evidence(plain(), finding(), " \n\t ").size == draw_evidence(plain(), finding(), "").size


def test_a_very_long_text_makes_a_strip_of_bounded_height_in_bounded_time(monkeypatch):
    measured: list[int] = []

    def length(token, face):
        measured.append(sum(len(piece) for piece, _ in token))
        return measure(token, face)

    measure = render._length
    monkeypatch.setattr(render, "_length", length)
    for text in ("word " * 200_000, "w" * 1_000_000):
        many = draw_evidence(plain(), finding(words=words_of(text[:50], {0: 0.9})), text)
        assert 320 < many.height < 1200
    assert sum(measured) < 50_000, "measuring characters takes the time, and few of them are drawn"


def test_a_word_longer_than_a_line_continues_on_the_next_line_with_its_mark():
    text = "w" * 150
    drawn = draw_evidence(plain(), finding(words=words_of(text, {0: 0.95})), text)
    y, x = pixels_of(drawn, LEVEL_COLORS[3]).T
    assert y.max() - y.min() > 50
    assert x.max() < MIN_WIDTH - 20


def test_right_to_left_text_starts_on_the_right():
    def middle_of_mark(text: str) -> float:
        drawn = draw_evidence(plain(), finding(words=words_of(text, {0: 0.95})), text)
        return pixels_of(drawn, LEVEL_COLORS[3])[:, 1].mean()

    assert middle_of_mark("Gleeful mayor") < MIN_WIDTH / 2 < middle_of_mark("الغاضب الرئيس")


def test_accents_and_dashes_are_replaced_for_the_built_in_font():
    assert (
        draw_evidence(plain(), finding(), "Renée — 5").tobytes()
        == draw_evidence(plain(), finding(), "Renee - 5").tobytes()
    )


def test_the_callers_font_draws_the_text_unchanged(tmp_path):
    built_in = ImageFont.load_default(20).path
    path = tmp_path / "font.ttf"
    path.write_bytes(built_in.getvalue())
    with_font, without = (draw_evidence(plain(), finding(), "Renée", font=font) for font in (path, None))
    assert with_font.tobytes() != without.tobytes()
    with pytest.raises(OSError, match="cannot open resource"):
        draw_evidence(plain(), finding(), "text", font=tmp_path / "none.ttf")


@pytest.fixture
def drawn_words(monkeypatch) -> list[str]:
    """Collect every piece of text that is drawn."""
    drawn: list[str] = []
    draw = ImageDraw.ImageDraw.text

    def text(self, position, text, **more):
        drawn.append(text)
        draw(self, position, text, **more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return drawn


def test_the_strip_ends_with_the_model_and_its_limits(drawn_words):
    limits = "asap-demo was made from drawn pictures. Do not use it for anything else."
    draw_evidence(plain(), finding(model_id="asap-demo@1", limits=limits), "A gleeful mayor")
    assert " ".join(drawn_words).endswith(f"A gleeful mayor Model asap-demo@1. {limits}")


def test_an_unfamiliar_pair_has_neither_box_nor_marks_nor_score_but_the_reason(drawn_words):
    strange = finding(
        verdict="unfamiliar", flagged_types=[], box_px=None, raw_box_px=(100.0, 80.0, 180.0, 190.0),
        unfamiliar_parts=("image", "text"),
    )  # fmt: skip
    drawn = draw_evidence(plain(), strange, "A gleeful mayor")
    assert drawn_words[0] == "unfamiliar, not judged"
    assert "Not judged: the model has seen nothing like this picture and text." in " ".join(drawn_words)
    assert "0.97" not in " ".join(drawn_words)
    assert not any(len(pixels_of(drawn, color)) for color in (*LEVEL_COLORS, RED))


@pytest.mark.parametrize(("words", "is_said"), [([], True), ([Word(0, 0, 1, "A", 0.9)], False)])
def test_a_verdict_without_evidence_says_so(drawn_words, words, is_said):
    draw_evidence(plain(), finding(flagged_types=[], box_px=None, words=words), "A gleeful mayor")
    assert (NO_EVIDENCE in " ".join(drawn_words)) is is_said


def test_long_limits_make_a_strip_of_bounded_height():
    assert draw_evidence(plain(), finding(limits="nothing " * 100_000), "text").height < 1200
    assert draw_evidence(plain(), finding(limits="n" * 1_000_000), "text").height < 1200


def test_the_text_has_enough_contrast_on_every_background():
    assert min(contrast(INK, color) for color in (*LEVEL_COLORS, PAPER)) >= 7
    assert min(contrast(WHITE, color) for color in VERDICT_COLORS.values()) >= 4.5
    assert contrast(QUIET, PAPER) >= 4.5
    assert set(VERDICT_COLORS) == {*VERDICTS, None}


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """Return the contrast ratio of WCAG 2."""
    dark, light = sorted(luminance(color) for color in (one, other))
    return (light + 0.05) / (dark + 0.05)


def luminance(color: tuple[int, int, int]) -> float:
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in color)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
