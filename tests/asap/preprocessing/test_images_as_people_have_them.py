"""Pictures that people really have: newer formats, damaged files, and files that are no pictures."""

import base64
import gzip
import io
import json
import random
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from asap.errors import DecodeFailed, ImageTooLarge, InputError, UnsupportedFormat, stable_message
from asap.preprocessing import formats, mending
from asap.preprocessing.images import ImageLimits, decode_image, prepare_image

HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAA"
    "AAAERAAAEAAQAAAAABoQABAAAAAAAAAK4AAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/WlwcnAA"
    "AADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkA"
    "AAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAA"
    "AAAoY2xhcAAAAEAAAAABAAAAKAAAAAEAAAAAAAAAAv///+gAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAAL"
    "ZtZGF0AAAAqigBrwngPf7NzycIOlhjJIQYuFqR942OpkOqeJp24zh/5yw5iyyb9mO1J+IiIgBPP9uvW/AiFiq6Nk8XJhLP0Ks2WqFz8KgoJ22F"
    "Gqgao0MwgV0R1CXGRWJiiTu1iVEc9Bq14bQS6AI2kbbH800cxBIuLi4ePHCaaGmTD3X1R14MCAJeYvT3N88KFJMvf+EowYjZzEuYQAkwh/kM2c"
    "VgagD97TFh6QeMy5tw"
)
"""A HEIC of 64 x 40 pixels: red grows to the right, green downwards."""
ROTATED_HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9jAA"
    "AAAERAAAIAAQAAAAAB7AABAAAAAAAAAK4AAgAAAAACmgABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVp"
    "bmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABB2lwcnAAAADmaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGE"
    "ABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkA"
    "AAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAKAAAAAEAAAAAAAAAAv///+gAAAACAAAAEH"
    "BpeGkAAAAAAwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEAAQaBAgMFhIYAAAAaaXJlZgAAAAAAAAAOY2RzYwACAAEAAQAAANptZGF0AAAA"
    "qigBrwngPf7NzycIOlhjJIQYuFqR942OpkOqeJp24zh/5yw5iyyb9mO1J+IiIgBPP9uvW/AiFiq6Nk8XJhLP0Ks2WqFz8KgoJ22FGqgao0MwgV"
    "0R1CXGRWJiiTu1iVEc9Bq14bQS6AI2kbbH800cxBIuLi4ePHCaaGmTD3X1R14MCAJeYvT3N88KFJMvf+EowYjZzEuYQAkwh/kM2cVgagD97TFh"
    "6QeMy5twAAAABkV4aWYAAE1NACoAAAAIAAEBEgADAAAAAQAGAAAAAAAA"
)
"""The same, to be turned once; the turn is in its `irot` box."""


