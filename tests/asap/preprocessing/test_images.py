"""Decoding of untrusted images."""

import hashlib
import io
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from asap.errors import (
    ConfigError,
    DecodeFailed,
    EmptyFile,
    ImageMissing,
    ImageTooLarge,
    InputError,
    UnsupportedFormat,
)
from asap.preprocessing.images import (
    CLIP_MEAN,
    CLIP_STD,
    ImageLimits,
    decode_image,
    normalize,
    prepare_image,
)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")
EXACT = ("PNG", "BMP", "TIFF", "JPEG2000")


def scene(width=48, height=32):
    """Draw a smooth image whose four corners all differ."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray((255 * np.stack([x, y, x * y], -1)).astype(np.uint8))


def encode(image, name, **options):
    out = io.BytesIO()
    image.save(out, name, **options)
    return out.getvalue()


def rgb_of(source, **options):
    return np.asarray(decode_image(source, **options).image).astype(int)


@pytest.mark.parametrize("name", FORMATS)
def test_every_supported_format_comes_out_as_rgb_with_its_size_and_digest(name):
    data = encode(scene(), name)
    decoded = decode_image(data)
    assert (decoded.image.mode, decoded.image.size, decoded.width, decoded.height) == ("RGB", (48, 32), 48, 32)
    assert decoded.sha256 == hashlib.sha256(data).hexdigest()
    assert decoded.warnings == []
    distance = np.abs(np.asarray(decoded.image).astype(int) - np.asarray(scene()))
    assert distance.max() == 0 if name in EXACT else distance.mean() < 12


def test_bytes_a_path_and_a_pil_image_give_the_same_pixels(tmp_path):
    data = encode(scene(), "PNG")
    path = tmp_path / "scene.png"
    path.write_bytes(data)
    prepared = [prepare_image(source, 16) for source in (data, path, str(path), scene())]
    assert all((one.pixels == prepared[0].pixels).all() for one in prepared)
    assert [one.sha256 is None for one in prepared] == [False, False, False, True]


def test_an_image_is_resized_to_the_square_in_one_bicubic_step():
    prepared = prepare_image(encode(scene(), "PNG"), 24)
    expected = np.asarray(scene().resize((24, 24), Image.Resampling.BICUBIC))
    assert prepared.pixels.shape == (24, 24, 3)
    assert prepared.pixels.dtype == np.uint8
    assert prepared.pixels.flags.writeable
    assert (prepared.pixels == expected).all()
    assert (prepared.width, prepared.height) == (48, 32)


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (1, 1)])
def test_extreme_aspect_ratios_are_prepared(size):
    prepared = prepare_image(encode(Image.new("RGB", size, (10, 20, 30)), "PNG"), 16)
    assert (prepared.pixels == (10, 20, 30)).all()
    assert (prepared.width, prepared.height) == size


def test_a_large_jpeg_is_decoded_at_a_fraction_without_changing_the_square():
    data = encode(scene(1300, 1100), "JPEG", quality=92)
    prepared = prepare_image(data, 32)
    full = decode_image(data).image.resize((32, 32), Image.Resampling.BICUBIC)
    assert decode_image(data, min_side=128).image.size == (163, 138)
    assert (prepared.width, prepared.height) == (1300, 1100)
    assert np.abs(prepared.pixels.astype(int) - np.asarray(full)).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_is_undone(name, orientation):
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # each is its own inverse, except the two quarter turns
    stored = scene() if orientation == 1 else scene().transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if name in ("JPEG", "WEBP") else {}
    decoded = decode_image(encode(stored, name, exif=exif, **options))
    assert (decoded.width, decoded.height) == decoded.image.size == (48, 32)
    assert np.abs(np.asarray(decoded.image).astype(int) - np.asarray(scene())).mean() < 5


def test_a_rotated_jpeg_decoded_at_a_fraction_reports_the_rotated_original_size():
    exif = Image.Exif()
    exif[0x0112] = 6
    prepared = prepare_image(encode(scene(1200, 800), "JPEG", exif=exif), 16)
    assert (prepared.width, prepared.height) == (800, 1200)


def test_an_orientation_that_does_not_exist_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 77
    assert decode_image(encode(scene(), "JPEG", exif=exif)).image.size == (48, 32)


@pytest.mark.parametrize("name", ["PNG", "WEBP"])
@pytest.mark.parametrize("broken", [b"II*\0", b"XX*\0" + b"\xff" * 20])
def test_an_image_with_corrupt_exif_is_decoded_without_rotation(name, broken):
    decoded = decode_image(encode(scene(), name, exif=b"Exif\0\0" + broken))
    assert decoded.image.size == (48, 32)
    assert "EXIF" in decoded.warnings[0]


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_blended_with_white_and_reported(name):
    image = Image.new("RGBA", (8, 8), (200, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 8))
    options = {"lossless": True} if name == "WEBP" else {}
    decoded = decode_image(encode(image, name, **options))
    assert decoded.image.getpixel((1, 1)) == (255, 255, 255)
    assert decoded.image.getpixel((6, 1)) == (200, 0, 0)
    assert "transparency" in decoded.warnings[0]


def test_an_opaque_alpha_channel_causes_no_warning():
    decoded = decode_image(encode(Image.new("RGBA", (40, 40), (1, 2, 3, 255)), "PNG"))
    assert decoded.image.getpixel((0, 0)) == (1, 2, 3)
    assert decoded.warnings == []


def test_half_transparent_gray_is_blended_with_white():
    pixel = rgb_of(encode(Image.new("LA", (2, 2), (0, 128)), "PNG"))[0, 0]
    assert (pixel == 127).all()


def test_a_transparent_palette_color_becomes_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 1)
    for data in (encode(image, "PNG", transparency=0), encode(image, "GIF", transparency=0)):
        pixels = rgb_of(data)
        assert pixels[0, 0].tolist() == [0, 0, 255]
        assert pixels[3, 3].tolist() == [255, 255, 255]


def test_an_opaque_palette_keeps_its_colors():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 128, 255])
    assert rgb_of(encode(image, "BMP"))[2, 2].tolist() == [0, 128, 255]


def test_a_one_bit_image_becomes_black_and_white():
    image = Image.new("1", (4, 1))
    image.putpixel((3, 0), 1)
    assert rgb_of(encode(image, "PNG"))[0, :, 0].tolist() == [0, 0, 0, 255]


@pytest.mark.parametrize("name", ["JPEG", "TIFF"])
def test_cmyk_is_converted(name):
    pixel = rgb_of(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), name))[8, 8]
    assert np.abs(pixel - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_sixteen_bit_gray_is_scaled_and_not_clipped(name):
    levels = np.array([[0, 128, 257 * 100, 257 * 200, 65535]], np.uint16)
    assert rgb_of(encode(Image.fromarray(levels), name))[0, :, 0].tolist() == [0, 0, 100, 200, 255]


def test_big_endian_sixteen_bit_gray_is_scaled_too():
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 0, 257 * 50))
    assert rgb_of(image)[0, :, 1].tolist() == [0, 50]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.2, 1.0], [0, 51, 255]),
        ([0.0, 51.0, 200.0], [0, 51, 200]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, float("nan"), float("inf")], [0, 0, 0]),
        ([-3e38, 0.0, 3e38], [0, 128, 255]),
        ([7e5, 7e5, 7e5], [255, 255, 255]),
        ([-2.0, -2.0, -2.0], [0, 0, 0]),
    ],
)
def test_a_float_tiff_is_scaled_by_the_range_of_its_values(values, expected):
    decoded = decode_image(encode(Image.fromarray(np.array([values], np.float32)), "TIFF"))
    assert np.abs(np.asarray(decoded.image)[0, :, 0].astype(int) - expected).max() <= 1
    assert "range" in decoded.warnings[0]


def test_thirty_two_bit_gray_is_scaled():
    values = np.array([[0, 257 * 9, 65535]], np.int32)
    assert rgb_of(encode(Image.fromarray(values), "TIFF"))[0, :, 2].tolist() == [0, 9, 255]


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "TIFF"])
def test_only_the_first_of_several_frames_is_analyzed_and_a_warning_reports_it(name):
    second = Image.new("RGB", (48, 32), "red")
    data = encode(scene(), name, save_all=True, append_images=[second])
    decoded = decode_image(data)
    assert np.abs(np.asarray(decoded.image).astype(int) - np.asarray(scene())).mean() < 12
    assert "only the first" in decoded.warnings[0]


def test_a_second_image_in_a_jpeg_is_not_a_frame():
    data = encode(scene(), "MPO", save_all=True, append_images=[scene()])
    decoded = decode_image(data)
    assert decoded.image.size == (48, 32)
    assert decoded.warnings == []


def test_none_is_a_missing_image():
    with pytest.raises(ImageMissing, match="no image"):
        prepare_image(None, 16)


def test_a_path_without_a_file_is_a_missing_image_and_the_message_names_it(tmp_path):
    for path in (tmp_path / "gone.jpg", tmp_path, "https://example.org/a.jpg", "nul\0.jpg", "/dev/zero"):
        with pytest.raises(ImageMissing) as caught:
            decode_image(path)
        assert repr(str(path)) in str(caught.value)


def test_an_unreadable_file_is_a_missing_image_with_the_reason(tmp_path, monkeypatch):
    path = tmp_path / "secret.png"
    path.write_bytes(encode(scene(), "PNG"))

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(ImageMissing, match="Permission denied"):
        decode_image(path)


def test_empty_bytes_and_empty_files_are_refused(tmp_path):
    (tmp_path / "empty.jpg").touch()
    for source in (b"", tmp_path / "empty.jpg"):
        with pytest.raises(EmptyFile):
            decode_image(source)


def test_too_many_bytes_are_refused_before_the_file_is_read(tmp_path, monkeypatch):
    path = tmp_path / "big.png"
    path.write_bytes(encode(scene(), "PNG"))
    monkeypatch.setattr(type(path), "open", lambda *_: pytest.fail("the file was opened"))
    limits = ImageLimits(max_bytes=50)
    for source in (path, b"x" * 51):
        with pytest.raises(ImageTooLarge, match="the limit is 50"):
            decode_image(source, limits)


@pytest.mark.parametrize("name", FORMATS)
def test_too_many_pixels_are_refused_before_decoding(name, monkeypatch):
    data = encode(scene(), name)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageTooLarge, match=r"48 x 32 = 1536 pixels; the limit is 1535"):
        decode_image(data, ImageLimits(max_pixels=1535))


def test_the_pixel_limit_applies_to_pil_images():
    with pytest.raises(ImageTooLarge):
        decode_image(scene(), ImageLimits(max_pixels=100))


def tiled_tiff(side):
    """Build a TIFF of one pixel in a square tile with this side, in pixels."""
    tile = zlib.compress(bytes(side * side))
    tags = [(256, 1), (257, 1), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side), (324, 8)]
    tags.append((325, len(tile)))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHI", b"II", 42, 8 + len(tile)) + tile + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_the_pixel_limit_applies_to_the_tiles_of_a_tiff():
    assert prepare_image(tiled_tiff(64), 16).width == 1
    with pytest.raises(ImageTooLarge, match="2000 x 2000"):
        prepare_image(tiled_tiff(2000), 16, ImageLimits(max_pixels=1_000_000))


def test_a_jpeg_with_hundreds_of_scans_is_refused_and_bytes_that_look_like_scans_are_not():
    data = encode(scene(), "JPEG", progressive=True)
    last = data[data.rfind(b"\xff\xda") : -2]
    with pytest.raises(DecodeFailed, match="more than 100 scans"):
        prepare_image(data[:-2] + last * 200 + data[-2:], 16)
    comment = b"\xff\xfe" + struct.pack(">H", 602) + b"\xff\xda" * 300
    for harmless in (data[:2] + comment + data[2:], data + b"\xff\xda" * 200):
        assert (prepare_image(harmless, 16).pixels == prepare_image(data, 16).pixels).all()


def test_a_pil_image_can_be_prepared_twice():
    image = Image.open(io.BytesIO(encode(scene(1200, 800), "JPEG")))
    first, second = prepare_image(image, 64), prepare_image(image, 64)
    assert (first.width, second.width) == (1200, 1200)
    assert (first.pixels == second.pixels).all()


def test_a_decompression_bomb_is_refused_as_too_large():
    data = bytearray(encode(scene(), "BMP"))
    data[18:26] = struct.pack("<II", 60_000, 60_000)
    with pytest.raises(ImageTooLarge, match="has 3600000000 pixels; the limit is 64000000"):
        decode_image(bytes(data))
    with pytest.raises(ImageTooLarge, match="has 3600000000 pixels; the limit is 1000"):  # not Pillow's own limit
        decode_image(bytes(data), ImageLimits(max_pixels=1000))


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg/>", "SVG"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html></html>", "HTML"),
        (b"<HTML><body>404</body></HTML>", "HTML"),
        (b"%PDF-1.7\n", "PDF"),
        (b"8BPS\0\1", "Photoshop"),
        (b"BMW unveils a new car in Munich on Friday", "BMW unveils"),
        (b"\x89PN", "PN"),
        (b"\0\1\2", "x00"),
    ],
)
def test_bytes_of_an_unsupported_format_are_refused_and_named(data, named):
    with pytest.raises(UnsupportedFormat, match=named) as caught:
        decode_image(data)
    assert "JPEG, PNG, WEBP, GIF, BMP, TIFF" in str(caught.value)


def test_formats_that_pillow_reads_but_that_are_not_listed_are_unsupported():
    for name in ("PPM", "TGA", "ICO", "PCX"):
        with pytest.raises(UnsupportedFormat):
            decode_image(encode(scene(), name))


def test_a_source_of_an_unknown_type_is_unsupported():
    with pytest.raises(UnsupportedFormat, match="ndarray"):
        decode_image(np.zeros((4, 4, 3)))


def test_a_pil_image_without_pixels_is_refused():
    with pytest.raises(DecodeFailed, match="no pixels"):
        decode_image(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_file_fails_to_decode_and_its_format_is_reported(name):
    data = encode(scene(300, 200), name)
    with pytest.raises(DecodeFailed, match=r"truncated or corrupt|is cut off") as caught:
        decode_image(data[: len(data) // 2])
    assert name in str(caught.value)


def samples():
    """Yield small files of every format and of rare modes."""
    gray16 = Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20))
    small = scene(20, 16)
    exif = Image.Exif()
    exif[0x0112] = 6
    yield from ((name, encode(small, name)) for name in FORMATS)
    yield from ((f"{name} alpha", encode(small.convert("RGBA"), name)) for name in ("PNG", "WEBP", "TIFF", "AVIF"))
    yield from ((f"{name} palette", encode(small.convert("P"), name)) for name in ("PNG", "GIF", "BMP", "TIFF"))
    yield from ((f"{name} gray16", encode(gray16, name)) for name in ("PNG", "TIFF"))
    yield "TIFF float", encode(gray16.convert("F"), "TIFF")
    yield from (
        (f"TIFF {how}", encode(small, "TIFF", compression=how))
        for how in ("tiff_lzw", "jpeg", "packbits", "tiff_deflate")
    )
    yield "JPEG exif", encode(small, "JPEG", exif=exif, progressive=True)
    yield "GIF animated", encode(small, "GIF", save_all=True, append_images=[small.rotate(90)])
    yield "PNG animated", encode(small, "PNG", save_all=True, append_images=[small.rotate(90)])


def mutations(data, stream, count):
    for _ in range(count):
        broken = bytearray(data)
        for _ in range(stream.choice((1, 1, 2, 8))):
            broken[stream.randrange(len(broken) if stream.random() < 0.5 else min(64, len(broken)))] = stream.choice(
                (0, 1, 0x7F, 0x80, 0xFF, stream.randrange(256))
            )
        yield bytes(broken)
        yield data[: stream.randrange(1, len(data))]


@pytest.mark.parametrize(("label", "data"), [pytest.param(*one, id=one[0]) for one in samples()])
def test_hostile_files_raise_only_input_errors_and_no_warnings(label, data, capfd):
    stream, limits, failed = random.Random(label), ImageLimits(max_pixels=250_000), 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for broken in mutations(data, stream, 40):
            try:
                prepared = prepare_image(broken, 16, limits)
                assert prepared.pixels.shape == (16, 16, 3)
            except InputError:
                failed += 1
    assert failed > 5  # enough of the mutations break the file
    if "TIFF" not in label:  # libtiff, which Pillow uses, writes to stderr itself
        assert capfd.readouterr().err == ""


def test_limits_that_cannot_work_are_refused():
    for limits in ({"max_bytes": 0}, {"max_pixels": 0}, {"max_pixels": 10**9}):
        with pytest.raises(ConfigError, match=str(next(iter(limits.values())))):
            ImageLimits(**limits)


def test_normalized_pixels_have_clip_statistics_and_channels_first():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    images = normalize(pixels)
    expected = (pixels / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    assert images.shape == (2, 3, 4, 4)
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    assert np.allclose(images.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-6)
    assert torch.equal(normalize(torch.from_numpy(pixels)), images)


def test_normalizing_does_not_change_its_input():
    pixels = torch.full((1, 2, 2, 3), 7, dtype=torch.uint8)
    normalize(pixels)
    assert (pixels == 7).all()
