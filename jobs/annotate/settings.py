"""Settings of a job of annotations. Values that cannot work are refused when the settings are built."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from jobs.descriptions.settings import DescriptionSettings, check_devices, engines_by_kind, fill_kind
from jobs.scan.settings import PairsSettings


class AnnotateSettings(PairsSettings):
    """A job of captions, explanations, or both. OUT is the folder of the job."""

    captions: DescriptionSettings | None = None
    """The engine that describes pictures (docs/descriptions.md). None: no captions."""
    explanations: DescriptionSettings | None = None
    """The engine that explains texts. None: no explanations."""
    annotators: int | None = Field(default=None, ge=1)
    """Processes of each engine. None: one; for a model on GPUs as many as they hold; for a small model (at most 100 MB)
    on CPUs as many as there are CPUs."""
    annotator_gpus: float = Field(default=1, gt=0, le=1)
    """Share of a GPU for a model of `transformers`. Two such models divide it. An engine `vllm` has whole GPUs."""
    annotator_cpus: float | None = Field(default=None, gt=0)
    """CPUs of each process of an engine. Without a GPU, a model of `transformers` runs with as many threads. None: 0.5
    for a model of `transformers` on a GPU, which two models divide; 1 for vLLM; 0.1 for an endpoint or a file; without
    a GPU, 60 % of a machine for a large model and of a CPU for a small one."""
    missing_images: float = Field(default=0.01, ge=0, le=1)
    """Largest fraction of a corpus whose pictures may be missing. Their pairs are left out, as in training."""
    pilot_rows: int = Field(default=12, ge=1, le=1000)
    """Pairs that a plan describes with each engine, to say what the job takes."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        return fill_kind(values)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.engines:
            raise ValueError(
                "neither captions nor explanations are asked for. Give --caption-engine with --captioner, or "
                "--explanation-engine with --explainer, or both."
            )
        check_devices(self.engines.values(), self.device)
        return self

    @property
    def engines(self) -> dict[str, DescriptionSettings]:
        """The engines by what they write, `caption` and `explanation`, in the order in which they work."""
        return engines_by_kind(self.captions, self.explanations)

    @property
    def needs_texts(self) -> bool:
        """True if texts are explained."""
        return self.explanations is not None

    @property
    def needs_gpu(self) -> bool:
        """True if an engine runs on GPUs only."""
        return any(engine.gpus for engine in self.engines.values())

    @property
    def thumbnail_side(self) -> int | None:
        """Largest side of the pictures that the captioner gets; None if no picture is looked at."""
        return self.captions.max_side if self.captions and self.captions.sees_pictures else None

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide what the rows say; a job resumes only under the same ones."""
        names = {"caption": "captions", "explanation": "explanations"}
        return self.input_identity() | {
            name: self.engines[kind].identity() if kind in self.engines else None for kind, name in names.items()
        }
