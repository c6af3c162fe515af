"""The plan of a job of annotations. Making it checks the whole command before any work starts, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asap.errors import AsapError
from asap.storage.files import check_folder_writable
from asap.storage.location import Location
from asap.storage.s3 import check_writable
from jobs.annotate.corpus import find_corpus
from jobs.annotate.rows import SCHEMA_VERSION
from jobs.annotate.settings import AnnotateSettings
from jobs.reach import PathUse, engine_use, input_use
from jobs.scan.input.sources import Source, find_source
from jobs.scan.stages.captioners import check_captioner


@dataclass(frozen=True)
class AnnotatePlan:
    """A job that can start: its input and its engines exist."""

    settings: AnnotateSettings
    folder: Location
    source: Source
    engines: dict[str, str]
    """Fingerprints of the models or files, by what they write."""

    def identity(self) -> dict[str, Any]:
        """Return what decides the rows: a job resumes, or counts as done, only if all of it is the same."""
        return {
            "settings": self.settings.identity(),
            "schema_version": SCHEMA_VERSION,
            "input": self.source.fingerprint(),
            "engines": self.engines,
        }

    def path_uses(self) -> list[PathUse]:
        """Return the paths that the workers use."""
        return [
            PathUse("OUT", self.folder.uri, writes=True),
            *engine_use("--captioner", self.settings.captions),
            *engine_use("--explainer", self.settings.explanations),
            *input_use(self.source.location, (row.image_uri for row in self.source.rows())),
        ]


def plan_annotation(settings: AnnotateSettings) -> AnnotatePlan:
    """Check input, engines and output, in this order. Raises an `AsapError` with a message of one line."""
    source = find_pairs(settings)
    is_here = settings.address is None
    engines = {kind: check_captioner(engine, is_here=is_here) for kind, engine in settings.engines.items()}
    folder = settings.job_folder
    if folder.is_s3:
        check_writable(folder)
    check_folder_writable(folder)
    return AnnotatePlan(settings, folder, source, engines)


def find_pairs(settings: AnnotateSettings) -> Source:
    """Return the input: a corpus in DGM4's layout, or what a scan would read. Raises the errors of `find_source`."""
    corpus = None
    if _may_be_folder(settings.input):
        corpus = find_corpus(Location.parse(settings.input), settings.limit, settings.missing_images)
    return corpus or find_source(settings.input, settings.limit, settings.table_options)


def _may_be_folder(address: str) -> bool:
    """Return True for a local folder, and for an address of a bucket. What else is wrong, `find_source` says."""
    if address.startswith("s3://"):
        return True
    if not address.strip() or ("://" in address and not address.startswith("file://")):
        return False
    try:
        return Path(Location.parse(address).uri).is_dir()
    except (OSError, ValueError, AsapError):
        return False
