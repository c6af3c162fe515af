"""The files of a model in a bucket: the copy on this machine that an engine loads, and its fingerprint.

Only weights in safetensors, configurations and vocabularies are copied: nothing that a reader might execute.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from asap.storage.fingerprint import files_fingerprint
from asap.storage.folder_cache import cached_folder, wanted_files
from asap.storage.location import FileInfo, Location, s3_uri
from jobs.errors import InputNotFound

_SUFFIXES = {".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm", ".bpe", ".vocab"}


def is_remote(source: str) -> bool:
    """Return True for a model in a bucket."""
    return s3_uri(source) is not None


def remote_fingerprint(source: str) -> str:
    """Return a fingerprint of a model in a bucket. Raises `InputNotFound` if it is none, or `StorageError`."""
    return files_fingerprint(_files(source))


def remote_weights_bytes(source: str) -> int:
    """Return the bytes of the weights of a model in a bucket. The errors are those of `remote_fingerprint`."""
    return sum(info.size for info in _files(source) if info.location.name.endswith(".safetensors"))


def local_source(source: str) -> str:
    """Return the place of a model as transformers takes it. A model in a bucket is copied to this machine first."""
    if is_remote(source):
        return str(cached_folder(Location.parse(source), _files(source)))
    return source


def _files(source: str) -> list[FileInfo]:
    folder = Location.parse(source)
    files = wanted_files(folder, lambda name: PurePosixPath(name).suffix in _SUFFIXES)
    if all(info.location != folder / "config.json" for info in files):
        raise InputNotFound(f"the captioner {source} is not a model folder: it has no config.json")
    if all(not info.location.name.endswith(".safetensors") for info in files):
        raise InputNotFound(
            f"the captioner {source} has no weights in safetensors, and no others are read from a bucket. Save the "
            "model with `save_pretrained`, which writes them."
        )
    return files
