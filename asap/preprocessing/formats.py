"""The format of a picture, by its first bytes; bytes that are no picture are named as the thing that they are."""

from __future__ import annotations

import base64
import binascii
import json
import re
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

from asap.errors import UnsupportedFormat

MOST_STRAY_BYTES = 64
"""The most bytes before a picture that are skipped. Line ends and byte order marks are a few; a header is more."""


class Starts(NamedTuple):
    """Patterns of the first bytes of one format. Each question has its own, as strict as a wrong answer is bad."""

    decoder: bytes | None = None
    """For the choice of a decoder. None: the brands of the file decide, or none decodes it."""
    stray: bytes | None = None
    """For a picture behind other bytes. None: too short to be looked for anywhere but at the beginning."""
    bare: bytes | None = None
    """For a file whose name says nothing. A picture that nothing decodes counts too, and is an error of its row later.
    None for BMP and ICO: the letters BM also begin words, and two zeros begin much."""
    base64: str = ""
    """For a text in base64: only whole groups of six bits, and / may be written as _."""


STARTS = {
    "JPEG": Starts(rb"\xff\xd8\xff", rb"\xff\xd8\xff[\xc0-\xc2\xdb\xdd\xe0-\xef\xfe]", rb"\xff\xd8\xff", "[/_]9j[/_]"),
    "PNG": Starts(rb"\x89PNG\r\n\x1a\n", rb"\x89PNG\r\n\x1a\n", rb"\x89PNG\r\n", "iVBORw0KGgo"),
    "WEBP": Starts(rb"RIFF....WEBP", rb"RIFF....WEBPVP8", rb"RIFF....WEBP", "UklGR"),
    "GIF": Starts(rb"GIF8[79]a", rb"GIF8[79]a", rb"GIF8[79]a", "R0lGOD[dl]"),
    "BMP": Starts(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", base64="Qk.{6}AAAA"),
    # Canon's CR2 is a TIFF that the decoder does not read.
    "TIFF": Starts(rb"II[*+]\0(?!\x10\0\0\0CR)|MM\0[*+]", bare=rb"II[*+]\0|MM\0[*+]", base64="SUkqA|TU0AK"),
    "JPEG2000": Starts(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", bare=rb"\0\0\0\x0cjP", base64="AAAADGpQ"),
    "AVIF or HEIC": Starts(bare=rb"....ftyp(avi|hei|mif|msf)", base64="AAAA.[GWm2]Z0eX"),
    "JPEG XL": Starts(bare=rb"\0\0\0\x0cjX", base64="AAAADEpY"),
    "ICO": Starts(base64="AAABAA"),
}
"""First bytes of pictures."""
_SIGNATURES = {name: starts.decoder for name, starts in STARTS.items() if starts.decoder}
_STRAY = re.compile(b"|".join(filter(None, (starts.stray for starts in STARTS.values()))), re.DOTALL)
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_LISTED = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "HEIC (with asap-ray[heic])")

_FOREIGN = {
    "a JPEG XL image": rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
    "an icon (ICO)": rb"\0\0\x01\0[\x01-\xff]\0",
    "a cursor (CUR)": rb"\0\0\x02\0[\x01-\xff]\0",
    "a Photoshop file (PSD)": rb"8BPS",
    "a GIMP file (XCF)": rb"gimp xcf",
    "an SVG drawing": rb"(?>(?:<\?xml[^>]*>|<!--.*?-->|\s)*)(<!DOCTYPE svg[^>]*>\s*)?<svg\b",
    "a PDF file": rb"%PDF",
    "a PostScript file (EPS)": rb"%!PS|\xc5\xd0\xd3\xc6",
    "a Windows metafile (WMF or EMF)": rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF|\x01\0\x09\0\0\x03",
    "a camera raw file": rb"II[*]\0\x10\0\0\0CR|FUJIFILMCCD-RAW|IIRO|IIRS|MMOR|IIU\0|\0MRM|FOVb",
    "a JPEG XR image": rb"II\xbc",
    "an OpenEXR image": rb"v/1\x01",
    "a Radiance HDR image": rb"#\?(RADIANCE|RGBE)",
    "a PNM image": rb"P[1-7]\s+(#[^\n]*\s+)?\d",
    "a QOI image": rb"qoif",
    "a DDS texture": rb"DDS \x7c",
    "a BPG image": rb"BPG\xfb",
    "a FITS file": rb"SIMPLE  =",
    "a DICOM file": rb".{128}DICM",
    "a DjVu document": rb"AT&TFORM",
    "an MNG animation": rb"\x8a[MJ]NG",
    "an AVI video": rb"RIFF....AVI ",
    "a WAV sound": rb"RIFF....WAVE",
    "a WebM or Matroska video": rb"\x1a\x45\xdf\xa3",
    "an MPEG video": rb"\0\0\x01[\xba\xb3]",
    "a Flash video": rb"FLV\x01",
    "an Ogg file": rb"OggS",
    "an MP3 sound": rb"ID3[\x02-\x04]",
    "a ZIP archive or an Office document": rb"PK(\x03\x04|\x05\x06|\x07\b)",
    "gzip-compressed data": rb"\x1f\x8b",
    "bzip2-compressed data": rb"BZh[1-9]1AY",
    "xz-compressed data": rb"\xfd7zXZ\0",
    "Zstandard-compressed data": rb"\x28\xb5\x2f\xfd",
    "a 7z archive": rb"7z\xbc\xaf\x27\x1c",
    "a RAR archive": rb"Rar!\x1a\x07",
    "a tar archive": rb".{257}ustar",
    "an Office document of before 2007": rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    "a Parquet file": rb"PAR1",
    "a NumPy array": rb"\x93NUMPY",
    "an SQLite database": rb"SQLite format 3\0",
    "macOS metadata of a file (AppleDouble), not the file": rb"\0\x05\x16[\0\x07]",
    "an HTTP response with its header": rb"HTTP/\d(\.\d)? \d{3}",
    "a Git LFS pointer, not the picture": rb"version https://git-lfs\.github\.com/spec/",
    "a git-annex pointer, not the picture": rb"/annex/objects/|(\.\./)*\.git/annex/objects/",
}
_ADVICE = {
    "gzip-compressed data": "Decompress the file; a store may have lost its `Content-Encoding`.",
    "a Git LFS pointer, not the picture": "Run `git lfs pull` where the pictures come from.",
    "a git-annex pointer, not the picture": "Run `git annex get` where the pictures come from.",
    "a JPEG XL image": "Convert it, as with `djxl IN OUT.png`.",
    "macOS metadata of a file (AppleDouble), not the file": "Delete it, and give the file without `._`.",
    "an HTTP response with its header": "Save the body only.",
    "zeros only": "The copy or the disk failed; copy it again.",
    "white space only": "Copy or download it again.",
    "a data: URI": "Save the bytes that it holds.",
    "base64 text that holds a picture": "Decode it.",
}
_MEDIA = {b"qt  ": "a QuickTime video", b"crx ": "a camera raw file", b"M4A ": "an MPEG-4 sound", b"jxl ": "JPEG XL"}


def sniff(data: bytes) -> tuple[str, int]:
    """Return the name of the one decoder that may read the bytes, and how many stray bytes precede the picture.

    Raises `UnsupportedFormat` with what the bytes are.
    """
    head = data[:1024]
    for name, signature in _SIGNATURES.items():
        if re.match(signature, head, re.DOTALL):
            return name, 0
    brands = _brands(head)
    if brands & _AVIF_BRANDS:
        return "AVIF", 0
    if brands & _HEIC_BRANDS:
        return _heic(), 0
    named = _name(head, brands)
    if named is None:
        if (stray := _STRAY.search(head[: MOST_STRAY_BYTES + 16])) and stray.start() <= MOST_STRAY_BYTES:
            return sniff(data[stray.start() : stray.start() + 1024])[0], stray.start()
        named = _name_text(data) or f"of an unknown format (they start with {head[:16]!r})"
    if named in _ADVICE:
        raise UnsupportedFormat(f"the bytes are {named}. {_ADVICE[named]}")
    raise UnsupportedFormat(f"the bytes are {named}, not an image that is supported. Use {', '.join(_LISTED)}.")


def readable_formats() -> list[str]:
    """Return the names of the formats that are decoded on this machine."""
    return [*(name for name in _LISTED if name.isalnum()), *(["HEIC"] if find_spec("pi_heif") else [])]


@cache
def _heic() -> str:
    """Return the decoder of HEIC, which is an extra: the libraries in its wheel are under the LGPL."""
    if find_spec("pi_heif") is None:
        raise UnsupportedFormat(
            "the bytes are a HEIC image, which is supported only with an extra. Install it with "
            "`pip install 'asap-ray[heic]'` where pictures are decoded, or convert the image to JPEG."
        )
    import pi_heif

    # One thread: many pictures are decoded at once. Thumbnails and depth maps are never looked at.
    pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    return "HEIF"


def _brands(head: bytes) -> set[bytes]:
    """Return the brands of an ISO media file, the first one included; none if it is no such file."""
    if head[4:8] != b"ftyp":
        return set()
    length = min(int.from_bytes(head[:4]), len(head))
    return {head[8:12]} | {head[start : start + 4] for start in range(16, length - 3, 4)}


def _name(head: bytes, brands: set[bytes]) -> str | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for name, sign in _FOREIGN.items():
        if re.match(sign, head, re.DOTALL) or re.match(sign, start, re.DOTALL | re.IGNORECASE):
            return name
    if brands:
        major = head[8:12]
        return _MEDIA.get(major, "a HEIF image of an unknown codec" if major in (b"mif1", b"msf1") else "an MP4 video")
    if head[4:8] in (b"moov", b"mdat", b"wide", b"skip"):
        return "a QuickTime video"
    return None


def _name_text(data: bytes) -> str | None:
    """Return what a text is that was saved as a picture; None if the bytes are no text."""
    if not data.strip(b"\0"):
        return "zeros only"
    text = _as_text(data[:65536])
    if text is None:
        return None
    text = text.strip()
    if not text:
        return "white space only"
    if text[0] == "<":
        return _name_markup(text)
    if text[0] in "{[":
        return _name_json(text)
    if text.lower().startswith("data:"):
        return "a data: URI"
    if re.match(r"(https?|s3|gs|file)://\S+$", text):
        return f"an address, not what is there: {text[:80]!r}"
    if len(text) >= 16 and re.fullmatch(r"[A-Za-z0-9+/_\s-]+=*", text[:1024]) and _holds_picture(text):
        return "base64 text that holds a picture"
    return f"plain text: {text[:60]!r}"


def _as_text(data: bytes) -> str | None:
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data[: len(data) // 2 * 2 if encoding == "utf-16" else None].decode(encoding)
    except UnicodeDecodeError as error:
        if not error.start or error.start < len(data) - 4:  # a character may be cut at the end
            return None
        text = data[: error.start].decode(encoding, "replace")
    return text if re.search(r"[\0-\x08\x0e-\x1f\x7f]", text) is None else None


def _name_markup(text: str) -> str:
    inside = re.sub(r"^(?>(?:<\?xml[^>]*>|<!--.*?-->|\s)+)", "", text, flags=re.DOTALL)
    if re.match(r"<(!doctype html|html|head|body|script|title|meta|div|p|h1|center|form|table|a|b|br)\b", inside, re.I):
        title = re.search(r"<title[^>]*>([^<]{1,80})", text, re.I)
        kind = "an HTML page with a login" if re.search(r"type=[\"']?password", text, re.I) else "an HTML page"
        return kind + (f" ({' '.join(title[1].split())!r})" if title and title[1].strip() else "")
    if re.match(r"<Error\b", inside) and (code := re.search(r"<Code>([\w.]{1,60})</Code>", text)):
        return f"an error of a store ({code[1]}) in XML"
    root = re.match(r"<([\w:.-]{1,40})", inside)
    return f"an XML document ({root[1]})" if root else f"plain text: {text[:60]!r}"


def _name_json(text: str) -> str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # it may be cut, or no JSON
        return "JSON" if re.match(r"[{\[]\s*[\"{\[\d}\]]", text) else f"plain text: {text[:60]!r}"
    said = value.get("error", value.get("message", value.get("detail"))) if isinstance(value, dict) else None
    return "JSON" + (f" ({said[:60]!r})" if isinstance(said, str) else "")


def _holds_picture(text: str) -> bool:
    letters = re.sub(r"\s", "", text[:1024]).translate(str.maketrans("-_", "+/"))
    try:
        start = base64.b64decode(letters[: len(letters) // 4 * 4])
    except binascii.Error:
        return False
    return bool(_brands(start)) or any(re.match(sign, start, re.DOTALL) for sign in _SIGNATURES.values())
