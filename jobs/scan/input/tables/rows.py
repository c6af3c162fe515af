"""Records as manifest rows.

A record that cannot be understood becomes a row with a `row_error`; none is left out.
"""

from __future__ import annotations

import ast
import json
import math
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from asap.storage.location import Location
from jobs.scan.input.addresses import image_uri, is_relative
from jobs.scan.input.manifest import ManifestRow, RowError, unnamed_table
from jobs.scan.input.tables.columns import Columns, value_of
from jobs.scan.input.tables.inline import InlinePicture, looks_like_base64
from jobs.scan.input.tables.plain_rows import PlainRows
from jobs.scan.input.tables.record_files import Record, RepeatedNames

_MOST_BYTES = 2**63 - 1
"""Largest end of a byte range that the manifest can hold."""
MAX_METADATA = 2**14
"""Most characters of the metadata of a row."""
_MOST_ERROR = 1000
"""Most characters of the error of a row."""
_FIELDS_SHOWN = 10
_SHOWN = 60
"""Most characters of a name in an error."""
_NULL_WORDS = {"NA", "N/A", "n/a", "#N/A", "<NA>", "nan", "NaN", "NAN", "None", "null", "NULL", "Null"}
"""Words that pandas and others write for nothing."""
_KNOWN_FIELDS = {"custom_id", "id", "image", "image_uri", "image_offset", "image_length", "text", "metadata"}
_SPEAKERS = ("gpt", "assistant", "model", "bot", "chatgpt")
_INNER_TEXTS = ("raw", "text", "caption", "sentence", "value", "content", "title")
_INNER_PICTURES = ("path", "image", "image_path", "file_name", "uri", "url")


@dataclass(frozen=True)
class Base:
    """The folder that relative paths of pictures start from."""

    folder: Location
    dropped: str = ""
    """First folder of the paths, which is left out. Paths with another first folder are taken as they are."""
    server: str = ""
    """Beginning of paths of a server or a site, which stands for the folder. Other paths are taken as they are."""
    is_flat: bool = False
    """True if only the last part of a path of the server is a name in the folder."""

    def uri(self, name: str) -> str:
        """Return the address of a picture. Raises `RowError`."""
        if self.server and name.startswith(self.server):
            name = name.removeprefix(self.server)
            name = posixpath.basename(name) if self.is_flat else name
        if self.dropped and is_relative(name):
            first, _, rest = name.partition("/")
            name = rest if rest and first == self.dropped else name
        return image_uri(name, self.folder)


