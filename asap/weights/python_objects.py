"""Python objects in a checkpoint, named by class and by the key under which they lie.

A pickle is a list of instructions for a machine with a stack. Here they are read as data: lists, dictionaries and texts
are put together as the instructions say, and a call of a class becomes a note of its name. Nothing is imported and
nothing is called, so a file that would run a command shows the command's name.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

_MOST_BYTES = 2**26
"""Bytes of a pickle that are read. Tensors lie outside of it, so that of a large model has a few hundred kilobytes."""
_MOST_KEYS = 100
_LONGEST_KEY = 200
"""Characters to which keys are joined: those of a structure with a million levels would fill the memory."""
_PLAIN = re.compile(
    r"torch\.(_utils|_tensor|storage|serialization|nn\.parameter)\..*|torch\.\w+|collections\.(OrderedDict|Counter)|"
    r"_codecs\.encode|(builtins|__builtin__)\.(set|frozenset|bytearray|complex)"
)
"""Names that `torch.load` accepts among plain tensors."""
_MAKERS = re.compile(r"copy_?reg\.(_reconstructor|__newobj__(_ex)?)|numpy\.(core|_core)\.multiarray\._reconstruct")
"""Functions that make an object of the class that is their first argument."""


class Found(NamedTuple):
    """A Python object in a checkpoint."""

    name: str
    """Module and name of its class, or of the function that would make it."""
    key: str
    """Keys that lead to it, joined by dots; empty for the whole content of the file."""


class Pickle(NamedTuple):
    """The content of a checkpoint, as its pickle describes it."""

    objects: list[Found]
    """Objects that `torch.load` does not take for plain, in the order of the file."""
    keys: list[str]
    """The first keys of the whole content, if it is a dictionary."""


class _Name(NamedTuple):
    """A class or function, by module and name."""

    name: str


@dataclass(eq=False)
class _Structure:
    """A dictionary, list, tuple or set, or an object whose class is `maker`."""

    maker: str = ""
    parts: list[tuple[str, Any]] = field(default_factory=list)
    """Keys and values. Arguments of a maker have the key of the object itself, which is empty here."""


_MARK = object()


def read_pickle(file: Path) -> Pickle:
    """Return what the pickle of a checkpoint describes; nothing if it is damaged or too large."""
    try:
        content = _content(file)
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RuntimeError, zipfile.BadZipFile):
        return Pickle([], [])
    keys = [key for key, _ in content.parts[:_MOST_KEYS]] if isinstance(content, _Structure) else []
    return Pickle(list(_walk(content)), keys)


def _content(file: Path) -> Any:
    """Return the structure that the pickle of a checkpoint describes."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            name = next((name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"), "")
            if archive.getinfo(name).file_size > _MOST_BYTES:
                raise ValueError("the pickle is too large")
            return _structure(io.BytesIO(archive.read(name)))
    with file.open("rb") as stream:
        head = io.BytesIO(stream.read(_MOST_BYTES))
    first = _structure(head)
    # Before zip archives, torch wrote three small pickles first: a number, a version and the machine's sizes.
    return [_structure(head) for _ in range(3)][-1] if isinstance(first, int) else first


def _structure(stream: io.BytesIO) -> Any:
    """Return the structure that the next pickle of a stream describes."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        position = len(stack) - 1 - stack[::-1].index(_MARK)
        items = stack[position + 1 :]
        del stack[position:]
        return items

    def call(maker: Any, arguments: list[Any]) -> None:
        # A maker may itself be what a call returned, such as a method.
        name = maker.name if isinstance(maker, _Name) else maker.maker
        first = next((part for _, part in getattr(arguments[0], "parts", [])), None) if arguments else None
        # `_reconstructor(cls, …)` and its like make an object of `cls`.
        if isinstance(first, _Name) and _MAKERS.fullmatch(name):
            name = first.name
        elif name.endswith(".numeric._frombuffer"):  # NumPy's way to write an array since protocol 5
            name = "numpy.ndarray"
        stack.append(_Structure(name, [("", argument) for argument in arguments]))

    for opcode, argument, _ in pickletools.genops(stream):
        match opcode.name:
            case "STOP":
                break
            case "MARK":
                stack.append(_MARK)
            case "POP":
                stack.pop()
            case "POP_MARK":
                since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[int(argument or 0)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[int(argument or 0)])
            case "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_DICT" | "EMPTY_SET":
                stack.append(_Structure())
            case "LIST" | "TUPLE" | "FROZENSET":
                stack.append(_sequence(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [_sequence(stack[-count:])]
            case "APPEND":
                value = stack.pop()
                stack[-1].parts.append((f"[{len(stack[-1].parts)}]", value))
            case "APPENDS" | "ADDITEMS":
                items = since_mark()
                known = len(stack[-1].parts)
                stack[-1].parts += [(f"[{known + number}]", item) for number, item in enumerate(items)]
            case "DICT":
                items = since_mark()
                stack.append(_Structure("", _pairs(items)))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1].parts += _pairs([key, value])
            case "SETITEMS":
                items = since_mark()
                stack[-1].parts += _pairs(items)
            case "GLOBAL":
                stack.append(_Name(str(argument).replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_Name(f"{module}.{name}"))
            case "INST":
                call(_Name(str(argument).replace(" ", ".", 1)), since_mark())
            case "OBJ":
                maker, *arguments = since_mark()
                call(maker, arguments)
            case "NEWOBJ" | "REDUCE":
                arguments = [stack.pop()]
                call(stack.pop(), arguments)
            case "NEWOBJ_EX":
                arguments = [stack.pop(), stack.pop()]
                call(stack.pop(), arguments)
            case "BUILD":
                state = stack.pop()
                stack[-1].parts.append(("", state))
            case "BINPERSID":
                stack[-1] = None  # a tensor's bytes, which lie elsewhere in the file
            case "PROTO" | "FRAME" | "READONLY_BUFFER":
                pass
            case _:
                stack.append(argument)  # a number, a text, None, True or False
    return stack.pop()


def _sequence(items: list[Any]) -> _Structure:
    return _Structure("", [(f"[{number}]", item) for number, item in enumerate(items)])


def _pairs(items: list[Any]) -> list[tuple[str, Any]]:
    """Return keys and values that lie in turn on the stack. A key that is an object has no name."""
    keys = ("(object)" if isinstance(key, _Structure) else str(key) for key in items[::2])
    return list(zip(keys, items[1::2], strict=True))


def _walk(content: Any) -> Iterator[Found]:
    """Yield the objects of a structure with their keys. What lies inside of an object belongs to it."""
    waiting: list[tuple[str, Any]] = [("", content)]
    # A structure that is shared by several keys is named by the first of them.
    seen: set[int] = set()
    while waiting:
        key, value = waiting.pop()
        name = getattr(value, "name", None) or getattr(value, "maker", None)
        if name and not _PLAIN.fullmatch(name):
            yield Found(name, key)
        elif isinstance(value, _Structure) and id(value) not in seen:
            seen.add(id(value))
            for part, inner in reversed(value.parts):
                dot = "." if key and part and not part.startswith("[") else ""
                waiting.append((key if len(key) > _LONGEST_KEY else f"{key}{dot}{part}", inner))
