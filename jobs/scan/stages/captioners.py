"""The captioner of a scan: an engine of `jobs.descriptions`, or a file of captions.

A caption is written to the results as evidence, and replaces a text that is missing. A caption that fails concerns its
own row only, whose `caption_error` says why: a pair with a text is scored without the caption, a pair without a text
becomes `caption_failed`.
"""

from __future__ import annotations

from collections.abc import Iterator

from asap.corpus.descriptions import KEYS, Descriptions, Entry, Kind, entry_of
from asap.errors import CorpusError
from asap.storage.failures import storage_errors
from asap.storage.files import file_info, open_read
from asap.storage.fingerprint import file_fingerprint
from asap.storage.location import FileInfo, Location
from jobs.descriptions.engine import Engine
from jobs.descriptions.loading import check_source, load_engine
from jobs.descriptions.pinning import check_content, content_of
from jobs.descriptions.precomputed import PrecomputedEngine
from jobs.descriptions.settings import DescriptionSettings
from jobs.errors import InputNotFound
from jobs.scan.input.manifest import RowError
from jobs.scan.input.tables.columns import require_columns
from jobs.scan.input.tables.record_files import RecordFile, record_file
from jobs.scan.input.tables.table import open_records, records_of


def load_captioner(
    settings: DescriptionSettings, input: Location, device: str | None = None, content: str | None = None
) -> Engine:
    """Return the captioner of the settings. Raises `ConfigError` if it is not the one that the job began with.

    Args:
        settings: Settings of the captioner.
        input: Input of the scan, from which paths in a file of captions may start.
        device: Device of a model that captions. None: CUDA if there is any, else the CPU.
        content: Fingerprint of the files that the job began with (`jobs.descriptions.pinning`). None: not compared.
    """
    is_file = settings.engine == "precomputed"
    engine: Engine
    if is_file:
        engine = PrecomputedEngine(read_captions(settings.source, settings.kind), input, settings.kind)
    else:
        engine = load_engine(settings, device)
    if content is not None:
        # After the files are read, so that those that were replaced meanwhile are found too.
        found = file_fingerprint(_find_captions(settings.source)[0]) if is_file else content_of(settings)
        check_content(settings, found, content)
    return engine


def check_captioner(settings: DescriptionSettings, *, is_here: bool = True) -> str:
    """Return a fingerprint of the source of the captions; for a name on the hub or at an endpoint, the name itself.

    Raises `InputNotFound`, `ConfigError` or `CorpusError` for a source that does not exist or cannot be used.
    `is_here` is as in `check_source`.
    """
    if settings.engine == "precomputed":
        read_captions(settings.source, settings.kind)
        return file_fingerprint(_find_captions(settings.source)[0])
    return check_source(settings, is_here=is_here)


def read_captions(source: str, kind: Kind = "caption") -> Descriptions:
    """Read a file of captions: one of `asap.corpus.descriptions`, or a CSV or Parquet table with a column `caption`.

    Explanations are read likewise, from a column `explanation`.

    Raises `InputNotFound` for a file that does not exist or is of another kind, `CorpusError` for one that is broken.
    """
    info, name = _find_captions(source)
    location = info.location
    if name.kind in ("csv", "parquet"):
        entries = ((None, entry) for entry in _table_entries(location, name.kind, kind))
        return Descriptions(str(location), kind, entries)
    with storage_errors(location), open_read(location) as file:
        return Descriptions.parse(str(location).removesuffix(name.packed), file.read(), kind)


def _find_captions(source: str) -> tuple[FileInfo, RecordFile]:
    """Return the file of captions, and the parts of its name. Raises `InputNotFound`."""
    location = Location.parse(source)
    name = record_file(location.name)
    if name is None or (info := file_info(location)) is None:
        raise InputNotFound(f"the captions {source} are not there. Give a .json, .jsonl, .csv or .parquet file.")
    return info, name


def _table_entries(location: Location, table: str, kind: Kind) -> Iterator[Entry]:
    reader = open_records(location, table)
    require_columns(reader.names or (), str(location), (KEYS, (kind,)))
    for line, record in records_of(reader, location, table):
        if isinstance(record, RowError):
            raise CorpusError(f"line {line} of {location}: {record}")
        yield entry_of(str(location), line, record, kind)
