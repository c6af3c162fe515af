"""Files of inputs, written to a folder of a test or to a bucket."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from asap.storage.files import write_bytes
from asap.storage.location import Location


def write_files(folder: Path | str, files: Mapping[str, bytes]) -> None:
    """Write files below a folder, or below an s3:// prefix."""
    for name, data in files.items():
        write_bytes(Location.parse(folder) / name, data)


def make_tar(files: Mapping[str, bytes], *others: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar with some files, in their order, and then other members without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for other in others:
            tar.addfile(other)
    return buffer.getvalue()