def scene(width=300, height=200):
    """Draw a noisy image whose four corners all differ."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    noise = np.random.default_rng(0).normal(0, 12, (height, width, 3))
    return Image.fromarray((255 * np.stack([x, y, x * y], -1) + noise).clip(0, 255).astype(np.uint8))


def encode(image, name, **options):
    out = io.BytesIO()
    image.save(out, name, **options)
    return out.getvalue()


def chunk(kind, content, checksum=None):
    """Build a chunk of a PNG."""
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def with_chunk(*added):
    """Build a PNG with chunks before its pixels."""
    data = encode(scene(), "PNG")
    return data[:33] + b"".join(added) + data[33:]


def test_a_heic_is_decoded_and_turned_once():
    upright, turned = decode_image(HEIC), decode_image(ROTATED_HEIC)
    assert (upright.width, upright.height, upright.warnings) == (64, 40, [])
    assert (turned.width, turned.height, turned.image.size) == (40, 64, (40, 64))
    expected = upright.image.transpose(Image.Transpose.ROTATE_270)
    assert np.abs(np.asarray(turned.image).astype(int) - np.asarray(expected)).mean() < 8


def test_a_heic_without_the_extra_is_refused_and_the_message_names_it(monkeypatch):
    formats._heic.cache_clear()
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    try:
        with pytest.raises(UnsupportedFormat, match=r"pip install 'asap-ray\[heic\]'"):
            decode_image(HEIC)
    finally:
        formats._heic.cache_clear()


def test_a_heic_with_a_name_that_ends_the_decoder_is_refused():
    broken = ROTATED_HEIC.replace(b"Exif\0", b"\xf5xif\0", 1)
    assert broken != ROTATED_HEIC
    with pytest.raises(DecodeFailed, match="name of a part"):
        decode_image(broken)


@pytest.mark.parametrize("data", [encode(scene(), "AVIF"), HEIC], ids=["AVIF", "HEIC"])
def test_a_large_image_in_a_container_that_calls_it_small_is_refused_before_decoding(data, monkeypatch):
    small = bytearray(data)
    at = small.index(b"ispe") + 8
    small[at : at + 8] = struct.pack(">II", 10, 10)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(ImageTooLarge, match="the limit is 1000"):
        decode_image(bytes(small), ImageLimits(max_pixels=1000))


def test_the_first_picture_of_an_avif_sequence_is_analyzed():
    data = encode(scene(), "AVIF", save_all=True, append_images=[scene().rotate(90)])
    assert decode_image(data).warnings == ["the image has several frames; only the first was analyzed"]
    with pytest.raises(ImageTooLarge):
        decode_image(data, ImageLimits(max_pixels=59_999))


def test_transparency_of_avif_and_jpeg_2000_is_blended_with_white():
    image = Image.new("RGBA", (64, 64), (200, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 32, 64))
    for name in ("AVIF", "JPEG2000"):
        decoded = decode_image(encode(image, name))
        assert np.abs(np.asarray(decoded.image.getpixel((8, 8))) - 255).max() < 8
        assert "transparency" in decoded.warnings[0]


def test_sixteen_bit_gray_of_jpeg_2000_is_scaled():
    levels = np.tile(np.array([0, 257 * 100, 65535], np.uint16), (40, 20))
    pixels = np.asarray(decode_image(encode(Image.fromarray(levels), "JPEG2000")).image)
    assert pixels[0, :3, 0].tolist() == [0, 100, 255]


def test_a_jpeg_2000_whose_code_stream_is_larger_than_its_header_is_refused():
    data = bytearray(encode(scene(), "JPEG2000"))
    at = data.index(b"ihdr") + 4
    data[at : at + 8] = struct.pack(">II", 10, 10)
    with pytest.raises(ImageTooLarge, match="300 x 200"):
        decode_image(bytes(data), ImageLimits(max_pixels=1000))


def test_a_jpeg_2000_in_tiny_pieces_is_refused():
    with pytest.raises(DecodeFailed, match="tiles"):
        decode_image(encode(scene(500, 500), "JPEG2000", tile_size=(4, 4), num_resolutions=1))
    blocks = bytearray(encode(scene(), "JPEG2000"))
    at = blocks.index(b"\xff\x52") + 10  # sides of the code blocks in the COD segment
    blocks[at : at + 2] = b"\0\0"
    with pytest.raises(DecodeFailed, match="small blocks"):
        decode_image(bytes(blocks))
    layers = bytearray(encode(scene(), "JPEG2000"))
    at = layers.index(b"\xff\x52") + 6
    layers[at : at + 2] = b"\xff\xff"
    with pytest.raises(DecodeFailed, match="layers"):
        decode_image(bytes(layers))


def text_chunks(**options):
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 2_000_000, **options)
    return encode(scene(), "PNG", pnginfo=info)


@pytest.mark.parametrize(
    ("data", "left_out"),
    [
        (text_chunks(zip=True), "zTXt"),
        (with_chunk(chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(3 * 2**20)))), "iCCP"),
        (with_chunk(chunk(b"tEXt", b"a\0b", checksum=1)), "tEXt"),
        (with_chunk(chunk(b"tIME", b"1", checksum=1), chunk(b"gAMA", b"12", checksum=2)), "tIME, gAMA"),
    ],
    ids=["text", "profile", "checksum", "two"],
)
def test_a_png_with_unusable_data_beside_its_pixels_is_analyzed_with_a_warning(data, left_out):
    decoded = decode_image(data)
    assert np.array_equal(np.asarray(decoded.image), np.asarray(scene()))
    assert len(decoded.warnings) == 1
    assert decoded.warnings[0].endswith(f"left out: {left_out}")


def test_a_large_png_with_unusable_data_is_refused_before_its_pixels_are_decompressed(monkeypatch):
    data = text_chunks(zip=True)
    large = chunk(b"IHDR", struct.pack(">II", 2**31 - 1, 2**31 - 1) + data[24:29])
    monkeypatch.setattr(mending, "_count_decompressed", lambda *_: pytest.fail("decompressed"))
    with pytest.raises(ImageTooLarge, match="2147483647 x 2147483647"):
        decode_image(data[:8] + large + data[33:])
    with pytest.raises(DecodeFailed):  # the size that was checked is not the only one
        decode_image(data[:33] + large + data[33:])


def test_a_png_with_a_damaged_palette_or_damaged_pixels_is_refused():
    palette = bytearray(encode(scene().convert("P"), "PNG"))
    palette[palette.index(b"PLTE") + 5] ^= 1
    pixels = bytearray(encode(scene(), "PNG"))
    pixels[len(pixels) // 2 : len(pixels) // 2 + 40] = bytes(range(40))
    for damaged in (palette, pixels):
        with pytest.raises(DecodeFailed):
            decode_image(bytes(damaged))


def test_a_png_without_its_end_marker_is_analyzed_with_a_warning():
    for end in (12, 16):  # without IEND; without the checksum of the pixels too
        decoded = decode_image(encode(scene(), "PNG")[:-end])
        assert np.array_equal(np.asarray(decoded.image), np.asarray(scene()))
        assert "no end marker; all of its rows are there" in decoded.warnings[0]


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_last_two_bytes_is_analyzed_with_a_warning(progressive):
    data = encode(scene(), "JPEG", progressive=progressive)
    decoded = decode_image(data[:-2])
    assert np.array_equal(np.asarray(decoded.image), np.asarray(decode_image(data).image))
    assert decoded.warnings == ["the image has no end marker; all of its rows are there"]


@pytest.mark.parametrize(
    ("name", "filled"),
    [("JPEG", False), ("JPEG", True), ("PNG", False), ("PNG", True), ("BMP", False)],  # zeros are pixels of a BMP
)
def test_a_picture_of_which_at_least_95_percent_are_there_is_analyzed_and_the_rest_is_gray(name, filled):
    data = encode(scene(600, 800), name)
    missing = len(data) // 40
    decoded = decode_image(data[:-missing] + bytes(missing if filled else 0))
    rows = int(decoded.warnings[0].split(": ")[1].split(" of ")[0])
    assert decoded.warnings == [f"the image is cut off: {rows} of 800 rows are there; the rest is gray"]
    assert 750 < rows < 800
    whole, cut = np.asarray(decode_image(data).image), np.asarray(decoded.image)
    if name == "BMP":  # its rows are stored from the bottom
        whole, cut = whole[::-1], cut[::-1]
    assert np.array_equal(whole[: rows - 1], cut[: rows - 1])
    assert np.abs(cut[-1].astype(int) - 128).max() <= 8


@pytest.mark.parametrize("name", ["JPEG", "PNG", "BMP"])
def test_a_picture_of_which_less_is_there_is_refused_with_the_rows(name):
    data = encode(scene(600, 800), name)
    with pytest.raises(DecodeFailed, match=r"is cut off: (\d+) of 800 rows are there") as caught:
        decode_image(data[: len(data) * 3 // 4])
    assert 500 < int(str(caught.value).split("cut off: ")[1].split()[0]) < 700


def test_a_progressive_jpeg_that_holds_only_its_blurred_beginning_is_refused():
    data = encode(scene(), "JPEG", progressive=True)
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    with pytest.raises(DecodeFailed, match="scans with its details are missing"):
        decode_image(data[: scans[1]])


def test_a_cut_jpeg_is_turned_as_its_exif_says():
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode_image(encode(scene(600, 800), "JPEG", exif=exif)[:-40])
    assert decoded.image.size == (800, 600)
    assert "rows are there" in decoded.warnings[0]


def test_a_large_cut_jpeg_is_decoded_at_a_fraction_and_counted_in_rows_of_the_original():
    prepared = prepare_image(encode(scene(1200, 900), "JPEG")[:-40], 32)
    assert prepared.warnings == ["the image is cut off: 896 of 900 rows are there; the rest is gray"]


def test_zeros_behind_a_whole_picture_do_no_harm():
    for name in ("JPEG", "PNG"):
        assert decode_image(encode(scene(), name) + bytes(400)).warnings == []


@pytest.mark.parametrize("damage", ["size of EXIF", "size of the file", "cut"])
def test_a_webp_with_damaged_metadata_is_analyzed_with_a_warning(damage):
    data = bytearray(encode(scene(), "WEBP", lossless=True, exif=b"Exif\0\0" + bytes(40), xmp=b"<x/>"))
    at = data.index(b"EXIF")
    if damage == "cut":
        del data[at + 12 :]
    else:
        start = at + 4 if damage == "size of EXIF" else 4
        data[start : start + 4] = struct.pack("<I", 10**6)
    decoded = decode_image(bytes(data))
    assert np.array_equal(np.asarray(decoded.image), np.asarray(scene()))
    assert "metadata" in decoded.warnings[0]


def test_a_gif_without_its_trailer_is_analyzed_with_a_warning():
    assert "no end marker" in decode_image(encode(scene(), "GIF")[:-1]).warnings[0]


def test_a_bmp_with_wrong_sizes_in_its_header_is_analyzed():
    data = encode(scene(), "BMP")
    size = data[:2] + struct.pack("<I", 7) + data[6:]
    assert decode_image(size).warnings == []
    offset = decode_image(data[:10] + struct.pack("<I", 10**8) + data[14:])
    assert np.array_equal(np.asarray(offset.image), np.asarray(scene()))
    assert "offset" in offset.warnings[0]


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF"])
def test_some_stray_bytes_before_a_picture_are_skipped_with_a_warning(name):
    data = encode(scene(), name)
    for stray in (b"\n", b"\xef\xbb\xbf", b"\0", b"x" * 64):
        decoded = decode_image(stray + data)
        assert decoded.warnings == [f"stray bytes before the picture were skipped: {len(stray)}"]
        assert np.array_equal(np.asarray(decoded.image), np.asarray(decode_image(data).image))
        assert decoded.sha256 != decode_image(data).sha256
    with pytest.raises(UnsupportedFormat):
        decode_image(b"x" * 65 + data)


JPEG = encode(scene(40, 40), "JPEG")


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12\n", "Git LFS pointer.*`git lfs pull`"),
        (b"../.git/annex/objects/aa/bb/SHA256E-s1--ff.jpg", "git-annex pointer.*`git annex get`"),
        (b"\n<!DOCTYPE html><title>Sign in\n here</title><input type='password'>", r"login \('Sign in here'\)"),
        (b"<head><title>404</title>", r"HTML page \('404'\)"),
        (b"<!-- x --><body>gone", "an HTML page"),
        (b"<!-- x -->" * 10_000, "plain text"),  # many ways to split it: a search that tries all would not end
        (b'{"message": "not authorised"}', r"JSON \('not authorised'\)"),
        (b'[{"a": 1}, {', "JSON"),
        (
            b"<?xml version='1.0'?>\n<Error><Code>AccessDenied</Code><RequestId>8F</RequestId></Error>",
            r"an error of a store \(AccessDenied\) in XML",
        ),
        (b"<?xml version='1.0'?><feed/>", r"an XML document \(feed\)"),
        ("Zürich ist schön".encode(), "plain text: 'Zürich ist schön'"),
        ("Seite".encode("utf-16"), "plain text: 'Seite'"),
        (base64.b64encode(JPEG), "base64 text.*Decode it"),
        (base64.encodebytes(JPEG), "base64 text.*Decode it"),
        (b"data:image/jpeg;base64,/9j/4A", "a data: URI"),
        (b"https://example.org/a.jpg\n", "an address.*'https://example.org/a.jpg'"),
        (gzip.compress(JPEG, mtime=0), "gzip-compressed.*`Content-Encoding`"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X        ", "AppleDouble"),
        (bytes(4096), "zeros only"),
        (b" \r\n ", "white space only"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n" + JPEG, "an HTTP response"),
        (b"PK\3\4\x14\0", "ZIP archive"),
        (encode(scene(40, 40), "ICO"), "an icon"),
        (b"8BPS\0\1", "Photoshop"),
        (b"%!PS-Adobe-3.0", "PostScript"),
        (b"\xd7\xcd\xc6\x9a\0\0", "Windows metafile"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL.*djxl"),
        (b"II*\0\x10\0\0\0CR\2\0", "camera raw"),
        (b"FUJIFILMCCD-RAW 0201", "camera raw"),
        (encode(scene(40, 40), "TIFF", tiffinfo={50706: b"\1\4\0\0"}), "camera raw.*DNG"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "MP4 video"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "QuickTime video"),
        (b"\x1a\x45\xdf\xa3\1\0\0\0", "WebM or Matroska video"),
        (b"\0\0\0\x14ftypmif1\0\0\0\0jpeg", "HEIF image of an unknown codec"),
        (b"PAR1\x15\4", "Parquet"),
    ],
)
def test_what_is_no_picture_is_named(data, named):
    with pytest.raises(UnsupportedFormat, match=named) as caught:
        decode_image(data)
    assert len(str(caught.value)) < 350


def test_tiny_and_elongated_pictures_are_analyzed_with_a_warning():
    assert "tiny: 1 x 1" in prepare_image(encode(scene(1, 1), "PNG"), 16).warnings[0]
    assert "tiny: 9000 x 3" in prepare_image(encode(scene(9000, 3), "PNG"), 16).warnings[0]
    assert "elongated: 32 x 257" in prepare_image(encode(scene(32, 257), "PNG"), 16).warnings[0]
    for usual in ((32, 32), (256, 32), (33, 260)):
        assert prepare_image(encode(scene(*usual), "PNG"), 16).warnings == []


def test_messages_of_foreign_errors_hold_nothing_that_differs_between_two_runs():
    error = OSError(f"cannot identify {io.BytesIO()!r} in /tmp/tmpab12cd_9/x.png, {object()!r} or at 0x7fbece55fba0.\n")
    assert stable_message(error) == "OSError: cannot identify BytesIO in a temporary file/x.png, object or"
    assert stable_message(KeyError()) == "KeyError"


_DECODE_ALL = """
import base64, json, sys
from asap.errors import InputError
from asap.preprocessing.images import ImageLimits, prepare_image
for line in sys.stdin:
    try:
        prepared = prepare_image(base64.b64decode(line), 16, ImageLimits(max_pixels=1_000_000))
        print(json.dumps([prepared.pixels.tolist(), prepared.warnings]))
    except InputError as error:
        print(json.dumps([error.code, str(error)]))
