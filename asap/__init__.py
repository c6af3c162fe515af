"""ASAP: find manipulated faces and words in image-text pairs. The package uses torch and never imports ray.

The names of `__all__` are imported on first use, so `import asap` loads no torch:

    from asap import Pair, Predictor

    predictor = Predictor.from_folder("demo")
    finding, = predictor.predict([Pair("photo.jpg", "The minister smiles at the crowd.")])

The files and folders, in reading order:

    errors.py        the errors of the library
    labels.py        manipulation types, verdicts, and the classes of each data set
    finding.py       Pair, Finding, Word, Box: input and output as plain data
    limits.py        Limits: what a model was made from and must not be used for
    familiarity.py   Familiarity: how strange a pair is to a model
    familiarity_file.py  its file, read and checked without torch
    policy.py        Policy: thresholds that turn probabilities into a verdict
    columns.py       Scores: what the model says of many pairs, and what a policy makes of it
    predictor.py     Predictor: pairs in, findings out
    evidence.py      logits to probabilities, pixel boxes and word scores
    render.py        evidence drawn on the image and marked in the text
    preprocessing/   untrusted images and texts to the tensors that the model reads
    model/           the network and its configuration
    weights/         model folders, published and pretrained checkpoints
    storage/         files on a local disk or in S3
    job_records/     jobs as their folders show them: status and result rows
    submission/      commands that are submitted to a Ray cluster
    corpus/          labeled data: annotations, images, descriptions
    training/        losses, data and the arithmetic of one training step
    evaluation/      metrics, calibration and thresholds
    newsroom/        the generator of the synthetic corpus
    demo/            the model folder that ships with the library (data, no code)
    demo_captioner/  the captioner that ships with the library, for demos and tests (data, no code)
    packages.py      imports the packages of this program in Ray's worker processes
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asap.finding import Finding, Pair
    from asap.policy import Policy
    from asap.predictor import Predictor
    from asap.weights.model_folder import load_folder as load_model
    from asap.weights.model_folder import save as save_model
    from asap.weights.published import import_published

__all__ = ["Finding", "Pair", "Policy", "Predictor", "import_published", "load_model", "save_model"]

_ORIGINS = {
    "Pair": "asap.finding.Pair",
    "Finding": "asap.finding.Finding",
    "Policy": "asap.policy.Policy",
    "Predictor": "asap.predictor.Predictor",
    "load_model": "asap.weights.model_folder.load_folder",
    "save_model": "asap.weights.model_folder.save",
    "import_published": "asap.weights.published.import_published",
}
"""The import path of each public name.

`load_model` returns a `ModelFolder`, because a `Predictor` needs the tokenizer and the policy as well as the weights;
its `model` is the network that `save_model` takes.
"""

if not TYPE_CHECKING:  # mypy would accept any name of a module that has `__getattr__`

    def __getattr__(name: str) -> Any:
        """Import a public name on first use (PEP 562) and keep it."""
        if name not in _ORIGINS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, attribute = _ORIGINS[name].rpartition(".")
        value = getattr(importlib.import_module(module), attribute)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
