"""Forms as clients send them: encodings of the text, files, and fields that are unknown, doubled or cut off."""

from __future__ import annotations

import asyncio
import encodings
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.requests import Request
from starlette.types import Message

from serve.api.forms import max_bytes_of, read_form
from serve.errors import Refused
from tests.support.serving import FixedDetector, api, encoded

PICTURE = encoded()
END = b"\r\n--b--\r\n"


@pytest.fixture(scope="module")
def reader() -> FixedDetector:
    return FixedDetector()


@pytest.fixture(scope="module")
def client(reader: FixedDetector) -> Iterator[TestClient]:
    with api(reader) as client:
        yield client


def _part(name: str, content: bytes, *headers: bytes) -> bytes:
    """Return a part of a form with the boundary `b`."""
    lines = [b"--b", b'content-disposition: form-data; name="%s"' % name.encode(), *headers, b"", content]
    return b"\r\n".join(lines)


def _send(client: TestClient, *parts: bytes, kind: str = "multipart/form-data; boundary=b", end: bytes = END) -> Any:
    return client.post("/v1/detect", content=b"\r\n".join(parts) + end, headers={"content-type": kind})


def _check_refused(answer: Any, status: int, code: str, param: str | None, reason: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"], error["request_id"]) == (code, param, answer.headers["x-request-id"])
    assert reason in error["message"]


@pytest.mark.parametrize(
    ("encoding", "declared", "text"),
    [
        ("utf-8", "utf-8", "A café by the river"),
        ("utf-8-sig", "UTF-8", "A café by the river"),
        ("cp1252", "iso-8859-1", "A “café” by the river"),
        ("cp1252", "windows-1252", "The minister’s café"),
        ("utf-16", "utf-16", "A café by the river"),
        ("shift_jis", "Shift_JIS", "A minister in 東京"),
        ("koi8-r", "koi8-r", "Министр opens the bridge"),
    ],
)
@pytest.mark.parametrize("named_by", ["part", "field", "form", "quoted"])
def test_a_text_is_decoded_from_the_encoding_that_its_part_its_form_or_a_field_names(
    client: TestClient, reader: FixedDetector, encoding: str, declared: str, text: str, named_by: str
) -> None:
    headers = [b"content-type: text/plain; charset=" + declared.encode()] if named_by == "part" else []
    if named_by == "quoted":
        headers = [b'Content-Type: text/plain; Charset="%s"' % declared.encode()]
    parts = [_part("image", PICTURE), _part("text", text.encode(encoding), *headers)]
    if named_by == "field":
        parts.append(_part("_charset_", declared.encode()))
    kind = "multipart/form-data; boundary=b" + (f"; charset={declared}" if named_by == "form" else "")
    answer = _send(client, *parts, kind=kind)
    assert answer.status_code == 200, answer.text
    assert reader.texts[-1] == text


@pytest.mark.parametrize(
    ("content", "declared", "reason"),
    [
        (b"A caf\xe9 by the river", "", "not in the encoding utf-8"),
        (b"A caf\xe9 by the river", "utf-8", "not in the encoding utf-8"),
        (b"A caf\xe9 by the river", "us-ascii", "not in the encoding us-ascii"),
        (b"A caf\x81 by the river", "windows-1252", "not in the encoding windows-1252"),
        (b"A river", "martian", "unknown encoding: 'martian'"),
        (b"A river", "rot13", "unknown encoding"),
        (b"A river", "punycode", "unknown encoding"),
        (b"A river", "unicode_escape", "unknown encoding"),
        (b"A river", "idna", "unknown encoding"),
        (b"A river", "undefined", "unknown encoding"),
        (b"A river", "utf-8\x00", "unknown encoding"),
        (b"A river", "utf-8!", "unknown encoding"),
        (b"A river", "utf-8" + "-" * 1000, "unknown encoding: 'utf-8" + "-" * 35 + "'"),
    ],
)
def test_a_text_that_is_not_in_its_encoding_is_refused(
    client: TestClient, content: bytes, declared: str, reason: str
) -> None:
    headers = [f"content-type: text/plain; charset={declared}".encode()] if declared else []
    answer = _send(client, _part("image", PICTURE), _part("text", content, *headers))
    _check_refused(answer, 400, "text_invalid", "text", reason)


def test_the_name_of_an_encoding_that_a_caller_invents_is_not_kept(client: TestClient) -> None:
    def send(name: str) -> Any:
        header = f"content-type: text/plain; charset={name}".encode()
        return _send(client, _part("image", PICTURE), _part("text", b"A river", header))

    kept = set(encodings._cache)  # type: ignore[attr-defined]
    for number in range(20):
        _check_refused(send(f"martian-{number}"), 400, "text_invalid", "text", f"'martian-{number}'")
    assert set(encodings._cache) == kept  # type: ignore[attr-defined]


@pytest.mark.parametrize("charset", ["utf-8", "utf-16", "utf-32", "gb18030", "euc-kr", "hz", "iso-2022-jp-2"])
def test_a_text_of_as_many_characters_as_allowed_is_read_in_any_encoding(reader: FixedDetector, charset: str) -> None:
    # Characters that take the most bytes, each between two that need a switch to another set of characters.
    many = {"euc-kr": "똠", "hz": "东\n", "iso-2022-jp-2": "丂\n한é"}.get(charset, "𠀋")
    text = "A river " + "".join(itertools.islice(itertools.cycle(many), 92))
    header = f"content-type: text/plain; charset={charset}".encode()
    with api(reader, max_text_chars=100) as client:
        answer = _send(client, _part("image", PICTURE), _part("text", text.encode(charset), header))
        assert answer.status_code == 200, answer.text
        assert reader.texts[-1] == text
        answer = _send(client, _part("image", PICTURE), _part("text", (text + "A").encode(charset), header))
        _check_refused(answer, 413, "too_large", "text", "101 characters, the limit is 100")


def test_no_character_takes_more_bytes_in_an_encoding_than_the_limit_of_a_text_allows() -> None:
    names = ["utf-8", "utf-16", "utf-32", "gb18030", "euc-kr", "johab", "hz", "euc-jis-2004", "iso2022-kr"]
    names += ["iso2022-jp" + variant for variant in ("", "-1", "-2", "-2004", "-3", "-ext")]
    characters = [chr(point) for point in (*range(0xD800), *range(0xE000, 0x10000), *range(0x20000, 0x20100))]
    for name in names:
        longest = max(len(character.encode(name, "ignore")) for character in characters)
        assert longest <= max_bytes_of(1), name


@pytest.mark.parametrize(("name", "most"), [("text", max_bytes_of(100)), ("_charset_", 40)])
def test_a_field_that_is_too_long_is_refused_while_its_bytes_come(name: str, most: int) -> None:
    read = 0

    async def receive() -> Message:
        nonlocal read
        read += 1
        begin = _part(name, b"") if read == 1 else b""
        return {"type": "http.request", "body": begin + b"x" * most, "more_body": True}

    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    request = Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)
    with pytest.raises(Refused, match=f"{name} has more than {most} bytes") as caught:
        asyncio.run(read_form(request, ("text",), {"text": max_bytes_of(100)}))
    assert (caught.value.status, caught.value.code, caught.value.param) == (413, "too_large", name)
    assert read == 2


