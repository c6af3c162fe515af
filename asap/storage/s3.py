"""The S3 client of boto3, and a file system of pyarrow that reads and writes through it.

The client finds credentials, region and endpoint as every AWS tool does (`AWS_PROFILE`, `AWS_ACCESS_KEY_ID`,
`AWS_REGION`, `AWS_ENDPOINT_URL`, the role of an instance), on the machine that does the work. Two more variables have
the names that GDAL gave them: `AWS_NO_SIGN_REQUEST=YES` for public buckets, without credentials, and
`AWS_REQUEST_PAYER=requester` for buckets that charge their readers.

pyarrow's own file system for S3 finds credentials in another way, knows no bucket that charges its readers, refuses
keys with `//`, and deletes by a request that some stores refuse. So tables and streams go through the client too, and
there is one identity. A file system that is sent to another process takes the settings of the store with it, but no
secret: the other process finds its own credentials.
"""

from __future__ import annotations

import functools
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from asap.errors import StorageError
from asap.storage.failures import failure_code, storage_errors
from asap.storage.location import Location
from asap.storage.objects import (
    ObjectFile,
    ObjectStream,
    ObjectWriter,
    copy_object,
    delete_objects,
    head,
    list_objects,
    list_pages,
    list_prefixes,
    object_info,
)

_PUBLIC_S3 = re.compile(r"https://s3([.-][a-z0-9-]+)?\.amazonaws\.com(\.cn)?")
"""Endpoints that a client finds by itself from the region."""
_TRUE = {"1", "yes", "true", "on"}
_CHECKSUM_SETTINGS = ("request_checksum_calculation", "response_checksum_validation")


@dataclass(frozen=True)
class StoreSettings:
    """The settings of a store that another process needs. Credentials are none of them."""

    endpoint: str | None
    """None for AWS itself."""
    region: str | None
    is_anonymous: bool
    """True if requests are not signed."""
    payer: str | None
    """`requester` if the owner of the credentials pays for what is read."""


@functools.cache
def s3_client(
    *,
    attempts: int = 5,
    connect_timeout_s: float = 10,
    read_timeout_s: float = 60,
    settings: StoreSettings | None = None,
) -> Any:
    """Return this process's client, which threads may share.

    Args:
        attempts: tries for one request, by botocore's standard retries (exponential backoff with jitter).
        connect_timeout_s: seconds to wait for a connection.
        read_timeout_s: seconds to wait for a response, or for more of it.
        settings: settings of the store, from another process. None: those of the environment.
    """
    import boto3
    import botocore
    from botocore.config import Config

    from asap.storage.credentials import reading_session

    with storage_errors("S3"):
        session = reading_session()
        is_anonymous = settings.is_anonymous if settings else _is_anonymous()
        # Stores other than AWS refuse the checksums that botocore adds by itself. A person may still ask for them.
        said = {name: os.environ.get(f"AWS_{name.upper()}") for name in _CHECKSUM_SETTINGS}
        profile = session.get_scoped_config()
        client = boto3.Session(botocore_session=session).client(
            "s3",
            endpoint_url=settings.endpoint if settings else None,
            region_name=settings.region if settings else None,
            config=Config(
                retries={"mode": "standard", "total_max_attempts": attempts},
                connect_timeout=connect_timeout_s,
                read_timeout=read_timeout_s,
                max_pool_connections=64,
                signature_version=botocore.UNSIGNED if is_anonymous else None,
                **{name: said[name] or profile.get(name) or "when_required" for name in _CHECKSUM_SETTINGS},
            ),
        )
    if payer := settings.payer if settings else _payer():

        def pay(params: dict[str, Any], **_: Any) -> None:
            params["headers"]["x-amz-request-payer"] = payer

        client.meta.events.register("before-call.s3", pay)
    return client


def _is_anonymous() -> bool:
    return os.environ.get("AWS_NO_SIGN_REQUEST", "").lower() in _TRUE


def _payer() -> str | None:
    return os.environ.get("AWS_REQUEST_PAYER") or None


def check_bucket(location: Location) -> None:
    """Raise `StorageError` if the bucket does not exist, or the credentials are missing or may not list it."""
    from botocore.exceptions import ClientError

    prefix = f"{location.key}/" if location.key else ""
    with storage_errors(location):
        try:
            next(list_pages(s3_client(), Bucket=location.bucket, Prefix=prefix, MaxKeys=1))
        except ClientError as error:
            if failure_code(error)[0] != "not_found":
                raise
            raise StorageError(
                f"the bucket {location.bucket!r} does not exist. Check its name, and AWS_ENDPOINT_URL if it is not on "
                "AWS."
            ) from error


def check_writable(folder: Location) -> None:
    """Raise `StorageError` if a folder in S3 cannot be listed, written or deleted from. The message names the right.

    The probe lies beside the folder, so that a folder that another process looks at stays empty.
    """
    if folder.key and not {"", ".", ".."}.isdisjoint(folder.key.split("/")):
        tidy = f"s3://{folder.bucket}/{'/'.join(part for part in folder.key.split('/') if part not in ('', '.', '..'))}"
        raise StorageError(f"{folder} has an empty part or a dot as a part, which other tools read as another folder. "
                           f"Write {tidy}.")  # fmt: skip
    check_bucket(folder)
    probe = folder.parent / f".asap-probe-{uuid.uuid4().hex[:8]}"
    for action in (
        lambda: s3_client().put_object(Bucket=probe.bucket, Key=probe.key, Body=b""),
        lambda: s3_client().delete_object(Bucket=probe.bucket, Key=probe.key),
    ):
        with storage_errors(folder):
            action()


