"""Augmentation of pictures with their boxes."""

import numpy as np
import pytest

from asap.training.augmentation import augment, horizontal_flip, names_a_side, rand_augment


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