def test_a_text_with_more_bytes_than_its_characters_can_take_is_refused_by_the_route() -> None:
    with api(FixedDetector(), max_text_chars=100) as client:
        text = _part("text", b"x" * (max_bytes_of(100) + 1))
        answer = _send(client, _part("image", PICTURE), text)
        _check_refused(answer, 413, "too_large", "text", f"more than {max_bytes_of(100)} bytes")
        charset = _part("_charset_", b"utf-8" + b" " * 36)
        answer = _send(client, _part("image", PICTURE), _part("text", b"A river"), charset)
        _check_refused(answer, 413, "too_large", "_charset_", "more than 40 bytes")


def test_a_text_may_be_a_file_and_a_picture_a_plain_field(client: TestClient, reader: FixedDetector) -> None:
    answer = client.post("/v1/detect", files={"image": ("a.png", PICTURE), "text": ("a.txt", b"A river")})
    assert answer.status_code == 200, answer.text
    assert reader.texts[-1] == "A river"
    assert _send(client, _part("text", b"A bridge"), _part("image", PICTURE)).status_code == 200
    assert reader.texts[-1] == "A bridge"


@pytest.mark.parametrize(
    ("parts", "status", "code", "param", "reason"),
    [
        (["image", "text", "caption"], 422, "invalid_field", "caption", "may not have this field"),
        (["image", "text", "uri"], 422, "invalid_field", "uri", "may not have this field"),
        (["image", "text", "text"], 422, "invalid_field", "text", "given twice"),
        (["image", "image", "text"], 422, "invalid_field", "image", "given twice"),
        (["image"], 422, "invalid_field", "text", "no such field"),
        (["text"], 422, "invalid_field", "image", "no such field"),
        (["image", "text", "x" * 500], 422, "invalid_field", "x" * 40, "may not have this field"),
    ],
    ids=str,
)
def test_a_form_with_other_fields_than_it_should_have_is_refused_by_their_name(
    client: TestClient, parts: list[str], status: int, code: str, param: str, reason: str
) -> None:
    content = {"image": PICTURE}
    _check_refused(
        _send(client, *(_part(name, content.get(name, b"A river")) for name in parts)), status, code, param, reason
    )


