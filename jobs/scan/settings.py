"""Settings of a bulk scan. Values that cannot work are refused when the settings are built."""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from asap.preprocessing.images import DEFAULT_LIMITS, ImageLimits
from asap.preprocessing.words import MIN_TEXT_READ
from asap.storage.fetch import FetchSettings
from asap.storage.location import Location
from jobs.descriptions.settings import DescriptionSettings, check_devices, engines_by_kind, fill_kind
from jobs.scan.input.files.globs import find_glob
from jobs.scan.input.tables.record_files import record_file
from jobs.scan.input.tables.table import TableOptions
from jobs.settings import ClusterSettings, WatchSettings

_TABLE_OPTIONS = {"image_column", "text_column", "id_column", "encoding", "delimiter"}


class PairsSettings(ClusterSettings, WatchSettings):
    """A job over the pairs of an input: what to read, where to write, and how to run."""

    input: str
    out: str
    limit: int | None = Field(default=None, ge=1)
    """Read only the first so many pairs."""
    image_column: str | None = None
    """Name of the column or field of pictures. None: found by its name."""
    text_column: str | None = None
    """Name of the column or field of texts. None: found by its name."""
    id_column: str | None = None
    """Name of the column or field of your own names for the pairs. None: found by its name."""
    encoding: str | None = None
    """Encoding of text files, such as `cp1252`. None: found from their bytes."""
    delimiter: str | None = None
    """Character between two cells of CSV files. None: found from their first lines."""
    max_image_bytes: int = Field(default=DEFAULT_LIMITS.max_bytes, ge=1)
    max_image_pixels: int = Field(default=DEFAULT_LIMITS.max_pixels, ge=1)
    allow_unreadable: bool = False
    """Start even if no pair of a sample can be read."""
    max_error_rate: float = Field(default=1, ge=0, le=1)
    """Share of the pairs that may fail. With more, a done job exits with a code of its own."""
    retry_errors: tuple[str, ...] = ()
    """Error codes whose pairs are tried again, of a job that is finished or was stopped: their new outcomes replace
    the old ones. `retryable` stands for all errors that another try may not meet."""
    batch_size: int | None = Field(default=None, ge=1)
    """Pairs that travel together, and enter the model of a scan together. None: 64 on CPUs, 256 on GPUs."""
    rows_per_file: int | None = Field(default=None, ge=1)
    """Pairs of a results file that is full. None: by the size of the job."""
    write_every_s: float = Field(default=5, gt=0)
    """Seconds after which finished pairs are written, whether or not they fill a file. So much work is lost at most if
    the job is killed; a job that is stopped loses nothing that was finished."""
    write_patience_s: float = Field(default=120, ge=0)
    """Seconds for which the job folder may refuse the results, as in an outage, before the job stops."""
    fetch: FetchSettings = FetchSettings()
    slow_picture_s: float = Field(default=10, gt=0)
    """Seconds that a batch waits for its next picture; it waits three times as long for its first one. Slower pictures
    leave the batch, and are tried again at the end."""
    heartbeat_s: float = Field(default=2, gt=0)
    """Seconds between two heartbeats of the job."""
    stale_after_s: float = Field(default=12, gt=0)
    """Seconds without a heartbeat after which a running job counts as dead, and may be taken over."""

    @model_validator(mode="after")
    def _check_heartbeat(self) -> Self:
        if self.stale_after_s < 2 * self.heartbeat_s:
            raise ValueError(f"stale_after_s {self.stale_after_s} is less than two heartbeats of {self.heartbeat_s} s")
        return self

    @property
    def job_folder(self) -> Location:
        """The folder of the job."""
        return Location.parse(self.out)

    @property
    def needs_texts(self) -> bool:
        """True if a pair without a text is of no use."""
        return True

    @property
    def needs_gpu(self) -> bool:
        """True if an engine runs on GPUs only."""
        return False

    @property
    def table_options(self) -> TableOptions:
        """Options of the tables of the input."""
        return TableOptions(
            **self.model_dump(include=_TABLE_OPTIONS), texts=self.needs_texts, only_below=self.fetch.only_below
        )

    @property
    def image_limits(self) -> ImageLimits:
        """The limits of pictures."""
        return ImageLimits(max_bytes=self.max_image_bytes, max_pixels=self.max_image_pixels)

    def input_identity(self) -> dict[str, Any]:
        """Return the settings that decide how the input is read."""
        names = {"limit", "max_image_bytes", "max_image_pixels"} | _TABLE_OPTIONS
        return self.model_dump(include=names) | {"input": Location.parse(self.input).uri}


