"""One training step's arithmetic: a batch in, the named losses out.

The step owns the student, its momentum twin and the queues; the optimiser stays outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asap.errors import ConfigError
from asap.labels import IMAGE_TYPES
from asap.model.asap import Asap, ImageSide
from asap.training.batch import Batch, stack_texts
from asap.training.distributed import gather
from asap.training.losses import (
    IGNORED_TOKEN,
    Contrast,
    Criterion,
    Features,
    caption_word_loss,
    masked_word_loss,
    real_fake_loss,
    token_loss,
    type_loss,
)
from asap.training.momentum import FeatureQueues, MomentumTwin
from asap.training.objective import LossWeights, PublishedDefects
from asap.training.word_prediction import CaptionWordHead, MaskedWordHead, caption_words, mask_words, true_words
from asap.weights.pretrained import read_safetensors

ALIGNMENT_TERMS = ("vlc", "ied")
"""The terms that read captions and explanations (LMA)."""
TERMS = ("bic", "mlc", "bbox_l1", "giou", "tmg", "mgca", "mpp", "cwp", "mlm", *ALIGNMENT_TERMS)
WORD_TERMS = ("tmg", "mlc")
"""The terms that a text without its image can be trained on; of MLC the text types."""


@dataclass(frozen=True)
class Encoded:
    """A batch after the encoders of one model."""

    image_BNW: Tensor
    texts: dict[str, tuple[Tensor, Tensor]]
    """`text` (and `caption`, `explanation`): tokens (B, L, W) and mask (B, L)."""


def encoded_features(model: Asap, encoded: Encoded) -> Features:
    """The contrastive features of an encoded batch."""
    of_texts = {name: model.text_features(tokens_BLW) for name, (tokens_BLW, _) in encoded.texts.items()}
    return Features(image=model.image_features(encoded.image_BNW), **of_texts)


class TrainingStep(nn.Module):
    """The student, its twin and its queues, and the objective that ties them (the method section of the paper)."""

    def __init__(
        self,
        student: Asap,
        *,
        weights: LossWeights | None = None,
        defects: PublishedDefects | None = None,
        queue_size: int = 65_536,
        momentum: float = 0.995,
        token_momentum: bool = True,
        mask_id: int | None = None,
    ) -> None:
        """`token_momentum` mixes the twin's token probabilities into TMG's targets, by the same alpha; `mask_id` is the
        tokenizer's [MASK], for MLM."""
        super().__init__()
        self.student = student
        self.twin = MomentumTwin(student, momentum)
        self.queues = FeatureQueues(student.config, queue_size)
        self.criterion = Criterion(weights or LossWeights(), defects or PublishedDefects())
        self.token_momentum = token_momentum
        self.image_locked = False
        self.caption_words = CaptionWordHead(student.config) if self.criterion.has_weight("cwp") else None
        self.masked_words = MaskedWordHead(student.config) if self.criterion.has_weight("mlm") else None
        self.mask_id = mask_id
        if self.masked_words is not None and mask_id is None:
            raise ConfigError("the loss term mlm needs a tokenizer with a mask token; set its weight to 0")
        asap_only = [term for term in ("ied", "mpp") if self.criterion.has_weight(term)]
        if student.config.variant == "hammer" and asap_only:
            raise ConfigError(f"a HAMMER model has no head for {asap_only}; set those loss weights to 0")

    def lock_image_encoder(self) -> None:
        """From now on the image encoder rests, at its averaged weights, and the other parts learn to read it.

        Locked-image tuning (Zhai et al., CVPR 2022): a step then costs a fraction, and its tokens can be kept.
        """
        self.student.image_encoder.load_state_dict(self.twin.model.image_encoder.state_dict())
        self.student.image_encoder.requires_grad_(False)
        self.image_locked = True
        self.train(self.training)

    def train(self, mode: bool = True) -> TrainingStep:
        """As any module's; a locked image encoder stays in eval mode."""
        super().train(mode)
        if self.image_locked:
            self.student.image_encoder.eval()
        return self

    @property
    def uses_explanations(self) -> bool:
        """Whether captions and explanations are trained on (LMA); HAMMER's objective has none."""
        return self.student.config.variant == "asap" and self.criterion.wants_any(ALIGNMENT_TERMS)

    def forward(
        self, batch: Batch, alpha: float, shares: dict[str, Tensor] | None = None, *, moves_twin: bool = True
    ) -> dict[str, Tensor]:
        """The terms of the objective, unweighted, and their weighted sum under `total`.

        `alpha` is the weight of the twin's soft targets. Updates the twin, then the queues. Of a micro batch, `shares`
        (`asap.training.micro_batches`) multiply the terms, and only the first of a batch `moves_twin`.
        """
        if moves_twin:
            with torch.no_grad():
                self.student.temperature.clamp_(0.001, 0.5)
                self.twin.update_parameters(self.student)
        if not self.criterion.wants_any(set(TERMS).difference(WORD_TERMS)):
            return self._with_total(self._word_terms(batch), shares)
        with torch.no_grad():
            twin = self._encode(self.twin.model, batch) if self._asks_the_twin(alpha) else None
        encoded = self._encode(self.student, batch)
        terms = self._fused_terms(batch, encoded, twin, alpha)
        embeddings_VW = self.student.text_encoder.embeddings.word_embeddings.weight
        if self.caption_words is not None and self.criterion.has_weight("cwp"):
            logits_BV = self.caption_words(encoded.image_BNW, embeddings_VW)
            terms["cwp"] = caption_word_loss(logits_BV.float(), *caption_words(batch))
        if self.masked_words is not None and self.criterion.has_weight("mlm"):
            terms["mlm"] = self._masked_words_term(batch, encoded.image_BNW, self.masked_words)
        if twin is not None and self.criterion.has_weight("vlc"):
            terms["vlc"] = self._contrast(batch, encoded, twin, alpha)
        return self._with_total(terms, shares)

    def _with_total(self, terms: dict[str, Tensor], shares: dict[str, Tensor] | None) -> dict[str, Tensor]:
        if shares is not None:
            terms = {name: term * shares[name].to(term.dtype) for name, term in terms.items()}
        return terms | {"total": self.criterion.total(terms)}

    def _word_terms(self, batch: Batch) -> dict[str, Tensor]:
        """The text side alone, which costs a sixth of a step: words that contradict each other."""
        tokens_BLW, _ = self.student.fusion_encoder(self.student.encode_text(*batch.text), batch.text.mask, None)
        text_types_B2 = batch.types[:, len(IMAGE_TYPES) :]
        return {
            "tmg": token_loss(self.student.token_head(tokens_BLW[:, 1:]), batch.token_labels, None, 0.0),
            "mlc": type_loss(self.student.text_types(tokens_BLW[:, 0]), text_types_B2),
        }

    def _masked_words_term(self, batch: Batch, image_BNW: Tensor, head: MaskedWordHead) -> Tensor:
        words, student = true_words(batch), self.student
        shown_BL, hidden_BL = mask_words(words, cast("int", self.mask_id), student.config.vocab_size)
        tokens_BLW, _ = student.fusion_encoder(student.encode_text(shown_BL, words.mask), words.mask, image_BNW)
        logits_TV = head(tokens_BLW[hidden_BL], student.text_encoder.embeddings.word_embeddings.weight)
        return masked_word_loss(logits_TV.float(), words.input_ids, hidden_BL)

    def _image_terms(self, batch: Batch, seen: ImageSide) -> dict[str, Tensor]:
        terms = self.criterion.boxes(self.student.boxes(seen), batch.box_cxcywh, batch.has_box)
        if self.criterion.has_weight("mpp"):
            terms["mpp"] = self.criterion.patches(self.student.patch_logits(seen), batch.patch_labels)
        return terms

    def _asks_the_twin(self, alpha: float) -> bool:
        return self.criterion.has_weight("vlc") or (
            self.criterion.has_weight("tmg") and self.token_momentum and alpha > 0
        )

    def _encode(self, model: Asap, batch: Batch) -> Encoded:
        """Image tokens, and text (caption, explanation) tokens in one run of the text encoder."""
        parts = {"text": batch.text}
        if self.uses_explanations:
            parts |= {"caption": batch.caption, "explanation": batch.explanation}
        stacked = stack_texts(*parts.values())
        tokens = model.encode_text(*stacked).chunk(len(parts))
        masks = stacked.mask.chunk(len(parts))
        image_BNW = model.encode_image(batch.images) if batch.image_tokens is None else batch.image_tokens
        return Encoded(image_BNW, dict(zip(parts, zip(tokens, masks, strict=True), strict=True)))

    def _contrast(self, batch: Batch, encoded: Encoded, twin: Encoded, alpha: float) -> Tensor:
        with torch.no_grad():
            twin_features = encoded_features(self.twin.model, twin)
            gathered = {name: gather(value) for name, value in vars(twin_features).items() if value is not None}
        contrast = Contrast(
            student=encoded_features(self.student, encoded),
            twin=twin_features,
            keys=Features(**{name: self.queues.keys(name, value) for name, value in gathered.items()}),
        )
        # A similarity is divided by a temperature of 0.07: half precision would blur it by a tenth.
        with torch.autocast(batch.images.device.type, enabled=False):
            loss = self.criterion.contrast(contrast, ~batch.manipulated, self.student.temperature, alpha)
        self.queues.enqueue(gathered)
        return loss

    def _fused_terms(self, batch: Batch, encoded: Encoded, twin: Encoded | None, alpha: float) -> dict[str, Tensor]:
        text_BLW, mask_BL = encoded.texts["text"]
        fused = self.student.fuse(encoded.image_BNW, text_BLW, mask_BL, with_scores=self.criterion.has_weight("mgca"))
        predicted = self.student.predict(fused)
        # Stacking pads the text to the longest caption or explanation; labels follow.
        longer = predicted.logits_token.shape[1] - batch.token_labels.shape[1]
        labels_BL = F.pad(batch.token_labels, (0, longer), value=IGNORED_TOKEN)
        terms = {
            "bic": real_fake_loss(predicted.logits_real_fake, batch.manipulated),
            "mlc": type_loss(predicted.logits_multilabel, batch.types),
            "tmg": token_loss(predicted.logits_token, labels_BL, self._soft_tokens(twin, alpha), alpha),
            **self._image_terms(batch, fused.seen),
        }
        if fused.scores_BLN is not None:
            terms["mgca"] = self.criterion.guidance(fused.scores_BLN, batch.patch_mask, labels_BL, mask_BL)
        if self.criterion.has_weight("ied"):
            explained = self.student.fuse(encoded.image_BNW, *encoded.texts["explanation"])
            terms["ied"] = real_fake_loss(self.student.explain(explained), batch.manipulated)
        return terms

    @torch.no_grad()
    def _soft_tokens(self, twin: Encoded | None, alpha: float) -> Tensor | None:
        """The twin's probabilities for each token, (B, L-1, 2), where they have any weight."""
        if twin is None or not self.token_momentum or alpha == 0:
            return None
        tokens_BLW, _ = self.twin.model.fusion_encoder(*twin.texts["text"], twin.image_BNW)
        logits_BL2: Tensor = self.twin.model.token_head(tokens_BLW[:, 1:])
        return logits_BL2.softmax(dim=-1)


def begin(step: TrainingStep, file: Path) -> None:
    """Put what `Start.save` wrote into a step whose other weights stay; the rest of the twin becomes the student's."""
    groups: dict[str, dict[str, Tensor]] = {"student": {}, "twin": {}, "queues": {}}
    for name, value in read_safetensors(file).items():
        group, _, rest = name.partition(".")
        groups[group][rest] = value
    step.student.load_state_dict(step.student.state_dict() | groups["student"])
    step.twin.model.load_state_dict(step.student.state_dict() | groups["twin"])
    step.queues.load_state_dict(step.queues.state_dict() | groups["queues"])
