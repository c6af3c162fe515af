"""Records in one JSON object, in the shapes that other tools write: COCO captions, columns, objects by key, lists."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from asap.storage.location import Location
from jobs.errors import InputNotFound
from jobs.scan.input.manifest import RowError
from jobs.scan.input.tables.columns import PICTURE_NAME, is_known, is_picture_column, plain, show_names
from jobs.scan.input.tables.json_stream import checked, decoded
from jobs.scan.input.tables.record_files import UNDECODED, Record, RepeatedNames

_FIRST_RECORDS = 20
"""Records that are looked at to find the shape."""
_CONVERSATIONS = {"conversation", "conversations", "messages"}
"""Lists of objects that are the text of one record."""


def find_shape(location: Location, whole: dict[str, Any]) -> tuple[str, Callable[[Any], Iterator[Record]]]:
    """Return how records are made of one object, and words for it.

    Raises `InputNotFound` for an object with several lists of records that could be meant.
    """
    if _is_coco(whole):
        return "COCO captions", _coco
    if roles(whole) == 2 and is_one_record(whole):
        return "one record", one_record
    lists = dict(_lists_of_records(whole))
    # A list fits if its records have both a picture and a text.
    fitting = [key for key, value in lists.items() if roles(_names_of(value)) == 2]
    if not fitting and not is_one_record(whole):
        fitting = list(lists)
    if len(fitting) > 1:
        raise InputNotFound(
            f"{location} has records under {show_names(fitting)}. Write those that are meant into a file of their own."
        )
    if fitting:
        return f"records under {fitting[0]!r:.80}", lambda value: _checked_all(_at(value, fitting[0]))
    if _is_split(whole):
        return "columns and rows", _split
    if columns := _columns_of(whole):
        _refuse_repeated_keys(location, whole)
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{name!r:.80} {length}" for name, length in list(lengths.items())[:10])
            raise InputNotFound(f"{location} has columns of different lengths: {shown}. Make them equally long.")
        return "object of columns", _columns
    # The records may lie in one object of the object.
    objects = [key for key, value in whole.items() if isinstance(value, dict)]
    if len(objects) == 1 and not is_one_record(whole):
        key = objects[0]
        shape, unpack = find_shape(location, whole[key])
        if unpack is not one_record:
            if isinstance(whole[key], RepeatedNames):  # a record would be lost
                _refuse_repeated_keys(location, whole)
            return f"{shape} under {key!r:.80}", lambda value: unpack(value.get(key) or {})
    if len(whole) > 0 and all(isinstance(value, dict | str | list) for value in whole.values()) and _is_keyed(whole):
        return "object of records", _keyed
    return "one record", one_record


def roles(names: Mapping[str, Any] | Sequence[str]) -> int:
    """Return 2 for names that hold a picture and a text, 1 for one of them."""
    known = [name for name in names if is_known(name)]
    images = [name for name in known if is_picture_column(name)]
    return bool(images) + (len(known) > len(images))


def _names_of(records: Sequence[dict[str, Any]]) -> list[str]:
    names: dict[str, None] = {}
    for record in records[:_FIRST_RECORDS]:
        for name, value in record.items():
            names[name] = None
            names |= dict.fromkeys(value) if isinstance(value, dict) else {}
    return list(names)


def _lists_of_records(whole: Mapping[str, Any], prefix: str = "", depth: int = 2) -> Iterator[tuple[str, list[Any]]]:
    """Yield the lists of objects in an object, with the keys that lead to them."""
    for key, value in whole.items():
        if plain(key) in _CONVERSATIONS:
            continue
        if isinstance(value, list) and value and all(isinstance(record, dict) for record in value[:_FIRST_RECORDS]):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict) and depth > 1:
            yield from _lists_of_records(value, f"{prefix}{key}.", depth - 1)


def _at(whole: Any, path: str) -> list[Any]:
    for key, value in _lists_of_records(whole) if isinstance(whole, dict) else ():
        if key == path:
            return value
    return []


def _checked_all(values: Sequence[Any]) -> Iterator[Record]:
    for value in values:
        record = checked(value)
        if isinstance(record, dict) and any(
            isinstance(cell, str) and UNDECODED.search(cell) for cell in record.values()
        ):
            yield RowError("the record is not UTF-8", decoded(record))
        else:
            yield record


def _like(origin: Any, record: dict[str, Any]) -> dict[str, Any]:
    """Return a record that was made of another one, with the mark of that one if a name stands twice in it."""
    if not isinstance(origin, RepeatedNames):
        return record
    marked = RepeatedNames(record)
    marked.twice = [*origin.twice, *(record.twice if isinstance(record, RepeatedNames) else ())]
    return marked


def _refuse_repeated_keys(location: Location, whole: Mapping[str, Any]) -> None:
    """Raise `InputNotFound` if a key stands twice in an object around records: the first record would be lost."""
    for value in (whole, *whole.values()):
        if isinstance(value, RepeatedNames):
            raise InputNotFound(f"{location} has the name {value.twice[0]!r:.80} twice in one object. Rename one.")


def one_record(whole: Any) -> Iterator[Record]:
    """Yield the object itself, as the only record."""
    return _checked_all([whole])


def is_one_record(whole: Mapping[str, Any]) -> bool:
    """Return True if the fields with roles hold single values, and not columns."""
    return any(isinstance(value, str) for name, value in whole.items() if is_known(name))


def _is_coco(whole: Mapping[str, Any]) -> bool:
    images, captions = whole.get("images"), whole.get("annotations")
    return (
        isinstance(images, list)
        and isinstance(captions, list)
        and any(isinstance(image, dict) and "id" in image for image in images[:_FIRST_RECORDS])
        and any(
            isinstance(one, dict) and "image_id" in one and roles([name for name in one if name != "image_id"])
            for one in captions[:_FIRST_RECORDS]
        )
    )


def _coco(whole: Any) -> Iterator[Record]:
    """Yield a record for each caption, with the fields of its picture. The name of the caption is the record's id."""
    pictures: dict[str, dict[str, Any]] = {}
    different: set[str] = set()  # ids that several different pictures have
    for image in whole.get("images") or ():
        if isinstance(image, dict):
            key = json.dumps(image.get("id"), default=str)
            fields = _like(image, {name: value for name, value in image.items() if name != "id"})
            if pictures.setdefault(key, fields) != fields:
                different.add(key)
    for caption in whole.get("annotations") or ():
        if not isinstance(caption, dict):
            yield checked(caption)
            continue
        key = json.dumps(caption.get("image_id"), default=str)
        if (picture := pictures.get(key)) is None:
            yield RowError(f"the picture with the id {key:.60} is not among the images", caption)
        elif key in different:
            yield RowError(f"several pictures have the id {key:.60}. Give each its own id.", caption)
        else:
            yield from _checked_all([_like(caption, _like(picture, picture | caption))])


