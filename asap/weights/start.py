"""A start for training from weights that others trained, with a report on the use of each tensor.

    PATH.pth              a published ASAP or HAMMER checkpoint, ALBEF's, or RamDG's, of which the HAMMER part is
                          taken; its keys decide which
    FOLDER                a model folder, or `demo`
    timm:NAME_OR_FOLDER   a ViT of timm, for the image encoder
    bert:NAME_OR_FOLDER   a BERT of transformers, for the text encoder and the fusion layers that follow it

A source fits the configured model, or it is refused with every key that does not fit. Only position embeddings are
resized. Files are read as plain tensors and never unpickled. A source of timm or BERT that is not a folder here is a
name that timm or transformers downloads, without code from there.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from asap.errors import CheckpointError
from asap.model.config import ModelConfig
from asap.preprocessing.text import load_tokenizer
from asap.weights.albef import albef_twins, import_albef
from asap.weights.checkpoint_file import read_state, title_of
from asap.weights.matching import (
    ASAP_ONLY,
    PATCH_EMBEDDING,
    POSITIONS,
    WORDS,
    InitializationReport,
    check_post_norm,
    expected_shapes,
    resize_positions,
    select_fitting,
)
from asap.weights.model_folder import load, resolve_folder
from asap.weights.other_models import HEAD_OUTPUT, recognize
from asap.weights.pretrained import bert_encoders, bert_tokenizer, timm_encoder
from asap.weights.published import (
    HammerPart,
    Twins,
    hammer_part,
    import_published,
    published_name,
    published_twins,
)

_TIMM, _BERT = "timm:", "bert:"


@dataclass(frozen=True)
class Start:
    """The weights that training begins with in place of random ones."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    """The student's weights, by our names."""
    twins: Twins = field(default_factory=Twins)
    """The twin and queues that the sources had. Where they had none, the twin starts as a copy of the student."""
    reports: dict[str, InitializationReport] = field(default_factory=dict)
    """The reports by source, in the order in which the sources were taken."""

    def save(self, file: Path) -> None:
        """Write the tensors as safetensors, for `asap.training.step.begin_from_start` to read."""
        groups = {"student": self.weights, "twin": self.twins.weights, "queues": self.twins.queues}
        tensors = {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}
        save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, file)


def read_starts(
    sources: Iterable[str], config: ModelConfig, *, queue_size: int = 65_536, words_of: Container[str] = ()
) -> Start:
    """Read the start of a model from several sources; a later source replaces weights of an earlier one.

    Args:
        sources: the sources, as the module describes them.
        config: the model to train.
        queue_size: length of the run's feature queues.
        words_of: the sources whose tokenizer the run uses. Other model folders and BERTs number their words
            differently, so their word embeddings are left out.

    Raises:
        CheckpointError: with every key that does not fit.
    """
    whole = Start()
    for source in sources:
        start = _with_queues(_read_start(source, config, takes_words=source in words_of), source, queue_size)
        weights = whole.weights | start.weights
        # The twin of replaced weights goes too: it would pull the new ones back to the old.
        older = {name: value for name, value in whole.twins.weights.items() if name not in start.weights}
        fresh = sorted(set(expected_shapes(config)) - set(weights))
        whole = Start(
            weights,
            Twins(older | start.twins.weights, start.twins.queues or whole.twins.queues),
            whole.reports | {source: dataclasses.replace(start.reports[source], fresh=fresh)},
        )
    return whole


def split_source(source: str) -> tuple[str, str]:
    """Split a source into `timm:` or `bert:`, or an empty text, and the name or path."""
    kind = next((kind for kind in (_TIMM, _BERT) if source.startswith(kind)), "")
    return kind, source.removeprefix(kind)


def source_tokenizer(source: str) -> Any:
    """Return the tokenizer that comes with a model folder or a BERT, or None."""
    if source.startswith(_BERT):
        return bert_tokenizer(source.removeprefix(_BERT))
    if not source.startswith(_TIMM) and (folder := _folder_of(source)).is_dir():
        return load_tokenizer(folder / "tokenizer")
    return None


def has_words(source: str) -> bool:
    """Return True if a source has word embeddings, which are useless without the tokenizer that numbers the words."""
    return not source.startswith(_TIMM)


