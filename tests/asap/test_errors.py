"""Texts from outside in messages and on the terminal."""

import pytest

from asap.errors import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x9b", r"\x1b[31mred\x9b"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("abc\u202egpj.exe", r"abc\u202egpj.exe"),
        ("half \udcff", r"half \udcff"),
        ("Žižkov 東京 1/2", "Žižkov 東京 1/2"),
        (b"bytes", "b'bytes'"),
    ],
)
def test_signs_that_command_a_terminal_are_shown_as_python_writes_them(text: object, shown: str) -> None:
    assert printable(text) == shown


def test_a_text_is_cut_after_its_signs_were_written_out() -> None:
    assert printable("x" * 120) == "x" * 120
    assert printable("x" * 121) == "x" * 119 + "…"
    assert printable("\x1b" * 5, 10) == r"\x1b\x1b\…"
    assert printable("x" * 500, None) == "x" * 500


def test_signs_may_be_kept() -> None:
    assert printable("two\n\tlines\x07", keep="\n\t") == "two\n\tlines\\x07"
