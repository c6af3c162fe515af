"""What stores raise, told as rows and people need it: a code and whether to try again, or one sentence."""

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
"""Of a name that no file can have."""


def failure_code(error: Exception) -> tuple[str, bool]:
    """The row's `error_code` for a failure to read, and whether trying again may help, as S3 and errno define it."""
    from botocore.exceptions import ClientError, ConnectTimeoutError, ParamValidationError, ReadTimeoutError

    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
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
def storage_errors(place: Location | str) -> Iterator[None]:
    """Turn what boto3, pyarrow and the operating system raise into a `StorageError` of one sentence."""
    from boto3.exceptions import Boto3Error  # of transfers, which wrap a ClientError in it
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (Boto3Error, BotoCoreError, ClientError, OSError) as error:
        raise StorageError(_sentence(error, str(place))) from error


def _sentence(error: Exception, place: str) -> str:
    code, _ = failure_code(error)
    detail = " ".join(str(error).split())
    if _is_about_credentials(error):
        return (
            f"no AWS credentials for {place}: {detail.rstrip('.')}; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or give the machine a role"
        )
    if "NoSuchBucket" in detail:
        return f"the bucket of {place} does not exist; check its name, and AWS_ENDPOINT_URL if it is not on AWS"
    if code == "not_found":
        return f"{place} does not exist"
    if code == "access_denied":
        return f"access to {place} was denied: {detail}"
    return f"{place} cannot be used: {detail}"