def filesystem(location: Location, attempts: int = 6) -> tuple[pafs.FileSystem, str]:
    """Return the pyarrow file system of a location, and its path there. Both can be sent to other machines.

    `attempts` are the tries for one request: 6 take some twenty seconds, and each further one up to twenty more.
    """
    if not location.is_s3:
        return pafs.LocalFileSystem(), location.uri
    meta = s3_client().meta
    settings = StoreSettings(
        endpoint=None if _PUBLIC_S3.fullmatch(str(meta.endpoint_url)) else str(meta.endpoint_url),
        region=meta.region_name,
        is_anonymous=_is_anonymous(),
        payer=_payer(),
    )
    return pafs.PyFileSystem(ObjectFiles(settings, attempts)), f"{location.bucket}/{location.key}".rstrip("/")


@dataclass(frozen=True)
class ObjectFiles(pafs.FileSystemHandler):
    """The objects of a store as pyarrow's file systems show them. Paths are BUCKET/KEY, and keys are taken as given."""

    settings: StoreSettings
    attempts: int
    """Tries for one request."""

    @property
    def _client(self) -> Any:
        return s3_client(attempts=self.attempts, settings=self.settings)

    def get_type_name(self) -> str:
        """Return the name of this kind of file systems."""
        return "s3"

    def normalize_path(self, path: str) -> str:
        """Return the path as it is: other keys are other objects."""
        return path

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        """Return what is at each path."""
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> pafs.FileInfo:
        location = Location(f"s3://{path}".rstrip("/"))
        with storage_errors(location):
            found = head(self._client, location) if location.key else None
            if found is not None:
                return pafs.FileInfo(path, pafs.FileType.File, size=found["ContentLength"])
            is_folder = next(self._list(location), None) is not None
        return pafs.FileInfo(path, pafs.FileType.Directory if is_folder else pafs.FileType.NotFound)

    def _list(self, folder: Location) -> Iterator[Any]:
        return list_objects(self._client, folder.bucket, f"{folder.key}/" if folder.key else "")

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        """Return what is below a folder."""
        folder = Location(f"s3://{selector.base_dir}".rstrip("/"))
        start = len(folder.uri) + 1
        with storage_errors(folder):
            files = [info for info in self._list(folder) if selector.recursive or "/" not in info.location.uri[start:]]
            if selector.recursive:
                names = {info.location.uri[start:] for info in files}
                folders = {name[:end] for name in names for end, letter in enumerate(name) if letter == "/"}
                keys = [f"{folder.bucket}/{folder.key}/{name}" for name in sorted(folders)]
            else:
                prefix = f"{folder.key}/" if folder.key else ""
                keys = [f"{folder.bucket}/{key}" for key in list_prefixes(self._client, folder.bucket, prefix)]
        if not files and not keys and not selector.allow_not_found:
            raise FileNotFoundError(f"{folder} does not exist")
        return [pafs.FileInfo(key, pafs.FileType.Directory) for key in keys] + [
            pafs.FileInfo(info.location.uri.removeprefix("s3://"), pafs.FileType.File, size=info.size) for info in files
        ]

    def create_dir(self, path: str, recursive: bool) -> None:
        """Do nothing: S3 has no folders without objects."""

    def delete_dir(self, path: str) -> None:
        """Delete everything below a folder."""
        folder = Location(f"s3://{path}".rstrip("/"))
        with storage_errors(folder):
            keys = [info.location.key for info in self._list(folder)]
            delete_objects(self._client, folder.bucket, keys)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        """Delete everything below a folder."""
        self.delete_dir(path)

    def delete_root_dir_contents(self) -> None:
        """Refuse to delete all buckets."""
        raise NotImplementedError("all buckets of a store are not deleted at once")

    def delete_file(self, path: str) -> None:
        """Delete an object."""
        location = Location(f"s3://{path}")
        with storage_errors(location):
            self._client.delete_object(Bucket=location.bucket, Key=location.key)

    def move(self, src: str, dest: str) -> None:
        """Copy an object, and delete the first one."""
        self.copy_file(src, dest)
        self.delete_file(src)

    def copy_file(self, src: str, dest: str) -> None:
        """Copy an object; its bytes do not leave the store."""
        source, target = Location(f"s3://{src}"), Location(f"s3://{dest}")
        with storage_errors(target):
            copy_object(self._client, source, target)

    def _open(self, path: str) -> tuple[Any, Location, Any]:
        location = Location(f"s3://{path}")
        with storage_errors(location):
            found = head(self._client, location)
        if found is None:
            raise FileNotFoundError(f"{location} does not exist")
        return self._client, location, object_info(location, found)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """Open an object that is read in its order."""
        return pa.PythonFile(ObjectStream(*self._open(path)), mode="r")

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Open an object that is read at any offset."""
        return pa.PythonFile(ObjectFile(*self._open(path)), mode="r")

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        """Open a stream into a new object."""
        return pa.PythonFile(ObjectWriter(self._client, Location(f"s3://{path}")), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        """Refuse: no object can be appended to."""
        raise NotImplementedError("objects of S3 cannot be appended to")
