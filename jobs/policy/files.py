"""Policy files, local or s3://: read strictly, and replaced without losing the thresholds that were there."""

from __future__ import annotations

from itertools import count

from asap.policy import Policy
from asap.storage.files import exists, read_bytes, write_bytes
from asap.storage.location import Location


def read_policy(location: Location) -> Policy:
    """Read a policy. Raises `ConfigError` for a file that is none, `StorageError` where there is no file."""
    return Policy.from_json(read_bytes(location), location)


def replace_policy(location: Location, policy: Policy) -> Location | None:
    """Write a policy, whole or not at all; a different one that was there goes beside it, and where is returned.

    Plain uncalibrated halves, which every model folder begins with, are not kept. Raises `ConfigError` if the file
    that is there is no policy, and leaves it alone.
    """
    former = read_policy(location) if exists(location) else None
    kept = None if former in (None, policy, Policy()) else _keep(location, former)
    write_bytes(location, policy.to_json().encode())
    return kept


def _keep(location: Location, former: Policy) -> Location:
    """Beside the file, under the id of its thresholds; another calibration of the same thresholds gets a number."""
    stem = location.name.removesuffix(".json")
    for number in count(1):
        place = location.parent / f"{stem}.{former.policy_id}{f'-{number}' if number > 1 else ''}.json"
        if not exists(place):
            write_bytes(place, former.to_json().encode())
            return place
        if read_bytes(place) == former.to_json().encode():
            return place
    raise AssertionError("numbers do not end")
