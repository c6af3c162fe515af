"""What each job can be told, one pydantic model a job; what cannot work is refused when it is built."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from asap.corpus.read_rules import BadBox, BadPosition, ReadRules
from asap.model.config import LossWeights
from asap.preprocessing.images import DEFAULT_LIMITS
from asap.storage.files import Location
from asap.training.objective import Recipe, recipe_called
from jobs.scan.input.record_files import record_file

Device = Literal["auto", "cpu", "cuda"]


class Settings(BaseModel):
    """Frozen, and strict about names: a setting that is misspelt is an error, not ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FetchSettings(Settings):
    """How objects are fetched. Nothing here changes what a result says, but for failures."""

    threads: int = Field(default=16, ge=1, le=256)
    """Objects one task fetches at a time."""
    decode_threads: int = Field(default=2, ge=1)
    """Pictures one task decodes at a time: each may take up to 9 bytes of memory a pixel."""
    attempts: int = Field(default=4, ge=1)
    """Tries for one object, with exponential backoff and jitter between them."""
    connect_timeout_s: float = Field(default=5, gt=0)
    read_timeout_s: float = Field(default=30, gt=0)


class CaptionSettings(Settings):
    """Which captioner writes the captions, and how."""

    engine: Literal["transformers", "precomputed"]
    source: str
    """A model folder or hub name (`transformers`); a JSON, JSONL, CSV or Parquet file (`precomputed`)."""
    prompt: str = "Describe this picture in one sentence: who is where, doing what, in what mood."
    """For models that take instructions; others caption without."""
    max_new_tokens: int = Field(default=40, ge=1)
    batch_size: int = Field(default=16, ge=1)
    max_side: int = Field(default=512, ge=32)
    """Pixels: larger pictures are made smaller before they travel to the captioner."""


class ScanSettings(Settings):
    """A bulk scan: what to read, with which model, where to write, and how to run."""

    input: str
    out: str
    job: str | None = None
    """Name of the job folder; by default the input's name."""
    model: str = "demo"
    limit: int | None = Field(default=None, ge=1)
    """Scan only the first so many pairs."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    max_image_bytes: int = Field(default=DEFAULT_LIMITS.max_bytes, ge=1)
    max_image_pixels: int = Field(default=DEFAULT_LIMITS.max_pixels, ge=1)
    captions: CaptionSettings | None = None

    address: str | None = None
    """Of a running Ray cluster; None starts Ray on this machine."""
    device: Device = "auto"
    detectors: int | None = Field(default=None, ge=1)
    """Detector actors; None: one a GPU, or as many as the CPUs carry."""
    batch_size: int | None = Field(default=None, ge=1)
    """Pairs that travel and are judged together; None: 64 on CPUs, 256 on GPUs."""
    wait_for_machines_s: float = Field(default=900, ge=0)
    """That a cluster is given to bring GPUs for the detectors, where `device` asks for them."""
    rows_per_file: int | None = Field(default=None, ge=1)
    """Pairs of one results file, which are lost if the job dies before it is written; None: by the size of the job."""
    fetch: FetchSettings = FetchSettings()
    heartbeat_s: float = Field(default=2, gt=0)
    stale_after_s: float = Field(default=12, gt=0)
    """A running job whose heartbeat has not moved for so long is dead, and may be taken over."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.job is not None and not re.fullmatch(r"[\w.+-]{1,200}", self.job)) or self.job in (".", ".."):
            raise ValueError(f"job {self.job!r} is not a folder's name: letters, digits, '.', '_', '+' and '-'")
        if self.stale_after_s < 2 * self.heartbeat_s:
            raise ValueError(f"stale_after_s {self.stale_after_s} is less than two heartbeats of {self.heartbeat_s} s")
        return self

    @property
    def job_folder(self) -> Location:
        """OUT/JOB_ID."""
        return Location.parse(self.out) / (self.job or _name_of(self.input))

    def identity(self) -> dict[str, Any]:
        """The settings that decide what the rows say; a job goes on only under the same ones."""
        return self.model_dump(
            include={"input", "limit", "precision", "max_image_bytes", "max_image_pixels", "captions"}
        ) | {"input": Location.parse(self.input).uri}


def _name_of(place: str) -> str:
    name = Location.parse(place).name
    file = record_file(name)
    return re.sub(r"[^\w.+-]", "_", file.stem if file else name).strip(".") or "scan"


