"""The errors of the library.

    AsapError
    ├── ConfigError            a setting that cannot work
    ├── CheckpointError        weights or a model folder that cannot be used
    ├── AnnotationError        a training record that is not what DGM4 says
    ├── CorpusError            a corpus, folder or file of records that cannot be used
    │   └── PicturesMissing    its pictures are not where it says; has their names
    ├── PrecisionNotShown      a target precision that the scores at hand cannot show
    └── InputError             one image or text that cannot be judged; has a `code`
        ├── ImageMissing       image_missing
        ├── TextMissing        text_missing
        ├── TextInvalid        text_invalid
        ├── EmptyFile          empty_file
        ├── UnsupportedFormat  unsupported_format
        ├── DecodeFailed       decode_failed
        ├── ImageTooLarge      too_large
        └── ModelError         model_error

Every message says what was wrong, with the value, and what to do about it. An `InputError` is about one
pair alone: bulk jobs turn it into a row (`error_code`, `error_detail`), never into a stop.
"""

from collections.abc import Sequence


class AsapError(Exception):
    """Base of every error this library raises on purpose."""


class ConfigError(AsapError, ValueError):
    """A setting that cannot work, found when the configuration is built."""


class CheckpointError(AsapError):
    """Weights or a model folder that cannot be used; nothing was loaded."""


class AnnotationError(AsapError, ValueError):
    """A training record whose annotation is not what DGM4 says."""


class CorpusError(AsapError):
    """A corpus, folder or file of records that cannot be used."""


class PicturesMissing(CorpusError):
    """More pictures of a corpus are missing than its reader allows."""

    def __init__(self, message: str, pictures: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.pictures = list(pictures)
        """All of them, as the metadata names them."""


class PrecisionNotShown(AsapError):
    """A target precision that the scores at hand cannot show; no threshold was written."""


class InputError(AsapError, ValueError):
    """One image or one text that cannot be judged. `code` is the row's `error_code`."""

    code = "input_error"


class ImageMissing(InputError):
    """The pair has no image."""

    code = "image_missing"


class TextMissing(InputError):
    """The pair has no text, and no caption to stand in for it."""

    code = "text_missing"


class TextInvalid(InputError):
    """The text is not a string of words: wrong type, undecodable, or no word left after cleaning."""

    code = "text_invalid"


class EmptyFile(InputError):
    """The image has no bytes."""

    code = "empty_file"


class UnsupportedFormat(InputError):
    """The bytes are not an image of a supported format."""

    code = "unsupported_format"


class DecodeFailed(InputError):
    """The image starts like a supported format and cannot be decoded: truncated or corrupt."""

    code = "decode_failed"


class ImageTooLarge(InputError):
    """The image has more bytes or pixels than the limit; it was not decoded."""

    code = "too_large"


class ModelError(InputError):
    """The model could not judge this pair: it raised, or what it returned is not a number."""

    code = "model_error"


class StorageError(AsapError):
    """A place that cannot be read or written."""


class FetchFailed(AsapError):
    """One object could not be fetched. `code` is the row's `error_code`."""

    def __init__(self, code: str, detail: str, *, retryable: bool, attempt: int = 1) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.retryable = retryable
        self.attempt = attempt
