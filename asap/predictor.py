"""The predictor: pairs in, findings out, in pixels of the original image and words of the original text.

Shapes: R rows (pairs), P passes (a long text has several), L tokens with [CLS], N image tokens, W width.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asap.columns import Scores
from asap.errors import ConfigError, InputError, ModelError, ScoreNotFinite, TextUnreadable
from asap.evidence import PassEvidence, agreements, highest, probabilities, ranges, score_words, surest_boxes
from asap.familiarity import PairFeatures
from asap.finding import Finding, Pair
from asap.labels import TEXT_TYPES, TYPES
from asap.limits import NO_FAMILIARITY, limits_sentences
from asap.model.activations import EarlyActivations, text_features, text_sums, token_features
from asap.model.asap import Asap, AsapOutput
from asap.model.execution import has_bfloat16
from asap.policy import Policy
from asap.preprocessing.images import DEFAULT_LIMITS, ImageLimits, Pixels, PreparedImage, prepare_image
from asap.preprocessing.text import EncodedText, Ids, TextCodec, pad_batch
from asap.preprocessing.words import MIN_TEXT_READ
from asap.weights.model_folder import ModelFolder, load_folder

Precision = Literal["auto", "float32", "bfloat16"]
_Item = TypeVar("_Item")

_HEADS = ("real_fake_head", "type_head", "box_head", "token_head", "image_projection", "text_projection")
_CHUNK_BATCHES = 16
"""Batches of pairs that `predict` holds decoded at once; within them texts are sorted by length."""
_LEAST_BUCKET = 32
"""Passes that the model sees together at least, where shorter texts could be apart from longer ones."""
_CAPTION_WARNING = "the pair has no text. It was scored against a caption of the image, whose words were not analyzed"


@dataclass(frozen=True, eq=False)
class StagedPairs:
    """Pairs that are ready for the model: sorted by the length of their text, in batches, the first on its device."""

    pixels: Sequence[Pixels] | Pixels
    """RGB, uint8, (S, S, 3) each."""
    sizes_R2: NDArray[np.integer]
    """Width and height of the original images, in pixels."""
    captions: Sequence[EncodedText | None]
    """A caption beside each text, or None."""
    scores: Scores
    """The columns that the model fills."""
    batches: Sequence[Sequence[int]]
    """Numbers of the pairs that the model sees together."""
    passes_at_once: int
    first_RSS3: Tensor | None
    """The pixels of the first batch."""


_Scoring = Generator[None, None, None]
"""A generator that pauses between passes of the model."""


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
        self._familiarity = self.familiarity and self.familiarity.to(self.device)

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
    def familiarity_id(self) -> str | None:
        """Id of the model's familiarity file; None if it has none."""
        return self.familiarity.familiarity_id if self.familiarity else None

    @property
    def image_size(self) -> int:
        """Side, in pixels, of the square images that `predict_prepared` takes."""
        return self.config.image_size

    def reads(self, text: str) -> bool:
        """Return True unless the vocabulary reads too little of the text. Other errors of a text do not count."""
        return not isinstance(self.read_text(text), TextUnreadable)

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
        rows = [
            (image, self._check(image) or self.read_text(text), captioned, caption)
            for image, text, captioned, caption in zip(images, texts, is_caption, beside, strict=True)
        ]
        good = [row for row in rows if isinstance(row[0], PreparedImage) and isinstance(row[1], EncodedText)]
        pictures = [cast("PreparedImage", image) for image, *_ in good]
        staged = self.stage(
            [image.pixels for image in pictures],
            np.array([(image.width, image.height) for image in pictures], np.int64).reshape(-1, 2),
            [cast("EncodedText", text) for _, text, _, _ in good],
            np.array([captioned for _, _, captioned, _ in good], bool),
            [None if captioned else self.read_caption(caption) for _, _, captioned, caption in good],
            batch_size=batch_size,
        )
        for _ in self.score_in_steps(staged):
            yield None
        found = iter(self._findings(staged.scores, pictures))
        yield [
            self._failure(image, text) if isinstance(text, InputError) else next(found) for image, text, _, _ in rows
        ]

    def read_text(self, text: str | InputError | None) -> EncodedText | InputError:
        """Return a text as the model reads it, or the reason why it cannot; an `InputError` is returned as it is."""
        try:
            return text if isinstance(text, InputError) else self.check_readable(self._codec.read(text))
        except InputError as error:
            return error

    def check_readable(self, text: EncodedText) -> EncodedText | InputError:
        """Return the text, or the error of a text of which the vocabulary reads too little."""
        if text.share_read >= self._min_text_read:
            return text
        return TextUnreadable(
            f"the model {self.model_id} reads {100 * text.share_read:.0f} % of the text; it needs "
            f"{100 * self._min_text_read:g} %. Use a model that was made for this language."
        )

    def read_caption(self, caption: str | None) -> EncodedText | None:
        """Return a caption beside a text as the model reads it; None if there is nothing to compare."""
        read = None if caption is None else self.read_text(caption)
        return read if isinstance(read, EncodedText) else None

    @property
    def reader_id(self) -> str:
        """The id of the reader of texts; see `ReaderSource.reader_id`."""
        return self._codec.source.reader_id

    def stage(
        self,
        pixels: Sequence[Pixels] | Pixels,
        sizes_R2: NDArray[np.integer],
        texts: Sequence[EncodedText],
        captioned_R: NDArray[np.bool_],
        captions: Sequence[EncodedText | None],
        *,
        batch_size: int | None = None,
    ) -> StagedPairs:
        """Make R pairs ready for the model. Another thread may do so while the model runs.

        Args:
            pixels: images at the model's size, RGB, uint8, (S, S, 3) each.
            sizes_R2: width and height of the original images, in pixels.
            texts: the texts, all of which the vocabulary reads well enough.
            captioned_R: True where the text is a caption that replaces a missing text.
            captions: for each pair, a caption beside its text.
            batch_size: pairs that the model sees at once, by default the predictor's.
        """
        size = self.batch_size if batch_size is None else _positive(batch_size)
        # Texts of similar length need little padding. The order does not change any result.
        order = sorted(range(len(texts)), key=lambda row: max(len(part.input_ids) for part in texts[row].passes))
        batches = list(_slices(order, size))
        first = None
        if batches:
            try:
                first = self._to_device(pixels, batches[0])
            except torch.AcceleratorError:
                raise
            except Exception:  # memory that another batch has, perhaps: copied again when it is this one's turn
                first = None
        return StagedPairs(pixels, sizes_R2, captions, Scores.empty(texts, captioned_R), batches, size, first)

    def score_in_steps(self, staged: StagedPairs) -> _Scoring:
        """Fill the columns of `staged.scores`, and pause between passes of the model.

        A pair that the model fails on has its error there.
        """
        for number, batch in enumerate(staged.batches):
            if number:
                yield
            first = None if number else staged.first_RSS3
            yield from self._score_safely(staged, np.array(batch), staged.passes_at_once, first)

    def warnings(self, text: EncodedText, *, is_caption: bool) -> list[str]:
        """Return the warnings about a text that was scored.

        Args:
            text: the text.
            is_caption: True if it is a caption that replaced a missing text.
        """
        found = [_CAPTION_WARNING] if is_caption else []
        if len(text.passes) > 1:
            found.append(
                f"the text is longer than one pass holds ({self.config.max_words} words, {self.config.max_tokens} "
                f"tokens); it was analyzed in {len(text.passes)} passes"
            )
        return found + [warning for part in text.passes for warning in part.warnings]

    def _prepare(self, pair: Pair) -> PreparedImage | InputError:
        try:
            return prepare_image(pair.image, self.image_size, self._limits)
        except InputError as error:
            return error

    def _check(self, image: PreparedImage | InputError) -> InputError | None:
        """Return the error that stands in place of an image. Raises `ConfigError` for an image of another size."""
        if isinstance(image, InputError):
            return image
        if image.pixels.shape != (self.image_size, self.image_size, 3):
            # The caller's mistake, which concerns all pairs: no InputError.
            raise ConfigError(
                f"an image of shape {image.pixels.shape} was prepared for another model than {self.model_id}. "
                f"Prepare it with image_size {self.image_size}."
            )
        return None

    def _score_safely(
        self, staged: StagedPairs, rows: NDArray[np.int64], passes_at_once: int, pixels_RSS3: Tensor | None = None
    ) -> _Scoring:
        """Score rows. If the model raises, halve the batch until only the culprit is left with a `ModelError`.

        A broken device (`AcceleratorError`) is not the fault of any row, and nothing more can be computed on it, so
        that error is raised.
        """
        try:
            yield from self._score(staged, rows, passes_at_once, pixels_RSS3)
            return
        except torch.AcceleratorError:
            raise
        except Exception as error:
            failure = ModelError(f"the model failed on this pair: {type(error).__name__}: {error}")
            out_of_memory = isinstance(error, torch.OutOfMemoryError)
        if out_of_memory:  # outside the handler, because the traceback keeps the tensors alive
            torch.cuda.empty_cache()
        if len(rows) > 1:
            for half in np.array_split(rows, 2):
                yield from self._score_safely(staged, half, len(half))
            return
        # One row is left. Its passes may still be too many at once, so try them one by one before giving up.
        if min(passes_at_once, len(staged.scores.texts[rows[0]].passes)) > 1:
            yield from self._score_safely(staged, rows, 1)
            return
        staged.scores.errors[int(rows[0])] = failure

    @torch.inference_mode()
    def _score(
        self, staged: StagedPairs, rows: NDArray[np.int64], passes_at_once: int, pixels_RSS3: Tensor | None
    ) -> _Scoring:
        """Encode the image of each row once, fuse it with each pass of the row's text, and fill in the columns."""
        scores = staged.scores
        todo = _Passes.of([scores.texts[row] for row in rows])
        image_RNW, image_RD = self._encode_images(
            self._to_device(staged.pixels, rows) if pixels_RSS3 is None else pixels_RSS3
        )
        buckets = _length_buckets(todo.lengths_P, passes_at_once)
        found: list[Tensor] = []
        sums, features = [], []
        for numbers in buckets:
            if found:
                yield
            text_PLW, mask_PL = self._encode_texts([todo.input_ids[number] for number in numbers])
            sums.append(text_sums(text_PLW, mask_PL))
            features.append(self._model.text_features(text_PLW[:, :1].float()))
            # Indexing copies the image tokens. Most batches have one pass for each row, in their order.
            owners = todo.row_of_P[numbers]
            is_in_order = bool((np.diff(owners) == 1).all())
            chosen = slice(owners[0], owners[-1] + 1) if is_in_order else torch.from_numpy(owners).to(self.device)
            found.append(probabilities(self._fuse(image_RNW[chosen], text_PLW, mask_PL)))
        order_P = np.concatenate(buckets)
        # A GPU is waited for here, once it has all passes to do.
        evidence = PassEvidence.read([batch.cpu().numpy() for batch in found], order_P, todo.lengths_P - 1)
        text_PE = torch.cat(features).cpu().numpy()[np.argsort(order_P)]
        scores.agreement_R3[rows] = self._agreements(staged, rows, image_RNW, text_PE, todo.row_of_P, passes_at_once)
        if self._familiarity is not None:
            pair_features = _pair_features(image_RNW, image_RD, sums, todo.row_of_P[order_P])
            scores.familiarity_R3[rows] = self._familiarity.shares(pair_features, scores.captioned_R[rows])
        self._fill(staged, rows, todo, evidence)

    @staticmethod
    def _fill(staged: StagedPairs, rows: NDArray[np.int64], todo: _Passes, evidence: PassEvidence) -> None:
        """Combine the evidence of all passes over each row, in pixels and words of the original."""
        scores, captioned_R = staged.scores, staged.scores.captioned_R[rows]
        scores.score_R[rows] = highest(evidence.score_P, todo.first_R)
        scores.types_R4[rows] = highest(evidence.types_P4, todo.first_R)
        scores.box_R4[rows] = surest_boxes(evidence, todo.first_R, staged.sizes_R2[rows])
        # A caption comes from the image itself, so it is no evidence about the words of the pair.
        for name in TEXT_TYPES:
            scores.types_R4[rows[captioned_R], TYPES.index(name)] = np.nan
        counts_R = np.diff(scores.word_starts)[rows]
        word_of_T = np.concatenate([part.word_index for text in todo.texts for part in text.passes])
        row_of_T = todo.row_of_P[evidence.pass_of_T]
        is_word_T = ~captioned_R[row_of_T]
        word_of_T = (word_of_T + (np.cumsum(counts_R) - counts_R)[row_of_T])[is_word_T]
        words = score_words(evidence.tokens_T[is_word_T], word_of_T, int(counts_R.sum()))
        scores.words_W[ranges(scores.word_starts[rows], counts_R)] = words
        for row in np.unique(todo.row_of_P[~evidence.is_finite()]):
            failure = ScoreNotFinite("the model returned NaN or infinite values for this pair")
            scores.errors[int(rows[row])] = failure

    def _agreements(
        self,
        staged: StagedPairs,
        rows: NDArray[np.int64],
        image_RNW: Tensor,
        text_PE: NDArray[np.float32],
        row_of_P: NDArray[np.int64],
        passes_at_once: int,
    ) -> NDArray[np.float32]:
        """Return the agreement of each row, (R, 3). Only its caption has to be encoded, by the text encoder alone.

        Args:
            staged: the pairs.
            rows: the numbers of the rows.
            image_RNW: the tokens of their images.
            text_PE: the contrastive features of the passes over their texts.
            row_of_P: the position in `rows` of each pass.
            passes_at_once: captions that the model sees at once.
        """
        image_RE = self._model.image_features(image_RNW[:, :1].float()).cpu().numpy()
        todo = [
            (number, part.input_ids)
            for number, row in enumerate(rows)
            if (caption := staged.captions[row]) is not None
            for part in caption.passes
        ]
        captions = [np.empty((0, text_PE.shape[1]), np.float32)]
        for batch in _slices([input_ids for _, input_ids in todo], passes_at_once):
            caption_PLW, _ = self._encode_texts(batch)
            captions.append(self._model.text_features(caption_PLW[:, :1].float()).cpu().numpy())
        caption_rows = np.array([number for number, _ in todo], np.int64)
        captioned_R = staged.scores.captioned_R[rows]
        return agreements(image_RE, text_PE, row_of_P, np.concatenate(captions), caption_rows, captioned_R)

    def _to_device(self, pixels: Sequence[Pixels] | Pixels, rows: Iterable[int]) -> Tensor:
        """Copy the pixels of rows to the device as they are, (R, S, S, 3). A GPU copies pinned memory in background."""
        is_gpu = self.device.type == "cuda"
        chosen = [pixels[row] for row in rows]
        staged_RSS3 = torch.empty((len(chosen), *chosen[0].shape), dtype=torch.uint8, pin_memory=is_gpu)
        np.stack(chosen, out=staged_RSS3.numpy())
        return staged_RSS3.to(self.device, non_blocking=is_gpu)

    def _encode_images(self, pixels_RSS3: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image tokens of rows, (R, N, W), and their early features, (R, D)."""
        return self._activations.encode_image(pixels_RSS3.permute(0, 3, 1, 2))

    def _encode_texts(self, input_ids: Sequence[Ids]) -> tuple[Tensor, Tensor | None]:
        """Return the text tokens of passes, (P, L, W), and their mask, (P, L): None if all have the same length."""
        ids_PL, mask_PL = pad_batch(input_ids, self._codec.pad_id)
        is_padded = any(len(ids) < ids_PL.shape[1] for ids in input_ids)
        mask = mask_PL.to(self.device) if is_padded else None
        return self._model.encode_text(ids_PL.to(self.device), mask), mask

    def _fuse(self, image_PNW: Tensor, text_PLW: Tensor, mask_PL: Tensor | None) -> AsapOutput:
        """Fuse encoded images with one encoded text each, in `self.dtype`, and apply the heads in float32."""
        fused = self._model.fuse(image_PNW, text_PLW, mask_PL)
        image_side = replace(fused.image_side, aggregate_BW=fused.image_side.aggregate_BW.float())
        return self._model.predict(replace(fused, tokens_BLW=fused.tokens_BLW.float(), image_side=image_side))

    @torch.inference_mode()
    def features(self, pairs: Sequence[Pair]) -> PairFeatures:
        """Return the early features of pairs, to fit a `Familiarity`; pairs that cannot be read are left out."""
        parts: list[PairFeatures] = []
        for batch in _slices(pairs, self.batch_size):
            read = [(self._prepare(pair), self.read_text(pair.text)) for pair in batch]
            rows = [
                (image.pixels, text)
                for image, text in read
                if isinstance(image, PreparedImage) and isinstance(text, EncodedText)
            ]
            if not rows:
                continue
            todo = _Passes.of([text for _, text in rows])
            sums_PD = text_sums(*self._encode_texts(todo.input_ids))
            pixels_RSS3 = self._to_device([pixels for pixels, _ in rows], range(len(rows)))
            found = _pair_features(*self._encode_images(pixels_RSS3), [sums_PD], todo.row_of_P)
            parts.append(PairFeatures(*(part.cpu() for part in found)))
        if not parts:
            raise InputError("none of the pairs can be read")
        return PairFeatures.joined(parts)

    def _findings(self, scores: Scores, images: Sequence[PreparedImage]) -> Iterator[Finding]:
        """Yield the finding of each pair that was scored."""
        captioned = scores.captioned_R.tolist()
        for row, (image, fields) in enumerate(zip(images, scores.fields(self.policy), strict=True)):
            if (error := scores.errors.get(row)) is not None:
                yield self._failure(image, error)
                continue
            warnings = [*image.warnings, *self.warnings(scores.texts[row], is_caption=captioned[row])]
            yield Finding(**fields, **self._about(image), warnings=warnings)

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


class _Passes(NamedTuple):
    """The passes over the texts of some rows, those of a row one after the other."""

    texts: Sequence[EncodedText]
    input_ids: Sequence[Ids]
    lengths_P: NDArray[np.int64]
    """Tokens of each pass with [CLS]."""
    row_of_P: NDArray[np.int64]
    first_R: NDArray[np.int64]
    """The first pass of each row."""

    @classmethod
    def of(cls, texts: Sequence[EncodedText]) -> _Passes:
        """Return the passes over texts."""
        input_ids = [part.input_ids for text in texts for part in text.passes]
        counts_R = np.fromiter((len(text.passes) for text in texts), np.int64, len(texts))
        lengths_P = np.fromiter(map(len, input_ids), np.int64, len(input_ids))
        row_of_P = np.repeat(np.arange(len(texts)), counts_R)
        return cls(texts, input_ids, lengths_P, row_of_P, np.cumsum(counts_R) - counts_R)


def _length_buckets(lengths_P: NDArray[np.int64], at_once: int) -> list[NDArray[np.int64]]:
    """Return the numbers of passes that the model sees together: by length, so that little of them is padding.

    A bucket ends before a longer pass once it has `_LEAST_BUCKET` passes, and those that are left are as many.
    """
    order_P = np.argsort(lengths_P, kind="stable")
    buckets, start = [], 0
    while start < len(order_P):
        end = min(start + at_once, len(order_P))
        lengths = lengths_P[order_P[start:end]]
        longer = start + np.flatnonzero(np.diff(lengths)) + 1
        cuts = longer[(longer >= start + _LEAST_BUCKET) & (longer <= end - _LEAST_BUCKET)]
        stop = int(cuts[0]) if len(cuts) else end
        buckets.append(order_P[start:stop])
        start = stop
    return buckets


def _pair_features(
    image_RNW: Tensor, image_RD: Tensor, sums: Sequence[Tensor], row_of_P: NDArray[np.int64]
) -> PairFeatures:
    """Return the features of R rows, on their device.

    A text is one, however many passes it takes: a last pass of two words alone would look strange.

    Args:
        image_RNW: the image tokens.
        image_RD: the early features of the images.
        sums: the `text_sums` of all passes, in batches.
        row_of_P: the row of each pass, in the order of the batches.
    """
    sums_PD = torch.cat(list(sums))
    rows_P = torch.from_numpy(row_of_P).to(sums_PD.device)
    sums_RD = sums_PD.new_zeros(len(image_RD), sums_PD.shape[1]).index_add(0, rows_P, sums_PD)
    return PairFeatures(image_RD, token_features(image_RNW), text_features(sums_RD))


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
