"""Maps the exceptions of stores to an error code for a row, and to a message for a person."""

from __future__ import annotations

import errno
import itertools
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from asap.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path

    from asap.storage.location import Location

_NOT_FOUND = {"404", "NoSuchKey", "NoSuchBucket", "NoSuchVersion", "NotFound"}
_DENIED = {"403", "401", "AccessDenied", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch",
           "InvalidToken", "Forbidden", "Unauthorized", "AccountProblem"}  # fmt: skip
_THROTTLED = {"429", "503", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded",
              "TooManyRequests", "ServiceUnavailable", "RequestThrottled", "BandwidthLimitExceeded"}  # fmt: skip
_TIMED_OUT = {"RequestTimeout", "RequestTimeTooSkewed", "408", "504"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
"""Codes of credentials that were valid. Whoever gave them may renew them while a job runs."""
_LOST_UPLOAD = "NoSuchUpload"
"""Code of an upload that the store has forgotten, or has completed without saying so. It may be sent again."""
_ARCHIVED = "InvalidObjectState"
_RIGHTS = {
    "ListBucket": ("ListObjectsV2", "ListObjects", "HeadBucket"),
    "GetObject": ("GetObject", "HeadObject"),
    "PutObject": ("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "CopyObject",
                  "UploadPartCopy"),
    "DeleteObject": ("DeleteObject",),
}  # fmt: skip
"""Rights of S3, and the requests that need each."""
_FULL_STORE = {"507", "QuotaExceeded", "XMinioStorageFull"}
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT}
_FIRST_BACKOFF_S = 0.2
_LONGEST_BACKOFF_S = 20.0
_FINAL = {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
"""Error numbers of a name that no file can have: a retry cannot succeed."""


def failure_code(error: Exception) -> tuple[str, bool]:
    """Return the row's `error_code` for a failed read, and True if a retry may succeed.

    Both follow the error codes of S3 and the error numbers of the operating system.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import ClientError, ConnectTimeoutError, ParamValidationError, ReadTimeoutError

    if isinstance(error, Boto3Error) and isinstance(error.__context__, ClientError):
        error = error.__context__  # a transfer raises an error of its own, whose text alone has the reason
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        # A HEAD response has no body and so no code of S3. The HTTP status stands in for it.
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        for codes, name, retryable in (
            (_NOT_FOUND, "not_found", False),
            (_EXPIRED, "access_denied", True),
            (_DENIED, "access_denied", False),
            (_THROTTLED, "throttled", True),
            (_TIMED_OUT, "timeout", True),
        ):
            if (code or str(status)) in codes:
                return name, retryable
        return "storage_error", status >= 500 or code in ("InternalError", _LOST_UPLOAD)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "not_found", False
    if isinstance(error, PermissionError) or _is_about_credentials(error):
        return "access_denied", False
    if isinstance(error, TimeoutError | ConnectTimeoutError | ReadTimeoutError):
        return "timeout", True
    is_final = isinstance(error, IsADirectoryError | ValueError | ParamValidationError)
    return "storage_error", not is_final and getattr(error, "errno", None) not in _FINAL


def backoff_s(attempt: int) -> float:
    """Return the seconds to wait after a try, counted from 1, before the next: exponential, with jitter."""
    return random.uniform(0, min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2**attempt))


def keep_trying(action: Callable[[], None], patience_s: float) -> None:
    """Call `action` until it succeeds; a `StorageError` that may pass is raised only after `patience_s` seconds."""
    deadline = time.monotonic() + patience_s
    for attempt in itertools.count(1):
        try:
            action()
        except StorageError as error:
            left_s = deadline - time.monotonic()
            if not error.retryable or left_s <= 0:
                raise
        else:
            return
        time.sleep(min(backoff_s(attempt), left_s))


def _is_store_full(error: Exception) -> bool:
    """Return True if a store refuses a write because it, or a quota of it, is full."""
    response = getattr(error, "response", None) or getattr(error.__context__, "response", None) or {}
    status = str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    return bool({status, response.get("Error", {}).get("Code")} & _FULL_STORE)


def _is_about_credentials(error: Exception) -> bool:
    return bool(re.search(r"Credential|SSO|TokenRetrieval|LoginRefresh|ProfileNotFound", type(error).__name__))


@contextmanager
def storage_errors(location: Location | Path | str) -> Iterator[None]:
    """Turn the errors of boto3, pyarrow and the operating system into a `StorageError` that names `location`."""
    from boto3.exceptions import Boto3Error  # raised by transfers, which wrap a ClientError in it
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (Boto3Error, BotoCoreError, ClientError, OSError) as error:
        failure = StorageError(_message(error, str(location)))
        failure.retryable = failure_code(error)[1]
        raise failure from error


def advice(error: Exception) -> str:
    """Return what a person can do about an error of S3, in full sentences; nothing if it is not known."""
    if _is_about_credentials(error):
        return (
            "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role. For a public "
            "bucket set AWS_NO_SIGN_REQUEST=YES."
        )
    code = str((getattr(error, "response", None) or {}).get("Error", {}).get("Code", ""))
    if code == _ARCHIVED:
        return "The object is archived. Restore it (aws s3api restore-object) and run the command again."
    if code in _EXPIRED:
        return "Renew the credentials."
    if failure_code(error)[0] != "access_denied" or not code:
        return ""
    if code not in ("AccessDenied", "403", "Forbidden"):
        return "Check the credentials: AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
    operation = getattr(error, "operation_name", "")
    right = next((name for name, operations in _RIGHTS.items() if operation in operations), None)
    if right is None:
        return ""
    if right in ("PutObject", "DeleteObject"):
        return f"The credentials need the right s3:{right} there."
    also = ", and s3:ListBucket, without which a missing object is denied too" if right == "GetObject" else ""
    return (
        f"The credentials need the right s3:{right} there{also}. If the bucket charges its readers, set "
        "AWS_REQUEST_PAYER=requester."
    )


def _message(error: Exception, location: str) -> str:
    from boto3.exceptions import Boto3Error

    if isinstance(error, Boto3Error) and isinstance(error.__context__, Exception):
        error = error.__context__
    code, _ = failure_code(error)
    detail = " ".join(str(error).split())
    if _is_about_credentials(error):
        return f"no AWS credentials for {location}: {detail.rstrip('.')}. {advice(error)}"
    # A missing bucket has the code not_found too, but another remedy than a missing object.
    if "NoSuchBucket" in detail:
        return f"the bucket of {location} does not exist. Check its name, and AWS_ENDPOINT_URL if it is not on AWS."
    if code == "not_found":
        return f"{location} does not exist"
    if getattr(error, "errno", None) in _FULL_DISK:
        return f"{location} cannot be written: the disk is full ({detail}). Free space there."
    if _is_store_full(error):
        return f"{location} cannot be written: the store is full ({detail}). Free space there, or raise its quota."
    if code == "access_denied":
        return f"access to {location} was denied: {detail.rstrip('.')}. {advice(error)}".rstrip()
    return f"{location} cannot be used: {detail.rstrip('.')}. {advice(error)}".rstrip()