@pytest.mark.parametrize("coding", [b"base64", b"quoted-printable"])
def test_a_part_in_an_encoding_of_mail_is_refused(client: TestClient, coding: bytes) -> None:
    text = _part("text", b"A river", b"Content-Transfer-Encoding: " + coding)
    _check_refused(_send(client, _part("image", PICTURE), text), 415, "unsupported_media_type", "text", coding.decode())
    plain = _part("text", b"A river", b"Content-Transfer-Encoding: 8bit")
    assert _send(client, _part("image", PICTURE), plain).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        [b'Content-Disposition: form-data; name="_charset_"'],
        [b"content-type: text/plain; charset=utf-8", b"Content-Type: text/plain; charset=koi8-r"],
        [b"content-type: text/plain", b"content-type: text/plain"],
        [b"Content-Transfer-Encoding: base64", b"content-transfer-encoding: 8bit"],
    ],
    ids=["disposition", "type", "the same type", "transfer encoding"],
)
def test_a_part_with_two_headers_of_one_name_is_refused(client: TestClient, headers: list[bytes]) -> None:
    name = headers[-1].partition(b":")[0].decode().lower()
    answer = _send(client, _part("image", PICTURE), _part("text", b"A river", *headers))
    _check_refused(answer, 400, "bad_request", None, f"two headers {name}")
    others = _part("text", b"A river", b"x-note: a", b"x-note: b")
    assert _send(client, _part("image", PICTURE), others).status_code == 200


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (b'content-disposition: form-data; name="text"; name="image"', "name"),
        (b'content-disposition: form-data; name=text; NAME ="image"', "name"),
        (b'content-disposition: form-data; name="text"; filename="a"; filename="b"', "filename"),
        (b"content-disposition: form-data; name=text\r\ncontent-type: a/b; charset=utf-8; charset=koi8-r", "charset"),
    ],
)
def test_a_parameter_that_a_header_of_a_part_has_twice_is_refused(client: TestClient, header: bytes, name: str) -> None:
    part = b"\r\n".join([b"--b", header, b"", b"A river"])
    answer = _send(client, _part("image", PICTURE), part)
    _check_refused(answer, 400, "bad_request", None, f"two parameters {name}. Send one.")


def test_a_parameter_that_the_form_itself_has_twice_is_refused(client: TestClient) -> None:
    for name in ("boundary", "charset"):
        kind = f"multipart/form-data; boundary=b; charset=utf-8; {name}=b"
        answer = _send(client, _part("image", PICTURE), _part("text", b"A river"), kind=kind)
        _check_refused(answer, 400, "bad_request", None, f"two parameters {name}")


def test_a_file_may_have_a_name_that_looks_like_parameters(client: TestClient, reader: FixedDetector) -> None:
    named = b'content-disposition: form-data; name="text"; filename="a; name=image; \\"; name=image"'
    part = b"\r\n".join([b"--b", named, b"", b"A quay"])
    answer = _send(client, _part("image", PICTURE), part)
    assert answer.status_code == 200, answer.text
    assert reader.texts[-1] == "A quay"


def test_a_picture_of_a_form_is_refused_as_soon_as_it_is_larger_than_a_picture_may_be() -> None:
    with api(FixedDetector(), max_image_bytes=len(PICTURE)) as client:
        assert _send(client, _part("image", PICTURE), _part("text", b"A river")).status_code == 200
        answer = _send(client, _part("image", PICTURE + b"x"), _part("text", b"A river"))
        _check_refused(answer, 413, "too_large", "image", f"more than {len(PICTURE)} bytes")


@pytest.mark.parametrize(
    ("body", "kind", "reason"),
    [
        (_part("image", PICTURE) + b"\r\n" + _part("text", b"A ri"), "multipart/form-data; boundary=b", "cut off"),
        (b"", "multipart/form-data; boundary=b", "cut off"),
        (b"A river", "multipart/form-data; boundary=b", "not valid"),
        (_part("text", b"A river") + END, "multipart/form-data", "no boundary"),
        (_part("text", b"A river") + END, "multipart/form-data; boundary=" + "b" * 1000, "not valid"),
        (b"--b\r\ncontent-type: text/plain\r\n\r\nA river" + END, "multipart/form-data; boundary=b", "has no name"),
    ],
    ids=["cut off", "empty", "no form", "no boundary", "long boundary", "no name"],
)
def test_a_malformed_form_is_refused(client: TestClient, body: bytes, kind: str, reason: str) -> None:
    answer = client.post("/v1/detect", content=body, headers={"content-type": kind})
    _check_refused(answer, 400, "bad_request", None, reason)
