"""Records of who asked for which job: small files in one folder that all processes of the API share.

    claims/ID.json              the key whose job has this folder; made once, so that two keys never share one
    jobs/OWNER/ID.json          the last request of a job, and its submissions
    requests/OWNER/HASH.json    the request that had an `Idempotency-Key`, and its job

The state of a job is not here: its folder and the cluster say that. So nothing is lost if a process of the API dies.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from asap.storage.files import create_bytes, exists, list_files, list_folders, read_bytes, read_json, write_bytes
from asap.storage.location import FileInfo, Location
from serve.job_schemas import JobRequest

_READERS = 16


class Submission(BaseModel):
    """A start of a job, as Ray knows it."""

    model_config = ConfigDict(frozen=True)

    id: str
    """Id of the submission."""
    at: datetime
    runs: int
    """Number of times that the job had been started before."""


class JobRecord(BaseModel):
    """A job that somebody asked for."""

    model_config = ConfigDict(frozen=True)

    id: str
    owner: str
    """`owner_of` of the key."""
    folder: str
    created: datetime
    request: JobRequest
    submission: Submission
    """The last start."""

    @property
    def key_name(self) -> str | None:
        """The name of the key; None if the server had no keys."""
        return self.owner.removeprefix("key-") if self.owner.startswith("key-") else None


class IdempotentRequest(BaseModel):
    """A request that had an `Idempotency-Key`."""

    fingerprint: str
    job: str


def owner_of(key_name: str | None) -> str:
    """Return the name of the folder of a key's records. None is the name of a caller without a key."""
    return "without-key" if key_name is None else f"key-{key_name}"


def job_id(folder: Location) -> str:
    """Return the id of the job with a folder."""
    return hashlib.sha256(folder.uri.encode()).hexdigest()[:24]


def now() -> datetime:
    """Return the time now, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


class Records:
    """The records of a deployment. Every method may raise `StorageError`."""

    def __init__(self, folder: Location) -> None:
        self._folder = folder
        self._known: dict[str, tuple[str, JobRecord]] = {}
        """Records by their addresses, with the stamp of the file that each was read from."""

    def claim(self, id_: str, owner: str) -> bool:
        """Return True if the job is the owner's, or becomes it now; False if it is another's."""
        place = self._folder / "claims" / f"{id_}.json"
        claim = json.dumps({"owner": owner}).encode()
        return create_bytes(place, claim) or (read_json(place) or {}).get("owner") == owner

    def is_claimed(self, id_: str) -> bool:
        """Return True if the job is anybody's."""
        return exists(self._folder / "claims" / f"{id_}.json")

    def find(self, owner: str, id_: str) -> JobRecord | None:
        """Return the record of an owner's job, or None."""
        entries = read_json(self._place(owner, id_))
        return None if entries is None else JobRecord.model_validate(entries)

    def write(self, record: JobRecord) -> None:
        """Write a record, in place of the former one."""
        write_bytes(self._place(record.owner, record.id), record.model_dump_json(exclude_none=True).encode())

    def owners(self) -> list[str]:
        """Return the owners of all records."""
        return [folder.name for folder in list_folders(self._folder / "jobs")]

    def of_owner(self, owner: str) -> list[JobRecord]:
        """Return an owner's records, the newest request first. One that cannot be read is left out."""
        found = [info for info in list_files(self._folder / "jobs" / owner) if info.location.name.endswith(".json")]
        with ThreadPoolExecutor(_READERS) as readers:
            records = [record for record in readers.map(self._read, found) if record is not None]
        return sorted(records, key=lambda record: record.submission.at, reverse=True)

    def find_request(self, owner: str, name: str) -> IdempotentRequest | None:
        """Return the request that had this `Idempotency-Key`, or None."""
        entries = read_json(self._request_place(owner, name))
        return None if entries is None else IdempotentRequest.model_validate(entries)

    def keep_request(self, owner: str, name: str, request: IdempotentRequest) -> bool:
        """Keep a request by its `Idempotency-Key`; return False if there is one already."""
        return create_bytes(self._request_place(owner, name), request.model_dump_json().encode())

    def _read(self, info: FileInfo) -> JobRecord | None:
        known = self._known.get(info.location.uri)
        if known is not None and known[0] == info.stamp:
            return known[1]
        try:
            record = JobRecord.model_validate_json(read_bytes(info.location))
        except ValidationError:
            return None
        self._known[info.location.uri] = (info.stamp, record)
        return record

    def _place(self, owner: str, id_: str) -> Location:
        return self._folder / "jobs" / owner / f"{id_}.json"

    def _request_place(self, owner: str, name: str) -> Location:
        return self._folder / "requests" / owner / f"{hashlib.sha256(name.encode()).hexdigest()}.json"


def fingerprint_of(request: JobRequest) -> str:
    """Return a hash of what was asked for."""
    settings: dict[str, Any] = request.model_dump(exclude_defaults=True)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
