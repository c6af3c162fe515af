"""Maps the exceptions of stores to an error code for a row, and to a message for a person."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from asap.errors import StorageError

if TYPE_CHECKING:
    from asap.storage.location import Location

_NOT_FOUND = {"404", "NoSuchKey", "NoSuchBucket", "NoSuchVersion", "NotFound"}
_DENIED = {"403", "401", "AccessDenied", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch",
           "ExpiredToken", "InvalidToken", "Forbidden", "Unauthorized", "AccountProblem"}  # fmt: skip
_THROTTLED = {"429", "503", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded",
              "TooManyRequests", "ServiceUnavailable", "RequestThrottled", "BandwidthLimitExceeded"}  # fmt: skip
_TIMED_OUT = {"RequestTimeout", "RequestTimeTooSkewed", "408", "504"}
_FINAL = {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
"""Error numbers of a name that no file can have: a retry cannot succeed."""


def failure_code(error: Exception) -> tuple[str, bool]:
    """Return the row's `error_code` for a failed read, and True if a retry may succeed.

    Both follow the error codes of S3 and the error numbers of the operating system.
    """
    from botocore.exceptions import ClientError, ConnectTimeoutError, ParamValidationError, ReadTimeoutError

    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        # A HEAD response has no body and so no code of S3. The HTTP status stands in for it.
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        for codes, name, retryable in (
            (_NOT_FOUND, "not_found", False),
            (_DENIED, "access_denied", False),
            (_THROTTLED, "throttled", True),
            (_TIMED_OUT, "timeout", True),
        ):
            if (code or str(status)) in codes:
                return name, retryable
        return "storage_error", status >= 500 or code == "InternalError"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "not_found", False
    if isinstance(error, PermissionError) or _is_about_credentials(error):
        return "access_denied", False
    if isinstance(error, TimeoutError | ConnectTimeoutError | ReadTimeoutError):
        return "timeout", True
    is_final = isinstance(error, IsADirectoryError | ValueError | ParamValidationError)
    return "storage_error", not is_final and getattr(error, "errno", None) not in _FINAL


def _is_about_credentials(error: Exception) -> bool:
    return bool(re.search(r"Credential|SSO|TokenRetrieval|LoginRefresh|ProfileNotFound", type(error).__name__))


@contextmanager
def storage_errors(location: Location | str) -> Iterator[None]:
    """Turn the errors of boto3, pyarrow and the operating system into a `StorageError` that names `location`."""
    from boto3.exceptions import Boto3Error  # raised by transfers, which wrap a ClientError in it
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (Boto3Error, BotoCoreError, ClientError, OSError) as error:
        raise StorageError(_message(error, str(location))) from error


def _message(error: Exception, location: str) -> str:
    code, _ = failure_code(error)
    detail = " ".join(str(error).split())
    if _is_about_credentials(error):
        return (
            f"no AWS credentials for {location}: {detail.rstrip('.')}. Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or give the machine a role."
        )
    # A missing bucket has the code not_found too, but another remedy than a missing object.
    if "NoSuchBucket" in detail:
        return f"the bucket of {location} does not exist. Check its name, and AWS_ENDPOINT_URL if it is not on AWS."
    if code == "not_found":
        return f"{location} does not exist"
    if code == "access_denied":
        return f"access to {location} was denied: {detail}"
    return f"{location} cannot be used: {detail}"
