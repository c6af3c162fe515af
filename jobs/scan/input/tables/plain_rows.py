"""Records as manifest rows, a column at a time.

Nearly all records of most tables are plain: they have the fields of the first one, and their text, picture and name are
strings that go into the manifest as they are. These become columns, without an object for each row. Every other record
is left to `RowMaker`, which makes the same rows of plain records, one by one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from asap.storage.location import Location
from jobs.scan.input.addresses import image_uri
from jobs.scan.input.manifest import MANIFEST_SCHEMA, RowError
from jobs.scan.input.tables.columns import Columns
from jobs.scan.input.tables.inline import InlinePicture
from jobs.scan.input.tables.record_files import Record

_PATH = r"^/?(?:[^/\\:\x00]+/)*[^/\\:\x00]+$"
_OBJECT = r"^s3://[A-Za-z0-9._-]+/[^?\x00]+$"
_DOTS = r"(?:^|/)\.\.?(?:/|$)|^\.\."
_LONG_NAME = 64
"""Characters from which on a name without a dot may be a picture in base64."""
_SHORT_TEXT = 5
"""Characters up to which a text may be a word for nothing."""
_BEGINNING = 64
"""Characters of a text that are looked at to know whether it is so short, or blank."""


class _NotPlainError(Exception):
    """Some records of a chunk cannot be read as columns."""


class PlainRows:
    """Makes manifest rows of the plain records of one table."""

    def __init__(
        self,
        columns: Columns,
        folder: Location,
        dropped: str,
        hidden: frozenset[str],
        words: Sequence[str],
        most_metadata: int,
        encode: Callable[[Any], str],
    ) -> None:
        """Learn how `RowMaker` reads the table.

        Args:
            columns: The columns by their roles.
            folder: The folder that relative paths start from.
            dropped: First folder of paths that is left out.
            hidden: Names of fields that are no metadata.
            words: Words for nothing.
            most_metadata: Most characters of metadata.
            encode: Returns the JSON of one value of the metadata.
        """
        self._columns, self._dropped, self._hidden = columns, dropped, hidden
        self._words, self._most_metadata, self._encode = words, most_metadata, encode
        self._is_on_s3 = folder.is_s3
        try:
            self._folder = image_uri("x", folder)[:-1]
        except RowError:
            self._folder = ""
        roles = (*columns.image, *columns.text, *columns.id, *columns.left_out)
        roles += tuple(filter(None, (columns.offset, columns.length, columns.metadata)))
        self._has_inner = any("." in name for name in roles)
        """True if the value of a role may be the field of an object in the record."""

    def read(self, row_ids: Sequence[int], records: Sequence[Record]) -> tuple[pa.Table, NDArray[np.bool_]] | None:
        """Return the manifest rows of plain records, which may lack names, and for each record whether it is plain.

        None if the records are such that none can be read as columns.
        """
        first = next((record for record in records if type(record) is dict), None)
        if first is None or not self._folder or self._has_inner:
            return None
        names = tuple(first)
        # Subclasses of dict are objects in which a name stands twice.
        is_alike = np.array([type(record) is dict and tuple(record) == names for record in records], bool)
        alike = [record for record, fits in zip(records, is_alike, strict=True) if fits and isinstance(record, dict)]
        try:
            columns, is_odd = self._read(names, alike)
        except _NotPlainError:
            return None
        columns["row_id"] = pa.array(np.array(row_ids, np.int64)[is_alike])
        columns["warnings"] = pa.array([[]] * len(alike), pa.list_(pa.string()))
        arrays = [columns.get(field.name, pa.nulls(len(alike), field.type)) for field in MANIFEST_SCHEMA]
        is_plain = is_alike.copy()
        is_plain[is_alike] = ~is_odd
        return pa.table(arrays, MANIFEST_SCHEMA).filter(pa.array(~is_odd)), is_plain

    def _read(
        self, names: Sequence[str], records: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, pa.Array], NDArray[np.bool_]]:
        """Return columns of the manifest, and for each row whether it needs a repair or may have an error."""
        columns = self._columns
        if not {*columns.image, *columns.text} & set(names):
            raise _NotPlainError
        for name in (columns.offset, columns.length):
            if name is not None and name in names and any(record[name] not in (None, "") for record in records):
                raise _NotPlainError
        texts = _strings(_values(records, names, columns.text))
        begins = pc.utf8_trim_whitespace(pc.utf8_slice_codeunits(texts, 0, _BEGINNING))
        odd_text = _any(pc.less_equal(pc.utf8_length(begins), _SHORT_TEXT), pc.starts_with(texts, "["), _has_nul(texts))
        ids = _strings(_values(records, names, columns.id), numbers=True)
        odd_id = _any(pc.is_in(pc.utf8_trim_whitespace(ids), pa.array(self._words)), _has_nul(ids))
        pictures = _values(records, names, columns.image)
        if set(map(type, pictures)) == {InlinePicture}:
            found, more = self._inline(names, pictures)
            odd_picture = np.zeros(len(records), bool)
        else:
            addresses, odd_picture = self._pictures(_strings(pictures))
            found, more = {"image_uri": addresses}, {}
        metadata, odd_metadata = self._metadata(names, records, more)
        found |= {"custom_id": ids, "text": texts, "metadata": metadata}
        return found, odd_text | odd_id | odd_picture | odd_metadata

    def _inline(
        self, names: Sequence[str], pictures: Sequence[InlinePicture]
    ) -> tuple[dict[str, pa.Array], dict[str, list[Any]]]:
        """Return the columns of pictures in the table itself, and their own names as fields of the metadata."""
        present = [name for name in self._columns.image if name in names]
        own = [picture.name for picture in pictures]
        path = f"{present[0]}.path"
        has_own = any(own)
        if len(present) > 1 or any(picture.problem for picture in pictures) or (has_own and not all(own)):
            raise _NotPlainError
        if path in names:
            raise _NotPlainError  # its field goes before the name
        values = {
            "image_uri": [picture.location.uri for picture in pictures],
            "image_version": [picture.version for picture in pictures],
            "image_group": [picture.group for picture in pictures],
            "image_row": [picture.row for picture in pictures],
            "image_column": [picture.column for picture in pictures],
            "image_offset": [picture.offset for picture in pictures],
            "image_length": [picture.length for picture in pictures],
            "image_encoding": [picture.encoding for picture in pictures],
        }
        try:
            columns = {name: pa.array(column, MANIFEST_SCHEMA.field(name).type) for name, column in values.items()}
        except UnicodeEncodeError as error:
            raise _NotPlainError from error
        if any(pc.any(_has_nul(columns[name])).as_py() for name in ("image_uri", "image_version", "image_column")):
            raise _NotPlainError
        return columns, {path: own} if has_own else {}

    def _pictures(self, names: pa.Array) -> tuple[pa.Array, NDArray[np.bool_]]:
        """Return the addresses of pictures, and for each whether it may be none."""
        is_object, is_absolute = pc.starts_with(names, "s3://"), pc.starts_with(names, "/")
        is_path = pc.match_substring_regex(names, _PATH)
        if self._is_on_s3:  # a manifest in S3 names no local files
            is_path = pc.and_not(is_path, is_absolute)
        is_known = pc.and_not(is_path, pc.match_substring_regex(names, _DOTS))
        if pc.any(is_object).as_py():
            is_known = pc.or_(is_known, pc.match_substring_regex(names, _OBJECT))
        may_be_base64 = pc.and_not(pc.greater_equal(pc.utf8_length(names), _LONG_NAME), pc.match_substring(names, "."))
        odd = _any(
            pc.invert(is_known),
            pc.not_equal(pc.utf8_trim_whitespace(names), names),
            pc.is_in(names, pa.array(self._words)),
            may_be_base64,
        )
        paths = names
        if self._dropped:
            rest = pc.utf8_slice_codeunits(names, len(self._dropped) + 1)
            paths = pc.if_else(pc.starts_with(names, f"{self._dropped}/"), rest, names)
        is_whole = pc.or_(is_object, is_absolute)
        return pc.if_else(is_whole, names, pc.binary_join_element_wise(self._folder, paths, "")), odd

    def _metadata(
        self, names: Sequence[str], records: Sequence[Mapping[str, Any]], more: dict[str, list[Any]]
    ) -> tuple[pa.Array, NDArray[np.bool_]]:
        """Return the metadata as JSON, and for each whether they need a repair. `more` are fields beside the others."""
        own = self._columns.metadata
        if own is not None and own in names and any(record[own] is not None for record in records):
            given = [record[own] for record in records]
            kinds = set(map(type, given))
            if kinds == {dict}:
                try:
                    return self._checked(list(map(self._encode, given)))
                except RecursionError as error:
                    raise _NotPlainError from error
            if kinds != {str}:
                raise _NotPlainError
            texts, is_odd = self._checked(given)
            return texts, is_odd | _any(*(pc.match_substring(texts, word) for word in ("NaN", "Infinity", "\0")))
        others = {name: [record[name] for record in records] for name in names if name not in self._hidden} | more
        if not others:
            return pa.nulls(len(records), pa.string()), np.zeros(len(records), bool)
        form = "{" + ", ".join(self._encode(name).replace("%", "%%") + ": %s" for name in others) + "}"
        fields = zip(*map(self._fragments, others.values()), strict=True)
        return self._checked([form % cells for cells in fields])

    def _checked(self, texts: list[str]) -> tuple[pa.Array, NDArray[np.bool_]]:
        column = _strings(texts, is_empty_null=False)
        return column, _any(pc.greater(pc.utf8_length(column), self._most_metadata))

    def _fragments(self, values: list[Any]) -> list[str]:
        """Return the JSON of each value of a column, by one call of the encoder if no value has several parts."""
        try:
            fragments = _COLUMN.encode(values)[1:-1].split("\n")
        except (ValueError, TypeError, RecursionError):
            fragments = []
        if len(fragments) == len(values):
            return fragments
        if any(isinstance(value, InlinePicture) for value in values):
            raise _NotPlainError  # it is no metadata
        try:
            return list(map(self._encode, values))
        except RecursionError as error:
            raise _NotPlainError from error


def _plain_value(value: object) -> str:
    if isinstance(value, InlinePicture):
        raise _NotPlainError
    raise TypeError


_COLUMN = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=("\n", ": "), default=_plain_value)
"""Encodes a list with a line for each value: JSON escapes the ends of lines that are in strings."""


def _values(records: Sequence[Mapping[str, Any]], names: Sequence[str], wanted: Sequence[str]) -> list[Any]:
    """Return the values of a role: of the first of its columns that holds something."""
    present = [name for name in wanted if name in names]
    if not present:
        return [None] * len(records)
    values = [record[present[0]] for record in records]
    for name in present[1:]:
        if any(isinstance(value, float) for value in values):
            raise _NotPlainError  # it may be NaN, which is nothing
        values = [
            record[name] if value is None or value == "" else value
            for value, record in zip(values, records, strict=True)
        ]
    return values


def _strings(values: list[Any], *, numbers: bool = False, is_empty_null: bool = True) -> pa.Array:
    """Return strings as a column, in which an empty string is null. Whole numbers become strings if they may."""
    kinds = set(map(type, values)) - {type(None)}
    if numbers and kinds == {int}:
        values = [None if value is None else str(value) for value in values]
    elif not kinds <= {str}:
        raise _NotPlainError
    try:
        column = pa.array(values, pa.string())
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise _NotPlainError from error
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column) if is_empty_null else column


def _has_nul(column: pa.Array) -> pa.Array:
    return pc.match_substring(column, "\0")


def _any(*conditions: pa.Array) -> NDArray[np.bool_]:
    """Return for each row whether one of the conditions holds; a null holds nothing."""
    found = np.zeros(len(conditions[0]), bool)
    for condition in conditions:
        found |= pc.fill_null(condition, False).to_numpy(zero_copy_only=False)
    return found
