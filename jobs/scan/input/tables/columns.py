"""Roles of columns: which column of a table holds the picture, the text and the caller's name of a row.

Names are compared without their case, spaces, `_`, `-` and `.`. A role has tiers of names; the first tier that a table
has a column of is taken. Two columns of one tier could equally be meant, so they are refused, unless the values of
the first records show which one is meant.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asap.storage.files import exists
from asap.storage.location import Location
from asap.storage.prefixes import is_below
from jobs.errors import InputNotFound
from jobs.scan.input.tables.inline import InlinePicture

PICTURE_NAME = re.compile(
    r".*\.(jpe?g|jpe|jfif|png|webp|gif|bmp|tiff?|avif|heic|heif|jp2|jxl|ico|ppm|pgm)\s*", re.IGNORECASE | re.DOTALL
)
"""Names of files that are pictures by their suffix."""
WEB = re.compile(r"\s*(https?|ftp)://", re.IGNORECASE)
"""Beginnings of addresses of the web."""
_NAMES_SHOWN = 30

_INLINE = re.compile(r"jpe?g|png|webp|image|img|picture|photo", re.IGNORECASE)
"""Parts of the names of columns that hold the pictures themselves."""
_IMAGES = (
    "imageuri image",
    "imagepath imgpath picturepath photopath imagefile imgfile picturefile photofile imagefilename imgfilename "
    "imagefilepath imgfilepath imagename imgname imagelocation imageloc imagesrc imagekey localpath sourceref s3uri "
    "s3path s3key relativepath",
    "img picture photo pic images imgs pictures photos",
    "filename filepath file path fname",
    "imageurl imgurl pictureurl photourl imagelink imglink uri url link src cocourl flickrurl imageuris imageurls",
    # The names of this tier mean a picture only if their values are names of pictures.
    "key objectkey name imageid imgid id location href media",
)
_TEXTS = (
    "text",
    "caption captions title sentence sentences headline headlines description alttext alt txt texts rawtext rawcaption "
    "imagecaption captiontext imagetext imagedescription newstext newscaption newstitle tweet tweettext posttext",
    "prompt body content message summary claim comment statement",
    "conversations conversation messages",
)
_IDS = (
    "customid id uid uuid guid sampleid pairid recordid itemid rowid docid articleid newsid postid tweetid annid "
    "annotationid captionid imageid imgid questionid key index idx"
)


_IMAGE_PART = re.compile("image|img|picture|photo|file|path|url|uri")
_TEXT_PART = re.compile("caption|text|title|headline|sentence|description")
"""Parts of names that mean a role if no whole name does, and the values agree."""


@dataclass(frozen=True)
class TableOptions:
    """Everything that a person may say about a table, for tables that would be refused or misread without it."""

    image_column: str | None = None
    """Name of the column of pictures. None: found by its name."""
    text_column: str | None = None
    """Name of the column of texts. None: found by its name."""
    id_column: str | None = None
    """Name of the column of the caller's names for rows. None: found by its name."""
    encoding: str | None = None
    """Encoding of a text file, such as `cp1252`. None: found from its bytes."""
    delimiter: str | None = None
    """Character between two cells of a CSV file. None: found from its first lines."""
    texts: bool = True
    """True if the table needs a column of texts. A captioner makes texts of its own."""
    only_below: tuple[str, ...] | None = None
    """Prefixes of S3 below which everything lies that is read or looked for. None: there is no such limit."""

    def exists(self, location: Location) -> bool:
        """Return True if there is a file that may be read. Any other is not even looked for."""
        return (self.only_below is None or is_below(location.uri, self.only_below)) and exists(location)


NO_OPTIONS = TableOptions()
"""The options of a person who says nothing."""


@dataclass(frozen=True)
class Columns:
    """Columns by their roles. Each has the names of the table; `a.b` is the field b of the object a."""

    image: tuple[str, ...] = ()
    """Columns of the picture. The next is read where the first is null."""
    text: tuple[str, ...] = ()
    id: tuple[str, ...] = ()
    offset: str | None = None
    length: str | None = None
    metadata: str | None = None
    left_out: tuple[str, ...] = ()
    """Columns that the metadata leave out, such as embeddings."""
    notes: tuple[str, ...] = ()
    """Sentences for a person about columns that were chosen or left out."""

    def describe(self) -> dict[str, Any]:
        """Return the roles, for `asap plan` and `job.json`."""
        roles = {"image": self.image, "text": self.text, "id": self.id}
        return {role: list(names) for role, names in roles.items()} | {"left_out": list(self.left_out)}


def plain(name: str) -> str:
    """Return a name of a column without its case, spaces and punctuation."""
    return re.sub(r"[\W_]+", "", name).lower()


def is_known(name: str) -> bool:
    """Return True for a name that means a picture or a text, whatever its values."""
    bare = plain(name)
    return any(bare in tier.split() for tier in (*_IMAGES[:-1], *_TEXTS))


def is_picture_column(name: str) -> bool:
    """Return True for a name that means a picture, whatever its values."""
    return any(plain(name) in tier.split() for tier in _IMAGES[:-1])


