"""The S3 client of boto3 and the file systems of pyarrow.

Both find credentials, region and endpoint as every AWS tool does (`AWS_PROFILE`, `AWS_ACCESS_KEY_ID`, `AWS_REGION`,
`AWS_ENDPOINT_URL`, the role of an instance), on the machine that does the work.

Both would keep the keys of a file as they were read first. Here `credentials` has a changed file read again, so that a
job outlives keys that are renewed while it runs.
"""

from __future__ import annotations

import functools
import re
from typing import Any, cast

import pyarrow.fs as pafs

from asap.errors import StorageError
from asap.storage.failures import failure_code, storage_errors
from asap.storage.location import Location

_PUBLIC_S3 = re.compile(r"https://s3([.-][a-z0-9-]+)?\.amazonaws\.com(\.cn)?")
"""Endpoints that pyarrow finds by itself. It must be given any other one, also that of a VPC or FIPS."""


@functools.cache
def s3_client(*, attempts: int = 5, connect_timeout_s: float = 10, read_timeout_s: float = 60) -> Any:
    """Return this process's client, which threads may share.

    Args:
        attempts: tries for one request, by botocore's standard retries (exponential backoff with jitter).
        connect_timeout_s: seconds to wait for a connection.
        read_timeout_s: seconds to wait for a response, or for more of it.
    """
    import boto3
    from botocore.config import Config

    from asap.storage.credentials import reading_session

    with storage_errors("S3"):
        return boto3.Session(botocore_session=reading_session()).client(
            "s3",
            config=Config(
                retries={"mode": "standard", "total_max_attempts": attempts},
                connect_timeout=connect_timeout_s,
                read_timeout=read_timeout_s,
                max_pool_connections=64,
            ),
        )


def check_bucket(location: Location) -> None:
    """Raise `StorageError` if the bucket does not exist, or the credentials are missing or have no access to it."""
    _bucket_region(location.bucket)


@functools.cache
def _bucket_region(bucket: str) -> str | None:
    from botocore.exceptions import ClientError

    with storage_errors(f"s3://{bucket}"):
        try:
            response = s3_client().head_bucket(Bucket=bucket)
        except ClientError as error:
            if failure_code(error)[0] != "not_found":
                raise
            # HeadBucket has no body, so the code NoSuchBucket, which `storage_errors` looks for, is absent here.
            raise StorageError(
                f"the bucket {bucket!r} does not exist. Check its name, and AWS_ENDPOINT_URL if it is not on AWS."
            ) from error
    region = response["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
    return cast("str | None", region or s3_client().meta.region_name)


def filesystem(location: Location, attempts: int = 6) -> tuple[pafs.FileSystem, str]:
    """Return the pyarrow file system of a location, and its path there. Both can be sent to other machines.

    `attempts` are the tries for one request: 6 take some twenty seconds, and each further one up to twenty more.
    """
    if not location.is_s3:
        return pafs.LocalFileSystem(), location.uri
    from asap.storage.credentials import key_sources

    # A file system keeps the credentials that it has read for minutes, so other credentials need another one.
    return _s3_filesystem(location.bucket, attempts, key_sources()), f"{location.bucket}/{location.key}".rstrip("/")


class RetryingS3(pafs.S3FileSystem):
    """An S3 file system that keeps its number of tries in other processes, where pyarrow's own would have three."""

    def __init__(self, attempts: int, options: dict[str, Any]) -> None:
        super().__init__(**options, retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=attempts))
        self.attempts = attempts

    def __reduce__(self) -> tuple[Any, ...]:
        _, (options,) = super().__reduce__()
        return RetryingS3, (self.attempts, options)


@functools.lru_cache(maxsize=16)
def _s3_filesystem(bucket: str, attempts: int, sources: tuple[object, ...]) -> RetryingS3:
    options: dict[str, Any] = {"region": _bucket_region(bucket)}
    options |= _endpoint_options(str(s3_client().meta.endpoint_url))
    with storage_errors(f"s3://{bucket}"):
        return RetryingS3(attempts, options)


def _endpoint_options(endpoint: str) -> dict[str, str]:
    """Return the options that send pyarrow to the endpoint that boto3 uses."""
    if _PUBLIC_S3.fullmatch(endpoint):
        return {}
    scheme, _, address = endpoint.partition("://")
    return {"scheme": scheme, "endpoint_override": address}
