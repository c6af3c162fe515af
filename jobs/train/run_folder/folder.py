"""The files of a training run: a folder on a disk that the workers share, or a prefix at s3://.

For a prefix, each machine works on a local copy: `pull` downloads files to the copy, and `push` uploads files from it.
For a folder both do nothing, so that the code of a run is the same for both.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from asap.errors import StorageError
from asap.storage.failures import keep_trying, storage_errors
from asap.storage.files import (
    delete_file,
    download_file,
    download_folder,
    exists,
    is_empty,
    local_targets,
    read_json,
    write_bytes,
)
from asap.storage.folder_cache import private_folder
from asap.storage.location import Location
from asap.storage.s3 import check_writable, filesystem, s3_client

CHECKPOINTS = "ray_train"
"""The folder of Ray Train in a run folder."""
_TRY_S = 10.0
"""Mean seconds that a further try of pyarrow's file system waits: a random time of up to twenty."""


@dataclass(frozen=True)
class RunFolder:
    """The files of a run on this machine, at `path`, and the s3:// prefix that they are a copy of."""

    path: Path
    remote: Location | None = None
    """The prefix at s3://; None if `path` is the run folder itself."""
    outage_s: float = 0
    """Seconds for which uploads to a store that is away are tried again."""

    @classmethod
    def open(cls, out: str, outage_s: float = 0) -> RunFolder:
        """Return the run folder at a path or s3:// address. This machine's copy of a prefix may still be empty."""
        location = Location.parse(out)
        if not location.is_s3:
            return cls(Path(location.uri))
        copies = private_folder("asap-runs")
        return cls(copies / hashlib.sha256(location.uri.encode()).hexdigest()[:16], location, outage_s)

    @property
    def location(self) -> Location:
        """The place where the run is kept: the prefix at s3://, or the folder."""
        return self.remote or Location(str(self.path))

    def __str__(self) -> str:
        return str(self.remote or self.path)

    @property
    def settings(self) -> Path:
        """The file of the settings that affect the result, and of the data."""
        return self.path / "train.json"

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer."""
        return self.path / "tokenizer"

    @property
    def pictures(self) -> Path:
        """The folder of the picture caches."""
        return self.path / "pictures"

    def index(self, split: str) -> Path:
        """Return the index file of a split, which all workers read."""
        return self.path / "index" / f"{split}.parquet"

    @property
    def corpus(self) -> Path:
        """The file of the findings in each split of the corpus."""
        return self.path / "corpus.json"

    @property
    def start(self) -> Path:
        """The file of the first weights, if the run has any; the report of each source is beside it."""
        return self.path / "start" / "weights.safetensors"

    @property
    def model(self) -> Path:
        """The model folder."""
        return self.path / "model"

    @property
    def progress(self) -> Path:
        """The file of losses, speed and validation metrics during the run, one JSON object per line."""
        return self.path / "progress.jsonl"

    @property
    def phase(self) -> Path:
        """The file of the work that the first worker has begun beside its steps, such as an evaluation."""
        return self.path / "phase.json"

    @property
    def record(self) -> Path:
        """The file of the code, settings, data and machines of the run, and how long it took."""
        return self.path / "run.json"

    @property
    def curves(self) -> Path:
        """The TensorBoard folder with the contents of `progress`."""
        return self.path / "tensorboard"

    @property
    def finished_model(self) -> Path | Location:
        """The place where the user finds the model."""
        return self.model if self.remote is None else self.remote / "model"

    def ray_storage(self) -> dict[str, Any]:
        """Return the place of the checkpoints as arguments of Ray Train's `RunConfig`."""
        if self.remote is None:
            return {"storage_path": str(self.path)}
        # Ray Train counts a checkpoint that it cannot write as a lost worker, so its requests outlast an outage.
        system, path = filesystem(self.remote, attempts=6 + math.ceil(self.outage_s / _TRY_S))
        return {"storage_path": path, "storage_filesystem": system}

    def is_empty(self) -> bool:
        """Return True if the run folder has no files yet."""
        return is_empty(self.location)

    def has_model(self) -> bool:
        """Return True if the finished model is complete; `config.json` is its last file."""
        return exists(self.location / "model" / "config.json")

    def last_metrics(self) -> dict[str, Any]:
        """Return the metrics of the last checkpoint, as Ray Train recorded them; empty if there is none."""
        found = read_json(self.location / CHECKPOINTS / "checkpoint_manager_snapshot.json") or {}
        return dict((found.get("latest_checkpoint_result") or {}).get("metrics") or {})

    def check_writable(self) -> None:
        """Raise `StorageError` if the run folder cannot be written; a run must not find that out at its end."""
        if self.remote is not None:
            check_writable(self.remote)
            return
        probe = self.location / f".probe-{uuid.uuid4().hex[:8]}"
        try:
            write_bytes(probe, b"")
            delete_file(probe)
        except StorageError as error:
            raise StorageError(f"{self} cannot be written: {error}") from error

    def refresh(self) -> None:
        """Replace this machine's copy by the files at the prefix, but for the index, which only some starts need.

        Cached pictures stay, because a cache is found by the names of its pictures and their size.
        """
        if self.remote is None:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        for entry in self.path.iterdir():
            if entry.is_dir() and entry != self.pictures:
                shutil.rmtree(entry)
            elif entry.is_file():
                entry.unlink()
        self.pull("train.json", "run.json", "tokenizer", "start", "progress.jsonl")

    def pull(self, *names: str) -> None:
        """Download files, or all files of folders, from the prefix. They replace those of this machine.

        Each is tried for `outage_s` seconds.
        """
        if self.remote is None:
            return
        for name in names:
            keep_trying(partial(_download, self.remote / name, self.path / name), self.outage_s)

    def push(self, *names: str, last: str = "") -> None:
        """Upload files, or all files of folders, to the prefix. Each is tried for `outage_s` seconds.

        Args:
            names: Names of files and folders in this run folder.
            last: Name of the file that is uploaded after the others, because it marks them as complete.
        """
        if self.remote is None:
            return
        for name in names:
            entry = self.path / name
            files = [entry] if entry.is_file() else [path for path in entry.rglob("*") if path.is_file()]
            for file in sorted(files, key=lambda file: (file.name == last, file)):
                target = self.remote / file.relative_to(self.path).as_posix()
                keep_trying(partial(_upload, file, target), self.outage_s)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes of this machine from this machine's copy during the block."""
        if self.remote is None:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _download(origin: Location, target: Path) -> None:
    """Download one file, or all files of a folder."""
    if exists(origin):
        download_file(origin, target)
    else:
        download_folder(origin, target)


def _upload(file: Path, target: Location) -> None:
    """Upload one file, in parts if it is large."""
    with storage_errors(target):
        s3_client().upload_file(str(file), target.bucket, target.key)


@contextmanager
def checkpoint_folder(checkpoint: Any) -> Iterator[Path]:
    """Provide the files of a Ray Train checkpoint in a local folder during the block.

    Ray downloads a checkpoint at s3:// once for all workers of a machine. A key with `..` could make it write outside
    the copy, so the keys are checked first. Raises `StorageError`.
    """
    if not isinstance(checkpoint.filesystem, pafs.LocalFileSystem):
        local_targets(Location(f"s3://{checkpoint.path}"), Path())
    with checkpoint.as_directory() as folder:
        yield Path(folder)
