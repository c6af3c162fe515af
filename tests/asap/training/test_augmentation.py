"""Augmentation of pictures with their boxes."""

import numpy as np
import pytest

from asap.training.augmentation import augment, crop_around, horizontal_flip, names_a_side, rand_augment, web_change


def picture(width=48, height=32):
    """Return a smooth picture whose four corners all differ."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return (255 * np.stack([x, y, x * y], -1)).astype(np.uint8)


def test_flip_moves_the_box_to_the_other_side():
    pixels = np.zeros((4, 10, 3), np.uint8)
    pixels[1:3, 0:2] = 255
    flipped, box = horizontal_flip(pixels, (0.0, 1.0, 2.0, 3.0))
    assert box == (8.0, 1.0, 10.0, 3.0)
    assert (flipped[1:3, 8:10] == 255).all()
    assert flipped.sum() == pixels.sum()


def test_flipping_twice_changes_nothing_and_no_box_stays_no_box():
    pixels = picture()
    once, box = horizontal_flip(pixels, (3.5, 1.0, 20.25, 9.0))
    twice, back = horizontal_flip(once, box)
    assert (twice == pixels).all()
    assert back == (3.5, 1.0, 20.25, 9.0)
    assert horizontal_flip(pixels, None)[1] is None


def test_augmentation_depends_on_seed_epoch_and_row_alone():
    pixels, box = picture(), (1.0, 2.0, 9.0, 8.0)
    first = augment(pixels, box, seed=1, epoch=2, row_id=3)
    again = augment(pixels, box, seed=1, epoch=2, row_id=3)
    assert (first[0] == again[0]).all()
    assert first[1] == again[1]
    variants = {augment(pixels, box, 1, epoch, 3)[0].tobytes() for epoch in range(40)}
    assert len(variants) > 10


def test_augmentation_moves_the_box_exactly_when_it_flips():
    pixels = np.zeros((8, 20, 3), np.uint8)
    pixels[2:5, 1:6] = (200, 180, 160)
    sides = set()
    for row_id in range(40):
        changed, (x0, y0, x1, y1) = augment(pixels, (1.0, 2.0, 6.0, 5.0), 0, 0, row_id)
        inside = changed[int(y0) : int(y1), int(x0) : int(x1)]
        assert inside.min() > 100  # no operation makes the bright face dark, on either side
        sides.add(x0)
    assert sides == {1.0, 14.0}


def test_augmentation_does_not_write_into_its_input():
    pixels = picture().copy()
    kept = pixels.copy()
    for row_id in range(30):
        augment(pixels, None, 0, 0, row_id)
    assert (pixels == kept).all()


def test_the_other_draws_are_the_same_without_flips():
    pixels, box = picture(), (1.0, 2.0, 9.0, 8.0)
    flips = 0
    for row_id in range(40):
        free, moved = augment(pixels, box, 0, 0, row_id, "flip")
        held, stayed = augment(pixels, box, 0, 0, row_id, "flip", may_flip=False)
        assert stayed == box
        assert (held == pixels).all()
        if moved != box:
            flips += 1
            assert (free == pixels[:, ::-1]).all()
        operations = augment(pixels, box, 0, 0, row_id, may_flip=False)[0]
        whole = augment(pixels, box, 0, 0, row_id)[0]
        assert (operations == (whole if moved == box else whole[:, ::-1])).all()
    assert 10 < flips < 30


def test_augmentation_none_returns_the_picture_unchanged():
    pixels = picture()
    assert augment(pixels, None, 0, 0, 0, "none")[0] is pixels


@pytest.mark.parametrize(
    "text",
    ["the man on the left", "Left: the minister", "her right-hand man", "the rightmost door", "Merkel (L) and May (R)",
     "two players (L-R) leave", "from left, Ann and Bob", "the left's leader", "seen (L to R)", "a lefthand drive"],
)  # fmt: skip
def test_a_text_that_names_a_side_is_detected(text):
    assert names_a_side("nothing here", text)


@pytest.mark.parametrize(
    "text",
    ["leftover food", "a copyright claim", "human rights", "a bright, upright man", "the cleft", "Lefty Wright",
     "a leftist rightly said so", "model L and model R", "(RL) Bob", "grade (A)"],
)  # fmt: skip
def test_words_that_only_look_like_a_side_are_not_detected(text):
    assert not names_a_side(text, text)


class Drawn:
    """A random generator with preset draws."""

    def __init__(self, operations, coins):
        self.operations, self.coins = np.array(operations), np.array(coins)

    def integers(self, *_, **__):
        return self.operations

    def random(self, *_):
        return self.coins


@pytest.mark.parametrize(
    ("operation", "expected"), [(0, (40, 80)), (1, (0, 255)), (2, (0, 255)), (3, (54, 108)), (4, (38, 81))]
)
def test_each_operation_does_what_its_name_says(operation, expected):
    pixels = np.repeat(np.array([40, 60, 60, 80], np.uint8), 256).reshape(32, 32, 1).repeat(3, 2)
    changed = rand_augment(pixels, Drawn([operation, 0], [0.1, 0.1]))
    assert (changed.min(), changed.max()) == expected
    assert (rand_augment(pixels, Drawn([operation, 0], [0.9, 0.9])) == pixels).all()


def face(box=(30, 20, 60, 52), side=128):
    """Return a dark picture with one bright square, and the box of the square."""
    pixels = np.full((side, side, 3), 40, np.uint8)
    x0, y0, x1, y1 = box
    pixels[y0:y1, x0:x1] = 220
    return pixels, tuple(float(edge) for edge in box)


def test_a_crop_moves_the_box_with_the_picture():
    pixels, box = face()
    cropped, (x0, y0, x1, y1) = crop_around(pixels, box, (0.1, 0.05, 0.2, 0.1))
    assert cropped.shape == pixels.shape
    columns, rows = (np.flatnonzero((cropped[..., 0] > 130).any(axis)) for axis in (0, 1))
    assert (columns[0], columns[-1] + 1) == pytest.approx((x0, x1), abs=1)
    assert (rows[0], rows[-1] + 1) == pytest.approx((y0, y1), abs=1)
    assert x1 - x0 > 30 / 0.75


def test_a_crop_never_cuts_the_box():
    pixels, box = face()
    cropped, (x0, y0, x1, y1) = crop_around(pixels, box, (0.49, 0.49, 0.49, 0.49))
    assert x0 == 0
    assert y0 == 0
    assert x1 < 128
    assert y1 < 128
    assert cropped[5, 5, 0] > 200
    whole = (0.0, 0.0, 128.0, 128.0)
    same, still = crop_around(pixels, whole, (0.2, 0.2, 0.2, 0.2))
    assert (same == pixels).all()
    assert still == whole


def test_a_crop_of_a_picture_without_a_box_enlarges_its_middle():
    pixels, _ = face((32, 32, 96, 96))
    cropped, box = crop_around(pixels, None, (0.25, 0.25, 0.25, 0.25))
    assert box is None
    assert (cropped[4:-4, 4:-4] > 200).all()


def test_half_of_the_pictures_get_a_change_of_the_web_and_every_kind_occurs():
    pixels, box = face()
    pixels = pixels + np.random.default_rng(0).integers(0, 30, pixels.shape, np.uint8)
    same, moved, gray_ones, darker, brighter = 0, 0, 0, 0, 0
    for seed in range(400):
        changed, (x0, y0, x1, y1) = web_change(pixels, box, np.random.default_rng(seed))
        assert changed.shape == pixels.shape
        assert changed.dtype == np.uint8
        assert 0 <= x0 < x1 <= 128
        assert 0 <= y0 < y1 <= 128
        same += (changed == pixels).all()
        moved += (x0, y0, x1, y1) != box
        gray_ones += (changed[..., 0] == changed[..., 1]).all()
        darker += changed.mean() < 0.8 * pixels.mean()
        brighter += changed.mean() > 1.2 * pixels.mean()
    assert same == pytest.approx(200, abs=30)
    assert moved == pytest.approx(200 / 7, abs=15)
    assert gray_ones == pytest.approx(200 / 7, abs=15)
    assert darker > 5
    assert brighter > 5


def test_the_changes_of_the_web_follow_the_flip():
    pixels, box = face()
    results = [augment(pixels, box, 0, 0, row, "web") for row in range(60)]
    assert {round(result[1][0]) for result in results} >= {30, 68}
    again = [augment(pixels, box, 0, 0, row, "web") for row in range(60)]
    assert all((one[0] == two[0]).all() and one[1] == two[1] for one, two in zip(results, again, strict=True))
