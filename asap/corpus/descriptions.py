"""Reads captions and explanations from files, and joins them to the pairs that they belong to.

A file is one of

- a JSON object from record id to text, or from image path to text, as the published caption script writes it
  (CriliasMiller/ASAP, `LargeModelScripts/vlm_script.py`);
- a list of objects with one entry each, image path to text, with a comma behind the last one, which no JSON parser
  accepts: the published script for language models writes it (`llm_script.py`, one file per GPU);
- JSON lines (`.jsonl`, `.ndjson`), or a list, of objects with `caption` or `explanation`, with `id` or `image` or both,
  and with `text` where that distinguishes pairs. `jobs.scan.stages.captioners` reads a table with these columns.

Ids and paths of DGM4 are not unique: an authentic pair and those made from it share an id, and one picture is shown
with its own text and with a swapped one. A caption describes a picture and an explanation a text. An entry that may be
of another picture or text is therefore not used: the pair falls back to its text, and is counted as ambiguous.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

from asap.corpus.folder import parse_json
from asap.corpus.picture_index import canonical
from asap.corpus.report import JoinedBy, JoinReport
from asap.errors import CorpusError
from asap.preprocessing.words import clean_word

Kind = Literal["caption", "explanation"]
_FIELDS = ("id", "custom_id"), ("image", "image_uri")
KEYS = [field for fields in _FIELDS for field in fields]
"""Fields of which an entry that is an object needs at least one."""


class PairKeys(NamedTuple):
    """The properties of a pair by which an entry is joined to it."""

    id: str
    paths: tuple[str, ...]
    """Names that an entry may have for the pair's picture, in `canonical` parts: the metadata's, then others."""
    text: str

    @classmethod
    def of(cls, pair_id: str, image: str, other_names: Iterable[str], text: str) -> Self:
        """Return the keys of a pair whose picture is `image` in the metadata, and may have other names elsewhere."""
        return cls(pair_id, tuple(_canonical_path(name) for name in (image, *other_names)), text)


@dataclass(frozen=True, slots=True)
class Entry:
    """A caption or explanation, and the pair that it names."""

    value: str
    id: str | None = None
    image: str | None = None
    """The picture's path in `canonical` parts, joined by slashes."""
    text: str | None = None

    def may_be_of(self, pair: PairKeys) -> bool:
        """Return True if neither the text nor the picture of the entry contradicts the pair. Ids are not compared."""
        return self.text in (None, pair.text) and (self.image is None or self.image in pair.paths)


class Descriptions:
    """The entries of one file, indexed by id and by picture.

    `entries` are given with their key in the file if that may be an id or a path, else with None.
    """

    def __init__(self, name: str, kind: Kind, entries: Iterable[tuple[str | None, Entry]]) -> None:
        self.name = name
        self.blank = 0
        """Number of entries without a word, which are left out."""
        self._kind = kind
        self._by_id: dict[str, list[Entry]] = defaultdict(list)
        self._by_image: dict[str, list[Entry]] = defaultdict(list)
        for key, entry in entries:
            if not any(map(clean_word, entry.value.split())):
                self.blank += 1
            elif key is not None:  # the file does not say whether a key is an id or a path
                self._by_id[key].append(entry)
                self._by_image[_canonical_path(key)].append(entry)
            else:
                if entry.id is not None:
                    self._by_id[entry.id].append(entry)
                if entry.image is not None:
                    self._by_image[entry.image].append(entry)

    @property
    def is_empty(self) -> bool:
        """True if there is no entry with a word."""
        return not self._by_id and not self._by_image

    @classmethod
    def parse(cls, name: str, data: bytes, kind: Kind) -> Self:
        """Parse a JSON file. Raises `CorpusError`, naming the file, if it is none of the forms above."""
        return cls(name, kind, _entries(name, data, kind))

    def lookup(self, pair: PairKeys, shared_id: str | None = None) -> str | None:
        """Look up a pair's text by its id, else by its picture's path, without knowing the other pairs.

        Args:
            pair: the pair.
            shared_id: another id of the pair, which other pairs have too. An entry by this id is used only if it
                names its picture or text itself.
        """
        found = _choose(self._kind, self.of_id(pair), shared=False)
        if found is None and shared_id is not None:
            found = _choose(self._kind, self.of_id(pair._replace(id=shared_id)), shared=True)
        return found if found is not None else _choose(self._kind, self.of_path(pair), shared=False)

    def of_id(self, pair: PairKeys) -> list[Entry]:
        """Return the entries with the pair's id that may be of the pair."""
        return [entry for entry in self._by_id.get(pair.id, ()) if entry.may_be_of(pair)]

    def of_path(self, pair: PairKeys) -> list[Entry]:
        """Return the entries with the path of the pair's picture that may be of the pair."""
        found = next((self._by_image[path] for path in pair.paths if path in self._by_image), [])
        return [entry for entry in found if entry.may_be_of(pair)]


