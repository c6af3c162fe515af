"""The errors of the library.

    AsapError
    ├── ConfigError            a setting that cannot work
    ├── CheckpointError        weights or a model folder that cannot be used
    ├── AnnotationError        a training record that does not follow the DGM4 format
    ├── CorpusError            a corpus, folder or file of records that cannot be used
    │   └── PicturesMissing    images that the metadata names are missing; has their names
    ├── PrecisionNotShown      a target precision that the available scores cannot show
    ├── StorageError           a location that cannot be read or written
    ├── JobError               a job that cannot start, resume or be read; `jobs.errors` has its kinds
    ├── FetchFailed            one object that could not be fetched; has a `code`
    └── InputError             one image or text that cannot be analyzed; has a `code`
        ├── ImageMissing       image_missing
        ├── TextMissing        text_missing
        ├── TextInvalid        text_invalid
        ├── TextUnreadable     text_unreadable
        ├── EmptyFile          empty_file
        ├── UnsupportedFormat  unsupported_format
        ├── DecodeFailed       decode_failed
        ├── ImageTooLarge      too_large
        └── ModelError         model_error
            └── ScoreNotFinite model_error; a score is NaN or infinite

Every message states the problem, quotes the value, and says what to do. An `InputError` concerns one pair only: bulk
jobs turn it into a row (`error_code`, `error_detail`) and never stop because of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

EXIT_TOO_MANY_ERRORS = 3
"""Exit code of a command whose job is done with more errors than allowed. `jobs.errors` lists all codes."""
EXIT_UNFAMILIAR = 4
"""Exit code of a command whose job stopped because its input is unfamiliar to the model."""
EXIT_STOPPED = 130
"""Exit code of a command that was stopped."""
_OBJECT = re.compile(r"<(\w+\.)*(\w+)( object)? at 0x[0-9a-fA-F]+>")
_ADDRESS = re.compile(r"( at)? ?\b0x[0-9a-fA-F]{6,}\b")
_TEMPORARY = re.compile(r"(/[^\s'\":]+)*/tmp[a-z0-9_]{8}\b")


def stable_message(error: BaseException) -> str:
    """Return kind and message of a foreign error, without what differs between two runs.

    Memory addresses and names of temporary files differ. They are left out, since stored rows are compared.
    """
    message = _TEMPORARY.sub("a temporary file", _ADDRESS.sub("", _OBJECT.sub(r"\2", str(error))))
    message = " ".join(message.split()).rstrip(".")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def printable(text: object, longest: int | None = 120, *, keep: str = "") -> str:
    """Return a text from outside as a terminal may show it: cut, and without characters that command the terminal.

    A name of a file may hold anything: escape codes of terminals, signs that reorder a line, half a character. They are
    shown as Python writes them.

    Args:
        text: The text.
        longest: Most characters of the result. None: the text is not cut.
        keep: Characters that stay as they are, such as the line breaks of a message.
    """
    signs = str(text) if longest is None else str(text)[: longest + 1]
    shown = "".join(sign if sign.isprintable() or sign in keep else ascii(sign)[1:-1] for sign in signs)
    return shown if longest is None or len(shown) <= longest else f"{shown[: longest - 1]}…"


class AsapError(Exception):
    """The base of every error that this library raises on purpose."""


class ConfigError(AsapError, ValueError):
    """A setting that cannot work, found when the configuration is built."""


class CheckpointError(AsapError):
    """Weights or a model folder that cannot be used; nothing was loaded."""


class AnnotationError(AsapError, ValueError):
    """A training record whose annotation does not follow the DGM4 format."""


class CorpusError(AsapError):
    """A corpus, folder or file of records that cannot be used."""


class PicturesMissing(CorpusError):
    """More images of a corpus are missing than its reader allows."""

    def __init__(self, message: str, pictures: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.pictures = list(pictures)
        """All missing images, as the metadata names them."""


class PrecisionNotShown(AsapError):
    """A target precision that the available scores cannot show; no threshold was written."""

    def __init__(self, message: str, headline: str = "", shortfalls: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.headline = headline or message
        """The message without the figures of the thresholds."""
        self.shortfalls = list(shortfalls)
        """For each threshold that is not shown, figures that can be written as JSON: its name as `threshold`, the
        target, the highest precision that is shown, and the labeled pairs at hand and needed, authentic ones and those
        with the feature. None: no precision is shown, or no number of pairs is known."""


class JobError(AsapError):
    """A job that cannot start or resume, or a folder that is not that of a job."""


class StorageError(AsapError):
    """A location that cannot be read or written."""

    retryable = False
    """True if the same request may succeed later: the store is down, slow or overloaded."""


class FetchFailed(AsapError):
    """An object that could not be fetched. `code` becomes the row's `error_code`."""

    def __init__(self, code: str, detail: str, *, retryable: bool, attempt: int = 1) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.retryable = retryable
        self.attempt = attempt


class InputError(AsapError, ValueError):
    """An image or a text that cannot be analyzed. `code` becomes the row's `error_code`."""

    code = "input_error"


class ImageMissing(InputError):
    """The pair has no image."""

    code = "image_missing"


class TextMissing(InputError):
    """The pair has no text, and no caption replaces it."""

    code = "text_missing"


class TextInvalid(InputError):
    """The text is not a string of words: wrong type, undecodable, too long, or no word left after cleaning."""

    code = "text_invalid"


class TextUnreadable(InputError):
    """The vocabulary of the model reads too little of the text, and no caption replaces it."""

    code = "text_unreadable"


class EmptyFile(InputError):
    """The image has no bytes."""

    code = "empty_file"


class UnsupportedFormat(InputError):
    """The bytes are not an image of a supported format."""

    code = "unsupported_format"


class DecodeFailed(InputError):
    """The image starts like a supported format but cannot be decoded: it is truncated or corrupt."""

    code = "decode_failed"


class ImageTooLarge(InputError):
    """The image has more bytes or pixels than the limit; it was not decoded."""

    code = "too_large"


class ModelError(InputError):
    """The model failed on this pair: it raised an error or returned NaN or infinite values."""

    code = "model_error"


class ScoreNotFinite(ModelError):
    """The model returned NaN or infinite values for this pair, which no threshold can judge."""
