"""Captions and explanations out of the files that hold them, and which pair each belongs to.

A file is one of

- a JSON object from record id to text, or from image path to text, which the published caption script writes
  (CriliasMiller/ASAP, `LargeModelScripts/vlm_script.py`);
- a list of objects with one entry each, image path to text, with a comma behind the last one, which no JSON parser
  accepts: what the published script for language models writes (`llm_script.py`, a file a GPU);
- JSON lines (`.jsonl`, `.ndjson`), or a list, of objects with `caption` or `explanation`, with `id` or `image` or both,
  and with `text` where that tells pairs apart. A table with these columns is read by `jobs.scan.stages.captioners`.

Ids and paths of DGM4 are not unique: an authentic pair and those made from it share an id, and one picture is shown
with its own text and with a swapped one. A caption describes a picture and an explanation a text, so an entry that may
be of another picture or text is not used: the pair falls back to its text, and is counted as ambiguous.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

from asap.corpus.folder import parse_json
from asap.corpus.picture_index import canonical
from asap.corpus.report import Joined, JoinedBy
from asap.errors import CorpusError
from asap.preprocessing.words import clean_word

Kind = Literal["caption", "explanation"]
_FIELDS = ("id", "custom_id"), ("image", "image_uri")
KEYS = [field for fields in _FIELDS for field in fields]
"""Of these an entry that is an object needs one."""


class PairKeys(NamedTuple):
    """What of a pair says whether an entry is about it."""

    id: str
    paths: tuple[str, ...]
    """What an entry may call its picture, in `canonical` parts: the name that the metadata has, then others."""
    text: str

    @classmethod
    def of(cls, key: str, image: str, places: Iterable[str], text: str) -> Self:
        """A pair whose picture the metadata calls `image`, and that may be called by its `places` too."""
        return cls(key, tuple(_path(name) for name in (image, *places)), text)


@dataclass(frozen=True, slots=True)
class Entry:
    """One caption or explanation, and whose it says it is."""

    value: str
    id: str | None = None
    image: str | None = None
    """In `canonical` parts, joined by slashes."""
    text: str | None = None

    def may_be_of(self, pair: PairKeys) -> bool:
        """Whether nothing that the entry says speaks against the pair."""
        return self.text in (None, pair.text) and (self.image is None or self.image in pair.paths)


class Descriptions:
    """The entries of one file, each with its key where that may be an id or a path."""

    def __init__(self, name: str, kind: Kind, entries: Iterable[tuple[str | None, Entry]]) -> None:
        self.name = name
        self.blank = 0
        """Entries without a word, which are left out."""
        self._kind = kind
        self._by_id: dict[str, list[Entry]] = defaultdict(list)
        self._by_image: dict[str, list[Entry]] = defaultdict(list)
        for key, entry in entries:
            if not any(map(clean_word, entry.value.split())):
                self.blank += 1
            elif key is not None:  # an id or a path: the file does not say
                self._by_id[key].append(entry)
                self._by_image[_path(key)].append(entry)
            else:
                if entry.id is not None:
                    self._by_id[entry.id].append(entry)
                if entry.image is not None:
                    self._by_image[entry.image].append(entry)

    @classmethod
    def parse(cls, name: str, data: bytes, kind: Kind) -> Self:
        """Of a JSON file. Raises `CorpusError`, naming the file, for one that cannot be understood."""
        return cls(name, kind, _entries(name, data, kind))

    def lookup(self, pair: PairKeys, shared_id: str | None = None) -> str | None:
        """The pair's, by its id, else by its path, where nothing else is known of other pairs.

        shared_id: another id of the pair, which others have too: an entry of it has to say itself whose it is.
        """
        found = _choose(self._kind, self.of_id(pair), shared=False)
        if found is None and shared_id is not None:
            found = _choose(self._kind, self.of_id(pair._replace(id=shared_id)), shared=True)
        return found if found is not None else _choose(self._kind, self.of_path(pair), shared=False)

    def of_id(self, pair: PairKeys) -> list[Entry]:
        """What may be the pair's, by its id."""
        return [entry for entry in self._by_id.get(pair.id, ()) if entry.may_be_of(pair)]

    def of_path(self, pair: PairKeys) -> list[Entry]:
        """What may be the pair's, by the path of its picture."""
        found = next((self._by_image[path] for path in pair.paths if path in self._by_image), [])
        return [entry for entry in found if entry.may_be_of(pair)]


