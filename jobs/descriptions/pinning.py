"""The model that a job began with: no process that starts later may describe with another one.

A model on the hub is pinned by its commit, which each process loads. The files of a folder, of a bucket and of
`precomputed` can be replaced at any time. So each process compares what it has loaded with what the job began with.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asap.errors import ConfigError
from jobs.descriptions.model_files import folder_fingerprint, is_hub_name, is_remote, remote_fingerprint
from jobs.descriptions.settings import DescriptionSettings

CONTENT = "content"
"""Entry of the record of an engine: the fingerprint of its files, which is the same on all machines that have them."""
_WITH_FILES = ("transformers", "vllm")
"""Engines whose processes load a model themselves."""
_BESIDE = "-"
"""Stands between the two fingerprints of a model of `vllm`."""


def content_of(settings: DescriptionSettings) -> str | None:
    """Return a fingerprint of the files of a model; None for a model on the hub or at an endpoint.

    That of `vllm` begins with one of the files that are no weights, since some of its processes read no weights. Raises
    `StorageError` or `InputNotFound` if they cannot be read.
    """
    if settings.engine not in _WITH_FILES or is_hub_name(settings.place):
        return None
    if is_remote(settings.source):
        return remote_fingerprint(settings.source)
    folder = Path(settings.place)
    whole = folder_fingerprint(folder)
    return whole if settings.engine != "vllm" else f"{folder_fingerprint(folder, with_weights=False)}{_BESIDE}{whole}"


def pinned(settings: DescriptionSettings, record: Mapping[str, Any] | None) -> DescriptionSettings:
    """Return the settings with the commit of a model on the hub, as the record of its engine has it."""
    revision = (record or {}).get("revision")
    if revision is None or settings.engine not in _WITH_FILES or not is_hub_name(settings.place):
        return settings
    return settings.model_copy(update={"revision": revision})


def check_content(settings: DescriptionSettings, found: str | None, wanted: str | None) -> None:
    """Raise `ConfigError` if the files that were loaded are not those that the job began with.

    Args:
        settings: Settings of the engine.
        found: Fingerprint of the files here.
        wanted: Fingerprint of the files that the job began with. None: it knows none.
    """
    if wanted not in (None, found):
        raise ConfigError(
            f"the captioner {settings.source} has changed, or differs on the machine {socket.gethostname()}: the "
            f"fingerprint of its files is {found}, and was {wanted}. Restore it, or choose another folder for the job."
        )


def check_content_of_vllm(settings: DescriptionSettings, wanted: str | None, *, reads_weights: bool) -> None:
    """Raise `ConfigError` if what a process of vLLM's stages has loaded is not what the job began with.

    Args:
        settings: Settings of the engine.
        wanted: Fingerprint of the files that the job began with. None: nothing is compared.
        reads_weights: False for a process that loads no weights. It compares the other files alone.
    """
    if wanted is None:
        return
    if reads_weights:
        check_content(settings, content_of(settings), wanted)
    else:
        found = folder_fingerprint(Path(settings.place), with_weights=False)
        check_content(settings, found, wanted.partition(_BESIDE)[0])
