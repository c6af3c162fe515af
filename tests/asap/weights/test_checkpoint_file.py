"""Files of others: read as plain tensors, or refused with what they are and what to do."""

import argparse
import collections
import io
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from asap.errors import CheckpointError
from asap.weights.checkpoint_file import check_checkpoint, read_checkpoint, read_state
from asap.weights.python_objects import Found, read_pickle

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2)}
ESCAPE = "\x1b"


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert ESCAPE not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty. Download or copy it again."),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n",
            "a Git LFS pointer .*`git lfs pull`",
        ),
        (b"<!DOCTYPE html><html><title>Sign in</title>", "a web page in place of the file"),
        (b"\xef\xbb\xbf\n <html>", "a web page in place of the file"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page in place of the file"),
        (b"\x1f\x8b\x08\x00" + bytes(20), "a compressed archive. Unpack it"),
        (b"PK\x03\x04" + bytes(40), "cut off after 44 bytes: its end is missing"),
        (b"epoch,loss\n1,0.3\n", r"it begins with b'epoch,loss\\n1,0\.3', and neither"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named_by_what_it_is(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        check_checkpoint(path)
    assert str(caught.value).startswith(f"checkpoint {path} cannot be read: it ")


def test_a_checkpoint_that_is_cut_off_is_said_to_be_in_both_formats(tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    for zipped in (True, False):
        torch.save({"model": STATE}, path, _use_new_zipfile_serialization=zipped)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert "cut off" in refused(path)


def test_an_archive_of_something_else_and_a_program_are_told_apart(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("checkpoint_best.pth", b"x")
    assert "zip archive of something else. Unpack it" in refused(tmp_path / "other.pth")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pth")
    assert "a TorchScript program. Save the state dict" in refused(tmp_path / "script.pth")


def test_a_folder_and_a_path_to_nothing_are_refused(tmp_path: Path) -> None:
    assert "is not a file but a folder" in refused(tmp_path)
    assert "nothing is there" in refused(tmp_path / "nowhere.pth")


def test_a_safetensors_file_is_read_whatever_its_name(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.pth")
    torch.testing.assert_close(read_state(tmp_path / "model.pth"), STATE)
    damaged = (tmp_path / "model.pth").read_bytes()[:-3]
    (tmp_path / "model.pth").write_bytes(damaged)
    assert "cannot be read as safetensors" in refused(tmp_path / "model.pth")


@pytest.mark.parametrize("wrapper", ["model", "state_dict", None])
def test_the_state_is_found_bare_and_in_its_wrappers(tmp_path: Path, wrapper: str | None) -> None:
    torch.save(STATE if wrapper is None else {wrapper: STATE, "epoch": 3}, tmp_path / "a.pth")
    torch.testing.assert_close(read_state(tmp_path / "a.pth"), STATE)


def test_a_value_that_is_no_tensor_is_named_without_its_escape_codes() -> None:
    with pytest.raises(CheckpointError, match=r"'\\x1b\[31mred' is a str") as caught:
        read_state({"model": {f"{ESCAPE}[31mred": "heavy"}})
    assert ESCAPE not in str(caught.value)


class Settings:
    """An object of a class that only the code that wrote the file has."""

    def __init__(self) -> None:
        self.rate = 0.1


class Command:
    """An object whose unpickling writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return subprocess.getoutput, (f"touch {self.path}",)


def objects_in(path: Path, content: object, *, zipped: bool = True, protocol: int = 2) -> list[Found]:
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return read_pickle(path).objects


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_python_objects_are_named_by_class_and_key(tmp_path: Path, zipped: bool, protocol: int) -> None:
    content = {
        "model": collections.OrderedDict(STATE),
        "args": argparse.Namespace(lr=0.1),
        "best": {"auc": np.float64(0.9), "history": [0.1, (1, np.float32(0.5))]},
        "array": np.zeros(3),
        "settings": Settings(),
        "path": Path("/a"),
        "plain": [None, True, 2, 3.5, 2**70, "text", b"bytes", {4}, torch.float16, torch.Size([2])],
    }
    found = {key: name for name, key in objects_in(tmp_path / "a.pth", content, zipped=zipped, protocol=protocol)}

    assert {key: name.replace("_core", "core") for key, name in found.items()} == {
        "args": "argparse.Namespace",
        "best.auc": "numpy.core.multiarray.scalar",
        "best.history[1][1]": "numpy.core.multiarray.scalar",
        "array": "numpy.ndarray",
        "settings": f"{__name__}.Settings",
        "path": f"{type(Path()).__module__}.{type(Path()).__qualname__}",
    }


def test_plain_content_holds_no_python_objects(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "bare": model.weight, "epoch": 3}
    assert objects_in(tmp_path / "a.pth", content) == []
    read_checkpoint(tmp_path / "a.pth")


def test_the_refusal_names_class_and_key_and_nothing_in_the_file_runs(tmp_path: Path) -> None:
    path = tmp_path / "best.pth"
    torch.save({"model": STATE, "config": {"hook": Command(tmp_path / "proof")}, "auc": np.float64(0.9)}, path)
    message = refused(path)
    assert re.search(r"(subprocess|commands)\.getoutput at 'config\.hook'", message)  # Python 2 named the module so
    assert "multiarray.scalar at 'auc'" in message
    assert "safe_globals" not in message  # torch's advice
    assert not (tmp_path / "proof").exists()


def test_the_two_lines_write_the_tensors_alone(tmp_path: Path) -> None:
    path = tmp_path / "it's best.pth"
    torch.save({"model": STATE | {"count": np.int64(3)}, "args": argparse.Namespace(lr=0.1)}, path)
    lines = refused(path).splitlines()[-2:]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, timeout=120)
    torch.testing.assert_close(read_state(tmp_path / "it's best-tensors.pth"), STATE)


@pytest.mark.parametrize(
    ("content", "ending"),
    [
        (STATE | {"note": Settings()}, "weights_only=False).items()"),
        (torch.nn.Linear(2, 2), "weights_only=False).state_dict().items()"),
        ({"state_dict": STATE, "note": Settings()}, "weights_only=False)['state_dict'].items()"),
    ],
)
def test_the_two_lines_fit_what_the_file_holds(tmp_path: Path, content: object, ending: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert ending in refused(tmp_path / "a.pth")


def test_many_objects_are_counted(tmp_path: Path) -> None:
    torch.save({"model": STATE, "history": [np.float64(value) for value in range(40)]}, tmp_path / "a.pth")
    assert "at 'history[0]', 'history[1]', 'history[2]' and 37 more keys" in refused(tmp_path / "a.pth")


def test_escape_codes_in_keys_and_class_names_are_shown_and_not_sent(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": STATE, f"{ESCAPE}[31mred": argparse.Namespace()}, path)
    assert r"argparse.Namespace at '\x1b[31mred'" in refused(path)
    path.write_bytes(pickle.dumps({"x": argparse.Namespace()}, 2).replace(b"argparse", b"\x1b[31marg"))
    assert r"\x1b[31marg" in refused(path)


def test_a_pickle_that_contains_itself_or_is_very_deep_is_read_in_no_time(tmp_path: Path) -> None:
    endless: list[Any] = [np.float64(1)]
    endless.append(endless)
    assert len(objects_in(tmp_path / "a.pth", endless)) == 1
    doubling: list[Any] = []
    for _ in range(60):
        doubling = [doubling, doubling]
    assert objects_in(tmp_path / "a.pth", [doubling, np.float64(1)])[0].key == "[1]"
    deep = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    (tmp_path / "deep.pth").write_bytes(deep)
    assert read_pickle(tmp_path / "deep.pth").objects == []


def test_a_damaged_pickle_gives_no_objects(tmp_path: Path) -> None:
    torch.save({"model": STATE, "args": argparse.Namespace(lr=0.1)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        data = archive.read(name)
    for end in range(0, len(data), 7):
        (tmp_path / "b.pth").write_bytes(data[:end])
        assert isinstance(read_pickle(tmp_path / "b.pth").objects, list)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 0x15
        (tmp_path / "b.pth").write_bytes(bytes(changed))
        assert isinstance(read_pickle(tmp_path / "b.pth").objects, list)


def test_a_pickle_larger_than_any_models_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asap.weights.python_objects._MOST_BYTES", 100)
    torch.save({"model": STATE, "args": argparse.Namespace(lr=0.1)}, tmp_path / "a.pth")
    assert read_pickle(tmp_path / "a.pth").objects == []
    assert "argparse.Namespace at the whole content" in refused(tmp_path / "a.pth")  # torch names the class alone


def test_the_reader_opens_what_torch_wrote_to_a_stream(tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save({"model": STATE}, stream)
    (tmp_path / "a.pth").write_bytes(stream.getvalue())
    torch.testing.assert_close(read_state(tmp_path / "a.pth"), STATE)
