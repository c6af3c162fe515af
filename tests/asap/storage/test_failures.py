import errno
from pathlib import Path

import boto3
import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ParamValidationError

from asap.errors import StorageError
from asap.storage.failures import failure_code, keep_trying, storage_errors
from tests.support.faulty_store import Fault, FaultyStore


def _client_error(code: str, status: int) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (_client_error("NoSuchKey", 404), ("not_found", False)),
        (_client_error("404", 404), ("not_found", False)),
        (_client_error("AccessDenied", 403), ("access_denied", False)),
        (_client_error("ExpiredToken", 400), ("access_denied", True)),
        (_client_error("SlowDown", 503), ("throttled", True)),
        (_client_error("RequestTimeout", 400), ("timeout", True)),
        (_client_error("InternalError", 500), ("storage_error", True)),
        (_client_error("NoSuchUpload", 404), ("storage_error", True)),
        (_client_error("InvalidObjectState", 403), ("storage_error", False)),
        (_client_error("InvalidRange", 416), ("storage_error", False)),
        (NoCredentialsError(), ("access_denied", False)),
        (EndpointConnectionError(endpoint_url="http://x"), ("storage_error", True)),
        (FileNotFoundError(2, "No such file"), ("not_found", False)),
        (NotADirectoryError(20, "Not a directory"), ("not_found", False)),
        (PermissionError(13, "Permission denied"), ("access_denied", False)),
        (TimeoutError(110, "timed out"), ("timeout", True)),
        (OSError(5, "Input/output error"), ("storage_error", True)),
        (IsADirectoryError(21, "Is a directory"), ("storage_error", False)),
        (ValueError("embedded null byte"), ("storage_error", False)),
        (ParamValidationError(report="Invalid bucket name"), ("storage_error", False)),
        (OSError(errno.ENAMETOOLONG, "File name too long"), ("storage_error", False)),
        (OSError(errno.ELOOP, "Too many levels of symbolic links"), ("storage_error", False)),
        (OSError(errno.EINVAL, "Invalid argument"), ("storage_error", False)),
    ],
)
def test_failures_are_named_as_the_store_defines_them(error: Exception, expected: tuple[str, bool]) -> None:
    assert failure_code(error) == expected


def test_a_transfer_that_fails_has_the_code_of_its_request(faulty: FaultyStore, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    faulty.rule = lambda request: Fault(status=403, code="AccessDenied")
    with pytest.raises(S3UploadFailedError) as caught:
        boto3.client("s3").upload_file(str(tmp_path / "a"), bucket, "a")
    assert failure_code(caught.value) == ("access_denied", False)


@pytest.mark.parametrize(
    ("error", "retryable"), [(_client_error("SlowDown", 503), True), (_client_error("AccessDenied", 403), False)]
)
def test_an_error_of_a_store_says_whether_it_may_pass(error: Exception, retryable: bool) -> None:
    with pytest.raises(StorageError) as caught, storage_errors("s3://news/a"):
        raise error
    assert caught.value.retryable is retryable


def test_a_full_store_is_named_with_a_remedy() -> None:
    message = r"s3://news/a cannot be written: the store is full.*raise its quota"
    with pytest.raises(StorageError, match=message), storage_errors("s3://news/a"):
        raise _client_error("XMinioStorageFull", 507)


def test_an_action_is_tried_until_it_succeeds_or_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def act(failures: int, error: Exception) -> None:
        tries.append(failures)
        if len(tries) <= failures:
            with storage_errors("s3://news/a"):
                raise error

    slow, denied = _client_error("SlowDown", 503), _client_error("AccessDenied", 403)
    monkeypatch.setattr("asap.storage.failures._FIRST_BACKOFF_S", 0.001)
    keep_trying(lambda: act(4, slow), patience_s=60)
    assert len(tries) == 5
    tries.clear()
    with pytest.raises(StorageError, match="SlowDown"):
        keep_trying(lambda: act(999, slow), patience_s=0.02)
    assert len(tries) > 1
    tries.clear()
    with pytest.raises(StorageError, match="denied"):
        keep_trying(lambda: act(999, denied), patience_s=60)
    assert len(tries) == 1