def _columns_of(whole: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the columns of an object of lists, or of objects with the same keys; empty for another object.

    pandas writes `{"image": {"0": …, "1": …}}`.
    """
    lists = {
        name: value for name, value in whole.items() if isinstance(value, list) and plain(name) not in _CONVERSATIONS
    }
    # A list of one picture may belong to one record, which has several texts.
    if roles(lists) == 2 and any(len(value) > 1 for name, value in lists.items() if is_picture_column(name)):
        return lists
    objects = {name: value for name, value in whole.items() if isinstance(value, dict)}
    # The keys join the cells of a row, whatever their order in a column.
    if (
        roles(objects) == 2
        and len(objects) == len(whole)
        and len({frozenset(value) for value in objects.values()}) == 1
    ):
        keys = list(next(iter(objects.values())))
        return {name: [value[key] for key in keys] for name, value in objects.items()}
    return {}


def _columns(whole: Any) -> Iterator[Record]:
    columns = _columns_of(whole)
    for cells in zip(*columns.values(), strict=False):
        yield from _checked_all([dict(zip(columns, cells, strict=True))])


def _is_split(whole: Mapping[str, Any]) -> bool:
    """Return True for what pandas writes with `orient="split"`."""
    names, rows = whole.get("columns"), whole.get("data")
    return (
        isinstance(names, list)
        and isinstance(rows, list)
        and all(isinstance(name, str) for name in names)
        and all(isinstance(row, list) for row in rows[:_FIRST_RECORDS])
    )


def _split(whole: Any) -> Iterator[Record]:
    names = whole["columns"]
    for row in whole["data"]:
        if isinstance(row, list) and len(row) == len(names):
            yield from _checked_all([dict(zip(names, row, strict=True))])
        else:
            yield RowError(f"the record has not as many cells as there are columns, {len(names)}")


def _is_keyed(whole: Mapping[str, Any]) -> bool:
    """Return True for an object of records or of texts, whose keys name the records."""
    values = list(whole.values())[:_FIRST_RECORDS]
    if all(isinstance(value, dict) for value in values):
        return True
    return all(isinstance(value, str | list) for value in values) and any(map(PICTURE_NAME.fullmatch, whole))


def _keyed(whole: Any) -> Iterator[Record]:
    for key, value in whole.items():
        record = dict(value) if isinstance(value, dict) else {"text": value}
        if PICTURE_NAME.fullmatch(key) and not any(is_picture_column(name) for name in record):
            record = {"image": key} | record
        elif not any(plain(name) in ("id", "customid") for name in record):
            record = {"id": key} | record
        yield from _checked_all([_like(value, record)])
