"""The terms of the ASAP objective as pure functions, and the criterion that names and weighs them.

    VLC   vision-language contrast                       `Criterion.contrast`
    BIC   binary classification, real or fake            `real_fake_loss`
    MLC   multi-label classification of the four types   `type_loss`
    box   L1 distance and generalized IoU                `box_losses`
    TMG   token grounding                                `token_loss`
    MGCA  manipulation-guided cross attention            `guidance_loss`
    IED   real or fake from the explanation              `real_fake_loss`
    MPP   manipulated patch prediction                   `patch_loss`
    CWP   caption word prediction                        `caption_word_loss`
    MLM   masked language modeling                       `masked_word_loss`

Terms that are not in the paper and have no weight by default:

    MGCA after softmax, text to image, image to text     `guided_attention_loss`
    consistency of patches, of words                     `consistency_loss`
    presence of a manipulated face                       `presence_loss`
    a manipulated text as a hard negative                `hard_negative_loss`

A mean over a part of the items divides by the number of these items on all workers: `mean_over_workers`.
Shapes: B pairs, G pairs of all workers, K queue length, E feature channels, L text tokens with [CLS], P patches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou_loss

from asap.labels import IMAGE_TYPES
from asap.training.distributed import mean_over_workers, rank
from asap.training.objective import LossWeights, PublishedDefects

IGNORED_TOKEN = -100
"""The label of a padded token, and of every token of a text whose manipulated words are unknown."""
IGNORED_PATCH = -1
"""The label of a patch that MPP (manipulated patch prediction) leaves out."""


def contrastive_loss(query_BE: Tensor, keys_EK: Tensor, targets_BK: Tensor, temperature: Tensor) -> Tensor:
    """Return the cross entropy of the similarities and a target distribution over the keys (ALBEF, equation 6).

    A row of `targets` that is all zero (a pair without a positive) adds nothing but counts in the mean.
    """
    log_probabilities_BK = F.log_softmax(query_BE @ keys_EK / temperature, dim=1)
    return -(log_probabilities_BK * targets_BK).sum(dim=1).mean()


def soft_targets(twin_BE: Tensor, keys_EK: Tensor, hard_BK: Tensor, temperature: Tensor, alpha: float) -> Tensor:
    """Mix the hard targets with the similarities of the twin, which have weight `alpha`: (B, G+K)."""
    if alpha == 0:
        return hard_BK
    return alpha * F.softmax(twin_BE @ keys_EK / temperature, dim=1) + (1 - alpha) * hard_BK


def diagonal_targets(matched_B: Tensor, keys: int) -> Tensor:
    """Return (B, keys): 1 where a matched pair meets itself among the gathered keys, which are in rank order."""
    pairs = len(matched_B)
    targets_BK = torch.zeros(pairs, keys, device=matched_B.device)
    rows = torch.arange(pairs, device=matched_B.device)
    targets_BK[rows, rows + rank() * pairs] = matched_B.float()
    return targets_BK


def real_fake_loss(logits_B2: Tensor, manipulated_B: Tensor) -> Tensor:
    """Return the cross entropy of authentic (0) against manipulated (1), for BIC and IED.

    BIC is the binary classification of the pair; IED is the same from its picture and explanation.
    """
    return F.cross_entropy(logits_B2, manipulated_B.long())


def type_loss(logits_B4: Tensor, types_B4: Tensor) -> Tensor:
    """Return the binary cross entropy over the four types (MLC, multi-label classification)."""
    return F.binary_cross_entropy_with_logits(logits_B4, types_B4)


def token_loss(logits_BL2: Tensor, labels_BL: Tensor, soft_labels_BL2: Tensor | None, alpha: float) -> Tensor:
    """Return the mean cross entropy of unpadded tokens (TMG, token grounding).

    The probabilities of the twin (`soft_labels`) are targets too, with weight `alpha`.
    """
    active_BL = labels_BL != IGNORED_TOKEN
    log_probabilities_BL2 = F.log_softmax(logits_BL2, dim=-1)
    loss_BL = -log_probabilities_BL2.gather(-1, labels_BL.clamp(min=0)[..., None]).squeeze(-1)
    if soft_labels_BL2 is not None:
        soft_BL = -(log_probabilities_BL2 * soft_labels_BL2).sum(dim=-1)
        loss_BL = (1 - alpha) * loss_BL + alpha * soft_BL
    return mean_over_workers((loss_BL * active_BL).sum(), active_BL.sum())


def box_losses(predicted_B4: Tensor, target_B4: Tensor, counts_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the L1 loss (summed over the four coordinates) and the GIoU loss of cxcywh boxes.

    Both are means over the pairs that count. GIoU is computed pair by pair, so a degenerate box affects no other pair.
    """
    l1_B = F.l1_loss(predicted_B4, target_B4, reduction="none").sum(dim=1)
    predicted_xyxy_B4 = box_convert(predicted_B4.float(), "cxcywh", "xyxy")
    giou_B = generalized_box_iou_loss(predicted_xyxy_B4, box_convert(target_B4.float(), "cxcywh", "xyxy"))
    return (
        mean_over_workers((l1_B * counts_B).sum(), counts_B.sum()),
        mean_over_workers((giou_B * counts_B).sum(), counts_B.sum()),
    )