class ScanSettings(PairsSettings):
    """A bulk scan: what to read, with which model, where to write, and how to run."""

    job: str | None = None
    """Name of the job folder. None: the name of the input."""
    model: str = "demo"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    captions: DescriptionSettings | None = None
    """The captioner (docs/descriptions.md). None: no captions."""
    explanations: DescriptionSettings | None = None
    """The explainer of texts (docs/descriptions.md). None: no explanations."""
    caption_pairs: Literal["all", "flagged"] = "all"
    """Pairs that get a caption and an explanation. `all`: every pair, before it is judged. `flagged`: flagged pairs,
    after they are judged, and for captions also pairs without a text."""
    min_text_read: float = Field(default=MIN_TEXT_READ, ge=0, le=1)
    """Share of a text's characters that the model must be able to read. A pair with less is one without a text."""
    report_pictures: Literal["shown", "blurred", "none"] = "shown"
    """Pictures of the report: `blurred` until a reader asks for them, or `none` at all."""
    allow_unfamiliar: bool = False
    """Scan all pairs without looking at a sample first. Unfamiliar pairs are still not judged."""
    since: str | None = None
    """Folder of a finished scan with the same model and settings: rows whose picture and text are the same there are
    copied, and the others are judged. None: all rows are judged."""
    reuse: str | None = None
    """Folder or s3:// prefix of a reuse store: pairs that earlier jobs judged with the model are not judged again, and
    those that this job judges are added. None: there is no store."""
    remember_bytes: int = Field(default=2**28, ge=0)
    """Bytes of memory for the scores of the pairs that were judged last: pairs of the same picture and text are judged
    once. 0 judges all."""
    detectors: int | None = Field(default=None, ge=1)
    """Number of detector actors. None: one a GPU, or one for two CPUs, also of machines that join a cluster."""
    captioners: int | None = Field(default=None, ge=1)
    """Number of actors that caption, and of those that explain. None: one; for vLLM, and a model of `transformers` on
    GPUs or on a cluster, as many as fit; for a small one (at most 100 MB) on CPUs, one for two CPUs."""
    captioner_gpus: float = Field(default=0.5, gt=0, lt=1)
    """Share of a GPU for a captioner with a model of `transformers`. An explainer with such a model shares it, and a
    detector gets the rest. An engine `vllm` has whole GPUs of its own."""
    captioner_cpus: float | None = Field(default=None, gt=0)
    """CPUs of a captioner, and of an explainer. Without a GPU, a model of `transformers` runs with as many threads.
    None: 1 for vLLM; 0.1, or 0.05 beside a model of `transformers` without a GPU; for such a model, 30 % of a machine
    and half of its threads. Small models share them, and so do captioner and explainer."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        return fill_kind(values)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.job is not None and not re.fullmatch(r"[\w.+-]{1,200}", self.job)) or self.job in (".", ".."):
            raise ValueError(f"job {self.job!r} is not a folder's name. Use letters, digits, '.', '_', '+' and '-'.")
        check_devices(self.describers.values(), self.device)
        if self.caption_pairs == "flagged" and not self.describers:
            raise ValueError(
                "caption_pairs is 'flagged', and there is neither a captioner nor an explainer. Give one in `captions` "
                "or `explanations`."
            )
        return self

    @property
    def job_folder(self) -> Location:
        """The folder of the job, OUT/JOB."""
        if self.job:
            return Location.parse(self.out) / self.job
        # Without a name, the job takes the input's, less the suffix and the characters that `_check` refuses.
        location = Location.parse(self.input)
        glob = find_glob(location)
        name = (glob.folder if glob else location).name
        file = record_file(name)
        name = re.sub(r"[^\w.+-]", "_", file.stem if file else name.removesuffix(".tar")).strip(".") or "scan"
        if glob:
            # Patterns of one folder are different jobs. Their words say which, and a hash tells most of them apart.
            pattern = location.uri.removeprefix(glob.folder.uri).lstrip("/")
            words = "-".join(re.findall(r"\w+", pattern))[:60]
            is_plain = re.fullmatch(r"\*\.\w{1,40}", pattern)
            digest = "" if is_plain else hashlib.sha256(os.fsencode(pattern)).hexdigest()[:6]
            name = "-".join(filter(None, (name, words, digest)))
        return Location.parse(self.out) / name

    @property
    def needs_texts(self) -> bool:
        """True if no caption can take the place of a text."""
        return self.captions is None

    @property
    def describers(self) -> dict[str, DescriptionSettings]:
        """The engines by what they write, `caption` and `explanation`, in the order in which they work."""
        return engines_by_kind(self.captions, self.explanations)

    @property
    def needs_gpu(self) -> bool:
        """True if an engine runs on GPUs only."""
        return any(engine.gpus for engine in self.describers.values())

    def batch_size_on(self, device: str) -> int:
        """Return how many pairs enter a model on this device together."""
        return self.batch_size or (256 if device == "cuda" else 64)

    @property
    def captions_late(self) -> bool:
        """True if pairs are captioned and explained after they are judged."""
        return self.caption_pairs == "flagged"

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide what the rows say; a job resumes only under the same ones."""
        described: dict[str, Any] = {"captions": self.captions.identity() if self.captions else None}
        if self.explanations:  # jobs of earlier versions have no such entry
            described["explanations"] = self.explanations.identity()
        if self.describers:
            described["caption_pairs"] = self.caption_pairs
        return self.input_identity() | self.model_dump(include={"precision", "min_text_read"}) | described
