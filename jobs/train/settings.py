"""Settings of a training run. Values that cannot work are refused when the settings are built."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ModelWrapValidatorHandler, StringConstraints, model_validator

from asap.errors import ConfigError
from asap.training.augmentation import Augmentation
from asap.training.objective import LossWeights, PublishedDefects, Recipe, recipe_called
from jobs.settings import ClusterSettings, CorpusSettings, Device, WatchSettings
from jobs.train.defaults import DEFAULT_PAIRS, PUBLISHED_RECIPES, published_defaults, warm_start_defaults
from jobs.train.gpus import GPU_MEMORY_GB

EXECUTION_SETTINGS = {
    "out", "workers", "min_workers", "regrow_every_s", "cpus_per_worker", "device", "checkpoint_activations", "compile",
    "checkpoint_pairs", "checkpoint_every_s", "export", "address", "wait_for_machines_s", "stall_after_s",
    "heartbeat_s", "stale_after_s", "outage_s", "ingest", "cache_gib", "tokens_gib", "decode_tasks", "made_from",
    "languages", "not_for", "gpu", "device_gib",
}  # fmt: skip
"""The settings that may differ between starts of one run, because they do not change what is learned."""
NOT_SETTINGS = {"data", "fitted"}
"""The keys of `train.json` beside the settings: what the corpus holds, and the choices for the device."""

Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
"""A text that is not blank."""


class TrainSettings(CorpusSettings, ClusterSettings, WatchSettings):
    """A training run: the corpus, the objective, and how long and where to train."""

    corpus: str
    """A folder in DGM4's layout, or s3://: metadata/{train,val}.json, captions.json, explanations.json."""
    out: str
    """The run folder: checkpoints, progress, and the trained model under `model/`."""
    test_corpus: str | None = None
    """A corpus of another seed. The finished model is evaluated on its test split for the card.

    None: the test split of `corpus`. The settings `files`, `captions`, `explanations` and `pictures` apply to `corpus`
    alone.
    """
    name: str = "asap-tiny"
    """Name of the model; the model id begins with it."""
    seed: int = Field(default=0, ge=0)
    """Seed of the weights, the order of the pairs and the augmentation."""

    recipe: str = "asap-ray"
    """The objective, by its name in `asap.training.objective.RECIPES`."""
    defects: bool = False
    """True for the defects of the published losses, whatever the recipe: see `PublishedDefects`."""
    preset: Literal["base", "tiny", "published"] = "tiny"
    """The size of the model. `published` is `base` and the training of the papers: it changes the defaults of other
    settings (`jobs.train.defaults`); a setting that is given keeps its value."""
    vocab_size: int = Field(default=4000, ge=100)
    """Maximum number of word pieces of a tokenizer that is trained on the corpus."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Changes to the preset and the recipe, by name of `asap.model.config.ModelConfig`."""
    init: tuple[str, ...] = ()
    """Sources of the first weights; each overrides those before it. Empty: random weights.

    A source is a `.pth` file, a model folder, `timm:NAME_OR_FOLDER` or `bert:NAME_OR_FOLDER` (`asap.weights.start`).
    Files and folders may be at s3://.
    """
    tokenizer: str | None = None
    """The folder of a tokenizer, the name of one to download, or `train` to train one on the corpus.

    None: the tokenizer of the last source in `init` that has one; if none has, one is trained on the corpus.
    """

    initial_values: Literal["ours", "published"] = "ours"
    """The random weights before those of `init`. `published`: `asap.model.initial_values`, and queues of captions and
    explanations that start as copies of the text's."""
    pairs: int | None = Field(default=None, ge=1)
    """Total number of pairs to train on, counting each time that a pair is seen. None: `epochs`. If neither is given:
    140,000 pairs."""
    epochs: float | None = Field(default=None, gt=0)
    """Length of the run in epochs of whole batches, in place of `pairs`."""
    batch_size: int = Field(default=32, ge=2)
    """Pairs of one step, over all workers."""
    accumulation: int = Field(default=1, ge=1)
    """Number of micro batches in which a worker computes its part of a step, one after the other.

    If it is not given, a run on GPUs takes as few as fit into their memory (`jobs.train.fit`).
    The contrast then sees the negatives of the queue and of one micro batch. Every other term is that of the whole
    batch.
    """
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of the text encoder, the fusion encoder and the other heads."""
    image_learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of the image encoder, the aggregator, the image-side attention and the box head."""
    weight_decay: float = Field(default=0.02, ge=0)
    """Weight decay of AdamW."""
    optimizer_groups: Literal["ours", "published"] = "ours"
    """The groups of the optimizer. `ours`: biases, norms, scalars and tokens do not decay. `published`: every parameter
    decays, and the aggregate token and both norms of the image side have the image's rate."""
    schedule: Literal["ours", "published"] = "ours"
    """The course of the learning rates. `ours`: a linear warmup, then half a cosine by step. `published`: one rate for
    each epoch, and a first epoch that rises in stairs of 100 steps (`asap.training.optimizer.published_schedule`)."""
    warmup_pairs: int | None = Field(default=6_400, ge=0)
    """Pairs over which the learning rates rise to their peak. None: an epoch, but at most a tenth of the run. The
    published schedule has a warmup of its own."""
    gradient_norm: float | None = Field(default=1.0, gt=0)
    """Gradients of a larger norm are scaled down to this norm. None: never."""
    augmentation: Augmentation = "flip"
    """Random changes to training pictures. `published`: a flip and RandAugment(2, 7). `web`: a flip and, for half of
    the pictures, a blur, shrinking, gray, brightness, contrast, JPEG or a crop, so that the model judges such pictures.
    """

    loss_weights: dict[str, float] = Field(default_factory=dict)
    """Changes to the recipe's weights, by name of `asap.training.objective.LossWeights`."""
    words_until: float = Field(default=0.57, ge=0, lt=1)
    """Fraction of the run, at its start, that trains the words on the texts alone, at a sixth of the cost.

    From random weights, a model learns the words late by itself. Beside an image side that learns from the first step,
    it never learns them. Set 0 for pretrained encoders.
    """
    alignment_from: float = Field(default=0.9, ge=0, lt=1)
    """Fraction of the run before the alignment terms join the terms of the labels.

    The alignment terms read captions and explanations: VLC is the contrast of pictures and texts, IED decides real or
    fake from the picture and its explanation. From random weights there is little to align at first, and steps without
    these terms take half the time. Set 0 for pretrained encoders.
    """
    lock_image_from: float = Field(default=1.0, ge=0, le=1)
    """Fraction of the run after which the image encoder is locked and the other parts learn to read it. 1: never.

    Pictures are then shown without augmentation. A step costs a fraction of the time, and less still if the image
    tokens of all pairs fit in `tokens_gib`.
    """
    alpha: float = Field(default=0.4, ge=0, le=1)
    """Weight of the twin's soft targets, reached linearly over `alpha_ramp_pairs`."""
    alpha_ramp_pairs: int | None = Field(default=20_000, ge=1)
    """Pairs over which `alpha` is reached, counted from the point where the alignment terms join. None: an epoch."""
    queue_size: int = Field(default=2048, ge=1)
    """Number of features in each queue of negatives."""
    momentum: float = Field(default=0.995, ge=0, lt=1)
    """Momentum of the twin, which is the moving average of the model's weights."""
    twin_dropout: bool = False
    """True to compute the twin's targets with dropout, as published."""

    ingest: Literal["auto", "cache", "stream"] = "auto"
    """Source of the pictures. All choices give the same batches.

    `cache`: pictures are decoded once into the run folder, which all workers read. `stream`: tasks anywhere in the
    cluster decode pictures for every epoch, and nothing is kept. `auto`: the cache for pictures that are on this
    machine and fit in `cache_gib`.
    """
    cache_gib: float = Field(default=8, ge=0)
    """Size of the largest cache that `auto` makes, in GiB; a picture of 256 px takes 192 KiB."""
    tokens_gib: float = Field(default=4, ge=0)
    """Memory per worker, in GiB, for the tokens of a locked image encoder; the tokens of all pairs are kept or none."""
    decode_tasks: int | None = Field(default=None, ge=1)
    """Number of tasks that decode for each worker at the same time.

    None: the CPUs that the workers leave free, divided among them; at least one.
    """

    workers: int = Field(default=1, ge=1)
    """Number of workers that train together. If it is not given, a run with `preset=published` has one on each GPU."""
    min_workers: int | None = Field(default=None, ge=1)
    """Smallest number of workers to continue with when a cluster loses machines.

    The run grows back to `workers` when machines return. The batch of a step stays the same. None: only with all
    workers.
    """
    heartbeat_s: float = Field(default=2, gt=0)
    """Seconds between two signs of life in the run folder."""
    stale_after_s: float = Field(default=12, gt=0)
    """Seconds without a sign of life after which a run that was not ended properly counts as dead, and is taken up."""
    outage_s: float = Field(default=120, ge=0)
    """Seconds that a run at s3:// waits for a store that is away, before it goes back to its last checkpoint."""
    regrow_every_s: float = Field(default=60, gt=0)
    """Seconds between the times when a run with fewer than `workers` looks for machines.

    To add a machine, the run goes back to its last checkpoint.
    """
    cpus_per_worker: int | None = Field(default=None, ge=1)
    """Threads of a worker. None: 2 with a GPU, so that the other CPUs decode pictures; else the largest number that
    every worker can have on the machines that are alive.
    """
    device: Device = "auto"
    """Device of the workers. `auto`: one GPU each if enough are alive now, else CPUs; `cuda` waits for GPUs."""
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    """Precision of the layers. Weights and losses are always float32. `auto`: bfloat16 on GPUs that support it.

    `tf32`: float32, but GPUs round the factors of products to 10 bits, as torch 1.10 did for the published code.
    """
    checkpoint_activations: bool = False
    """True to recompute activations in the backward pass: less memory, about a third more time.

    If it is not given, a run on GPUs does it only if a step does not fit otherwise (`jobs.train.fit`).
    """
    gpu: str | None = None
    """Kind of GPU that a plan is made for, such as H100 (`jobs.train.gpus`). None: the devices of this machine. A run
    that does not fit this kind is refused before Ray starts; any other is fitted to the GPUs that it gets."""
    device_gib: float | None = Field(default=None, gt=0)
    """Memory in GiB that a worker may use of its device. None: that of its GPU; on CPUs, its part of this machine's."""
    compile: Literal["auto", "off", "on"] = "auto"
    """`torch.compile` for the encoders; `auto`: on GPUs, if there is a C compiler."""
    checkpoint_every_s: float = Field(default=900, gt=0)
    """Most seconds of training between checkpoints, if `checkpoint_pairs` is None."""
    checkpoint_pairs: Annotated[int, Field(ge=1)] | Literal["epoch"] | None = None
    """Pairs between checkpoints. At each checkpoint the model is evaluated on the validation split.

    `epoch`: those of an epoch. None: a twentieth of the run but at least 6,400 pairs, or `checkpoint_every_s`,
    whichever comes first.
    """
    validation_pairs: int | None = Field(default=1000, ge=0)
    """Number of pairs of the validation split that are evaluated at a checkpoint. None or 0: all of them."""
    weights: Literal["average", "student"] = "average"
    """The weights that are evaluated at a checkpoint and become the model: the twin's, which are averaged over the
    steps, or those of the last step (the student's, as published)."""
    export: Literal["best", "last"] = "best"
    """The checkpoint that becomes the model: the best by validation AUC, or the last."""

    made_from: Words | None = None
    """The pairs of the training in plain words, as they read after "was made from". It becomes part of the model's
    limits, which every verdict shows.

    None: "drawn pictures" for a corpus of `asap newsroom`, else "pairs of the corpus NAME".
    """
    languages: tuple[Words, ...] | None = None
    """Languages of the texts. None: English for a corpus of `asap newsroom`, else none is stated."""
    not_for: Words | None = None
    """Uses that are ruled out, as they read after "Do not use it for".

    None: "photographs or texts of other kinds" for a corpus of `asap newsroom`, else "any other kind of picture or
    text".
    """

    @model_validator(mode="wrap")
    @classmethod
    def _take_defaults(cls, values: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        """Add the defaults that follow from `init` and `preset`. `model_fields_set` has only what was given."""
        if not isinstance(values, dict):
            return build(values)
        defaults: dict[str, Any] = {}
        if values.get("init"):
            defaults |= warm_start_defaults(values)
        if values.get("preset") == "published":
            defaults |= published_defaults(values)
        # The length of a run is one of two settings: the other one's default must not join it.
        if values.get("pairs") is not None or values.get("epochs") is not None:
            defaults.pop("epochs", None)
        elif "epochs" not in defaults:
            defaults["pairs"] = DEFAULT_PAIRS
        settings = build(values | {name: value for name, value in defaults.items() if name not in values})
        settings.model_fields_set.intersection_update(values)
        return settings

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Refuse a batch that cannot be divided, and stages in the wrong order."""
        fewest = self.min_workers or self.workers
        if fewest > self.workers:
            raise ValueError(f"min_workers {fewest} is more than workers {self.workers}")
        # An elastic run may train with any number of workers in its range, so each of them must divide the batch.
        for world in range(fewest, self.workers + 1):
            if self.batch_size % world:
                elastic = f", and a run of {fewest} to {self.workers} may have {world}" if fewest < self.workers else ""
                raise ValueError(f"batch_size {self.batch_size} is not divisible by {world} workers{elastic}")
        pairs_per_worker = self.batch_size // self.workers
        if pairs_per_worker % self.accumulation:
            raise ValueError(
                f"{pairs_per_worker} pairs per worker and step are not divisible into {self.accumulation} micro batches"
            )
        if self.stale_after_s < 2 * self.heartbeat_s:
            raise ValueError(f"stale_after_s {self.stale_after_s} is less than two heartbeats of {self.heartbeat_s} s")
        if self.gpu is not None and self.gpu not in GPU_MEMORY_GB:
            raise ValueError(
                f"gpu {self.gpu!r} is unknown. Give one of {', '.join(GPU_MEMORY_GB)}, or the memory as device_gib."
            )
        if self.pairs is not None and self.epochs is not None:
            raise ValueError(f"pairs {self.pairs} and epochs {self.epochs:g} are both given. Give one of them.")
        if self.alignment_from < self.words_until:
            raise ValueError(
                f"alignment_from {self.alignment_from} is less than words_until {self.words_until}. "
                "The alignment terms can only join after the words were trained alone."
            )
        return self

    @property
    def objective(self) -> Recipe:
        """The recipe with the changes of this run. Raises `ConfigError` for an unknown recipe or weight."""
        recipe = recipe_called(self.recipe)
        weights = LossWeights.from_dict(asdict(recipe.weights) | self.loss_weights)
        defects = PublishedDefects.all() if self.defects else recipe.defects
        return replace(recipe, model={**recipe.model, **self.model}, weights=weights, defects=defects)

    @property
    def size(self) -> str:
        """The size of the model, by its name in `asap.model.config.ModelConfig.preset`."""
        return "base" if self.preset == "published" else self.preset

    # Amounts that depend on the number of training pairs.

    def steps_an_epoch(self, train_pairs: int) -> int:
        """Return the number of whole batches in an epoch. Raises `ConfigError` if the pairs do not fill one."""
        if train_pairs < self.batch_size:
            raise ConfigError(
                f"{train_pairs} training pairs do not fill one batch of {self.batch_size}. "
                "Use a larger corpus or a smaller batch_size."
            )
        return train_pairs // self.batch_size

    def total_steps(self, train_pairs: int) -> int:
        """Return the number of steps of a run on so many training pairs."""
        if self.epochs is not None:
            return max(1, round(self.epochs * (train_pairs // self.batch_size)))
        return max(1, (self.pairs or DEFAULT_PAIRS) // self.batch_size)

    def total_pairs(self, total_steps: int) -> int:
        """Return the number of pairs that a run of so many steps shows."""
        return self.pairs or total_steps * self.batch_size

    def warmup_steps(self, total_steps: int, steps_an_epoch: int) -> int:
        """Return the number of steps of the warmup, at least one."""
        if self.warmup_pairs is None:
            return max(1, min(steps_an_epoch, total_steps // 10))
        return max(1, self.warmup_pairs // self.batch_size)

    def default_notes(self) -> list[str]:
        """Return a sentence for each reason why settings that were not given have other values than usual."""
        notes = []
        if self.preset == "published":
            values = published_defaults({"recipe": self.recipe if self.recipe in PUBLISHED_RECIPES else "asap"})
            differing = [name for name, value in values.items() if name != "name" and getattr(self, name) != value]
            but = f", but for {', '.join(differing)}" if differing else ""
            notes.append(f"preset=published: the settings are those of the published training{but}")
        elif self.init:
            values = warm_start_defaults({"preset": self.preset, "init": self.init})
            taken = [f"{name}={_shown(getattr(self, name))}" for name in values if name not in self.model_fields_set]
            if taken:
                notes.append(f"defaults for pretrained weights, since init is given: {', '.join(taken)}")
        return notes

    def micro_batches(self, world: int) -> int:
        """Return the number of micro batches per step for each of `world` workers.

        It is the smallest number whose micro batches are no larger than those of `workers` workers, because memory was
        chosen for these.
        """
        pairs_per_worker = self.batch_size // world
        largest = self.batch_size // (self.workers * self.accumulation)
        return next(
            count
            for count in range(1, pairs_per_worker + 1)
            if pairs_per_worker % count == 0 and pairs_per_worker // count <= largest
        )

    def identity(self) -> dict[str, Any]:
        """Return the settings that determine what is learned; a run resumes only with the same ones."""
        return self.model_dump(mode="json", exclude=EXECUTION_SETTINGS)


def _shown(value: Any) -> str:
    """Return a value as it is shown; None is an amount that follows from the length of an epoch."""
    if isinstance(value, str):
        return value
    return "by epoch" if value is None else f"{value:g}"