def _read_start(source: str, config: ModelConfig, *, takes_words: bool) -> Start:
    if source.startswith(_TIMM):
        weights, report = timm_encoder(source.removeprefix(_TIMM), config)
        return Start(weights, reports={source: report})
    if source.startswith(_BERT):
        weights, report = bert_encoders(source.removeprefix(_BERT), config, takes_words=takes_words)
        return Start(weights, reports={source: report})
    if _folder_of(source).is_dir():
        return _from_folder(source, config, takes_words=takes_words)
    if not Path(source).is_file():
        raise CheckpointError(
            f"start {source!r} does not exist. Name a .pth file, a model folder, {_TIMM}NAME_OR_FOLDER or "
            f"{_BERT}NAME_OR_FOLDER."
        )
    check_post_norm(source, config)
    # ASAP and HAMMER find boxes; ALBEF, from which they were trained, has no head for them.
    state = read_state(source)
    if any(key.startswith("bbox_head.") for key in state):
        return _from_published(source, config)
    if "visual_encoder.pos_embed" not in state:
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        if other := recognize(shapes, title_of(source)):
            raise CheckpointError(f"{other} Nothing was loaded.")
    model, report = import_albef(source, config)
    state = model.state_dict()
    return Start({name: state[name] for name in report.taken}, albef_twins(source, config), {source: report})


def _from_published(source: str, config: ModelConfig) -> Start:
    if part := hammer_part(source, heads=config.heads):
        return _from_hammer_part(part, source, config)
    model = import_published(source, heads=config.heads)
    weights, report = select_fitting(model.state_dict(), config, source, _left_out(model.config, config))
    twins = published_twins(source, heads=config.heads, image_size=config.image_size)
    # A parameter that the student does not take has no use in the twin either.
    of_twin = {name: value for name, value in twins.weights.items() if name in weights}
    names = {published_name(name, model.config, twin=True) for name in of_twin}
    report = dataclasses.replace(
        report,
        dropped=sorted(published_name(name, model.config) for name in report.dropped),
        for_twins=sorted(names | {key for key in read_state(source) if "queue" in key}),
    )
    return Start(weights, Twins(of_twin, twins.queues), {source: report})


def _from_hammer_part(part: HammerPart, source: str, config: ModelConfig) -> Start:
    """Return the start from a checkpoint with other types, as far as the model to train has its parts."""
    output = re.escape(HEAD_OUTPUT.replace("cls_head.", "type_head."))
    weights, report = select_fitting(part.weights, config, source, [*_left_out(part.config, config), output])
    twin = {name: value for name, value in part.twins.weights.items() if name in weights}
    if POSITIONS in twin:
        twin[POSITIONS] = resize_positions(twin[POSITIONS], config)
    used = {published_name(name, part.config, twin=True) for name in twin}
    dropped = [published_name(name, part.config) for name in report.dropped] + part.dropped
    used |= {key for key in read_state(source) if "queue" in key and key not in part.dropped}
    report = dataclasses.replace(report, dropped=sorted(dropped), for_twins=sorted(used))
    return Start(weights, Twins(twin, part.twins.queues), {source: report})


def _from_folder(source: str, config: ModelConfig, *, takes_words: bool) -> Start:
    model = load(_folder_of(source))
    for name in ("heads", "text_norm"):  # no shape shows these
        theirs, ours = getattr(model.config, name), getattr(config, name)
        if theirs != ours:
            raise CheckpointError(f"{source} has {name} {theirs!r} and the run {ours!r}; nothing was loaded")
    left_out = _left_out(model.config, config) + ([] if takes_words else [WORDS])
    weights, report = select_fitting(model.state_dict(), config, source, left_out)
    return Start(weights, reports={source: report})


def _left_out(theirs: ModelConfig, ours: ModelConfig) -> list[str]:
    """Return patterns of the parameters that one of two kinds of models lacks, or has in another form."""
    return [PATCH_EMBEDDING] * (theirs.patch_embedding != ours.patch_embedding) + [ASAP_ONLY] * (
        theirs.variant != ours.variant
    )


def _with_queues(start: Start, source: str, size: int) -> Start:
    """Fit the queues to the run's length: keep the newest features of longer ones, drop shorter ones."""
    report, twins = start.reports[source], start.twins
    features = {name: value for name, value in twins.queues.items() if name != "pointer"}
    if not features:
        return start
    if min(value.shape[1] for value in features.values()) >= size:
        oldest = int(twins.queues["pointer"])  # the column to write next holds the oldest features
        queues = {name: value.roll(-oldest, dims=1)[:, -size:] for name, value in features.items()}
        return dataclasses.replace(start, twins=Twins(twins.weights, queues | {"pointer": torch.tensor(0)}))
    keys = {key for key in report.for_twins if "queue" in key}
    report = dataclasses.replace(
        report, for_twins=sorted(set(report.for_twins) - keys), dropped=sorted({*report.dropped, *keys})
    )
    return Start(start.weights, Twins(twins.weights), {source: report})


def _folder_of(source: str) -> Path:
    return resolve_folder("demo") if source == "demo" else Path(source)
