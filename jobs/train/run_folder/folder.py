"""Where a run keeps its things: a folder on a disk that the workers share, or a prefix at s3://.

A prefix is worked on through a copy on each machine: `pull` brings what is there, `push` puts what was made. In a
folder both do nothing, so that a run is told once where it lies and is written the same way.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from asap.errors import StorageError
from asap.storage.failures import storage_errors
from asap.storage.files import delete_file, download_file, download_folder, exists, is_empty, local_targets, write_bytes
from asap.storage.location import Location
from asap.storage.s3 import check_bucket, filesystem, s3_client


@dataclass(frozen=True)
class RunFolder:
    """A run's files on this machine, at `path`, and the place where they are kept."""

    path: Path
    place: Location | None = None
    """At s3://; None where `path` is the place."""

    @classmethod
    def open(cls, out: str) -> RunFolder:
        """The folder that a person names; for s3://, with this machine's copy of it, which may be empty still."""
        place = Location.parse(out)
        if not place.is_s3:
            return cls(Path(place.uri))
        return cls(_scratch() / hashlib.sha256(place.uri.encode()).hexdigest()[:16], place)

    @property
    def settings(self) -> Path:
        """What the run is told, less what does not change the result."""
        return self.path / "train.json"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    def index(self, split: str) -> Path:
        """The records of a split, as all workers read them."""
        return self.path / "index" / f"{split}.parquet"

    @property
    def corpus(self) -> Path:
        """What reading each split of the corpus found."""
        return self.path / "corpus.json"

    @property
    def start(self) -> Path:
        """The weights that the run begins with, if it was given any, and the report of each source beside them."""
        return self.path / "start" / "weights.safetensors"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def progress(self) -> Path:
        """A JSON object a line: the losses, the speed and the validation metrics as the run goes."""
        return self.path / "progress.jsonl"

    @property
    def record(self) -> Path:
        """With which code, settings, data and machines the run was made, and how long it took."""
        return self.path / "run.json"

    @property
    def curves(self) -> Path:
        """The same as `progress` for TensorBoard."""
        return self.path / "tensorboard"

    def __str__(self) -> str:
        return str(self.place or self.path)

    def ray_storage(self) -> dict[str, Any]:
        """Where Ray Train keeps the checkpoints, as its `RunConfig` takes it."""
        if self.place is None:
            return {"storage_path": str(self.path)}
        system, path = filesystem(self.place)
        return {"storage_path": path, "storage_filesystem": system}

    def is_empty(self) -> bool:
        """Whether there is nothing in it yet."""
        return is_empty(self.place or Location(str(self.path)))

    def check_writable(self) -> None:
        """Raise `StorageError` unless something can be written here: a run must not find that out at its end."""
        if self.place is not None:
            check_bucket(self.place)
        probe = (self.place or Location(str(self.path))) / f".probe-{uuid.uuid4().hex[:8]}"
        try:
            write_bytes(probe, b"")
            delete_file(probe)
        except StorageError as error:
            raise StorageError(f"nothing can be written to {self}: {error}") from error

    def refresh(self) -> None:
        """Make this machine's copy what the place holds, but for the pictures, which are known by their content."""
        if self.place is None:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        for entry in self.path.iterdir():
            if entry.is_dir() and entry != self.pictures:
                shutil.rmtree(entry)
            elif entry.is_file():
                entry.unlink()
        self.pull("train.json", "run.json", "tokenizer", "start", "progress.jsonl")

    @property
    def finished_model(self) -> Path | Location:
        """Where a person finds the model."""
        return self.model if self.place is None else self.place / "model"

    def has_model(self) -> bool:
        """Whether the finished model is there, to its last file."""
        return exists((self.place or Location(str(self.path))) / "model" / "config.json")

    def pull(self, *names: str) -> None:
        """Bring files, or all that is in folders, from the place to this machine, over what is here."""
        if self.place is None:
            return
        for name in names:
            one = self.place / name
            if exists(one):
                download_file(one, self.path / name)
            else:
                download_folder(one, self.path / name)

    def push(self, *names: str, last: str = "") -> None:
        """Put files, or all that is in folders, to the place; the file called `last`, which says that all is there,
        after the others."""
        if self.place is None:
            return
        for name in names:
            one = self.path / name
            files = [one] if one.is_file() else [path for path in one.rglob("*") if path.is_file()]
            for file in sorted(files, key=lambda file: (file.name == last, file)):
                self._upload(file)

    def _upload(self, file: Path) -> None:
        assert self.place is not None  # noqa: S101  # who calls this has looked
        target = self.place / file.relative_to(self.path).as_posix()
        with storage_errors(target):
            s3_client().upload_file(str(file), target.bucket, target.key)  # in parts, where it is large

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among the processes of this machine that work on its copy of a place."""
        if self.place is None:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@contextmanager
def checkpoint_folder(checkpoint: Any) -> Iterator[Path]:
    """Give the local folder of a checkpoint of Ray Train for the length of the block.

    Ray copies one at s3:// once for all workers of a machine, and follows `..` in a key out of the copy. So the keys
    are checked here first. Raises `StorageError`.
    """
    if not isinstance(checkpoint.filesystem, pafs.LocalFileSystem):
        local_targets(Location(f"s3://{checkpoint.path}"), Path())
    with checkpoint.as_directory() as folder:
        yield Path(folder)


def _scratch() -> Path:
    """This person's folder for copies on this machine; what is cached there may be deleted at any time."""
    folder = Path(tempfile.gettempdir()) / f"asap-runs-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.is_symlink():
        raise StorageError(f"{folder} belongs to somebody else; set TMPDIR to a folder of your own")
    return folder