def unique_names(names: Sequence[str]) -> list[str]:
    """Return the names, with a number behind a name that came before."""
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique


def show_names(names: Iterable[str]) -> str:
    """Return names of columns for a message."""
    shown = [f"{name!r:.80}" for name in names]
    more = len(shown) - _NAMES_SHOWN
    return ", ".join(shown[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def find_columns(
    names: Sequence[str], options: TableOptions, thing: str, sample: Sequence[Mapping[str, Any]] = ()
) -> Columns:
    """Return the columns of a table by their roles.

    Raises `InputNotFound` for a table without a necessary column, for a column of an option that is not there, and
    where two columns could equally be meant.

    Args:
        names: Names of the columns; a name that stands twice is refused if it has a role.
        options: What a person said about the table.
        thing: Name of the table, for messages.
        sample: First records, which show what the columns hold.
    """
    if not names:
        raise InputNotFound(f"{thing} is empty; it needs {_needs(options, image=False, text=False)}")
    search = _Search(names, thing, sample)
    image = search.images(options.image_column)
    text = search.texts(options.text_column)
    if not image or (not text and options.texts):
        advice = " and ".join(
            option
            for option, found in (("--image-column", image), ("--text-column", text or not options.texts))
            if not found
        )
        raise InputNotFound(
            f"{thing} has the columns {show_names(names)}; it needs {_needs(options, bool(image), bool(text))}. Name "
            f"the column with {advice}."
        )
    return Columns(
        image=image,
        text=text,
        id=search.ids(options.id_column, taken={*image, *text}),
        offset=search.by_plain_name("imageoffset"),
        length=search.by_plain_name("imagelength"),
        metadata="metadata" if "metadata" in names else None,
        notes=tuple(search.notes),
    )


def _needs(options: TableOptions, image: bool, text: bool) -> str:
    needs = [] if image else ["a column 'image' or 'image_uri'"]
    if options.texts and not text:
        needs.append("a column 'text'")
    return ", and ".join(needs)


def require_columns(names: Sequence[str], thing: str, needed: Sequence[Sequence[str]]) -> None:
    """Raise `InputNotFound` if a table has no column of one of the groups."""
    if missing := [" or ".join(map(repr, group)) for group in needed if not set(group) & set(names)]:
        found = f"has the columns {show_names(names)}" if names else "is empty"
        raise InputNotFound(f"{thing} {found}; it needs a column {', and a column '.join(missing)}")


def value_of(record: Mapping[str, Any], name: str) -> Any:
    """Return the value of a column; None if the record does not have it."""
    if name in record:
        return record[name]
    outer, dot, inner = name.partition(".")
    value = record.get(outer) if dot else None
    return value.get(inner) if isinstance(value, Mapping) else None


class _Search:
    """Looks for the columns of roles."""

    def __init__(self, names: Sequence[str], thing: str, sample: Sequence[Mapping[str, Any]]) -> None:
        self._thing = thing
        self._sample = sample
        self._names = names
        outer = set(names)
        # A field of an object, such as data.image, is known by its own name, behind all other columns.
        inner = [name for name in names if "." in name and name.partition(".")[0] in outer]
        self._pools = [
            [(name, plain(name)) for name in names if name not in inner],
            [(name, plain(name.partition(".")[2])) for name in inner],
        ]
        self._pool = self._pools[0]
        self.notes: list[str] = []

    def images(self, option: str | None) -> tuple[str, ...]:
        if option is not None:
            return (self._named(option, "--image-column"),)
        return self._first_found(self._images)

    def _first_found(self, look: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
        """Return what is found among the columns, else among the fields of objects in them."""
        found: tuple[str, ...] = ()
        for pool in self._pools:
            self._pool = pool
            if found := look():
                break
        self._pool = self._pools[0]
        return found

    def _images(self) -> tuple[str, ...]:
        # `image_uri` and `image` are the names of this format; they complete each other.
        web = self._own("--image-column", "image_uri", "image")
        if web and not self._all(web, WEB.match):
            return tuple(name for name in web if not self._all((name,), WEB.match))
        if inline := self._inline():
            return (self._one_of(inline, "the picture", "--image-column"),)
        for tier in _IMAGES[1:]:
            # Behind a column of web addresses, only a column of names of pictures is taken.
            check = PICTURE_NAME.fullmatch if web or tier is _IMAGES[-1] else None
            found = [name for name in self._of_tier(tier) if check is None or self._all((name,), check)]
            held = [name for name in found if not self._all((name,), WEB.match)]
            if held:
                chosen = self._one_of(held, "the picture", "--image-column", PICTURE_NAME.fullmatch)
                if web:
                    self.notes.append(f"the pictures are those of {chosen!r:.80}; {web[0]!r:.80} holds web addresses")
                return (chosen,)
            web = web or tuple(found[:1])
        if inline := self._inline(any_name=True):
            return (self._one_of(inline, "the picture", "--image-column"),)
        if not web and (
            part := self._by_part(_IMAGE_PART, lambda text: PICTURE_NAME.fullmatch(text) or WEB.match(text))
        ):
            return (self._one_of(part, "the picture", "--image-column"),)
        # Without a column that holds something, one that holds nothing is named in the refusal.
        return web or tuple(name for tier in _IMAGES[1:-1] for name in self._of_tier(tier, held=False))[:1]

    def _inline(self, any_name: bool = False) -> list[str]:
        """Return the columns of pictures in the table itself: those with names of pictures, or all."""
        found = [
            name
            for name, _ in self._pool
            if any(isinstance(value_of(record, name), InlinePicture) for record in self._sample)
        ]
        return found if any_name else [name for name in found if is_picture_column(name) or _INLINE.search(name)]

    def texts(self, option: str | None) -> tuple[str, ...]:
        if option is not None:
            return (self._named(option, "--text-column"),)
        return self._first_found(self._texts)

    def _texts(self) -> tuple[str, ...]:
        if own := self._own("--text-column", "text"):
            return own
        for held in (True, False):
            for tier in _TEXTS[1:]:
                if found := self._of_tier(tier, held):
                    return (self._one_of(found, "the text", "--text-column"),)
        if part := self._by_part(_TEXT_PART, lambda text: not WEB.match(text) and not PICTURE_NAME.fullmatch(text)):
            return (self._one_of(part, "the text", "--text-column"),)
        return ()

    def ids(self, option: str | None, taken: set[str]) -> tuple[str, ...]:
        if option is not None:
            return (self._named(option, "--id-column"),)
        own = tuple(name for name in self._own("--id-column", "custom_id", "id") if name not in taken)
        if own:
            return own
        for bare in _IDS.split():
            if (name := self.by_plain_name(bare)) is not None and name not in taken:
                return (name,)
        return ()

    def by_plain_name(self, bare: str) -> str | None:
        """Return the first column of a name; None without one."""
        return next((name for name, plain_name in self._pool if plain_name == bare), None)

    def _named(self, option: str, flag: str) -> str:
        """Return the column that an option names; spaces and case matter only if they decide between two columns."""
        wanted = option.strip().lower()
        exact = [name for name in self._names if name == option]
        if found := exact or [name for name in self._names if name.strip().lower() == wanted]:
            if len(found) > 1:
                self._refuse_twice(found, flag)
            return found[0]
        raise InputNotFound(
            f"{self._thing} has no column {option!r:.80}, which {flag} names; its columns are {show_names(self._names)}"
        )

    def _own(self, flag: str, *wanted: str) -> tuple[str, ...]:
        """Return the columns with names of this format, in the order of `wanted`."""
        own = []
        for exact in wanted:
            found = [name for name, _ in self._pool if name == exact]
            found = found or [name for name, plain_name in self._pool if plain_name == plain(exact)]
            if len(found) > 1:
                self._refuse_twice(found, flag)
            if found:
                alike = [name for name, plain_name in self._pool if plain_name == plain(exact) and name not in found]
                self.notes += [f"the column {found[0]!r:.80} is taken, and {name!r:.80} is not" for name in alike[:1]]
            own += found
        return tuple(own)

    def _refuse_twice(self, found: Sequence[str], flag: str) -> None:
        if len(set(found)) == 1:
            raise InputNotFound(f"{self._thing} has {len(found)} columns {found[0]!r:.80}. Rename all but one.")
        raise InputNotFound(
            f"{self._thing} has the columns {show_names(found)}, which could equally be meant. Say which with {flag}."
        )

    def _of_tier(self, tier: str, held: bool = True) -> list[str]:
        """Return the columns of a tier. With `held`, only those that hold something in the sample."""
        names = set(tier.split())
        found = [name for name, plain_name in self._pool if plain_name in names]
        if not held or not self._sample:
            return found
        return [name for name in found if any(_is_something(value_of(record, name)) for record in self._sample)]

    def _by_part(self, part: re.Pattern[str], check: Callable[[str], Any]) -> list[str]:
        """Return the columns with a part of their name that means a role, if their values agree."""
        found = [name for name, plain_name in self._pool if part.search(plain_name) and self._all((name,), check)]
        self.notes += [f"the column {name!r:.80} was chosen by a part of its name" for name in found[:1]]
        return found

    def _all(self, names: Sequence[str], check: Callable[[str], Any]) -> bool:
        """Return True if every value of the sample passes; False without a value."""
        values = [value for record in self._sample for name in names if _is_something(value := value_of(record, name))]
        return bool(values) and all(isinstance(value, str) and check(value) for value in values)

    def _one_of(self, found: Sequence[str], role: str, flag: str, check: Callable[[str], Any] | None = None) -> str:
        """Return the one column that is meant; refuse a table where several could be."""
        if len(found) > 1 and check is not None:
            passing = [name for name in found if self._all((name,), check)]
            found = passing if len(passing) == 1 else found
        if len(set(found)) > 1:
            raise InputNotFound(
                f"{self._thing} has the columns {show_names(found)}, and each could be {role}. Say which with {flag}."
            )
        if len(found) > 1:
            self._refuse_twice(found, flag)
        return found[0]


def _is_something(value: Any) -> bool:
    return value is not None and value != "" and value == value  # NaN is nothing
