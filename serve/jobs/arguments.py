"""A request as the arguments of `asap scan`. They are a list, which no shell reads."""

from __future__ import annotations

import json
from collections.abc import Sequence

from serve.job_schemas import JobRequest

_FLAGS = ("allow_unreadable", "allow_unfamiliar")


def scan_arguments(request: JobRequest, inputs: Sequence[str], address: str) -> list[str]:
    """Return the arguments. Each value is joined to its option, so that none is taken for another option.

    Args:
        request: The request.
        inputs: The prefixes below which the pictures of the input must lie too.
        address: The Ray cluster that the scan joins.
    """
    sent = request.model_dump(exclude_none=True)
    location = sent.pop("input")
    flags = [f"--{name.replace('_', '-')}" for name in _FLAGS if sent.pop(name)]
    options = [f"--{name.replace('_', '-')}={value}" for name, value in sent.items()]
    fetch = json.dumps({"only_below": list(inputs)})
    return ["scan", *options, *flags, f"--address={address}", f"--set=fetch={fetch}", "--", location]