"""


def test_two_runs_say_the_same_of_damaged_files():
    stream, damaged = random.Random(0), []
    wholes = [encode(scene(60, 40), name) for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")]
    for data in [*wholes, HEIC, ROTATED_HEIC]:
        for _ in range(30):
            broken = bytearray(data)
            for _ in range(stream.choice((1, 4, 30))):
                broken[stream.randrange(len(broken))] = stream.randrange(256)
            damaged += [bytes(broken), data[: stream.randrange(1, len(data))]]
    lines = "\n".join(base64.b64encode(data).decode() for data in damaged)
    runs = [
        subprocess.run(
            [sys.executable, "-c", _DECODE_ALL], input=lines, env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True, text=True, check=True,
        ).stdout.splitlines()
        for seed in ("1", "2")
    ]  # fmt: skip
    assert len(runs[0]) == len(damaged)
    assert runs[0] == runs[1]
    assert sum(json.loads(line)[0] == "decode_failed" for line in runs[0]) > 100
    assert not any("0x" in json.loads(line)[1] for line in runs[0] if json.loads(line)[0] == "decode_failed")


@pytest.mark.parametrize("data", [HEIC, ROTATED_HEIC, encode(scene(60, 40), "JPEG2000"), encode(scene(60, 40), "AVIF")])
def test_hostile_files_of_newer_formats_raise_only_input_errors(data):
    stream, failed = random.Random(1), 0
    for _ in range(200):
        broken = bytearray(data)
        for _ in range(stream.choice((1, 2, 8))):
            broken[stream.randrange(len(broken) if stream.random() < 0.5 else 200)] = stream.choice((0, 1, 127, 255))
        try:
            assert prepare_image(bytes(broken), 16, ImageLimits(max_pixels=1_000_000)).pixels.shape == (16, 16, 3)
        except InputError:
            failed += 1
    assert failed > 20
