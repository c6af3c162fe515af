"""Policy files, local or s3://: strict reading, and replacement that keeps a copy of the former thresholds."""

from __future__ import annotations

from itertools import count

from asap.policy import Policy
from asap.storage.files import exists, read_bytes, write_bytes
from asap.storage.location import Location


def read_policy(location: Location) -> Policy:
    """Read a policy. Raises `ConfigError` if the file is not a policy, `StorageError` if there is no file."""
    return Policy.from_json(read_bytes(location), location)


def replace_policy(location: Location, policy: Policy) -> Location | None:
    """Write a policy atomically. A different former policy is copied beside it first, and the copy is returned.

    The uncalibrated policy that every model folder begins with (all thresholds 0.5) is not copied. Raises
    `ConfigError` if the existing file is not a policy, and leaves it alone.
    """
    former = read_policy(location) if exists(location) else None
    kept = None if former in (None, policy, Policy()) else _keep(location, former)
    write_bytes(location, policy.to_json().encode())
    return kept


def _keep(location: Location, former: Policy) -> Location:
    """Copy a policy beside its file, under the id of its thresholds.

    Another calibration of the same thresholds has the same id, so its copy gets a number too.
    """
    stem, content = location.name.removesuffix(".json"), former.to_json().encode()
    for number in count(1):
        copy = location.parent / f"{stem}.{former.policy_id}{f'-{number}' if number > 1 else ''}.json"
        if not exists(copy):
            write_bytes(copy, content)
            return copy
        if read_bytes(copy) == content:
            return copy
    raise AssertionError("unreachable: count() does not end")
