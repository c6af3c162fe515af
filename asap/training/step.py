"""The training step: a batch in, the named losses out.

The step owns the student, its momentum twin and the queues. The optimizer stays outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asap.errors import ConfigError
from asap.labels import IMAGE_TYPES
from asap.model.asap import Asap, Fused
from asap.model.config import ModelConfig
from asap.training.batch import Batch, stack_texts
from asap.training.distributed import gather
from asap.training.losses import (
    Contrast,
    Criterion,
    Features,
    caption_word_loss,
    consistency_loss,
    guided_attention_loss,
    hard_negative_loss,
    masked_word_loss,
    presence_loss,
    real_fake_loss,
    token_loss,
    type_loss,
)
from asap.training.momentum import FeatureQueues, MomentumTwin
from asap.training.objective import LOSS_NAMES, LossWeights, PublishedDefects
from asap.training.word_prediction import (
    CaptionWordHead,
    MaskedWordHead,
    caption_words,
    has_false_text,
    mask_words,
    true_words,
)
from asap.weights.checkpoint_file import read_safetensors

ALIGNMENT_TERMS = ("vlc", "ied", "hard_negative")
"""The terms that read captions and explanations (LMA, the large-model-assisted alignment of the paper)."""
TERMS = (
    "bic", "mlc", "bbox_l1", "giou", "tmg", "mgca", "mpp", "cwp", "mlm", "mgca_patches", "mgca_words",
    "patch_consistency", "word_consistency", "presence", *ALIGNMENT_TERMS,
)  # fmt: skip
"""All terms of the objective; `asap.training.objective.LOSS_NAMES` has the words for each."""
CAPTION_TERMS = ("cwp", "mlm")
"""The terms that read captions, but no explanations (`asap.training.word_prediction`)."""
WORD_TERMS = ("tmg", "mlc")
"""The terms that can be trained on a text without its image. MLC is then restricted to the text types."""


def descriptions_read(config: ModelConfig, weights: Mapping[str, float]) -> tuple[str, ...]:
    """Return which of `caption` and `explanation` a step reads; a feed leaves the others out.

    Args:
        config: the configuration of the model.
        weights: the loss weights of the step; a term that is not in it has none.
    """
    if config.variant == "asap" and any(weights.get(term) for term in ALIGNMENT_TERMS):
        return ("caption", "explanation")
    return ("caption",) if any(weights.get(term) for term in CAPTION_TERMS) else ()


@dataclass(frozen=True)
class Encoded:
    """A batch encoded by one model."""

    image_BNW: Tensor
    texts: dict[str, tuple[Tensor, Tensor]]
    """`text` (and `caption`, `explanation`): tokens (B, L, W) and mask (B, L)."""


def encoded_features(model: Asap, encoded: Encoded) -> Features:
    """Return the contrastive features of an encoded batch."""
    texts = {name: model.text_features(tokens_BLW) for name, (tokens_BLW, _) in encoded.texts.items()}
    return Features(image=model.image_features(encoded.image_BNW), **texts)


class TrainingStep(nn.Module):
    """The student, its momentum twin, the feature queues, and the objective (the method section of the paper)."""

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
        twin_dropout: bool = False,
        alike_queues: bool = False,
    ) -> None:
        """Create the twin, the queues, and the heads that are used in training only.

        Args:
            student: the model to train.
            weights: the weights of the terms; the published ones by default.
            defects: the published defects to reproduce; none by default.
            queue_size: features of each modality that the queues hold.
            momentum: decay of the moving average that the twin is.
            token_momentum: mix the token probabilities of the twin into the targets of token grounding (TMG), with the
                same weight `alpha` as in the contrast.
            mask_id: the tokenizer's [MASK], needed for masked language modeling (MLM).
            twin_dropout: compute the twin's targets with dropout, as published.
            alike_queues: start the queues of captions and explanations as copies of the text's, as published.

        Raises `ConfigError` if the model or the tokenizer does not support a term with weight.
        """
        super().__init__()
        # Twin, queues and heads draw random numbers: their order is part of a run's reproducibility.
        self.student = student
        self.twin = MomentumTwin(student, momentum, has_dropout=twin_dropout)
        self.queues = FeatureQueues(student.config, queue_size, copies_text=alike_queues)
        self.criterion = Criterion(weights or LossWeights(), defects or PublishedDefects())
        self.token_momentum = token_momentum
        self.image_locked = False
        self.caption_words = CaptionWordHead(student.config) if self.criterion.has_weight("cwp") else None
        self.masked_words = MaskedWordHead(student.config) if self.criterion.has_weight("mlm") else None
        self.mask_id = mask_id
        if self.masked_words is not None and mask_id is None:
            raise ConfigError(
                "the loss term mlm needs a tokenizer with a mask token (masked language modeling). Set its weight to 0."
            )
        if self.criterion.has_weight("presence") and student.config.box_gate != "presence":
            raise ConfigError("the loss term presence needs a model with box_gate presence. Set its weight to 0.")
        asap_only = [term for term in ("ied", "mpp", "hard_negative") if self.criterion.has_weight(term)]
        if student.config.variant == "hammer" and asap_only:
            spelled_out = ", ".join(f"{term}: {LOSS_NAMES[term]}" for term in asap_only)
            raise ConfigError(
                f"a HAMMER model has no head for {asap_only}. Set those loss weights to 0 ({spelled_out})."
            )

    def lock_image_encoder(self) -> None:
        """Freeze the image encoder at its averaged weights; the other parts go on learning.

        This is locked-image tuning (Zhai et al., CVPR 2022). A step then costs a fraction, and the image tokens can be
        cached.
        """
        self.student.image_encoder.load_state_dict(self.twin.model.image_encoder.state_dict())
        self.student.image_encoder.requires_grad_(False)
        self.image_locked = True
        self.train(self.training)

    def train(self, mode: bool = True) -> TrainingStep:
        """Set the training mode; a locked image encoder stays in eval mode."""
        super().train(mode)
        if self.image_locked:
            self.student.image_encoder.eval()
        return self

    @property
    def uses_explanations(self) -> bool:
        """True if captions and explanations are trained on (LMA); the objective of HAMMER does not use them."""
        return "explanation" in descriptions_read(self.student.config, self.criterion.weights)

    def forward(
        self, batch: Batch, alpha: float, shares: dict[str, Tensor] | None = None, *, update_twin: bool = True
    ) -> dict[str, Tensor]:
        """Return the unweighted terms of the objective, and their weighted sum under `total`.

        The twin is updated first, and the queues last.

        Args:
            batch: the batch, or a micro batch.
            alpha: the weight of the twin's soft targets.
            shares: factors of the terms of a micro batch; see `asap.training.micro_batches`.
            update_twin: update the twin. Only the first micro batch of a batch does.
        """
        if update_twin:
            with torch.no_grad():
                self.student.temperature.clamp_(0.001, 0.5)
                self.twin.update_parameters(self.student)
        # A stage that trains words alone never runs the image side.
        if not self.criterion.any_has_weight(set(TERMS).difference(WORD_TERMS)):
            return self._with_total(self._word_terms(batch), shares)
        if batch.image_tokens is None:
            batch = batch.normalized()  # once, for the student and the twin
        # The twin is encoded only if a term reads its soft targets or its features.
        reads_soft_tokens = self.criterion.has_weight("tmg") and self.token_momentum and alpha > 0
        needs_twin = self.criterion.has_weight("vlc") or reads_soft_tokens
        with torch.no_grad():
            twin = self._encode(self.twin.model, batch) if needs_twin else None
        encoded = self._encode(self.student, batch)
        terms = self._fused_terms(batch, encoded, twin, alpha)
        embeddings_VW = self.student.text_encoder.embeddings.word_embeddings.weight
        if self.caption_words is not None and self.criterion.has_weight("cwp"):
            logits_BV = self.caption_words(encoded.image_BNW, embeddings_VW)
            terms["cwp"] = caption_word_loss(logits_BV.float(), *caption_words(batch))
        if self.masked_words is not None and self.criterion.has_weight("mlm"):
            terms["mlm"] = self._masked_words_term(batch, encoded.image_BNW, self.masked_words)
        if self.criterion.has_weight("hard_negative"):
            terms["hard_negative"] = self._hard_negative_term(batch, encoded)
        if twin is not None and self.criterion.has_weight("vlc"):
            terms["vlc"] = self._contrast(batch, encoded, twin, alpha)
        return self._with_total(terms, shares)

    def _with_total(self, terms: dict[str, Tensor], shares: dict[str, Tensor] | None) -> dict[str, Tensor]:
        if shares is not None:
            terms = {name: term * shares[name].to(term.dtype) for name, term in terms.items()}
        return terms | {"total": self.criterion.total(terms)}

    def _word_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the text side alone, at a sixth of the cost of a full step.

        The text side learns to find words that contradict each other.
        """
        tokens_BLW, _ = self.student.fusion_encoder(self.student.encode_text(*batch.text), batch.text.mask, None)
        text_types_B2 = batch.types[:, len(IMAGE_TYPES) :]
        return {
            "tmg": token_loss(self.student.token_logits(tokens_BLW), batch.token_labels, None, 0.0),
            "mlc": type_loss(self.student.text_types(tokens_BLW[:, 0]), text_types_B2),
        }

    def _masked_words_term(self, batch: Batch, image_BNW: Tensor, head: MaskedWordHead) -> Tensor:
        words, student = true_words(batch), self.student
        shown_BL, hidden_BL = mask_words(words, cast("int", self.mask_id), student.config.vocab_size)
        tokens_BLW, _ = student.fusion_encoder(student.encode_text(shown_BL, words.mask), words.mask, image_BNW)
        logits_TV = head(tokens_BLW[hidden_BL], student.text_encoder.embeddings.word_embeddings.weight)
        return masked_word_loss(logits_TV.float(), words.input_ids, hidden_BL)

    def _hard_negative_term(self, batch: Batch, encoded: Encoded) -> Tensor:
        features = encoded_features(self.student, encoded)
        assert features.caption is not None  # noqa: S101  # the term is an alignment term, so captions are encoded
        with torch.autocast(batch.images.device.type, enabled=False):
            return hard_negative_loss(
                features.image,
                features.caption,
                features.text,
                has_false_text(batch).float(),
                self.student.temperature,
            )

    def _encode(self, model: Asap, batch: Batch) -> Encoded:
        """Encode the images, and the texts (with captions and explanations) in one run of the text encoder."""
        parts = {"text": batch.text}
        if self.uses_explanations:
            parts |= {"caption": batch.caption, "explanation": batch.explanation}
        stacked = stack_texts(*parts.values())
        tokens = model.encode_text(*stacked).chunk(len(parts))
        # Stacking padded all to the longest. Each is cut back, so that the fusion encoder computes no more padding.
        texts = {
            name: (tokens_BLW[:, : part.mask.shape[1]], part.mask)
            for (name, part), tokens_BLW in zip(parts.items(), tokens, strict=True)
        }
        image_BNW = model.encode_image(batch.images) if batch.image_tokens is None else batch.image_tokens
        return Encoded(image_BNW, texts)

    def _contrast(self, batch: Batch, encoded: Encoded, twin: Encoded, alpha: float) -> Tensor:
        with torch.no_grad():
            twin_features = encoded_features(self.twin.model, twin)
            gathered = {name: gather(value) for name, value in vars(twin_features).items() if value is not None}
        contrast = Contrast(
            student=encoded_features(self.student, encoded),
            twin=twin_features,
            keys=Features(**{name: self.queues.keys(name, value) for name, value in gathered.items()}),
        )
        # Similarities are divided by a temperature of about 0.07. In half precision their error would reach a tenth.
        with torch.autocast(batch.images.device.type, enabled=False):
            loss = self.criterion.contrast(contrast, ~batch.manipulated, self.student.temperature, alpha)
        # Enqueue last: the keys above hold this step's features already.
        self.queues.enqueue(gathered)
        return loss

    def _fused_terms(self, batch: Batch, encoded: Encoded, twin: Encoded | None, alpha: float) -> dict[str, Tensor]:
        text_BLW, mask_BL = encoded.texts["text"]
        fused = self.student.fuse(
            encoded.image_BNW, text_BLW, mask_BL,
            with_scores=self.criterion.any_has_weight(("mgca", "mgca_patches")),
            with_attention=self.criterion.has_weight("mgca_words"),
        )  # fmt: skip
        predicted = self.student.predict(fused)
        terms = {
            "bic": real_fake_loss(predicted.logits_real_fake, batch.manipulated),
            "mlc": type_loss(predicted.logits_multilabel, batch.types),
            "tmg": token_loss(predicted.logits_token, batch.token_labels, self._soft_tokens(twin, alpha), alpha),
            **self.criterion.boxes(self.student.boxes(fused.image_side), batch.box_cxcywh, batch.has_box),
        }
        if self.criterion.has_weight("mpp"):
            terms["mpp"] = self.criterion.patches(self.student.patch_logits(fused.image_side), batch.patch_labels)
        if self.criterion.has_weight("mgca"):
            terms["mgca"] = self.criterion.guidance(
                cast("Tensor", fused.scores_BLN), batch.patch_mask, batch.token_labels, mask_BL
            )
        terms |= self._attention_terms(batch, fused, mask_BL)
        if self.criterion.has_weight("patch_consistency"):
            # Every patch has a label here. A picture without a box has patches of one kind, and is left out.
            terms["patch_consistency"] = consistency_loss(fused.image_side.patches_BPW, batch.patch_mask)
        if self.criterion.has_weight("word_consistency"):
            terms["word_consistency"] = consistency_loss(fused.tokens_BLW[:, 1:], batch.token_labels)
        if self.criterion.has_weight("presence"):
            terms["presence"] = presence_loss(self.student.presence_logits(fused.image_side), batch.types)
        if self.criterion.has_weight("ied"):
            explained = self.student.fuse(encoded.image_BNW, *encoded.texts["explanation"])
            terms["ied"] = real_fake_loss(self.student.explain(explained), batch.manipulated)
        return terms

    def _attention_terms(self, batch: Batch, fused: Fused, mask_BL: Tensor) -> dict[str, Tensor]:
        """Return the terms of guided attention after softmax, in both directions."""
        terms = {}
        if self.criterion.has_weight("mgca_patches"):
            # The mean score over heads gives one distribution over the patches; [CLS] of the image is left out.
            log_attention_BLP = F.log_softmax(cast("Tensor", fused.scores_BLN)[:, :, 1:].float(), dim=-1)
            terms["mgca_patches"] = guided_attention_loss(log_attention_BLP, batch.patch_mask, mask_BL)
        if self.criterion.has_weight("mgca_words"):
            attention_BPL = cast("Tensor", fused.image_side.attention_BNL)[:, 1:].float()
            words_BL = F.pad((batch.token_labels == 1).float(), (1, 0))  # a label stands for the token after [CLS]
            every_BP = torch.ones_like(attention_BPL[:, :, 0])
            terms["mgca_words"] = guided_attention_loss(attention_BPL.clamp(min=1e-9).log(), words_BL, every_BP)
        return terms

    @torch.no_grad()
    def _soft_tokens(self, twin: Encoded | None, alpha: float) -> Tensor | None:
        """Return the twin's probabilities for each token, (B, L-1, 2); None if they have no weight."""
        if twin is None or not self.token_momentum or alpha == 0:
            return None
        tokens_BLW, _ = self.twin.model.fusion_encoder(*twin.texts["text"], twin.image_BNW)
        return self.twin.model.token_logits(tokens_BLW).softmax(dim=-1)


def begin_from_start(step: TrainingStep, file: Path) -> None:
    """Load the file that `asap.weights.start.Start.save` wrote into a step.

    Weights that the file does not hold keep their values in student and queues; the twin copies them from the student.
    """
    groups: dict[str, dict[str, Tensor]] = {"student": {}, "twin": {}, "queues": {}}
    for name, value in read_safetensors(file).items():
        group, _, rest = name.partition(".")
        groups[group][rest] = value
    step.student.load_state_dict(step.student.state_dict() | groups["student"])
    step.twin.model.load_state_dict(step.student.state_dict() | groups["twin"])
    step.queues.load_state_dict(step.queues.state_dict() | groups["queues"])
