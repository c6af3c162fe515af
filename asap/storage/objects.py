"""Objects of S3 through the client of boto3: metadata, listings, deletions, and streams that survive broken bodies.

botocore retries a request that fails. What it has answered already may still break off, which the streams here notice:
they ask for the rest.
"""

from __future__ import annotations

import io
import itertools
import queue
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, cast

from asap.errors import StorageError
from asap.storage.failures import backoff_s, failure_code, storage_errors
from asap.storage.location import FileInfo, Location

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

_BODY_TRIES = 6
"""Tries for the next bytes of an object."""
_PART_BYTES = 2**23
"""Size of the first parts of an upload; S3 takes no smaller ones, but for the last."""
_PARTS_OF_A_SIZE = 1000
"""Parts after which the next ones are twice as large: S3 takes 10,000 in all."""
_PARTS_AT_ONCE = 4
_DELETE_AT_ONCE = 32
_LISTED_AT_ONCE = 16
"""Folders that are listed at a time."""
_PAGES_AHEAD = 4
"""Pages of a folder that wait to be taken."""
_FOLDERS_OF_A_PAGE = 2
"""Folders whose keys are on the first page, at most, if folders are listed by themselves."""
_LOOK_S = 0.1
_NOT_IMPLEMENTED = {"NotImplemented", "501"}
_ARCHIVES = {"GLACIER", "DEEP_ARCHIVE"}
"""Storage classes whose objects must be restored before they can be read."""


def address(location: Location) -> dict[str, str]:
    """Return the arguments that name an object, or one of its versions, in a request that reads it."""
    names = {"Bucket": location.bucket, "Key": location.key}
    return names | ({"VersionId": location.version_id} if location.version_id else {})


def head(client: Any, location: Location) -> dict[str, Any] | None:
    """Return the metadata of an object, or None if it does not exist."""
    from botocore.exceptions import ClientError

    try:
        return cast("dict[str, Any]", client.head_object(**address(location)))
    except ClientError as error:
        if failure_code(error)[0] == "not_found":
            return None
        raise


def _stamp(found: dict[str, Any]) -> str:
    """Return the ETag of an object; for a store that has none, the time of its last change."""
    return str(found.get("ETag") or found.get("LastModified", "")).strip('"')


def object_info(location: Location, found: dict[str, Any]) -> FileInfo:
    """Return the size, version and state of an object from its metadata."""
    is_restored = 'ongoing-request="false"' in found.get("Restore", "")
    is_archived = found.get("StorageClass") in _ARCHIVES and not is_restored
    return FileInfo(location, found["ContentLength"], _stamp(found), is_archived)


def list_pages(client: Any, **arguments: Any) -> Iterator[dict[str, Any]]:
    """Yield the pages of a listing: by ListObjectsV2, or by ListObjects if a store knows no other."""
    from botocore.exceptions import ClientError

    try:
        yield from client.get_paginator("list_objects_v2").paginate(**arguments)
    except ClientError as error:  # it comes instead of the first page
        if not is_not_implemented(error):
            raise
        yield from client.get_paginator("list_objects").paginate(**arguments)


def list_deep_pages(client: Any, **arguments: Any) -> Iterator[dict[str, Any]]:
    """Yield the pages of a listing in the order of the keys, and list several folders at a time if there are many.

    A folder costs a request at least. So only folders that fill pages are listed by themselves.
    """
    pages = list_pages(client, **arguments)
    first = next(pages, {})
    yield first
    if not first.get("IsTruncated"):
        return
    prefix, keys = arguments["Prefix"], [entry["Key"] for entry in first.get("Contents", ())]
    pieces = None
    if keys and len({_folder_of(key, prefix) for key in keys}) <= _FOLDERS_OF_A_PAGE:
        pieces = _pieces(client, arguments)
    if pieces is None:
        yield from pages
        return
    # Folders of the first page are listed again, without its keys: a store that lists in another order loses none.
    known = set(keys)
    for page in _list_pieces(client, pieces, arguments):
        yield page | {"Contents": [entry for entry in page.get("Contents", ()) if entry["Key"] not in known]}


def _folder_of(key: str, prefix: str) -> str:
    folder, slash, _ = key[len(prefix) :].partition("/")
    return folder if slash else ""


