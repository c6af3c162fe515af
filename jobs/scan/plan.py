"""The plan of a scan. Making it checks the whole command before any work starts, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asap.limits import Limits
from asap.model.config import ModelConfig
from asap.policy import Policy
from asap.preprocessing.text import ReaderSource, read_reader_source
from asap.storage.files import check_folder_writable
from asap.storage.location import Location
from asap.storage.s3 import check_writable
from asap.weights.model_folder import (
    check_folder,
    familiarity_id,
    is_remote,
    model_config,
    model_id,
    read_limits,
    weights_sha256,
)
from jobs.reach import PathUse, engine_use, input_use, model_use
from jobs.scan.input.sources import Source, find_source
from jobs.scan.settings import ScanSettings
from jobs.scan.stages.result_rows import SCHEMA_VERSION


@dataclass(frozen=True)
class ScanPlan:
    """A scan that can start: its input and its model exist."""

    settings: ScanSettings
    folder: Location
    source: Source
    model: str
    """The model's absolute folder; its address in a bucket, of which each machine makes a copy; or `demo`, which every
    machine finds in its own installation."""
    config: ModelConfig
    model_id: str
    policy: Policy
    familiarity_id: str | None
    """Id of the model's familiarity file; None if it has none."""
    limits: Limits | None
    captioner: str | None
    """Fingerprint of the model or file that the captions come from."""
    explainer: str | None
    """Fingerprint of the model or file that the explanations come from."""
    reader: ReaderSource | None
    """The reader of the model's texts, for the tasks that prepare pairs. None: the detectors read them."""

    def identity(self) -> dict[str, Any]:
        """Return what decides the rows: a job resumes, or counts as done, only if all of it is the same."""
        return {
            "settings": self.settings.identity(),
            "schema_version": SCHEMA_VERSION,
            "input": self.source.fingerprint(),
            "captioner": self.captioner,
            "explainer": self.explainer,
            "model_id": self.model_id,
            "policy_id": self.policy.policy_id,
            "familiarity_id": self.familiarity_id,
        }

    def path_uses(self) -> list[PathUse]:
        """Return the paths that the workers use."""
        return [
            PathUse("OUT", self.folder.uri, writes=True),
            *model_use(self.model),
            *engine_use("--captioner", self.settings.captions),
            *engine_use("--explainer", self.settings.explanations),
            *input_use(self.source.location, (row.image_uri for row in self.source.rows())),
        ]


def plan_scan(settings: ScanSettings) -> ScanPlan:
    """Check input, captioner, explainer, output and model, in this order.

    Raises an `AsapError` with a message of one line.
    """
    source = find_source(settings.input, settings.limit, settings.table_options)
    sources: dict[str, str] = {}
    for kind, engine in settings.describers.items():
        from jobs.scan.stages.captioners import check_captioner

        sources[kind] = check_captioner(engine, is_here=settings.address is None)
    folder = settings.job_folder
    if folder.is_s3:
        check_writable(folder)
    check_folder_writable(folder)
    path = check_folder(settings.model).resolve()
    weights, config = weights_sha256(path), model_config(path)
    return ScanPlan(
        settings=settings,
        folder=folder,
        source=source,
        model=settings.model if settings.model == "demo" or is_remote(settings.model) else str(path),
        config=config,
        model_id=model_id(path, weights),
        policy=Policy.load(Path(path) / "policy.json"),
        familiarity_id=familiarity_id(path, weights),
        limits=read_limits(path),
        captioner=sources.get("caption"),
        explainer=sources.get("explanation"),
        reader=read_reader_source(path / "tokenizer", max_words=config.max_words, max_tokens=config.max_tokens),
    )
