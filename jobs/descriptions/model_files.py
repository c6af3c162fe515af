"""The files of a model in a bucket or a folder: the copy on this machine that an engine loads, and their fingerprints.

Of a bucket, only weights in safetensors, configurations and vocabularies are copied: nothing that a reader might
execute.
"""

from __future__ import annotations

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from asap.storage.failures import storage_errors
from asap.storage.fingerprint import files_fingerprint
from asap.storage.folder_cache import cached_folder, wanted_files
from asap.storage.location import FileInfo, Location, s3_uri
from jobs.errors import InputNotFound

_SUFFIXES = {".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm", ".bpe", ".vocab"}
_WEIGHTS = {".safetensors", ".bin"}


def is_remote(source: str) -> bool:
    """Return True for a model in a bucket."""
    return s3_uri(source) is not None


def is_hub_name(source: str) -> bool:
    """Return True for a name on the hub: it is neither in a bucket, nor written as a path, nor a folder here."""
    return not is_remote(source) and not re.match(r"[./~]", source) and not Path(source).is_dir()


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


def find_commit(name: str, revision: str) -> str:
    """Return the commit of a revision of a model on the hub, so that all files come from one, and others can name it.

    A copy of the hub that does not tell leaves the revision as it is.
    """
    from transformers.utils.hub import cached_file, extract_commit_hash

    return extract_commit_hash(cached_file(name, "config.json", revision=revision), None) or revision


def hub_folder(name: str, revision: str) -> str:
    """Return the folder of this machine that has a model on the hub at a revision. What it lacks is downloaded.

    These are the files that are taken from a bucket too: weights in safetensors, configurations and vocabularies.
    """
    from huggingface_hub import snapshot_download

    patterns = [f"*{suffix}" for suffix in sorted(_SUFFIXES)]
    return str(snapshot_download(name, revision=revision, allow_patterns=patterns))


def folder_fingerprint(folder: Path, *, with_weights: bool = True) -> str:
    """Return a digest of the content of the files of a model in a folder, the same on each machine that has them.

    Unlike times and paths, the content does not depend on how the folder came to a machine. So all weights are read,
    several files at a time. Raises `StorageError`.

    Args:
        folder: Folder of the model.
        with_weights: False: of configurations and vocabularies only.
    """
    suffixes = _SUFFIXES | _WEIGHTS if with_weights else _SUFFIXES - _WEIGHTS
    with storage_errors(folder):
        # Models are read from the folder itself. A training may write checkpoints into folders below it.
        files = sorted(
            path
            for path in [*folder.iterdir(), *(folder / "additional_chat_templates").glob("*")]
            if path.suffix in suffixes and path.is_file()
        )
        with ThreadPoolExecutor() as pool:
            digests = pool.map(_sha256, files)
            lines = [f"{path.relative_to(folder)} {digest}\n" for path, digest in zip(files, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
