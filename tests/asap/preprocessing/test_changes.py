import numpy as np
import pytest
from PIL import Image

from asap.preprocessing.changes import CHANGES, blur, brighten, crop, flatten, gray, recompress, shrink


def noise(width: int = 96, height: int = 64) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def spread(picture: Image.Image) -> float:
    return float(np.asarray(picture, np.float32).std())


def test_a_blur_is_measured_in_pixels_of_a_picture_of_256() -> None:
    small, large = noise(), noise().resize((960, 640), Image.Resampling.NEAREST)
    assert spread(blur(small, radius=2)) < 0.5 * spread(small)
    shrunk = blur(large, radius=2).resize((96, 64), Image.Resampling.BOX)
    assert spread(shrunk) == pytest.approx(spread(blur(small, radius=2)), rel=0.3)


def test_a_shrunk_picture_keeps_its_size_and_loses_its_detail() -> None:
    assert shrink(noise(), times=8).size == (96, 64)
    assert spread(shrink(noise(), times=8)) < 0.4 * spread(noise())
    assert shrink(noise(3, 2), times=8).size == (3, 2)


def test_brightness_multiplies_the_pixels() -> None:
    half = np.asarray(brighten(noise(), times=0.5), np.float32)
    assert half == pytest.approx(np.asarray(noise(), np.float32) / 2, abs=1)


def test_half_the_contrast_halves_the_spread_of_the_pixels() -> None:
    assert spread(flatten(noise(), times=0.5)) == pytest.approx(spread(noise()) / 2, rel=0.01)


def test_a_gray_picture_has_no_color() -> None:
    channels = np.asarray(gray(noise()))
    assert (channels == channels[..., :1]).all()


def test_a_crop_cuts_every_side_and_leaves_something() -> None:
    assert crop(noise(100, 50), share=0.2).size == (60, 30)
    assert crop(noise(1, 1), share=0.5).size == (1, 1)


def test_a_recompressed_picture_keeps_its_size_and_shows_the_blocks_of_jpeg() -> None:
    poor, good = recompress(noise(), quality=10), recompress(noise(), quality=95)
    assert poor.size == good.size == (96, 64)
    original = np.asarray(noise(), np.float32)
    assert np.abs(np.asarray(poor) - original).mean() > 1.2 * np.abs(np.asarray(good) - original).mean()


@pytest.mark.parametrize("kind", CHANGES)
def test_every_change_changes_a_picture_and_leaves_the_original(kind: str) -> None:
    picture = noise()
    before = picture.tobytes()
    changed = CHANGES[kind](picture)
    assert picture.tobytes() == before
    assert changed.mode == "RGB"
    assert changed.tobytes() != before
