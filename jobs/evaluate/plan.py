"""The plan of an evaluation. Making it checks the whole command before any work starts, without torch and Ray."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from asap.corpus.folder import full_address
from asap.corpus.reader import Record
from asap.errors import ConfigError
from asap.limits import limits_sentences
from asap.policy import Policy
from asap.storage.files import check_folder_writable, delete_file, list_files, read_bytes, write_bytes
from asap.storage.location import Location
from asap.weights.model_folder import check_folder, is_remote, model_config, model_id, read_limits
from jobs.corpus import read_corpus
from jobs.errors import JobDiffers
from jobs.evaluate.settings import EvaluateSettings
from jobs.reach import PathUse, model_use, pictures_use

METRICS, PAGE = "metrics.json", "index.html"
OUTPUTS = (METRICS, PAGE, "roc.svg", "precision_recall.svg", "iou.svg", "reliability.svg")
"""Files that an evaluation writes into its folder."""

Report = dict[str, Any]


@dataclass(frozen=True)
class EvaluationPlan:
    """An evaluation that is checked and can start."""

    settings: EvaluateSettings
    records: list[Record]
    in_split: int
    """Number of records in the split, before `limit`."""
    read: list[str]
    """Findings of reading the corpus, one sentence each."""
    model: str
    """Absolute path of the model folder; its address in a bucket, of which each machine makes a copy; or `demo`, which
    every worker finds in its own installation."""
    model_id: str
    out: Location
    policy: Policy
    """The policy of the model folder."""
    limits: str
    """The limits of the model, in plain words."""

    def about(self) -> Report:
        """Return the fields that identify the evaluation, for `metrics.json`."""
        return {
            "model_id": self.model_id,
            "corpus": full_address(self.settings.corpus),
            "split": self.settings.split,
            "limit": self.settings.limit,
        }

    def path_uses(self) -> list[PathUse]:
        """Return the paths that the workers use, and OUT.

        The driver alone writes to OUT. But it may run on a head that nobody logs in to, so its disk must be shared too.
        """
        out = self.out.uri if self.out.is_s3 else str(Path(self.out.uri).absolute())
        return [
            PathUse("--out", out, writes=True),
            *model_use(self.model),
            *pictures_use("CORPUS", (record.image for record in self.records)),
        ]


def plan_evaluation(settings: EvaluateSettings) -> EvaluationPlan:
    """Check model, corpus and output folder, in this order. Raises an `AsapError` of one sentence."""
    path = check_folder(settings.model).resolve()
    check_folder_writable(Location.parse(settings.out))
    corpus = read_corpus(settings, full_address(settings.corpus), settings.split, model_config(path).label_set)
    name = model_id(path)
    plan = EvaluationPlan(
        settings=settings,
        records=corpus.records[: settings.limit],
        in_split=len(corpus.records),
        read=corpus.report.lines(),
        model=settings.model if settings.model == "demo" or is_remote(settings.model) else str(path),
        model_id=name,
        out=Location.parse(settings.out),
        policy=Policy.load(path / "policy.json"),
        limits=limits_sentences(read_limits(path), name),
    )
    _check_out(plan)
    return plan


def _check_out(plan: EvaluationPlan) -> None:
    """Refuse a folder that holds anything else or another evaluation, or that cannot be written to."""
    # A hundred files are enough to find one that is foreign; a bucket may hold millions.
    names = [info.location.uri.removeprefix(f"{plan.out.uri}/") for info in islice(list_files(plan.out), 100)]
    if foreign := [name for name in names if name not in OUTPUTS]:
        raise ConfigError(
            f"{plan.out} holds {foreign[0]!r}, which does not belong to an evaluation. Choose another --out."
        )
    if METRICS in names:
        found, now = json.loads(read_bytes(plan.out / METRICS)).get("about", {}), plan.about()
        differs = [f"{name} {found.get(name)!r} (now {now[name]!r})" for name in now if found.get(name) != now[name]]
        if differs:
            raise JobDiffers(f"{plan.out} holds another evaluation: {', '.join(differs)}. Choose another --out.")
    probe = plan.out / ".probe"
    write_bytes(probe, b"")
    delete_file(probe)