def join(kind: Kind, pairs: Sequence[PairKeys], files: Sequence[Descriptions]) -> tuple[list[str], JoinReport]:
    """Return the caption or explanation of each pair, and a report.

    It comes from the first file that has one, by id, else by path. A pair without one gets its own text.
    """
    report = JoinReport(files=[file.name for file in files], blank=sum(file.blank for file in files))
    shared = _SharedKeys(kind, pairs)
    values = []
    for pair in pairs:
        value, joined_by = _find(kind, pair, files, shared)
        report.count(joined_by)
        values.append(value)
    return values, report


class _SharedKeys:
    """Ids and paths that several pictures (for captions) or texts (for explanations) have."""

    def __init__(self, kind: Kind, pairs: Sequence[PairKeys]) -> None:
        explains = kind == "explanation"
        self.ids = _repeated((pair.id, pair.text if explains else pair.paths[0]) for pair in pairs)
        self.images = _repeated((pair.paths[0], pair.text) for pair in pairs) if explains else set()


def _repeated(keys: Iterable[tuple[str, str]]) -> set[str]:
    """Return the keys that occur with several values."""
    first: dict[str, str] = {}
    return {key for key, value in keys if first.setdefault(key, value) != value}


def _find(kind: Kind, pair: PairKeys, files: Sequence[Descriptions], shared: _SharedKeys) -> tuple[str, JoinedBy]:
    ambiguous = False
    for file in files:
        by_id, by_path = file.of_id(pair), file.of_path(pair)
        # An ambiguous entry does not end the search: a later file may have one that names its pair.
        if (value := _choose(kind, by_id, shared=pair.id in shared.ids)) is not None:
            return value, "by_id"
        if (value := _choose(kind, by_path, shared=pair.paths[0] in shared.images)) is not None:
            return value, "by_path"
        ambiguous = ambiguous or bool(by_id or by_path)
    return pair.text, "ambiguous" if ambiguous else "fallback"


def _choose(kind: Kind, entries: list[Entry], *, shared: bool) -> str | None:
    """Return the last entry that names its picture or text, else the only one, unless other pairs share its key."""
    field = "image" if kind == "caption" else "text"
    if sure := [entry for entry in entries if getattr(entry, field) is not None]:
        return sure[-1].value
    different = len({entry.value for entry in entries}) > 1
    return None if not entries or shared or different else entries[-1].value


def _entries(name: str, data: bytes, kind: Kind) -> Iterator[tuple[str | None, Entry]]:
    """Yield every entry, with its key if that may be an id or a path, else with None."""
    content = parse_json(name, data, trailing_comma=True)
    for number, part in enumerate(content if isinstance(content, list) else [content]):
        if not isinstance(part, dict):
            raise CorpusError(
                f"{name} is not a JSON object from record id or image path to text, nor a list or lines of objects "
                f"with {kind!r} and 'id' or 'image'"
            )
        # An object of the whole file, or one with a single entry as the published script writes it, maps key to text.
        if content is part or (len(part) == 1 and kind not in part):
            yield from ((key, Entry(_checked(name, key, value))) for key, value in part.items())
        elif kind in part and set(KEYS) & set(part):
            yield None, entry_of(name, number, part, kind)
        else:
            raise CorpusError(
                f"entry {number} of {name} has the fields {sorted(part)}; it needs {kind!r}, and 'id' or 'image'"
            )


def entry_of(name: str, number: int, fields: dict[str, Any], kind: Kind) -> Entry:
    """Build an entry from its fields.

    Args:
        name: the file's name, for messages.
        number: the entry's number in the file, for messages.
        fields: the fields of the entry.
        kind: the field that holds the text.

    Raises:
        CorpusError: if a field has a value of another type, or both id and image are missing.
    """
    key, image = (next((fields[name] for name in names if fields.get(name) is not None), None) for names in _FIELDS)
    text = fields.get("text")
    if not isinstance(image, str | None) or not isinstance(text, str | None):
        raise CorpusError(f"entry {number} of {name} has an image or a text that is no string: {fields!r:.200}")
    if isinstance(key, bool) or not isinstance(key, str | int | None):
        raise CorpusError(f"entry {number} of {name} has the id {key!r:.80}, which is neither a string nor an integer")
    if key is None and not image:
        raise CorpusError(f"entry {number} of {name} has neither an id nor an image: {fields!r:.200}")
    return Entry(
        _checked(name, f"entry {number}", fields.get(kind)),
        id=None if key is None else str(key),
        image=None if image is None else _canonical_path(image),
        text=text,
    )


def _checked(name: str, key: str, value: Any) -> str:
    """Return the text; an empty one for null, which means that there is none."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CorpusError(f"{name} has {value!r:.80} for {key!r}, which is no text")
    return value


def _canonical_path(text: str) -> str:
    return "/".join(canonical(text))