class CorpusSettings(Settings):
    """How a labelled corpus is read, and what is made of one that is not as it should be (docs/corpora.md)."""

    missing_images: float = Field(default=0.01, ge=0, le=1)
    """Share of a split's pairs whose picture may be missing or broken: they are left out. Above it nothing starts."""
    bad_boxes: BadBox = "boxless"
    """Of a box that is no box: `boxless` keeps the pair without it, `skip` leaves the pair out, `refuse` stops."""
    stray_positions: BadPosition = "drop"
    """Of positions beyond the text: `drop` drops them, `skip` leaves the pair out, `refuse` stops."""
    files: dict[Literal["train", "val", "test"], list[str]] = {}
    """Of metadata, by split, where they are not found by themselves: in the corpus, or by path or s3:// address."""
    captions: list[str] = []
    """Files of captions, those before going before; none: `captions.json` of the corpus, if it is there."""
    explanations: list[str] = []
    """Likewise, `explanations.json`."""
    pictures: str | None = None
    """The folder or s3:// that the pictures lie in, if it is not the corpus."""

    def rules(self, label_set: str) -> ReadRules:
        """For a corpus of this label set, the model's."""
        return ReadRules(
            label_set=label_set,
            missing_images=self.missing_images,
            bad_boxes=self.bad_boxes,
            stray_positions=self.stray_positions,
        )


class CalibrateSettings(CorpusSettings):
    """Thresholds of a model for a precision at a prevalence: from which scores, and how sure."""

    model: str
    corpus: str
    """A folder in DGM4's layout, or s3://."""
    precision: float = Field(gt=0, lt=1)
    """Of all pairs that a threshold flags, the share that must be flagged rightly."""
    prevalence: float = Field(gt=0, lt=1)
    """Share of manipulated pairs where the thresholds will be used."""
    review_precision: float | None = Field(default=None, gt=0, lt=1)
    """Of the pairs from `review` up to `manipulated`, which people look at, the share that must be manipulated; None: a
    quarter of the way from the prevalence to the precision, so where few are, people look at four or fewer for one."""
    confidence: float = Field(default=0.95, ge=0.5, lt=1)
    """With which each threshold keeps its precision."""
    split: str = "val"
    out: str | None = None
    """The file to write; None: `policy.json` of the model folder."""
    keep: tuple[Literal["face_swap", "face_attribute", "text_swap", "text_attribute", "word"], ...] = ()
    """Thresholds that stay as the model's policy has them."""
    device: Device = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the encoders compute in, which must be what they will be used in."""
    batch_size: int = Field(default=32, ge=1)
    max_failed_share: float = Field(default=0.01, ge=0, lt=1)
    """Of pairs that cannot be scored, for whatever reason; more are refused, fewer are left out and counted."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.precision <= self.prevalence:
            raise ValueError(
                f"precision {self.precision} is no more than the prevalence {self.prevalence}: flagging every pair "
                "reaches it"
            )
        if not self.prevalence < self.people_precision <= self.precision:
            raise ValueError(
                f"review_precision {self.review_precision} is not above the prevalence {self.prevalence} (which "
                f"pairs drawn at random reach) and at most the precision {self.precision}"
            )
        return self

    @property
    def people_precision(self) -> float:
        """What `review_precision` stands for."""
        if self.review_precision is None:
            return self.prevalence + (self.precision - self.prevalence) / 4
        return self.review_precision

    @property
    def target(self) -> Location:
        """The policy file to write."""
        return Location.parse(self.out) if self.out else Location.parse(self.model) / "policy.json"


HOW_NOT_WHAT = {
    "out", "workers", "min_workers", "regrow_every_s", "cpus_per_worker", "device", "checkpoint_activations", "compile",
    "checkpoint_pairs", "export", "address", "wait_for_machines_s", "ingest", "cache_gib", "tokens_gib", "decode_tasks",
}  # fmt: skip
"""The settings of a training run that may change from one start of it to the next."""