def join(kind: Kind, pairs: Sequence[PairKeys], files: Sequence[Descriptions]) -> tuple[list[str], Joined]:
    """For each pair its caption or explanation: of the first file that has one, by id, else by path; else its text."""
    report = Joined(files=[file.name for file in files], blank=sum(file.blank for file in files))
    shared = _Shared(kind, pairs)
    values = []
    for pair in pairs:
        value, way = _find(kind, pair, files, shared)
        report.count(way)
        values.append(value)
    return values, report


class _Shared:
    """Ids and paths that are of several pictures (for captions) or texts (for explanations)."""

    def __init__(self, kind: Kind, pairs: Sequence[PairKeys]) -> None:
        explains = kind == "explanation"
        self.ids = _repeated((pair.id, pair.text if explains else pair.paths[0]) for pair in pairs)
        self.images = _repeated((pair.paths[0], pair.text) for pair in pairs) if explains else set()


def _repeated(keys: Iterable[tuple[str, str]]) -> set[str]:
    """The keys that come with several values."""
    first: dict[str, str] = {}
    return {key for key, value in keys if first.setdefault(key, value) != value}


def _find(kind: Kind, pair: PairKeys, files: Sequence[Descriptions], shared: _Shared) -> tuple[str, JoinedBy]:
    ambiguous = False
    for file in files:
        by_id, by_path = file.of_id(pair), file.of_path(pair)
        if (value := _choose(kind, by_id, shared=pair.id in shared.ids)) is not None:
            return value, "by_id"
        if (value := _choose(kind, by_path, shared=pair.paths[0] in shared.images)) is not None:
            return value, "by_path"
        ambiguous = ambiguous or bool(by_id or by_path)
    return pair.text, "ambiguous" if ambiguous else "fallback"


def _choose(kind: Kind, entries: list[Entry], *, shared: bool) -> str | None:
    """The last entry that says itself whose it is; else the only one, unless its key is shared by others."""
    field = "image" if kind == "caption" else "text"
    if sure := [entry for entry in entries if getattr(entry, field) is not None]:
        return sure[-1].value
    different = len({entry.value for entry in entries}) > 1
    return None if not entries or shared or different else entries[-1].value


def _entries(name: str, data: bytes, kind: Kind) -> Iterator[tuple[str | None, Entry]]:
    """Every entry; with its key where that may be an id or a path."""
    content = parse_json(name, data, trailing_comma=True)
    for number, part in enumerate(content if isinstance(content, list) else [content]):
        if not isinstance(part, dict):
            raise CorpusError(_not_understood(name, kind))
        if content is part or (len(part) == 1 and kind not in part):
            yield from ((key, Entry(_checked(name, key, value))) for key, value in part.items())
        elif kind in part and set(KEYS) & set(part):
            yield None, entry_of(name, number, part, kind)
        else:
            raise CorpusError(
                f"entry {number} of {name} has the fields {sorted(part)}; it needs {kind!r}, and 'id' or 'image'"
            )


def entry_of(name: str, number: int, part: dict[str, Any], kind: Kind) -> Entry:
    """Entry `number` of the file called `name`, out of its fields. Raises `CorpusError` for a value of another kind."""
    key, image = (next((part[field] for field in fields if part.get(field) is not None), None) for fields in _FIELDS)
    text = part.get("text")
    if not isinstance(image, str | None) or not isinstance(text, str | None):
        raise CorpusError(f"entry {number} of {name} has an image or a text that is no string: {part!r:.200}")
    if isinstance(key, bool) or not isinstance(key, str | int | None):
        raise CorpusError(f"entry {number} of {name} has the id {key!r:.80}, which is neither a string nor an integer")
    if key is None and not image:
        raise CorpusError(f"entry {number} of {name} has neither an id nor an image: {part!r:.200}")
    return Entry(
        _checked(name, f"entry {number}", part.get(kind)),
        id=None if key is None else str(key),
        image=None if image is None else _path(image),
        text=text,
    )


def _checked(name: str, key: str, value: Any) -> str:
    """The text; of null, which says that there is none, an empty one."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CorpusError(f"{name} has {value!r:.80} for {key!r}, which is no text")
    return value


def _not_understood(name: str, kind: Kind) -> str:
    return (
        f"{name} is not a JSON object from record id or image path to text, nor a list or lines of objects with "
        f"{kind!r} and 'id' or 'image'"
    )


def _path(text: str) -> str:
    return "/".join(canonical(text))