def has_word_labels(token_labels_BL: Tensor) -> Tensor:
    """Return (B,) bool: True unless the manipulated words of the text are unknown."""
    return (token_labels_BL != IGNORED_TOKEN).any(dim=1)


def guidance_targets(patch_mask_BP: Tensor, token_labels_BL: Tensor, *, words_of_the_batch: bool = False) -> Tensor:
    """Return the targets of manipulation-guided cross attention (MGCA), (B, L, P).

    A target is 1 if its patch or its word is manipulated.

    `token_labels` leave [CLS] out, so the label at position i belongs to row i + 1. `words_of_the_batch` reproduces the
    published defect: the words of every sample are marked in all samples, one row early.
    """
    manipulated_BL = (token_labels_BL == 1).to(patch_mask_BP.dtype)
    # Pad the row of [CLS]: in front, or at the end (the defect), which moves every word one row up.
    if words_of_the_batch:
        manipulated_BL = F.pad(manipulated_BL.amax(dim=0, keepdim=True).expand_as(manipulated_BL), (0, 1))
    else:
        manipulated_BL = F.pad(manipulated_BL, (1, 0))
    return torch.maximum(manipulated_BL[:, :, None], patch_mask_BP[:, None, :])


def guidance_loss(scores_BLN: Tensor, targets_BLP: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the binary cross entropy of cross-attention scores where `mask` is 1 (MGCA), without the image's [CLS]."""
    loss_BLP = F.binary_cross_entropy_with_logits(scores_BLN[:, :, 1:], targets_BLP, reduction="none")
    return mean_over_workers((loss_BLP.mean(dim=-1) * mask_BL).sum(), mask_BL.sum())


def patch_loss(logits_BP: Tensor, labels_BP: Tensor, *, count_ignored: bool = False) -> Tensor:
    """Return the binary cross entropy of the labeled patches (MPP, manipulated patch prediction).

    `count_ignored` reproduces the published defect: every other patch counts with a loss of ln 2.
    """
    labeled_BP = labels_BP != IGNORED_PATCH
    loss_BP = F.binary_cross_entropy_with_logits(logits_BP, labels_BP.clamp(min=0), reduction="none") * labeled_BP
    if count_ignored:
        loss_BP = loss_BP + 0.6931471805599453 * ~labeled_BP
        labeled_BP = torch.ones_like(labeled_BP)
    return mean_over_workers(loss_BP.sum(), labeled_BP.sum())


def caption_word_loss(logits_BV: Tensor, caption_ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the cross entropy of a picture's word logits and the pieces of its caption (CWP, caption word prediction).

    Each distinct piece has the same weight. [CLS] and pairs without a caption are left out. The term is not in the
    paper: the image side learns words from captions (Joulin et al., ECCV 2016), so that the model can compare a text
    with its picture.
    """
    # The caption as a set of pieces: a piece that occurs twice counts once.
    present_BV = torch.zeros_like(logits_BV).scatter_reduce_(
        1, caption_ids_BL[:, 1:], mask_BL[:, 1:].to(logits_BV.dtype), "amax"
    )
    pieces_B = present_BV.sum(dim=1)
    loss_B = -(F.log_softmax(logits_BV, dim=1) * present_BV).sum(dim=1) / pieces_B.clamp(min=1)
    return mean_over_workers(loss_B.sum(), (pieces_B > 0).sum())


def masked_word_loss(logits_TV: Tensor, ids_BL: Tensor, hidden_BL: Tensor) -> Tensor:
    """Return the cross entropy of the T hidden pieces, in the order of `hidden` (MLM, masked language modeling).

    Each text has the same weight; a text without a hidden piece is left out. The term is not in the paper. It belongs
    to the pre-training that the paper's model starts from (Li et al., NeurIPS 2021, equation 3).
    """
    loss_T = F.cross_entropy(logits_TV, ids_BL[hidden_BL], reduction="none")
    pieces_B = hidden_BL.sum(dim=1)
    # Give each piece the inverse of its text's count, so that long texts do not dominate.
    weight_BL = (1 / pieces_B.clamp(min=1))[:, None].expand_as(hidden_BL)
    return mean_over_workers((loss_T * weight_BL[hidden_BL]).sum(), (pieces_B > 0).sum())


def guided_attention_loss(log_attention_BQK: Tensor, guide_BK: Tensor, queries_BQ: Tensor) -> Tensor:
    """Return the cross entropy of attention and a guide: MGCA on the distribution that the model uses.

    The published term (`guidance_loss`) moves each score before softmax, which only compares scores. Here the target is
    the uniform distribution over the manipulated keys. Pairs without a manipulated key are left out.

    Args:
        log_attention_BQK: logarithms of the attention of Q queries to K keys.
        guide_BK: 1 where the key (a patch or a word) is manipulated, else 0.
        queries_BQ: 1 where the query counts, else 0.
    """
    keys_B = guide_BK.sum(dim=1)
    targets_BK = guide_BK / keys_B.clamp(min=1)[:, None]
    # Attention of half precision may be 0, and its logarithm minus infinity: keys outside the guide must add nothing.
    loss_BQ = -(log_attention_BQK.clamp(min=-30) * targets_BK[:, None]).sum(dim=-1)
    counts_BQ = queries_BQ * (keys_B > 0)[:, None]
    return mean_over_workers((loss_BQ * counts_BQ).sum(), counts_BQ.sum())


def has_both_labels(labels_BN: Tensor) -> Tensor:
    """Return (B,) bool: True if an item has tokens that are manipulated (1) and tokens that are not (0)."""
    return (labels_BN == 1).any(dim=1) & (labels_BN == 0).any(dim=1)


def consistency_loss(tokens_BNW: Tensor, labels_BN: Tensor, scale: float = 5.0) -> Tensor:
    """Return the binary cross entropy of scaled cosine similarities: high within a label, low across labels.

    The tokens are the patches of a picture or the words of a text. Within an item, pairs of tokens with the same label
    and pairs with different labels have the same total weight. Negative labels are ignored, and so are items whose
    tokens all have the same label. The term is not in the paper.

    Args:
        tokens_BNW: the tokens.
        labels_BN: 1 manipulated, 0 authentic, below 0 ignored.
        scale: the logit of a cosine of 1.
    """
    unit_BNW = F.normalize(tokens_BNW.float(), dim=-1)
    logits_BNN = scale * unit_BNW @ unit_BNW.transpose(1, 2)
    labeled_BN = labels_BN >= 0
    # A token is not compared with itself.
    compared_BNN = (
        labeled_BN[:, :, None]
        & labeled_BN[:, None, :]
        & ~torch.eye(labels_BN.shape[1], dtype=torch.bool, device=labels_BN.device)
    )
    same_BNN = labels_BN[:, :, None] == labels_BN[:, None, :]
    loss_BNN = F.binary_cross_entropy_with_logits(logits_BNN, same_BNN.to(logits_BNN.dtype), reduction="none")
    means = []
    for kind_BNN in (compared_BNN & same_BNN, compared_BNN & ~same_BNN):
        means.append((loss_BNN * kind_BNN).sum(dim=(1, 2)) / kind_BNN.sum(dim=(1, 2)).clamp(min=1))
    counts_B = has_both_labels(labels_BN)
    return mean_over_workers(((means[0] + means[1]) / 2 * counts_B).sum(), counts_B.sum())


def presence_loss(logits_B: Tensor, types_B4: Tensor) -> Tensor:
    """Return the binary cross entropy of the presence of a manipulated face."""
    has_face_B = types_B4[:, : len(IMAGE_TYPES)].amax(dim=1)
    return F.binary_cross_entropy_with_logits(logits_B, has_face_B)


def hard_negative_loss(
    image_BE: Tensor, true_BE: Tensor, false_BE: Tensor, counts_B: Tensor, temperature: Tensor
) -> Tensor:
    """Return the cross entropy of a true description of a picture against a false one.

    The false one is a manipulated text. The true one should be the text before its manipulation, but no corpus (DGM4,
    SAMM, newsroom) says which it was, so the caption takes its place. The term is not in the paper.

    Args:
        image_BE: features of the pictures, of unit length.
        true_BE: features of the captions.
        false_BE: features of the texts.
        counts_B: 1 where the text is manipulated and there is a caption, else 0.
        temperature: the temperature of the contrast.
    """
    margin_B = ((image_BE * true_BE).sum(dim=1) - (image_BE * false_BE).sum(dim=1)) / temperature
    return mean_over_workers((F.softplus(-margin_B) * counts_B).sum(), counts_B.sum())


@dataclass(frozen=True)
class Features:
    """Contrastive features of unit length; caption and explanation are None in an objective without LMA."""

    image: Tensor
    text: Tensor
    caption: Tensor | None = None
    explanation: Tensor | None = None


@dataclass(frozen=True)
class Contrast:
    """The inputs of the contrast of one step."""

    student: Features
    """(B, E) each."""
    twin: Features
    """(B, E) each, of this worker alone."""
    keys: Features
    """(E, G+K) each: the twin's features of all workers, then the queue."""


class Criterion:
    """The terms that depend on weights or published defects, and the weighted sum of all terms."""

    def __init__(self, weights: LossWeights, defects: PublishedDefects = PublishedDefects()) -> None:  # noqa: B008
        self.weights = asdict(weights)
        self.defects = defects

    def has_weight(self, term: str) -> bool:
        """Return True if the term has a weight above 0; a term without weight is not computed."""
        return self.weights[term] > 0

    def any_has_weight(self, terms: Iterable[str]) -> bool:
        """Return True if any of the terms has a weight above 0."""
        return any(map(self.has_weight, terms))

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of the terms."""
        return torch.stack([self.weights[name] * term.float() for name, term in terms.items()]).sum()

    def contrast(self, contrast: Contrast, authentic_B: Tensor, temperature: Tensor, alpha: float) -> Tensor:
        """Return the vision-language contrast (VLC): the mean of four image-text terms plus the mean of six others.

        The six are the terms of captions and explanations. Across modalities, the positives are the authentic pairs,
        since a swapped text does not describe its image; only captions describe their image in every pair. Within a
        modality, each feature is its own positive.
        """
        every_B = torch.ones_like(authentic_B)
        to, back, within = self._modality_terms("text", contrast, authentic_B, temperature, alpha)
        image_image = contrastive_loss(
            contrast.student.image,
            contrast.keys.image,
            diagonal_targets(every_B, contrast.keys.image.shape[1]),
            temperature,
        )
        loss = (to + back + image_image + within) / 4
        if contrast.student.caption is None or contrast.student.explanation is None:
            return loss
        described = self._modality_terms("caption", contrast, every_B, temperature, alpha)
        explained = self._modality_terms("explanation", contrast, authentic_B, temperature, alpha)
        return loss + torch.stack(described + explained).mean()

    def _modality_terms(
        self, modality: str, contrast: Contrast, matched_B: Tensor, temperature: Tensor, alpha: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the terms from image to modality, from modality to image, and from modality to itself."""
        student, twin, keys = contrast.student, contrast.twin, contrast.keys
        mine, twin_mine, my_keys = (getattr(side, modality) for side in (student, twin, keys))
        hard_BK = diagonal_targets(matched_B, my_keys.shape[1])
        forward_BK = soft_targets(twin.image, my_keys, hard_BK, temperature, alpha)
        backward_BK = soft_targets(twin_mine, keys.image, hard_BK, temperature, alpha)
        if modality == "explanation" and self.defects.explanation_targets:
            forward_BK = backward_BK
        # Every pair is its own positive within a modality, manipulated or not.
        itself_BK = diagonal_targets(torch.ones_like(matched_B), my_keys.shape[1])
        return (
            contrastive_loss(student.image, my_keys, forward_BK, temperature),
            contrastive_loss(mine, keys.image, backward_BK, temperature),
            contrastive_loss(mine, my_keys, itself_BK, temperature),
        )

    def boxes(self, predicted_B4: Tensor, target_B4: Tensor, has_box_B: Tensor) -> dict[str, Tensor]:
        """Return the box losses, `bbox_l1` and `giou`."""
        counts_B = torch.ones_like(has_box_B) if self.defects.boxless_pairs else has_box_B
        l1, giou = box_losses(predicted_B4, target_B4, counts_B.to(predicted_B4.dtype))
        return {"bbox_l1": l1, "giou": giou}

    def guidance(self, scores_BLN: Tensor, patch_mask_BP: Tensor, token_labels_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the loss of manipulation-guided cross attention (`mgca`).

        Texts without word labels are left out: a target is 1 if its patch or its word is manipulated.
        """
        targets_BLP = guidance_targets(
            patch_mask_BP, token_labels_BL, words_of_the_batch=self.defects.mgca_words_of_the_batch
        )
        counted_BL = torch.ones_like(mask_BL) if self.defects.mgca_padding else mask_BL
        counted_BL = counted_BL * has_word_labels(token_labels_BL)[:, None]
        return guidance_loss(scores_BLN, targets_BLP, counted_BL.to(scores_BLN.dtype))

    def patches(self, logits_BP: Tensor, labels_BP: Tensor) -> Tensor:
        """Return the loss of manipulated patch prediction (`mpp`)."""
        return patch_loss(logits_BP, labels_BP, count_ignored=self.defects.mpp_ignored_patches)
