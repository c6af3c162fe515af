import asyncio
import logging
import os
from pathlib import Path

import pytest

from serve.api.callers.current_keys import CurrentKeys
from serve.api.callers.keys import Keyring
from tests.support.waiting import Clock

LINES = [f"{name}:{digit * 64}" for name, digit in (("a", "0"), ("b", "1"))]


class Server:
    """The keys of a server with this file, one second after another."""

    def __init__(self, file: Path) -> None:
        self.clock = Clock()
        self.reloads: list[bool] = []
        self.keys = CurrentKeys(Keyring.read(str(file)), str(file), self.reloads.append, lambda: self.clock.now)
        self.names()

    def names(self, after_s: float = 2) -> list[str]:
        self.clock.now += after_s
        asyncio.run(self.keys.refresh())
        return list(self.keys.keyring.keys)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(LINES[0])
    return file


def test_a_key_that_is_added_or_removed_counts_after_a_second(file: Path) -> None:
    server = Server(file)
    file.write_text("\n".join(LINES))
    assert server.names(after_s=0) == ["a"]
    assert server.names() == ["a", "b"]
    file.write_text(LINES[1])
    assert server.names() == ["b"]
    assert server.names() == ["b"]
    assert server.reloads == [True] * 3, "a file that has not changed is not read"


def test_a_file_that_is_replaced_is_read_anew_even_if_its_size_and_time_are_the_same(file: Path) -> None:
    server = Server(file)
    other = file.with_name("other")
    other.write_text(LINES[1])
    state = file.stat()
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.replace(file)
    assert server.names() == ["b"]


def test_a_process_that_starts_later_does_not_use_the_keys_of_the_deployment(file: Path) -> None:
    old = Keyring.parse(LINES, "here")
    keys = CurrentKeys(old, str(file), clock=lambda: 0.0)
    assert list(keys.keyring.keys) == ["a"], "also for requests that come at once, of which one alone refreshes"


def test_a_process_that_starts_without_its_file_uses_the_keys_of_the_deployment_until_it_is_there(file: Path) -> None:
    file.unlink()
    reloads: list[bool] = []
    clock = Clock()
    keys = CurrentKeys(Keyring.parse(LINES[:1], "here"), str(file), reloads.append, lambda: clock.now)
    assert (list(keys.keyring.keys), reloads) == (["a"], [False])
    file.write_text(LINES[1])
    clock.now += 2
    asyncio.run(keys.refresh())
    assert (list(keys.keyring.keys), reloads) == (["b"], [False, True])


def test_a_server_whose_last_key_is_removed_refuses_everybody(file: Path) -> None:
    server = Server(file)
    file.write_text("# nobody")
    assert server.names() == []
    assert server.keys.are_needed


@pytest.mark.parametrize("content", ["no line of keys", None], ids=["wrong", "missing"])
def test_a_file_that_cannot_be_read_changes_nothing_and_is_reported_once(
    file: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(file)
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with caplog.at_level(logging.ERROR, "asap.keys"):
        assert server.names() == ["a"]
        assert server.names() == ["a"]
    (record,) = caplog.records
    assert "keys from before are still in use" in record.getMessage()
    file.write_text(LINES[1])
    assert server.names() == ["b"]
    assert server.reloads == [True, False, True]


def test_keys_of_the_environment_and_a_server_without_keys_never_change(file: Path) -> None:
    for keyring, name in ((Keyring.read(str(file)), None), (Keyring(), str(file))):
        keys = CurrentKeys(keyring, name, clock=lambda: 0.0)
        file.write_text("\n".join(LINES))
        asyncio.run(keys.refresh())
        assert keys.keyring == keyring
        assert keys.are_needed == bool(keyring)
