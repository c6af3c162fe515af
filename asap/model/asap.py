"""The ASAP network: it finds what is manipulated, how and where, from one pass over an image and its text.

Source: section 3 of the paper. Shapes: B pairs, L text tokens with [CLS], N image tokens with [CLS], P patches,
W width, S side of the image in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asap.labels import IMAGE_TYPES, TEXT_TYPES, TYPES
from asap.model.config import ModelConfig
from asap.model.encoders import Attention, FusionEncoder, ImageEncoder, TextEncoder


class AsapOutput(NamedTuple):
    """The model's predictions for B pairs."""

    logits_real_fake: Tensor
    """Logits of authentic and manipulated, (B, 2)."""
    logits_multilabel: Tensor
    """A logit for each of `asap.labels.TYPES`, (B, 4)."""
    box_cxcywh: Tensor
    """The box of the manipulated face, (B, 4), in [0, 1] of the image's width and height."""
    logits_token: Tensor
    """Logits of authentic and manipulated for each token after [CLS], (B, L-1, 2); values of padding are undefined."""


@dataclass(frozen=True)
class ImageSide:
    """An image that has attended to a text: the input of the box and patch heads."""

    patches_BPW: Tensor
    """The tokens of the patches."""
    aggregate_BW: Tensor
    """The token that aggregates the patches."""
    attention_BNL: Tensor | None = None
    """Attention of the image tokens to the text after softmax, mean over heads; None unless requested."""


@dataclass(frozen=True)
class Fused:
    """An image and a text that have attended to each other: the input of the other heads."""

    tokens_BLW: Tensor
    """The fused text tokens, [CLS] first."""
    image_side: ImageSide
    scores_BLN: Tensor | None
    """Cross-attention scores of the last fusion layer before softmax, mean over heads; None unless requested."""


class ImageTextAttention(nn.Module):
    """Image tokens attend to themselves, then to the text (ASAP's image side)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross_attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(
        self, image_BNW: Tensor, text_BLW: Tensor, padding_BL: Tensor | None, *, with_attention: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return the image tokens after both attentions, (B, N, W), and the attention to the text if requested.

        `padding_BL` is True at padded words; None if there are none. The attention is (B, N, L), after softmax, mean
        over heads.
        """
        attended_BNW, _ = self.self_attention(image_BNW, image_BNW, image_BNW, need_weights=False)
        crossed: tuple[Tensor, Tensor | None] = self.cross_attention(
            attended_BNW, text_BLW, text_BLW, key_padding_mask=padding_BL, need_weights=with_attention
        )
        return crossed


class TextAttention(nn.Module):
    """Image tokens attend to the text alone (HAMMER's image side)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.cross_attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(
        self, image_BNW: Tensor, text_BLW: Tensor, padding_BL: Tensor | None, *, with_attention: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return the image tokens after the attention, and the attention; see `ImageTextAttention.forward`."""
        crossed: tuple[Tensor, Tensor | None] = self.cross_attention(
            image_BNW, text_BLW, text_BLW, key_padding_mask=padding_BL, need_weights=with_attention
        )
        return crossed


def _head(width: int, outputs: int) -> nn.Sequential:
    """Build a head in the published form: Linear, LayerNorm, GELU twice, then Linear."""
    inside = 2 * width
    return nn.Sequential(
        nn.Linear(width, inside), nn.LayerNorm(inside), nn.GELU(),
        nn.Linear(inside, inside), nn.LayerNorm(inside), nn.GELU(),
        nn.Linear(inside, outputs),
    )  # fmt: skip


def _text_head(config: ModelConfig, outputs: int) -> nn.Module:
    return nn.Linear(config.width, outputs) if config.text_heads == "linear" else _head(config.width, outputs)