_Piece = tuple[str, dict[str, Any] | None]
"""The key of an object with its entry of a listing, or the prefix of a folder and None."""


def _pieces(client: Any, arguments: dict[str, Any]) -> list[_Piece] | None:
    """Return the objects and folders directly below a prefix, in the order of keys; None if they fill more than a page.

    If there is nothing but one folder, return what is below that.
    """
    prefix = arguments["Prefix"]
    while True:
        page = next(list_pages(client, **(arguments | {"Prefix": prefix, "Delimiter": "/"})), {})
        folders: list[_Piece] = [(entry["Prefix"], None) for entry in page.get("CommonPrefixes", ())]
        objects: list[_Piece] = [(entry["Key"], entry) for entry in page.get("Contents", ()) if entry["Key"] != prefix]
        if page.get("IsTruncated") or not folders:
            return None
        if len(folders) > 1 or objects:
            return sorted([*folders, *objects], key=lambda piece: piece[0].encode())
        prefix = folders[0][0]


def _list_pieces(client: Any, pieces: Iterable[_Piece], arguments: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the pages of objects and folders in their order, while the next folders are listed ahead."""
    stopped = threading.Event()

    def read(piece: _Piece, pages: queue.Queue[Any]) -> None:
        """Put the pages of a piece into its queue, then None, or what is raised."""
        prefix, entry = piece
        try:
            found = list_pages(client, **(arguments | {"Prefix": prefix})) if entry is None else [{"Contents": [entry]}]
            for page in found:
                if not _put(pages, page, stopped):
                    return
            _put(pages, None, stopped)
        except Exception as error:
            _put(pages, error, stopped)

    waiting = iter(pieces)
    ahead: deque[queue.Queue[Any]] = deque()
    with ThreadPoolExecutor(_LISTED_AT_ONCE, "list") as pool:
        try:
            while True:
                for piece in itertools.islice(waiting, _LISTED_AT_ONCE - len(ahead)):
                    ahead.append(queue.Queue(_PAGES_AHEAD))
                    pool.submit(read, piece, ahead[-1])
                if not ahead:
                    return
                while (page := ahead[0].get()) is not None:
                    if isinstance(page, Exception):
                        raise page
                    yield page
                ahead.popleft()
        finally:
            stopped.set()


def _put(pages: queue.Queue[Any], page: Any, stopped: threading.Event) -> bool:
    """Put a page into a queue as soon as it has room; return False if nobody takes pages any more."""
    while not stopped.is_set():
        with suppress(queue.Full):
            pages.put(page, timeout=_LOOK_S)
            return True
    return False


def is_not_implemented(error: ClientError) -> bool:
    """Return True if a store knows no request of this kind."""
    response = error.response
    return not _NOT_IMPLEMENTED.isdisjoint(
        {str(response["ResponseMetadata"]["HTTPStatusCode"]), response["Error"]["Code"]}
    )


def list_objects(client: Any, bucket: str, prefix: str, *, deep: bool = True) -> Iterator[FileInfo]:
    """Yield the objects whose keys begin with a prefix, in the order of the keys. Those for folders are left out.

    Without `deep`, keys with a slash after the prefix are left out too.
    """
    options = {"Bucket": bucket, "Prefix": prefix, "OptionalObjectAttributes": ["RestoreStatus"]}
    pages = list_deep_pages(client, **options) if deep else list_pages(client, **options, Delimiter="/")
    for page in pages:
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):
                is_archived = entry.get("StorageClass") in _ARCHIVES and "RestoreExpiryDate" not in entry.get(
                    "RestoreStatus", {}
                )
                location = Location(f"s3://{bucket}/{entry['Key']}")
                yield FileInfo(location, entry["Size"], _stamp(entry), is_archived)


def list_prefixes(client: Any, bucket: str, prefix: str) -> list[str]:
    """Return the keys of the folders directly below a prefix, without a slash at their ends."""
    pages = list_pages(client, Bucket=bucket, Prefix=prefix, Delimiter="/")
    return [entry["Prefix"].removesuffix("/") for page in pages for entry in page.get("CommonPrefixes", ())]


def delete_objects(client: Any, bucket: str, keys: Iterable[str]) -> None:
    """Delete objects, each with a request of its own.

    A request for many keys is refused by some stores (without Content-MD5, or at all), and hides errors in a 200.
    """
    with ThreadPoolExecutor(_DELETE_AT_ONCE) as pool:
        for _ in pool.map(lambda key: client.delete_object(Bucket=bucket, Key=key), keys):
            pass


def copy_object(client: Any, source: Location, target: Location) -> None:
    """Copy an object. Its bytes do not leave the store, unless the store knows no copies."""
    from botocore.exceptions import ClientError

    try:
        client.copy(address(source), target.bucket, target.key)
    except ClientError as error:
        if not is_not_implemented(error):
            raise
        if (found := head(client, source)) is None:
            raise
        writer = ObjectWriter(client, target)
        try:
            with closing(ObjectStream(client, source, object_info(source, found))) as stream:
                shutil.copyfileobj(stream, writer, 2**20)
            writer.close()
        finally:
            writer.abort()


def _with_retries(location: Location, action: Callable[[], bytes]) -> bytes:
    """Return the bytes of the first try that succeeds. A failure that cannot pass is raised at once."""
    for attempt in itertools.count(1):
        try:
            with storage_errors(location):
                return action()
        except StorageError as error:
            # botocore has retried a request; an answer that breaks off is tried again here.
            if attempt == _BODY_TRIES or not error.retryable or _is_answer(error.__cause__):
                raise
        time.sleep(backoff_s(attempt))
    raise AssertionError("the last try returns or raises")


def _is_answer(error: BaseException | None) -> bool:
    from botocore.exceptions import ClientError

    return isinstance(error, ClientError)


def read_object(client: Any, location: Location) -> tuple[bytes, str]:
    """Return the whole of a small object, as it is stored, and its Content-Encoding."""
    encoding = ""

    def read() -> bytes:
        nonlocal encoding
        response = client.get_object(**address(location))
        encoding = response.get("ContentEncoding", "")
        with closing(response["Body"]) as body:
            return cast("bytes", body.read())

    return _with_retries(location, read), encoding


class ObjectStream(io.RawIOBase):
    """The bytes of an object in their order, as they are stored."""

    def __init__(self, client: Any, location: Location, info: FileInfo, body: Any = None) -> None:
        """Remember the object; `body` is that of a response with all of it, if there is one already."""
        self._client = client
        self._location = location
        self._info = info
        self._body = body
        self._position = 0

    @classmethod
    def open(cls, client: Any, location: Location) -> tuple[ObjectStream, str]:
        """Return a stream and the Content-Encoding of an object, which the first response says.

        Raises `FileNotFoundError` if the object does not exist.
        """
        from botocore.exceptions import ClientError

        try:
            response = client.get_object(**address(location))
        except ClientError as error:
            if failure_code(error)[0] == "not_found":
                raise FileNotFoundError(f"{location} does not exist") from error
            raise
        found: dict[str, Any] | None = response
        if "ContentLength" not in response:  # some stores say it in the answer to a HEAD alone
            found = head(client, location)
        if found is None:
            raise FileNotFoundError(f"{location} was deleted while it was read")
        stream = cls(client, location, object_info(location, found), response["Body"])
        return stream, response.get("ContentEncoding", "")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes into a buffer, and return their number. Raises `StorageError`."""
        size = min(len(buffer), self._info.size - self._position)
        data = _with_retries(self._location, lambda: self._read_on(size)) if size else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read_on(self, size: int) -> bytes:
        try:
            if self._body is None:
                self._body = _open(self._client, self._location, self._info, self._position, self._info.size)
            if data := self._body.read(size):
                return cast("bytes", data)
            raise OSError("the body of the response is too short")
        except Exception:
            self.forget()
            raise

    def forget(self) -> None:
        """Close the connection; the next read opens another one."""
        body, self._body = self._body, None
        if body is not None:
            body.close()

    def tell(self) -> int:
        """Return the number of bytes that were read."""
        return self._position

    def close(self) -> None:
        """Close the connection."""
        self.forget()
        super().close()


class ObjectFile(io.RawIOBase):
    """An object that can be read at any offset, with a request for each read."""

    def __init__(self, client: Any, location: Location, info: FileInfo) -> None:
        self._client = client
        self._location = location
        self._info = info
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def size(self) -> int:
        """Return the size of the object in bytes."""
        return self._info.size

    def tell(self) -> int:
        """Return the offset of the next read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the offset of the next read, and return it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._info.size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read bytes from the offset into a buffer, and return their number. Raises `StorageError`."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """Return so many bytes from the offset, or all of them. Raises `StorageError`."""
        start = self._position
        end = self._info.size if size is None or size < 0 else min(start + size, self._info.size)
        if end <= start:
            return b""

        def read() -> bytes:
            with closing(_open(self._client, self._location, self._info, start, end)) as body:
                data = cast("bytes", body.read(end - start))
            if len(data) < end - start:
                raise OSError("the body of the response is too short")
            return data

        data = _with_retries(self._location, read)
        self._position = end
        return data


def _open(client: Any, location: Location, info: FileInfo, start: int, end: int) -> Any:
    """Return the body of a response with the bytes from `start` to `end` of an object."""
    extra = {} if (start, end) == (0, info.size) else {"Range": f"bytes={start}-{end - 1}"}
    response = client.get_object(**address(location), **extra)
    body = response["Body"]
    if _stamp(response) != info.stamp:
        body.close()
        raise StorageError(f"{location} was replaced while it was read. Run the command again.")
    if extra and "ContentRange" not in response:  # a store that knows no ranges sends everything
        skip = start
        while skip and (data := body.read(min(skip, 2**20))):
            skip -= len(data)
    return body


class ObjectWriter(io.RawIOBase):
    """A stream into a new object, which readers see once the stream is closed. Large ones are uploaded in parts."""

    def __init__(self, client: Any, location: Location) -> None:
        self._client = client
        self._location = location
        self._names = {"Bucket": location.bucket, "Key": location.key}
        self._buffer = bytearray()
        self._upload: dict[str, str] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._parts: list[Future[str]] = []
        self._size = 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the number of bytes that were written."""
        return self._size

    def write(self, data: Any) -> int:
        """Write bytes, and return their number. Raises `StorageError`."""
        self._buffer += data
        size = memoryview(data).nbytes
        self._size += size
        with storage_errors(self._location):
            while len(self._buffer) > (part := self._part_bytes()):
                self._send(bytes(self._buffer[:part]))
                del self._buffer[:part]
        return size

    def _part_bytes(self) -> int:
        return _PART_BYTES << (len(self._parts) // _PARTS_OF_A_SIZE)

    def _send(self, data: bytes) -> None:
        if self._pool is None or self._upload is None:
            upload = self._client.create_multipart_upload(**self._names)
            self._upload = self._names | {"UploadId": upload["UploadId"]}
            self._pool = ThreadPoolExecutor(_PARTS_AT_ONCE)
        if len(self._parts) >= _PARTS_AT_ONCE:  # few parts are in memory
            self._parts[-_PARTS_AT_ONCE].result()
        self._parts.append(self._pool.submit(self._send_part, self._upload, len(self._parts) + 1, data))

    def _send_part(self, upload: dict[str, str], number: int, data: bytes) -> str:
        response = self._client.upload_part(**upload, PartNumber=number, Body=data)
        return cast("str", response["ETag"])

    def close(self) -> None:
        """Write the rest, and let readers see the object. Raises `StorageError`."""
        if self.closed:
            return
        try:
            with storage_errors(self._location):
                if self._upload is None:
                    self._client.put_object(**self._names, Body=bytes(self._buffer))
                else:
                    self._send(bytes(self._buffer))
                    self._complete(self._upload)
        except BaseException:
            self.abort()
            raise
        self._end()

    def _complete(self, upload: dict[str, str]) -> None:
        from botocore.exceptions import ClientError

        parts = [{"PartNumber": number, "ETag": part.result()} for number, part in enumerate(self._parts, 1)]
        try:
            self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        except ClientError as error:
            # A store may complete an upload and fail to say so. It does not know the upload when it is asked again.
            if error.response["Error"]["Code"] != "NoSuchUpload":
                raise
            found = head(self._client, self._location)
            if found is None or found["ContentLength"] != self._size:
                raise

    def abort(self) -> None:
        """Give up: readers see the former object or none."""
        if self.closed:
            return
        self._end()
        if self._upload is not None:
            with suppress(Exception):  # the error that led here is worth more
                self._client.abort_multipart_upload(**self._upload)

    def _end(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._buffer.clear()
        super().close()

    def __del__(self) -> None:
        self.abort()  # the base class would close it, which shows a part as the whole
