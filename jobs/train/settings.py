"""Settings of a training run. Values that cannot work are refused when the settings are built."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from asap.training.objective import LossWeights, Recipe, recipe_called
from jobs.settings import ClusterSettings, CorpusSettings, Device

EXECUTION_SETTINGS = {
    "out", "workers", "min_workers", "regrow_every_s", "cpus_per_worker", "device", "checkpoint_activations", "compile",
    "checkpoint_pairs", "export", "address", "wait_for_machines_s", "ingest", "cache_gib", "tokens_gib", "decode_tasks",
}  # fmt: skip
"""The settings of a training run that may change from one start of it to the next."""


class TrainSettings(CorpusSettings, ClusterSettings):
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
    model: dict[str, Any] = Field(default_factory=dict)
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

    loss_weights: dict[str, float] = Field(default_factory=dict)
    """Changes to the recipe's weights, by name of `asap.training.objective.LossWeights`."""
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
        return self.model_dump(mode="json", exclude=EXECUTION_SETTINGS)
