"""Checkpoint files of others, read as plain tensors: a `.pth` file of torch, or a safetensors file.

Nothing is unpickled. A file that is something else, is cut off, or holds Python objects is refused with a sentence that
says what it is and what to do.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from asap.errors import CheckpointError, printable
from asap.weights.python_objects import Found, Pickle, read_pickle

_WRAPPERS = ("model", "state_dict")
"""Keys under which training code saves a state dict beside its own state."""
_NAMED = 6
"""Objects that an error names; the others are counted."""


def title_of(source: Any) -> str:
    """Return the name of a checkpoint in messages."""
    return f"checkpoint {source}" if isinstance(source, str | Path) else "the state dict"


def read_state(source: str | Path | Mapping[str, Any], title: str | None = None) -> dict[str, Tensor]:
    """Read the tensors under their published names, without the mappings and prefixes that wrap them.

    Args:
        source: a file, or the content of one.
        title: its name in messages; by default `title_of(source)`.
    """
    title = title or title_of(source)
    content = read_checkpoint(Path(source)) if isinstance(source, str | Path) else source
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{title} holds no state dict, bare or under 'model'; nothing was loaded")
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        try:
            state[str(key).removeprefix("module.")] = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{title} holds values that are no tensors: '{printable(key)}' is a "
                f"{type(value).__name__}; nothing was loaded"
            ) from error
    return state


def read_checkpoint(path: Path) -> Any:
    """Read the whole content of a file: tensors, and texts, numbers, lists and dictionaries beside them.

    Raises `CheckpointError` if the file is not a checkpoint, or holds Python objects.
    """
    check_checkpoint(path)
    if _is_safetensors(path):
        return read_safetensors(path)
    try:
        # Only the zip format can be memory-mapped. Twins, queues and optimizer are then not read unless they are used.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))  # noqa: TID251
    except Exception as error:  # a damaged pickle can raise anything
        pickle = read_pickle(path)
        if found := pickle.objects or _refused(error):
            raise CheckpointError(_describe_objects(path, Pickle(found, pickle.keys))) from error
        reason = printable(str(error).partition("\n")[0])
        raise CheckpointError(
            f"checkpoint {path} cannot be read as plain tensors, {type(error).__name__}: {reason}. It is damaged or "
            "cut off. Download or copy it again."
        ) from error


def check_checkpoint(path: Path) -> None:
    """Raise `CheckpointError` unless the first and last bytes of a file are those of a checkpoint.

    This takes no time, so it comes before anything that does.
    """
    if path.is_dir():
        raise CheckpointError(f"checkpoint {path} is not a file but a folder. Name a file in it.")
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} is not a file: nothing is there. Check the path.")
    with path.open("rb") as stream:
        head = stream.read(512)
    if problem := _problem(path, head):
        raise CheckpointError(f"checkpoint {path} cannot be read: {problem}")


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Read all tensors of a file. Raises `CheckpointError` for a damaged one."""
    try:
        return dict(load_file(file))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read as safetensors: {printable(error)}") from error


def _problem(path: Path, head: bytes) -> str:
    """Return what a file is in place of a checkpoint, and what to do; empty if it may be a checkpoint."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    size = path.stat().st_size
    if not head:
        return "it is empty. Download or copy it again."
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer in place of the file. Run `git lfs pull` in its repository."
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<")):
        return "it is a web page in place of the file. Download it in a browser: a link may need a login or a click."
    if head.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            return f"it is cut off after {size:,} bytes: its end is missing. Download or copy it again."
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if not any(name.rpartition("/")[2] == "data.pkl" for name in names):
            return "it is a zip archive of something else. Unpack it, and name the .pth file in it."
        if any(name.rpartition("/")[2] == "constants.pkl" for name in names):
            return "it is a TorchScript program. Save the state dict of its model."
        return ""
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd")):
        return "it is a compressed archive. Unpack it, and name the .pth file in it."
    # A pickle of protocol 2 or later, as torch wrote it before zip archives.
    if (head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5) or _is_safetensors(path):
        return ""
    return f"it begins with {head[:16]!r}, and neither a .pth nor a safetensors file does. Check the path."


def _is_safetensors(path: Path) -> bool:
    """Return True if a file begins with the length of a header of JSON, and then the header."""
    with path.open("rb") as stream:
        head = stream.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < 10**8


def _refused(error: Exception) -> list[Found]:
    """Return the name that torch gives in its error, if a pickle could not be followed to a key."""
    match = re.search(r"GLOBAL (\S+) ", str(error))
    return [Found(match[1], "")] if match else []


def _describe_objects(path: Path, pickle: Pickle) -> str:
    """Return the sentence on a file that holds Python objects, with the lines that write its tensors alone."""
    by_name: dict[str, list[str]] = {}
    for name, key in pickle.objects:
        by_name.setdefault(name, []).append(key)
    named = []
    for name, keys in list(by_name.items())[:_NAMED]:
        more = f" and {len(keys) - 3:,} more keys" if len(keys) > 3 else ""
        where = ", ".join(f"'{printable(key)}'" for key in keys[:3]) + more if any(keys) else "the whole content"
        named.append(f"{printable(name)} at {where}")
    others = f"; and {len(by_name) - _NAMED} more classes" if len(by_name) > _NAMED else ""
    return (
        f"checkpoint {path} cannot be read as plain tensors: it holds Python objects, which are never unpickled here: "
        f"{'; '.join(named)}{others}. If you trust the file, write its tensors alone with these two lines of Python, "
        f"where the code that wrote it is installed, and name the new file:\n{_tensors_alone(path, pickle)}"
    )


def _tensors_alone(path: Path, pickle: Pickle) -> str:
    """Return two lines of Python that write the tensors of a trusted file into another one."""
    state = f'torch.load({str(path)!r}, map_location="cpu", weights_only=False)'
    if pickle.objects[0].key == "":  # the content is an object: a module, and not its state dict
        state += ".state_dict()"
    elif wrapper := next((key for key in _WRAPPERS if key in pickle.keys), None):
        state += f"[{wrapper!r}]"
    tensors = f"{{key: value for key, value in {state}.items() if torch.is_tensor(value)}}"
    return f'import torch\ntorch.save({{"model": {tensors}}}, {str(path.with_name(f"{path.stem}-tensors.pth"))!r})'