class RowMaker:
    """Makes rows of the records of one table."""

    def __init__(self, columns: Columns, base: Base) -> None:
        self._columns = columns
        self._base = base
        roles = {*columns.image, *columns.text, *columns.id, *columns.left_out}
        roles |= {name for name in (columns.offset, columns.length, columns.metadata) if name}
        self._hidden = roles | _KNOWN_FIELDS
        self._inner = [name for name in roles if "." in name]
        self._plain = PlainRows(
            columns, base.folder, base.dropped, frozenset(self._hidden), sorted(_NULL_WORDS), MAX_METADATA, _json
        )

    def table(self, records: Sequence[tuple[int, Record]]) -> pa.Table:
        """Return the rows of records with their ids, in their order, as `row` makes them. They may lack names."""
        row_ids, read = zip(*records, strict=True)
        # The server's paths are rewritten one by one.
        found = None if self._base.server else self._plain.read(row_ids, read)
        if found is None:
            return unnamed_table([self.row(row_id, record) for row_id, record in records])
        plain, is_plain = found
        if is_plain.all():
            return plain
        others = np.flatnonzero(~is_plain).tolist()
        rest = unnamed_table([self.row(*records[position]) for position in others])
        order = np.argsort(np.concatenate([np.flatnonzero(is_plain), others]))
        return pa.concat_tables([plain, rest]).take(pa.array(order))

    def row(self, row_id: int, record: Record) -> ManifestRow:
        """Return the row of a record."""
        row = ManifestRow(row_id=row_id)
        try:
            if isinstance(record, RowError):
                self._fill_broken(row, record)
                raise record
            self._fill(row, record)
        except RowError as error:
            row.row_error = _shortened(str(error))
        return row

    def _fill_broken(self, row: ManifestRow, error: RowError) -> None:
        """Copy the name and the picture of a broken record, as far as they can be read."""
        fields = dict(error.fields)
        if not error.aligned and (text := next((name for name in self._columns.text if name in fields), None)):
            names = list(fields)
            fields = {name: fields[name] for name in names[: names.index(text)]}
        try:
            row.custom_id = _name(_first(fields, self._columns.id), row)
            if (picture := _picture(_first(fields, self._columns.image), row)) is not None:
                row.image_uri = self._base.uri(picture)
        except RowError:  # the first error is the one to report
            return

    def _fill(self, row: ManifestRow, record: dict[str, Any]) -> None:
        """Copy the fields of a record into a row; raise `RowError` at the first that cannot be understood."""
        columns = self._columns
        # The name comes first, so that the error of another field is reported under the caller's name.
        row.custom_id = _name(_first(record, columns.id), row)
        text, picture = _first(record, columns.text), _first(record, columns.image)
        if text is None and picture is None and not self._has_role(record):
            names = [name[:_SHOWN] for name in sorted(record)]
            more = f" and {len(names) - _FIELDS_SHOWN} more" if len(names) > _FIELDS_SHOWN else ""
            raise RowError(f"the record has neither image nor text; its fields are {names[:_FIELDS_SHOWN]}{more}")
        self._refuse_repeated(record)
        row.metadata = self._metadata(row, record)
        row.text = _text(text, row)
        row.image_offset, row.image_length = self._byte_range(record)
        if (name := _picture(picture, row)) is not None:
            row.image_uri = self._base.uri(name)

    def _refuse_repeated(self, record: Mapping[str, Any]) -> None:
        """Raise `RowError` if a column with a role stands twice in a JSON record."""
        columns = self._columns
        for name in (*columns.image, *columns.text, *columns.id):
            outer, dot, inner = name.partition(".")
            holder = record.get(outer) if dot and name not in record else record
            if isinstance(holder, RepeatedNames) and (inner if holder is not record else name) in holder.twice:
                raise RowError(f"the record has {name!r:.80} twice. Rename all but one.")

    def _has_role(self, record: Mapping[str, Any]) -> bool:
        names = {name.partition(".")[0] for name in (*self._columns.image, *self._columns.text)}
        return not names.isdisjoint(record)

    def _byte_range(self, record: Mapping[str, Any]) -> tuple[int | None, int | None]:
        """Return the offset and the length, checked; both are None for a picture that is a whole file."""
        given = [value_of(record, name) if name else None for name in (self._columns.offset, self._columns.length)]
        if all(value is None or value == "" or value != value for value in given):
            return None, None
        offset, length = map(_whole, given)
        if offset is None or length is None:
            shown = f"image_offset {given[0]!r:.60} and image_length {given[1]!r:.60}"
            raise RowError(f"{shown} are not two whole numbers")
        if offset < 0 or length < 1 or offset + length > _MOST_BYTES:
            raise RowError(f"image_offset {offset} and image_length {length} are not bytes of a file")
        return offset, length

    def _metadata(self, row: ManifestRow, record: Mapping[str, Any]) -> str | None:
        """Return the caller's `metadata`; without it, the fields that mean nothing to the scan."""
        value = record.get(self._columns.metadata) if self._columns.metadata else None
        if value is None or value != value:
            hidden = self._hidden
            value = {
                name: field
                for name, field in record.items()
                if name not in hidden and not isinstance(field, InlinePicture)
            }
            # The name of a picture in the table is no path, but may say where it is from.
            pictures = ((name, record.get(name)) for name in self._columns.image)
            value |= {
                f"{name}.path": field.name
                for name, field in pictures
                if isinstance(field, InlinePicture) and field.name
            }
            for name in self._inner:
                outer, _, inner = name.partition(".")
                if isinstance(object := value.get(outer), dict):
                    value[outer] = {key: field for key, field in object.items() if key != inner}
                    if not value[outer]:
                        del value[outer]
            if not value:
                return None
        return _bounded_json(value, row)


def _shortened(message: str) -> str:
    return message if len(message) <= _MOST_ERROR else f"{message[:_MOST_ERROR]}…"


def _first(record: Mapping[str, Any], names: Iterable[str]) -> Any:
    """Return the value of the first of these columns that holds something; None without one."""
    for name in names:
        value = record[name] if name in record else value_of(record, name)
        if value is not None and value != "" and value == value:  # NaN is nothing
            return value
    return None


def _name(value: Any, row: ManifestRow) -> str | None:
    """Return the caller's name of a row. pandas makes floats of numbers in a column with gaps."""
    if isinstance(value, str) and value.strip() in _NULL_WORDS:
        row.warnings.append(f"the name {value.strip()!r} is taken as no name")
        return None
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int | Decimal | date | datetime | time) and not isinstance(value, bool):
        return str(value)
    raise RowError(_not_a_string("custom_id", value))


def _not_a_string(name: str, value: Any) -> str:
    if isinstance(value, InlinePicture):
        return f"{name} is {value} or other bytes; it must be a string"
    return f"{name} is {value!r:.100}, of type {type(value).__name__}; it must be a string"


def _text(value: Any, row: ManifestRow) -> str | None:
    """Return the text unchanged; None if it is only white space or a word for nothing."""
    if isinstance(value, str) and value.startswith("["):
        value = _printed_list(value) or value
    if isinstance(value, list | tuple):
        value = _choose_text(value, row)
    elif isinstance(value, dict):
        value = _inner_text(value)
    if value is None:
        return None
    if not isinstance(value, str):
        raise RowError(_not_a_string("text", value))
    word = value.strip()
    if word in _NULL_WORDS:
        row.warnings.append(f"the text {word!r} is taken as no text")
        return None
    return value if word else None


