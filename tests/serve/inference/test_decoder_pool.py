import asyncio
import io
import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from asap.errors import DecodeFailed, ImageTooLarge, InputError, UnsupportedFormat
from asap.finding import Finding
from asap.preprocessing.images import ImageLimits, prepare_image
from serve.errors import NotReady
from serve.inference.decoder_pool import DecoderPool
from tests.support.pictures import draw_jpeg
from tests.support.waiting import HANG_S

LIMITS = ImageLimits(max_bytes=100_000, max_pixels=10_000)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(1, LIMITS, timeout_s=HANG_S)
    yield pool
    pool.close()


def test_a_decoder_process_returns_the_same_as_decoding_in_this_process(pool: DecoderPool) -> None:
    data = draw_jpeg(1)
    here, apart = prepare_image(data, 32, LIMITS), asyncio.run(pool.prepare(data, 32))
    assert np.array_equal(here.pixels, apart.pixels)
    assert (here.width, here.height, here.sha256) == (apart.width, apart.height, apart.sha256)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", InputError),
        (b"hello", UnsupportedFormat),
        (draw_jpeg(1)[:300], DecodeFailed),
        (draw_jpeg(1, (200, 200)), ImageTooLarge),
        (draw_jpeg(1) + bytes(100_000), ImageTooLarge),
    ],
    ids=lambda value: str(len(value)) if isinstance(value, bytes) else None,
)
def test_an_unreadable_picture_raises_its_error_and_the_decoder_continues(
    pool: DecoderPool, data: bytes, kind: type[InputError]
) -> None:
    with pytest.raises(kind):
        asyncio.run(pool.prepare(data, 32))
    assert asyncio.run(pool.prepare(draw_jpeg(2), 32)).width == 64


def test_the_box_of_a_finding_is_drawn_on_the_picture(pool: DecoderPool) -> None:
    finding = Finding(
        verdict="manipulated", score=0.9, types={"face_swap": 0.9}, flagged_types=["face_swap"],
        box_px=(10.0, 10.0, 30.0, 30.0), width=64, height=48, model_id="m", policy_id="p",
    )  # fmt: skip
    data = draw_jpeg(3)
    drawn = Image.open(io.BytesIO(asyncio.run(pool.draw(data, finding))))
    assert drawn.format == "JPEG"
    assert drawn.size == (64, 48)
    change = np.abs(np.asarray(drawn, int) - np.asarray(Image.open(io.BytesIO(data)), int))
    assert change.max() > 100


def test_a_decoder_that_hangs_is_killed_and_replaced_for_the_next_picture() -> None:
    pool = DecoderPool(1, LIMITS, timeout_s=HANG_S)
    try:
        asyncio.run(pool.prepare(draw_jpeg(1), 32))
        process = pool._all[0].start()
        os.kill(process.pid, signal.SIGSTOP)  # like a picture that takes forever
        pool._all[0]._timeout_s = 0.5
        with pytest.raises(DecodeFailed, match=r"within 0\.5 s"):
            asyncio.run(pool.prepare(draw_jpeg(1), 32))
        assert process.poll() is not None
        pool._all[0]._timeout_s = HANG_S
        assert asyncio.run(pool.prepare(draw_jpeg(1), 32)).width == 64
    finally:
        pool.close()


def test_a_decoder_that_cannot_be_started_is_an_error_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.inference.decoder_pool.sys.executable", "/nowhere/python")
    pool = DecoderPool(1, LIMITS, timeout_s=HANG_S)
    with pytest.raises(NotReady, match="no decoder could be started"):
        asyncio.run(pool.prepare(draw_jpeg(1), 32))
    pool.close()
