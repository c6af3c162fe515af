"""The predictor: pairs in, findings out, in pixels of the original image and words of the original text.

Shapes: R rows (pairs), P passes (a long text has several), L tokens with [CLS], N image tokens, W width.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from asap.errors import ConfigError, InputError, ModelError, ScoreNotFinite, TextUnreadable
from asap.evidence import Agreement, PassEvidence, agreements, box_px, highest_types, read_output, score_words
from asap.familiarity import PairFamiliarity, PairFeatures
from asap.finding import Finding, Pair
from asap.labels import TEXT_TYPES
from asap.limits import NO_FAMILIARITY, limits_sentences
from asap.model.activations import EarlyActivations, text_features, text_sums, token_features
from asap.model.asap import Asap, AsapOutput
from asap.model.execution import has_bfloat16
from asap.policy import Policy, apply_policy
from asap.preprocessing.images import DEFAULT_LIMITS, ImageLimits, PreparedImage, normalize, prepare_image
from asap.preprocessing.text import EncodedPass, TextCodec, pad_batch
from asap.preprocessing.words import MIN_TEXT_READ, split_words
from asap.weights.model_folder import ModelFolder, load_folder

Precision = Literal["auto", "float32", "bfloat16"]
_Item = TypeVar("_Item")

_HEADS = ("real_fake_head", "type_head", "box_head", "token_head", "image_projection", "text_projection")
_CHUNK_BATCHES = 16
"""Batches of pairs that `predict` holds decoded at once; within them texts are sorted by length."""
_CAPTION_WARNING = "the pair has no text. It was scored against a caption of the image, whose words were not analyzed"


@dataclass(frozen=True, eq=False)
class _Row:
    """A pair that can be scored."""

    image: PreparedImage
    text: str
    passes: list[EncodedPass]
    is_caption: bool
    text_read: float
    caption_passes: list[EncodedPass]
    """The passes over a caption that stands beside the text; empty without one, or if it cannot be read."""


class _Evidence(NamedTuple):
    """The evidence of a row."""

    passes: list[PassEvidence]
    familiarity: PairFamiliarity | None
    """None if the model has no familiarity file."""
    agreement: Agreement


_Scored = _Evidence | ModelError
_Scoring = Generator[None, None, list[_Scored]]
"""A generator that pauses between passes of the model and returns the evidence of each row."""


class Predictor:
    """A model ready to detect manipulated pairs. It keeps no state between calls, so threads may share one."""

    def __init__(
        self,
        loaded: ModelFolder,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        policy: Policy | None = None,
        batch_size: int = 32,
        limits: ImageLimits = DEFAULT_LIMITS,
        min_text_read: float = MIN_TEXT_READ,
    ) -> None:
        """Take over `loaded.model`, which is moved to the device. `from_folder` explains the other arguments."""
        if not isinstance(loaded, ModelFolder):
            raise ConfigError(
                f"the model is a {type(loaded).__name__} and not a ModelFolder. Use Predictor.from_folder(FOLDER), or "
                "pass what load_model returns."
            )
        if policy is not None and not isinstance(policy, Policy):
            raise ConfigError(f"policy {policy!r} is not a Policy. Read a file with Policy.load.")
        self.config = loaded.config
        self.model_id = loaded.model_id
        self.policy = policy or loaded.policy
        self.limits = limits_sentences(loaded.limits, loaded.model_id)
        if loaded.familiarity is None:
            self.limits += f" {NO_FAMILIARITY}"
        self.familiarity = loaded.familiarity
        self.device = _device(device)
        self.dtype = _dtype(precision, self.device)
        self.batch_size = _positive(batch_size)
        self._limits = limits
        if not 0 <= min_text_read <= 1:
            raise ConfigError(f"min_text_read {min_text_read} is not between 0 and 1")
        self._min_text_read = min_text_read
        self._codec = TextCodec(loaded.tokenizer, max_words=self.config.max_words, max_tokens=self.config.max_tokens)
        self._model = _move(loaded.model, self.device, self.dtype)
        self._activations = EarlyActivations(self._model)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        device: str = "auto",
        precision: Precision = "auto",
        policy: Policy | None = None,
        *,
        batch_size: int = 32,
        limits: ImageLimits = DEFAULT_LIMITS,
        min_text_read: float = MIN_TEXT_READ,
    ) -> Predictor:
        """Build a predictor from a model folder.

        Args:
            folder: a model folder, or "demo" for the model that ships with the library.
            device: "auto" is CUDA if available, else the CPU; or any torch device.
            precision: "auto" is bfloat16 on a CUDA device that supports it, else float32. The heads always compute in
                float32.
            policy: used instead of the folder's policy.
            batch_size: pairs that the model sees at once.
            limits: size limits on each image.
            min_text_read: share of a text's characters, 0 to 1, that the vocabulary must read. With less, the finding
                has the error `TextUnreadable`.

        Raises `CheckpointError` if the folder cannot be used, `ConfigError` if another argument cannot.
        """
        return cls(
            load_folder(folder),
            device=device,
            precision=precision,
            policy=policy,
            batch_size=batch_size,
            limits=limits,
            min_text_read=min_text_read,
        )

    @property
    def image_size(self) -> int:
        """Side, in pixels, of the square images that `predict_prepared` takes."""
        return self.config.image_size

    def reads(self, text: str) -> bool:
        """Return True unless the vocabulary reads too little of the text. Other errors of a text do not count."""
        try:
            return self._codec.readable_share(text) >= self._min_text_read
        except InputError:
            return True

    def predict(self, pairs: Sequence[Pair], *, batch_size: int | None = None) -> list[Finding]:
        """Return one Finding for each pair, in their order.

        A problem with a pair is reported in its Finding's `error` and affects no other pair. A text with more words
        than one pass holds is analyzed in several passes against the same image. Score and types are the maximum over
        the passes, the box comes from the pass with the highest image type, and each word is scored by the pass that
        holds it.
        """
        size = self.batch_size if batch_size is None else _positive(batch_size)
        findings: list[Finding] = []
        for chunk in _slices(pairs, _CHUNK_BATCHES * size):
            images = [self._prepare(pair) for pair in chunk]
            findings += self.predict_prepared(images, [pair.text for pair in chunk], batch_size=size)
        return findings

    def predict_prepared(
        self,
        images: Sequence[PreparedImage | InputError],
        texts: Sequence[str | InputError | None],
        *,
        captioned: Sequence[bool] | None = None,
        captions: Sequence[str | None] | None = None,
        batch_size: int | None = None,
    ) -> list[Finding]:
        """Return one Finding for each pair of a prepared image and a text, in their order.

        Args:
            images: images at the model's size; an `InputError` instead of one becomes its Finding's error.
            texts: the texts; an `InputError` instead of one becomes its Finding's error.
            captioned: for each pair, True if the text is a caption that replaces a missing text. The words and the
                text types of such a pair are None.
            captions: for each pair, a caption that picture and text are compared with. It changes no verdict.
            batch_size: pairs that the model sees at once, by default the predictor's.
        """
        steps = self.predict_in_steps(images, texts, captioned=captioned, captions=captions, batch_size=batch_size)
        return next(findings for findings in steps if findings is not None)

    def predict_in_steps(
        self,
        images: Sequence[PreparedImage | InputError],
        texts: Sequence[str | InputError | None],
        *,
        captioned: Sequence[bool] | None = None,
        captions: Sequence[str | None] | None = None,
        batch_size: int | None = None,
    ) -> Iterator[list[Finding] | None]:
        """Do the same as `predict_prepared`, but yield None between passes of the model and the findings at the end.

        A long text takes many passes. At each None the caller can process other pairs, or stop.
        """
        is_caption = captioned if captioned is not None else [False] * len(texts)
        beside = captions if captions is not None else [None] * len(texts)
        size = self.batch_size if batch_size is None else _positive(batch_size)
        rows = [self._row(*fields) for fields in zip(images, texts, is_caption, beside, strict=True)]
        # Texts of similar length need little padding. The order does not change any result.
        scorable = [row for row in rows if isinstance(row, _Row)]
        scorable.sort(key=lambda row: max(len(part.input_ids) for part in row.passes))
        scored: dict[_Row, _Scored] = {}
        for batch in _slices(scorable, size):
            if scored:
                yield None
            scored |= zip(batch, (yield from self._score_safely(batch, size)), strict=True)
        yield [
            self._finding(row, scored[row]) if isinstance(row, _Row) else self._failure(image, row)
            for row, image in zip(rows, images, strict=True)
        ]

    def _prepare(self, pair: Pair) -> PreparedImage | InputError:
        try:
            return prepare_image(pair.image, self.image_size, self._limits)
        except InputError as error:
            return error

    def _row(
        self,
        image: PreparedImage | InputError,
        text: str | InputError | None,
        is_caption: bool = False,
        caption: str | None = None,
    ) -> _Row | InputError:
        if isinstance(image, InputError):
            return image
        if image.pixels.shape != (self.image_size, self.image_size, 3):
            # The caller's mistake, which concerns all pairs: no InputError.
            raise ConfigError(
                f"an image of shape {image.pixels.shape} was prepared for another model than {self.model_id}. "
                f"Prepare it with image_size {self.image_size}."
            )
        if isinstance(text, InputError):
            return text
        try:
            passes, text_read = self._codec.read(text)
        except InputError as error:
            return error
        if text_read < self._min_text_read:
            return TextUnreadable(
                f"the model {self.model_id} reads {100 * text_read:.0f} % of the text; it needs "
                f"{100 * self._min_text_read:g} %. Use a model that was made for this language."
            )
        caption_passes: list[EncodedPass] = []
        if caption is not None and not is_caption:
            with suppress(InputError):  # a caption without words has nothing to compare
                read, share = self._codec.read(caption)
                caption_passes = read if share >= self._min_text_read else []
        return _Row(image, text or "", passes, is_caption, text_read, caption_passes)

    def _score_safely(self, rows: Sequence[_Row], passes_at_once: int) -> _Scoring:
        """Score rows. If the model raises, halve the batch until only the culprit is left with a `ModelError`.

        A broken device (`AcceleratorError`) is not the fault of any row, and nothing more can be computed on it, so
        that error is raised.
        """
        try:
            return (yield from self._score(rows, passes_at_once))
        except torch.AcceleratorError:
            raise
        except Exception as error:
            failure = ModelError(f"the model failed on this pair: {type(error).__name__}: {error}")
            out_of_memory = isinstance(error, torch.OutOfMemoryError)
        if out_of_memory:  # outside the handler, because the traceback keeps the tensors alive
            torch.cuda.empty_cache()
        if len(rows) > 1:
            halves: list[_Scored] = []
            for half in _slices(rows, (len(rows) + 1) // 2):
                halves += yield from self._score_safely(half, len(half))
            return halves
        # One row is left. Its passes may still be too many at once, so try them one by one before giving up.
        if min(passes_at_once, len(rows[0].passes)) > 1:
            return (yield from self._score_safely(rows, 1))
        return [failure]

    @torch.inference_mode()
    def _score(self, rows: Sequence[_Row], passes_at_once: int) -> _Scoring:
        """Encode the image of each row once, and fuse it with each pass of the row's text."""
        image_RNW, image_RD = self._encode_images(rows)
        todo = [(owner, part.input_ids) for owner, row in enumerate(rows) for part in row.passes]
        passes: list[PassEvidence] = []
        sums: list[Tensor] = []
        texts: list[Tensor] = []
        for batch in _slices(todo, passes_at_once):
            if passes:
                yield
            owners, input_ids = zip(*batch, strict=True)
            text_PLW, mask_PL = self._encode_texts(input_ids)
            sums.append(text_sums(text_PLW, mask_PL))
            texts.append(self._model.text_features(text_PLW[:, :1].float()))
            # Indexing copies the image tokens. Most batches have one pass for each row and need no copy.
            image_PNW = image_RNW if owners == tuple(range(len(rows))) else image_RNW[list(owners)]
            output = self._fuse(image_PNW, text_PLW, mask_PL)
            passes += read_output(output, [len(ids) - 1 for ids in input_ids])
        familiarity: Sequence[PairFamiliarity | None] = [None] * len(rows)
        if self.familiarity is not None:
            features = _pair_features(image_RNW, image_RD, sums, [owner for owner, _ in todo])
            familiarity = self.familiarity.of_pairs(features, [row.is_caption for row in rows])
        image_RE = self._model.image_features(image_RNW[:, :1].float())
        agreed = self._agreements(rows, image_RE, torch.cat(texts), [owner for owner, _ in todo], passes_at_once)
        in_order = iter(passes)
        evidence = [
            _Evidence([next(in_order) for _ in row.passes], familiar, agreement)
            for row, familiar, agreement in zip(rows, familiarity, agreed, strict=True)
        ]
        return [
            one
            if all(part.is_finite for part in one.passes)
            else ScoreNotFinite("the model returned NaN or infinite values for this pair")
            for one in evidence
        ]

    def _agreements(
        self, rows: Sequence[_Row], image_RE: Tensor, text_PE: Tensor, owners: Sequence[int], passes_at_once: int
    ) -> list[Agreement]:
        """Return the agreement of each row. Only its caption has to be encoded, by the text encoder alone.

        Args:
            rows: the rows.
            image_RE: the contrastive features of their images.
            text_PE: those of the passes over their texts.
            owners: for each of these passes, the number of its row.
            passes_at_once: captions that the model sees at once.
        """
        todo = [(owner, part.input_ids) for owner, row in enumerate(rows) for part in row.caption_passes]
        captions = [text_PE[:0]]
        for batch in _slices([input_ids for _, input_ids in todo], passes_at_once):
            caption_PLW, _ = self._encode_texts(batch)
            captions.append(self._model.text_features(caption_PLW[:, :1].float()))
        image, text, caption = (features.cpu().numpy() for features in (image_RE, text_PE, torch.cat(captions)))
        return agreements(image, text, owners, caption, [owner for owner, _ in todo], [row.is_caption for row in rows])

    def _encode_images(self, rows: Sequence[_Row]) -> tuple[Tensor, Tensor]:
        """Return the image tokens of rows, (R, N, W), and their early features, (R, D)."""
        pixels = torch.from_numpy(np.stack([row.image.pixels for row in rows])).to(self.device)
        return self._activations.encode_image(normalize(pixels).to(self.dtype))

    def _encode_texts(self, input_ids: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Return the text tokens of passes, (P, L, W), and their mask, (P, L)."""
        ids_PL, mask_PL = (part.to(self.device) for part in pad_batch(input_ids, self._codec.pad_id))
        return self._model.encode_text(ids_PL, mask_PL), mask_PL

    def _fuse(self, image_PNW: Tensor, text_PLW: Tensor, mask_PL: Tensor) -> AsapOutput:
        """Fuse encoded images with one encoded text each, in `self.dtype`, and apply the heads in float32."""
        fused = self._model.fuse(image_PNW, text_PLW, mask_PL)
        image_side = replace(fused.image_side, aggregate_BW=fused.image_side.aggregate_BW.float())
        return self._model.predict(replace(fused, tokens_BLW=fused.tokens_BLW.float(), image_side=image_side))

    @torch.inference_mode()
    def features(self, pairs: Sequence[Pair]) -> PairFeatures:
        """Return the early features of pairs, to fit a `Familiarity`; pairs that cannot be read are left out."""
        parts: list[PairFeatures] = []
        for batch in _slices(pairs, self.batch_size):
            prepared = [self._prepare(pair) for pair in batch]
            rows = [
                row
                for image, pair in zip(prepared, batch, strict=True)
                if isinstance(row := self._row(image, pair.text), _Row)
            ]
            if not rows:
                continue
            todo = [(owner, part.input_ids) for owner, row in enumerate(rows) for part in row.passes]
            sums_PD = text_sums(*self._encode_texts([ids for _, ids in todo]))
            parts.append(_pair_features(*self._encode_images(rows), [sums_PD], [owner for owner, _ in todo]))
        if not parts:
            raise InputError("none of the pairs can be read")
        return PairFeatures.joined(parts)

    def _finding(self, row: _Row, scored: _Scored) -> Finding:
        """Combine the evidence of all passes over a row, in pixels and words of the original."""
        if isinstance(scored, InputError):
            return self._failure(row.image, scored)
        passes, familiarity, agreement = scored
        score = max(evidence.score for evidence in passes)
        types: dict[str, float | None] = dict(highest_types(passes))
        raw_box = box_px(passes, row.image.width, row.image.height)
        word_scores = None
        if row.is_caption:
            # The caption comes from the image itself, so it is no evidence about the words of the pair.
            types |= dict.fromkeys(TEXT_TYPES)
        else:
            word_scores = score_words(passes, [part.word_index for part in row.passes], len(split_words(row.text)))
        return Finding(
            score=score,
            types=types,
            raw_box_px=raw_box,
            word_scores=word_scores,
            text_read=None if row.is_caption else row.text_read,
            familiarity=familiarity and familiarity.pair,
            familiarity_image=familiarity and familiarity.image,
            familiarity_text=familiarity and familiarity.text,
            agreement_image_text=agreement.image_text,
            agreement_image_caption=agreement.image_caption,
            agreement_text_caption=agreement.text_caption,
            unfamiliar_parts=self.policy.unfamiliar_parts(*(familiarity or (None, None, None))),
            **apply_policy(
                self.policy,
                score=score,
                types=types,
                raw_box=raw_box,
                text=row.text,
                word_scores=word_scores,
                familiarity=familiarity and familiarity.pair,
            ),
            **self._about(row.image),
            warnings=[*row.image.warnings, *self._text_warnings(row)],
        )

    def _failure(self, image: PreparedImage | InputError, error: InputError) -> Finding:
        warnings = [] if isinstance(image, InputError) else image.warnings
        return Finding(**self._about(image), warnings=list(warnings), error=error)

    def _about(self, image: PreparedImage | InputError) -> dict[str, Any]:
        """Return the fields of a Finding that do not depend on the model's output."""
        ids = {
            "model_id": self.model_id,
            "policy_id": self.policy.policy_id,
            "familiarity_id": self.familiarity and self.familiarity.familiarity_id,
            "limits": self.limits,
        }
        if isinstance(image, InputError):
            return ids
        return ids | {"width": image.width, "height": image.height, "image_sha256": image.sha256}

    def _text_warnings(self, row: _Row) -> Iterator[str]:
        if row.is_caption:
            yield _CAPTION_WARNING
        if len(row.passes) > 1:
            yield (
                f"the text is longer than one pass holds ({self.config.max_words} words, {self.config.max_tokens} "
                f"tokens); it was analyzed in {len(row.passes)} passes"
            )
        yield from (warning for part in row.passes for warning in part.warnings)


def _pair_features(image_RNW: Tensor, image_RD: Tensor, sums: Sequence[Tensor], owners: Sequence[int]) -> PairFeatures:
    """Return the features of R rows, on the CPU.

    A text is one, however many passes it takes: a last pass of two words alone would look strange.

    Args:
        image_RNW: the image tokens.
        image_RD: the early features of the images.
        sums: the `text_sums` of all passes, in batches.
        owners: for each pass, the number of its row.
    """
    sums_PD = torch.cat(list(sums)).cpu()
    sums_RD = torch.zeros(len(image_RD), sums_PD.shape[1]).index_add(0, torch.tensor(owners), sums_PD)
    return PairFeatures(image_RD.cpu(), token_features(image_RNW).cpu(), text_features(sums_RD))


def _positive(batch_size: int) -> int:
    if batch_size < 1:
        raise ConfigError(f"batch_size {batch_size} is not at least 1")
    return batch_size


def _slices(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)  # torch.device() accepts devices that the machine does not have
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"device {device!r} cannot be used: {reason}. Use 'auto' for CUDA if available, else the CPU."
        ) from error
    return torch.device(device)


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if precision == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    if precision not in known:
        raise ConfigError(f"precision {precision!r} is unknown; 'auto', {', '.join(map(repr, known))} are known")
    return known[precision]


def _move(model: Asap, device: torch.device, dtype: torch.dtype) -> Asap:
    """Move the model to its device, all in `dtype` except the heads, whose logits become the probabilities."""
    model.to(device).eval()
    for name, module in model.named_children():
        module.to(torch.float32 if name in _HEADS else dtype)
    model.aggregate_token.data = model.aggregate_token.data.to(dtype)
    return model