def _printed_list(text: str) -> list[str] | None:
    """Return the texts in a list that Python printed, as pandas writes it into CSV; None for any other text."""
    if not text.endswith("]") or len(text) > MAX_METADATA:
        return None
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return values if values and all(isinstance(value, str) for value in values) else None


def _choose_text(values: Sequence[Any], row: ManifestRow) -> Any:
    """Return the text of a list: the first that is not empty; of a conversation, the first answer."""
    turns = [value for value in values if isinstance(value, dict)]
    speakers = [str(turn.get("from") or turn.get("role") or "").lower() for turn in turns]
    if turns and any(speakers):
        answers = [turn for turn, speaker in zip(turns, speakers, strict=True) if speaker in _SPEAKERS]
        chosen = "answer" if answers else "turn"
        row.warnings.append(f"the text is the first {chosen} of a conversation of {len(turns)} turns")
        return _inner_text((answers or turns)[0])
    texts = [_inner_text(value) if isinstance(value, dict) else value for value in values]
    texts = [
        text for text in texts if text is not None and text == text and (not isinstance(text, str) or text.strip())
    ]
    if len(texts) > 1:
        row.warnings.append(f"the text is the first of {len(texts)} texts of the record")
    return texts[0] if texts else None


def _inner_text(value: Mapping[str, Any]) -> Any:
    """Return the text in an object; the object itself if it has none, for the error."""
    return next((value[name] for name in _INNER_TEXTS if isinstance(value.get(name), str)), value)


def _picture(value: Any, row: ManifestRow) -> str | None:
    """Return the address of a picture without the spaces around it; copy that of one in the table into the row."""
    if isinstance(value, list | tuple):
        values = [one for one in value if one not in (None, "")]
        if len(values) > 1:
            row.warnings.append(f"the picture is the first of {len(values)} pictures of the record")
        value = values[0] if values else None
    if isinstance(value, dict):
        inline = next((field for field in value.values() if isinstance(field, InlinePicture)), None)
        value = inline or next((value[name] for name in _INNER_PICTURES if isinstance(value.get(name), str)), value)
    if isinstance(value, InlinePicture):
        if value.problem is not None:
            raise RowError(value.problem)
        value.fill(row)
        return None
    if value is None:
        return None
    if not isinstance(value, str):
        raise RowError(_not_a_string("image", value))
    name = value.strip()
    if looks_like_base64(name):
        raise RowError(
            f"the picture is a text in base64, {name[:24]!r}…, and the first records have none. Put this one first "
            "in a text file, or decode the pictures of a Parquet file into a column of bytes."
        )
    if name in _NULL_WORDS:
        row.warnings.append(f"the picture {name!r} is taken as no picture")
        return None
    return name or None


def _whole(value: Any) -> int | None:
    """Return a whole number, also from the text of a CSV file; None for anything else."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([+-]?\d{1,30})(\.0*)?\s*", value)
        return int(match[1]) if match else None
    try:
        return int(value) if value == int(value) else None
    except (TypeError, ValueError, OverflowError):
        return None


def _plain_value(value: Any) -> str:
    """Return the text of a value that JSON does not have."""
    return f"{len(value)} bytes" if isinstance(value, bytes | bytearray | memoryview) else str(value)


_ENCODER = json.JSONEncoder(ensure_ascii=False, default=_plain_value, allow_nan=False)


def _json(value: Any) -> str:
    try:
        return _ENCODER.encode(value)
    except ValueError:
        return _ENCODER.encode(_finite(value))
    except TypeError:  # a key that is no string
        return _ENCODER.encode(_finite(value))


def _finite(value: Any) -> Any:
    """Return a value with null for the numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _finite(field) for name, field in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(field) for field in value]
    return value


def _bounded_json(value: Any, row: ManifestRow) -> str | None:
    """Return metadata as JSON of at most `MAX_METADATA` characters; the longest fields are left out of longer ones."""
    try:
        text = _own_json(value) if isinstance(value, str) else _json(value)
        if len(text) <= MAX_METADATA:
            return text
        lost = ["metadata"]
        kept = None
        if isinstance(value, dict):
            sizes = {name: len(_json(field)) + len(str(name)) + 6 for name, field in value.items()}
            lost, total = [], sum(sizes.values()) + 2
            for name in sorted(sizes, key=lambda name: -sizes[name]):
                if total <= MAX_METADATA:
                    break
                lost.append(name)
                total -= sizes[name]
            kept = {name: field for name, field in value.items() if name not in lost} or None
    except RecursionError as error:
        raise RowError("the metadata are nested too deep to be passed through") from error
    shown = ", ".join(f"{name!r:.80}" for name in lost[:10])
    row.warnings.append(f"the metadata are longer than {MAX_METADATA} characters; left out: {shown}")
    return None if kept is None else _json(kept)


def _own_json(text: str) -> str:
    """Return the caller's own JSON; NaN and infinite numbers in it, which are no JSON, become null."""
    if "NaN" not in text and "Infinity" not in text:
        return text
    try:
        return _json(json.loads(text))
    except ValueError:
        return text