class TrainSettings(CorpusSettings):
    """A training run: what to learn from, what to learn, and how long."""

    corpus: str
    """A folder in DGM4's layout, or s3://: metadata/{train,val}.json, captions.json, explanations.json."""
    out: str
    """The run folder: checkpoints, progress, and the trained model under `model/`."""
    test_corpus: str | None = None
    """A corpus of another seed, whose test split judges the finished model for its card; None: this corpus's own.
    `files`, `captions`, `explanations` and `pictures` are of `corpus` alone."""
    name: str = "asap-tiny"
    """Of the model; it begins the model id."""
    seed: int = Field(default=0, ge=0)

    recipe: str = "asap-ray"
    """What is learned: a name of `asap.training.objective.RECIPES`."""
    preset: Literal["base", "tiny"] = "tiny"
    vocab_size: int = Field(default=4000, ge=100)
    """Pieces at most of the tokenizer, which is trained on the corpus."""
    model: dict[str, Any] = {}
    """Changes to the preset and the recipe, by name of `asap.model.config.ModelConfig`."""
    init: tuple[str, ...] = ()
    """What the weights start from, each over those before it: a `.pth` file, a model folder, `timm:NAME_OR_FOLDER` or
    `bert:NAME_OR_FOLDER` (`asap.weights.start`); files and folders may lie at s3://. Empty: from random weights."""
    tokenizer: str | None = None
    """A tokenizer's folder, or `train` for one made of the corpus; None: that of the last `init` that brings one, and
    made of the corpus where none does."""

    pairs: int = Field(default=140_000, ge=1)
    """Pairs to train on in all, counting each time a pair is seen."""
    batch_size: int = Field(default=32, ge=2)
    """Pairs of one step, over all workers."""
    accumulation: int = Field(default=1, ge=1)
    """Micro batches that a worker's part of a step is computed in, one after the other; the contrast then sees the
    negatives of the queue and of a micro batch, every other term is that of the whole batch."""
    learning_rate: float = Field(default=1e-3, gt=0)
    image_learning_rate: float = Field(default=1e-3, gt=0)
    """Of vision, aggregator, image-side attention and box head."""
    weight_decay: float = Field(default=0.02, ge=0)
    warmup_pairs: int = Field(default=6_400, ge=0)
    gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    augmentation: Literal["none", "flip", "published"] = "flip"

    loss_weights: dict[str, float] = {}
    """Changes to the recipe's weights, by name of `asap.model.config.LossWeights`."""
    words_until: float = Field(default=0.57, ge=0, lt=1)
    """Share of the run, at its start, that trains the words on the texts alone, at a sixth of the cost. From scratch
    words are found late by themselves, and beside an image side that learns at once not at all; 0 for pretrained
    encoders."""
    alignment_from: float = Field(default=0.9, ge=0, lt=1)
    """Share of the run before the terms of alignment (VLC and IED, which read captions and explanations) join those of
    the labels. From scratch there is little to align at first, and steps without them take half the time; 0 for
    pretrained encoders."""
    lock_image_from: float = Field(default=1.0, ge=0, le=1)
    """Share of the run after which the image encoder rests and the other parts learn to read it, on pictures as they
    are: a step costs a fraction, and less still where the tokens of all pairs fit in `tokens_gib`. 1: never."""
    alpha: float = Field(default=0.4, ge=0, le=1)
    """Weight of the twin's soft targets, reached linearly over `alpha_ramp_pairs`."""
    alpha_ramp_pairs: int = Field(default=20_000, ge=1)
    queue_size: int = Field(default=2048, ge=1)
    momentum: float = Field(default=0.995, ge=0, lt=1)

    ingest: Literal["auto", "cache", "stream"] = "auto"
    """Where pictures come from. `cache`: decoded once into the run folder, which all workers read. `stream`: decoded
    for every epoch by tasks anywhere in the cluster, and nothing kept. The batches are the same. `auto`: the cache for
    pictures of this machine that fit in `cache_gib`."""
    cache_gib: float = Field(default=8, ge=0)
    """The largest cache that `auto` makes, in GiB; a picture of 256 px takes 192 KiB."""
    tokens_gib: float = Field(default=4, ge=0)
    """The most that a worker keeps of what a locked image encoder makes of pictures, in GiB; all of them or nothing."""
    decode_tasks: int | None = Field(default=None, ge=1)
    """Tasks that decode for each worker at a time; None: the CPUs that workers leave free, shared out, at least one."""

    workers: int = Field(default=1, ge=1)
    min_workers: int | None = Field(default=None, ge=1)
    """Go on with so few where a cluster loses machines, and with up to `workers` when they are back; the batch of a
    step stays the same. None: only with all of them."""
    regrow_every_s: float = Field(default=60, gt=0)
    """How often a run with fewer than `workers` looks for machines; it goes back to its last checkpoint to take one."""
    cpus_per_worker: int | None = Field(default=None, ge=1)
    """Threads of a worker; None: as many as all workers can have each on the machines that are alive."""
    device: Device = "auto"
    """Where workers compute; `auto`: on a GPU each, where that many are alive now; `cuda` waits for them."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`bfloat16` computes the layers in it and keeps weights and losses in float32; `auto`: so on GPUs that have it."""
    checkpoint_activations: bool = False
    """Keep less of the forward pass and compute it again in the backward pass: less memory, about a third more time."""
    compile: Literal["auto", "off", "on"] = "auto"
    """`torch.compile` for the encoders; `auto`: on GPUs, where there is a C compiler."""
    checkpoint_pairs: int = Field(default=6_400, ge=1)
    """Pairs between checkpoints, which are also when the validation split is judged."""
    validation_pairs: int = Field(default=1000, ge=1)
    """Pairs of the validation split that are judged at a checkpoint."""
    export: Literal["best", "last"] = "best"
    """Which checkpoint becomes the model: the best by validation AUC, or the last."""
    address: str | None = None
    """Of a running Ray cluster; None starts Ray on this machine."""
    wait_for_machines_s: float = Field(default=900, ge=0)
    """How long a cluster at `address` is given to bring machines that the workers need, as its autoscaler does."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_division()
        if self.alignment_from < self.words_until:
            raise ValueError(
                f"alignment_from {self.alignment_from} comes before words_until {self.words_until} is over"
            )
        return self

    @property
    def objective(self) -> Recipe:
        """The recipe with this run's changes. Raises `ConfigError` for an unknown recipe or weight."""
        recipe = recipe_called(self.recipe)
        weights = LossWeights.from_dict(asdict(recipe.weights) | self.loss_weights)
        return replace(recipe, model={**recipe.model, **self.model}, weights=weights)

    def _check_division(self) -> None:
        fewest = self.min_workers or self.workers
        if fewest > self.workers:
            raise ValueError(f"min_workers {fewest} is more than workers {self.workers}")
        for world in range(fewest, self.workers + 1):
            if self.batch_size % world:
                one_of = f", which {fewest} to {self.workers} may come to" if fewest < self.workers else ""
                raise ValueError(f"batch_size {self.batch_size} does not divide among {world} workers{one_of}")
        share = self.batch_size // self.workers
        if share % self.accumulation:
            raise ValueError(f"a worker's {share} pairs of a step do not divide into {self.accumulation} micro batches")

    def micro_batches(self, world: int) -> int:
        """Parts that each of `world` workers computes its share of a step in: as few as keep them no larger than those
        of `workers` workers, whose memory they must fit."""
        share, largest = self.batch_size // world, self.batch_size // (self.workers * self.accumulation)
        return next(parts for parts in range(1, share + 1) if share % parts == 0 and share // parts <= largest)

    def identity(self) -> dict[str, Any]:
        """The settings that decide what is learned; a run goes on only under the same ones."""
        return self.model_dump(mode="json", exclude=HOW_NOT_WHAT)


class EvaluateSettings(CorpusSettings):
    """An evaluation: which model, on which labelled pairs, and how to run."""

    model: str
    corpus: str
    """A folder in DGM4's layout, on a disk that the workers share, or s3://."""
    split: str = "test"
    out: str = "evaluation"
    """A folder or s3:// for the figures, the pictures and the page."""
    limit: int | None = Field(default=None, ge=1)
    """Judge only the first so many pairs."""
    worst: int = Field(default=20, ge=0)
    """Pairs that the page shows, those whose score is furthest from the truth."""
    batch_size: int = Field(default=64, ge=1)
    """Pairs that are judged together."""
    shard_pairs: int = Field(default=512, ge=1)
    """Pairs that are lost, and judged again, if a worker dies."""

    workers: int | None = Field(default=None, ge=1)
    """Shards judged at a time; None: one a GPU, or one for every two CPUs."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    address: str | None = None
    """Of a running Ray cluster; None starts Ray on this machine."""
    wait_for_machines_s: float = Field(default=900, ge=0)
    """How long a cluster at `address` is given to bring machines that the workers need, as its autoscaler does."""
