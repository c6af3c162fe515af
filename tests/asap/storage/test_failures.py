import errno

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ParamValidationError

from asap.storage.failures import failure_code


def _client_error(code: str, status: int) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (_client_error("NoSuchKey", 404), ("not_found", False)),
        (_client_error("404", 404), ("not_found", False)),
        (_client_error("AccessDenied", 403), ("access_denied", False)),
        (_client_error("ExpiredToken", 400), ("access_denied", False)),
        (_client_error("SlowDown", 503), ("throttled", True)),
        (_client_error("RequestTimeout", 400), ("timeout", True)),
        (_client_error("InternalError", 500), ("storage_error", True)),
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