class TypeHeads(nn.Module):
    """Separate heads: image types from the image side, text types from the text side."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.image = _head(config.width, len(IMAGE_TYPES))
        self.text = _text_head(config, len(TEXT_TYPES))

    def forward(self, aggregate_BW: Tensor, text_BW: Tensor) -> Tensor:
        """Return the logits of the four types, (B, 4)."""
        return torch.cat([self.image(aggregate_BW), self.text(text_BW)], dim=1)


class Asap(nn.Module):
    """The ASAP network, or HAMMER if `config.variant` is `hammer`.

    `forward` is inference: every layer runs once. Training calls the parts (`encode_image`, `encode_text`, `fuse`, the
    heads), because its losses need the intermediate results.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # Attribute names are keys of saved weights. The order here is the order in which random weights are drawn.
        width, heads = config.width, config.heads
        is_asap = config.variant == "asap"
        self.image_encoder = ImageEncoder(config)
        self.text_encoder = TextEncoder(config)
        self.fusion_encoder = FusionEncoder(config)
        self.image_projection = nn.Linear(width, config.embed_dim)
        self.text_projection = nn.Linear(width, config.embed_dim)
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self.image_side_norm = nn.LayerNorm(width)
        self.image_side_attention = ImageTextAttention(width, heads) if is_asap else TextAttention(width, heads)
        self.aggregate_norm = nn.LayerNorm(width)
        self.aggregate_token = nn.Parameter(torch.zeros(1, 1, width))
        self.aggregator = nn.MultiheadAttention(width, heads, batch_first=True)
        self.real_fake_head = _head(width, 2)
        self.type_head = TypeHeads(config) if config.type_heads == "apart" else _head(width, len(TYPES))
        self.box_head = _head(width, 4)
        self.token_head = _text_head(config, 2)
        if is_asap:
            # As published. From 0.0 the scalars never left it: Adam moves a scalar by about the learning rate a step,
            # and the rates of a whole run sum to about 0.1. The aggregate then never reached these two heads.
            self.real_fake_scale = nn.Parameter(torch.tensor(0.5))
            if config.type_heads == "joint":
                self.type_scale = nn.Parameter(torch.tensor(0.5))
            self.explanation_head = _head(width, 2)
            self.patch_head = nn.Linear(width, 1)
        if config.box_gate == "presence":
            self.presence_head = _head(width, 1)
        self._initialize()

    def _initialize(self) -> None:
        """Initialize all weights that timm has not initialized."""
        nn.init.trunc_normal_(self.aggregate_token, std=0.02)
        if self.config.text_norm == "pre":
            self._initialize_to_learn_words()
        else:
            self._initialize_as_bert()

    def _initialize_as_bert(self) -> None:
        """Initialize encoders that pretrained weights will fill. BERT's 0.02 is for a width of 768."""
        std = 0.02 * (768 / self.config.width) ** 0.5
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding) and not name.startswith("image_encoder."):
                nn.init.normal_(module.weight, std=std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _initialize_to_learn_words(self) -> None:
        """Initialize a text side without pretraining, which first learns to find equal words by attention.

        Adam moves a weight by about the learning rate. At the 1e-3 that random weights need, words drawn with BERT's
        std of 0.02 are replaced before attention has learned to compare them. Words drawn with a std of 1 last, as
        BERT's do at its 2e-5. Positions have a tenth of that std, so that the position of a word changes it little.
        Linear layers keep torch's own scale; queries and keys use Glorot's.
        """
        embeddings = self.text_encoder.embeddings
        nn.init.normal_(embeddings.word_embeddings.weight)
        for table in (embeddings.position_embeddings, embeddings.token_type_embeddings):
            nn.init.normal_(table.weight, std=0.1)
        for module in self.modules():
            if isinstance(module, Attention):
                for projection in (module.query, module.key):
                    nn.init.xavier_uniform_(projection.weight)
                    nn.init.zeros_(projection.bias)

    def encode_image(self, images_B3SS: Tensor) -> Tensor:
        """Encode pixels (B, 3, S, S), normalized or uint8, as image tokens (B, N, W)."""
        tokens_BNW: Tensor = self.image_encoder(images_B3SS)
        return tokens_BNW

    def encode_text(self, input_ids_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
        """Encode token ids and their mask, both (B, L), as text tokens (B, L, W). No mask: nothing is padded."""
        tokens_BLW: Tensor = self.text_encoder(input_ids_BL, mask_BL)
        return tokens_BLW

    def image_features(self, image_BNW: Tensor) -> Tensor:
        """Return the contrastive features of images, (B, embed_dim), of unit length."""
        return F.normalize(self.image_projection(image_BNW[:, 0]).float(), dim=-1)

    def text_features(self, text_BLW: Tensor) -> Tensor:
        """Return the contrastive features of texts, captions or explanations, (B, embed_dim), of unit length."""
        return F.normalize(self.text_projection(text_BLW[:, 0]).float(), dim=-1)

    def fuse(
        self,
        image_BNW: Tensor,
        text_BLW: Tensor,
        mask_BL: Tensor | None,
        *,
        with_scores: bool = False,
        with_attention: bool = False,
    ) -> Fused:
        """Fuse images with texts on both sides: the text attends to the image, and the image to the text.

        Args:
            image_BNW: tokens of the image encoder.
            text_BLW: tokens of the text encoder.
            mask_BL: 0 for padding, else 1. None: nothing is padded.
            with_scores: return the cross-attention scores of the text too.
            with_attention: return the attention of the image to the text too.
        """
        tokens_BLW, scores_BLN = self.fusion_encoder(text_BLW, mask_BL, image_BNW, with_scores=with_scores)
        image_side = self.attend_image_side(image_BNW, text_BLW, mask_BL, with_attention=with_attention)
        return Fused(tokens_BLW, image_side, scores_BLN)

    def attend_image_side(
        self, image_BNW: Tensor, text_BLW: Tensor, mask_BL: Tensor | None, *, with_attention: bool = False
    ) -> ImageSide:
        """Compute the image side alone: every patch after it has attended to the image and to the text."""
        normed_BNW = self.image_side_norm(image_BNW)
        padding_BL = None if mask_BL is None else ~mask_BL.bool()
        crossed_BNW, attention_BNL = self.image_side_attention(
            normed_BNW, self.image_side_norm(text_BLW), padding_BL, with_attention=with_attention
        )
        # As published, ASAP adds the attention to the normalized tokens, and HAMMER to the tokens before the norm.
        base_BNW = normed_BNW if self.config.variant == "asap" else image_BNW
        patches_BPW = self.aggregate_norm(base_BNW[:, 1:] + crossed_BNW[:, 1:])
        query_B1W = self.aggregate_norm(self.aggregate_token).expand(len(patches_BPW), -1, -1)
        aggregate_B1W: Tensor = self.aggregator(query_B1W, patches_BPW, patches_BPW, need_weights=False)[0]
        return ImageSide(patches_BPW, aggregate_B1W.squeeze(1), attention_BNL)

    def predict(self, fused: Fused) -> AsapOutput:
        """Apply the four heads to fused pairs."""
        is_asap = self.config.variant == "asap"
        return AsapOutput(
            logits_real_fake=self.real_fake_head(self._pooled(fused, self.real_fake_scale if is_asap else None)),
            logits_multilabel=self._types(fused),
            box_cxcywh=self._gated_boxes(fused.image_side),
            logits_token=self.token_logits(fused.tokens_BLW),
        )

    def token_logits(self, tokens_BLW: Tensor) -> Tensor:
        """Return logits of authentic and manipulated for each token after [CLS], (B, L-1, 2).

        In training the head reads its tokens with dropout, as published. No other head does.
        """
        read_BLW = F.dropout(tokens_BLW[:, 1:], self.config.dropout, self.training)
        logits_BL2: Tensor = self.token_head(read_BLW)
        return logits_BL2

    def _pooled(self, fused: Fused, scale: Tensor | None) -> Tensor:
        """Return the fused [CLS], plus the scaled aggregate of the patches in ASAP (its fusion scalar)."""
        text_BW = fused.tokens_BLW[:, 0]
        return text_BW if scale is None else text_BW + scale * fused.image_side.aggregate_BW

    def _types(self, fused: Fused) -> Tensor:
        if self.config.type_heads == "apart":
            apart_B4: Tensor = self.type_head(fused.image_side.aggregate_BW, fused.tokens_BLW[:, 0])
            return apart_B4
        scale = self.type_scale if self.config.variant == "asap" else None
        joint_B4: Tensor = self.type_head(self._pooled(fused, scale))
        return joint_B4

    def text_types(self, text_BW: Tensor) -> Tensor:
        """Return the logits of the text types alone, (B, 2), from the [CLS] of texts read without their images."""
        if self.config.type_heads == "apart":
            apart_B2: Tensor = cast("TypeHeads", self.type_head).text(text_BW)
            return apart_B2
        joint_B4: Tensor = self.type_head(text_BW)
        return joint_B4[:, len(IMAGE_TYPES) :]

    def explain(self, fused: Fused) -> Tensor:
        """Return real/fake logits (B, 2) of images fused with their explanations.

        Used by the image-explanation loss (IED) in training; ASAP only.
        """
        logits_B2: Tensor = self.explanation_head(self._pooled(fused, self.real_fake_scale))
        return logits_B2

    def boxes(self, image_side: ImageSide) -> Tensor:
        """Return the box of the manipulated face, cxcywh in [0, 1], (B, 4)."""
        boxes_B4: Tensor = self.box_head(image_side.aggregate_BW)
        return boxes_B4.float().sigmoid()  # half precision would round a box to 1/200 of the image

    def presence_logits(self, image_side: ImageSide) -> Tensor:
        """Return a logit for each picture, (B,): it has a manipulated face. Needs `box_gate` `presence`."""
        logits_B1: Tensor = self.presence_head(image_side.aggregate_BW)
        return logits_B1.squeeze(-1)

    def _gated_boxes(self, image_side: ImageSide) -> Tensor:
        """Return the boxes, (B, 4); zeros where the presence head predicts that there is no manipulated face."""
        boxes_B4 = self.boxes(image_side)
        if self.config.box_gate == "none":
            return boxes_B4
        return boxes_B4 * (self.presence_logits(image_side) >= 0)[:, None]

    def patch_logits(self, image_side: ImageSide) -> Tensor:
        """Return a logit for each patch, manipulated or not, (B, P).

        Used by manipulated patch prediction (MPP) in training; ASAP only.
        """
        logits_BP1: Tensor = self.patch_head(image_side.patches_BPW)
        return logits_BP1.squeeze(-1)

    def forward(self, images: Tensor, input_ids: Tensor, attention_mask: Tensor) -> AsapOutput:
        """Predict B pairs.

        Args:
            images: CLIP-normalized pixels of the configured size, (B, 3, S, S).
            input_ids: token ids, [CLS] first and no [SEP], (B, L).
            attention_mask: 0 for padding, else 1, (B, L).
        """
        text_BLW = self.encode_text(input_ids, attention_mask)
        return self.predict(self.fuse(self.encode_image(images), text_BLW, attention_mask))
