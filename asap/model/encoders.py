"""The three encoders: a ViT for the image, BERT layers for the text, BERT layers with cross attention to fuse both.

Attribute names are keys of saved weights and follow the published checkpoints. The order in which modules are built is
the order in which random weights are drawn. Do not change either.

Shapes: B pairs, L text tokens, M context tokens, N image tokens ([CLS] and the patches), W width, H heads, D channels
per head, S side of the image in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from asap.model.config import ModelConfig
from asap.preprocessing.images import CLIP_MEAN, CLIP_STD


def convolve_pixels(layer: nn.Conv2d, images_B3SS: Tensor) -> Tensor:
    """Apply the first convolution of a patch embedding to normalized pixels, or to uint8 ones.

    The normalization of uint8 pixels is folded into the layer: one step makes floats of the bytes and subtracts the
    mean, and the weights are divided by the deviation. The mean is not folded into a bias, because the zeros around an
    image mean the mean color, and because a bias would cancel most of what a bfloat16 convolution returns.
    """
    if images_B3SS.dtype != torch.uint8:
        convolved_BCHW: Tensor = layer(images_B3SS)
        return convolved_BCHW
    mean_311 = 255 * torch.tensor(CLIP_MEAN, device=images_B3SS.device).view(3, 1, 1)
    scale_311 = 255 * torch.tensor(CLIP_STD, device=images_B3SS.device).view(3, 1, 1)
    weight = (layer.weight.float() / scale_311).to(layer.weight.dtype)
    centered_B3SS = (images_B3SS - mean_311).to(weight.dtype)
    return F.conv2d(centered_B3SS, weight, layer.bias, layer.stride, layer.padding)


class LinearStem(PatchEmbed):
    """timm's linear patch embedding, which takes uint8 pixels too."""

    def forward(self, images_B3SS: Tensor) -> Tensor:
        """Return one token for each patch, row by row, (B, N, W)."""
        if images_B3SS.dtype != torch.uint8:
            return super().forward(images_B3SS)
        return convolve_pixels(self.proj, images_B3SS).flatten(2).transpose(1, 2)


class ConvStem(nn.Module):
    """Four halving convolutions instead of the linear patch embedding: (B, 3, S, S) -> (B, patches, W).

    From random weights, a linear patch embedding learns local traces very slowly; this stem learns them in minutes.
    The last three stages halve by the maximum: a fine regular texture gives responses with alternating signs, and a
    stride would skip them. In training each channel is normalized over the batch (a worker's part of it), so that
    faint traces weigh as much as strong edges. In eval mode it is normalized by running statistics (averaged over
    workers by `asap.training.distributed`), so that the result of a pair does not depend on the rest of the batch.
    """

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, **_: Any) -> None:
        super().__init__()
        # timm's VisionTransformer reads these attributes of its patch embedding.
        self.img_size = (img_size, img_size)
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        narrow = max(1, embed_dim // 12)
        channels = [in_chans, narrow, 2 * narrow, 4 * narrow, embed_dim]
        stages: list[nn.Module] = []
        for before, after in pairwise(channels):
            stages += [
                nn.Conv2d(before, after, 3, stride=1 if stages else 2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                *([nn.MaxPool2d(2)] if stages else []),
            ]
        self.proj = nn.Sequential(*stages, nn.Conv2d(embed_dim, embed_dim, 1))

    def forward(self, images_B3SS: Tensor) -> Tensor:
        """Return one token for each patch, row by row, (B, N, W)."""
        first, *others = self.proj
        features_BWhw = convolve_pixels(
            cast("nn.Conv2d", first), images_B3SS.contiguous(memory_format=torch.channels_last)
        )
        for layer in others:
            features_BWhw = layer(features_BWhw)
        return features_BWhw.flatten(2).transpose(1, 2)


class ImageEncoder(VisionTransformer):
    """A ViT with a [CLS] token and a final LayerNorm: timm's, whose parameter names equal the published ones."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(
            img_size=config.image_size,
            patch_size=config.patch_size,
            num_classes=0,
            global_pool="",
            embed_dim=config.width,
            depth=config.image_layers,
            num_heads=config.heads,
            # timm truncates width * ratio to a whole number. The half protects it from a rounding error.
            mlp_ratio=(config.image_mlp_width + 0.5) / config.width,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            embed_layer=ConvStem if config.patch_embedding == "conv" else LinearStem,
        )
        if config.patch_embedding == "conv":
            # Start from positions as strong as the stem's features. timm's random ones, with a std of 0.02, are lost
            # beside them, and a box cannot be derived from tokens that do not encode where they are.
            sincos_PW = build_sincos2d_pos_embed(list(self.patch_embed.grid_size), self.embed_dim)
            with torch.no_grad():
                self.pos_embed[0, self.num_prefix_tokens :] = sincos_PW

    def forward(self, images_B3SS: Tensor) -> Tensor:
        """Encode pixels (B, 3, S, S), normalized or uint8, as tokens (B, N, W): [CLS], then the patches row by row."""
        tokens_BNW: Tensor = self.forward_features(images_B3SS)
        return tokens_BNW


class Attention(nn.Module):
    """Multi-head attention with BERT's parameter names, without its output projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)

    def _split(self, tokens_BLW: Tensor) -> Tensor:
        return tokens_BLW.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, tokens_BLW: Tensor, context_BMW: Tensor, mask_B11M: Tensor | None) -> Tensor:
        """Attend from `tokens` to `context`; `mask` is True where a context token may be attended to."""
        context_BHLD = F.scaled_dot_product_attention(
            self._split(self.query(tokens_BLW)),
            self._split(self.key(context_BMW)),
            self._split(self.value(context_BMW)),
            attn_mask=mask_B11M,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return context_BHLD.transpose(1, 2).flatten(2)

    def scores(self, tokens_BLW: Tensor, context_BMW: Tensor) -> Tensor:
        """Return the scaled scores before softmax, mean over heads, (B, L, M).

        The guided-attention loss (MGCA) supervises them, and `scaled_dot_product_attention` does not return them. The
        mean over heads of the per-head products is one product over the whole width.
        """
        query_BLW, key_BMW = self.query(tokens_BLW), self.key(context_BMW)
        per_head_scale = (query_BLW.shape[-1] / self.heads) ** -0.5
        return (query_BLW @ key_BMW.transpose(1, 2)) * (per_head_scale / self.heads)


class ResidualNorm(nn.Module):
    """The end of a branch: projection, dropout, residual sum and LayerNorm.

    The LayerNorm is applied after the sum, as in BERT, or to the input of the branch (`ModelConfig.text_norm`).
    """

    def __init__(self, width_in: int, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.is_pre_norm = config.text_norm == "pre"

    def norm_before(self, tokens_BLW: Tensor) -> Tensor:
        """Return the input of the branch: normalized if the norm comes first, else unchanged."""
        return self.LayerNorm(tokens_BLW) if self.is_pre_norm else tokens_BLW

    def forward(self, hidden: Tensor, residual_BLW: Tensor) -> Tensor:
        """Return the sum of branch and residual, (B, L, W), normalized unless the norm came first."""
        summed: Tensor = self.dropout(self.dense(hidden)) + residual_BLW
        return summed if self.is_pre_norm else self.LayerNorm(summed)


class AttentionBlock(nn.Module):
    """Attention with its projection, residual and norm: BERT's `attention` and `crossattention`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self = Attention(config)
        self.output = ResidualNorm(config.width, config)

    def forward(self, tokens_BLW: Tensor, context_BMW: Tensor | None = None, mask_B11M: Tensor | None = None) -> Tensor:
        """Attend to `context`, or to the tokens themselves if it is None."""
        inputs_BLW = self.output.norm_before(tokens_BLW)
        context_BMW = inputs_BLW if context_BMW is None else context_BMW
        attended: Tensor = self.output(self.self(inputs_BLW, context_BMW, mask_B11M), tokens_BLW)
        return attended

    def scores(self, tokens_BLW: Tensor, context_BMW: Tensor) -> Tensor:
        """Return the scores of `Attention.scores` for the input of this block."""
        return self.self.scores(self.output.norm_before(tokens_BLW), context_BMW)


class BertLayer(nn.Module):
    """Self attention, cross attention to the image if the layer fuses, and feed-forward."""

    def __init__(self, config: ModelConfig, *, fuses: bool) -> None:
        super().__init__()
        self.attention = AttentionBlock(config)
        if fuses:
            self.crossattention = AttentionBlock(config)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.width, config.text_mlp_width)})
        self.output = ResidualNorm(config.text_mlp_width, config)

    def attend_to_text(self, tokens_BLW: Tensor, mask_B11L: Tensor | None) -> Tensor:
        """Run the self-attention of the layer, (B, L, W); `mask_B11L` is True where a token may be attended to."""
        attended: Tensor = self.attention(tokens_BLW, mask_B11M=mask_B11L)
        return attended

    def read(self, tokens_BLW: Tensor, mask_B11L: Tensor | None) -> Tensor:
        """Run the layer on the text alone."""
        return self.feed_forward(self.attend_to_text(tokens_BLW, mask_B11L))

    def fuse(
        self, tokens_BLW: Tensor, mask_B11L: Tensor | None, image_BNW: Tensor, with_scores: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Run the layer on the text and the image. Also return the `Attention.scores` if requested, else None."""
        tokens_BLW = self.attend_to_text(tokens_BLW, mask_B11L)
        scores_BLN = self.crossattention.scores(tokens_BLW, image_BNW) if with_scores else None
        return self.feed_forward(self.crossattention(tokens_BLW, image_BNW)), scores_BLN

    def feed_forward(self, tokens_BLW: Tensor) -> Tensor:
        """Run the feed-forward branch of the layer, (B, L, W)."""
        inside = F.gelu(self.intermediate["dense"](self.output.norm_before(tokens_BLW)))
        fed: Tensor = self.output(inside, tokens_BLW)
        return fed


class TextEmbeddings(nn.Module):
    """BERT's word, position and token-type embeddings; the type is always 0."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.width, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_positions, config.width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids_BL: Tensor) -> Tensor:
        """Return the sum of word, position and type embeddings, normalized, (B, L, W)."""
        positions_LW = self.position_embeddings.weight[: input_ids_BL.shape[1]]
        tokens_BLW = self.word_embeddings(input_ids_BL) + self.token_type_embeddings.weight[0] + positions_LW
        embedded: Tensor = self.dropout(self.LayerNorm(tokens_BLW))
        return embedded


def _final_norm(config: ModelConfig) -> nn.Module:
    """Return the norm after the last layer. Only layers with a norm before each branch need one."""
    if config.text_norm == "post":
        return nn.Identity()
    return nn.LayerNorm(config.width, eps=config.layer_norm_eps)


def _checkpointed(enabled: bool, part: Callable[..., Any], *inputs: Any) -> Any:
    """Run a part of an encoder, with activation checkpointing if it is enabled and gradients are recorded.

    Then only the inputs are kept, and the backward pass runs the part again with the same dropout.
    """
    if enabled and torch.is_grad_enabled():
        return checkpoint(part, *inputs, use_reentrant=False)
    return part(*inputs)


def _attention_mask(mask_BL: Tensor | None) -> Tensor | None:
    """Return the mask as bool and in a shape that broadcasts over heads and queries, (B, 1, 1, L)."""
    return None if mask_BL is None else mask_BL.bool()[:, None, None, :]


class TextEncoder(nn.Module):
    """The first layers of BERT, which read the text alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        layers = nn.ModuleList(BertLayer(config, fuses=False) for _ in range(config.text_layers))
        self.layers = cast("Sequence[BertLayer]", layers)
        self.final_norm = _final_norm(config)
        self.checkpoints_activations = False

    def forward(self, input_ids_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
        """Encode token ids and their mask, both (B, L), as tokens (B, L, W), [CLS] first. None: nothing is padded."""
        tokens_BLW: Tensor = self.embeddings(input_ids_BL)
        mask_B11L = _attention_mask(mask_BL)
        for layer in self.layers:
            tokens_BLW = _checkpointed(self.checkpoints_activations, layer.read, tokens_BLW, mask_B11L)
        normed_BLW: Tensor = self.final_norm(tokens_BLW)
        return normed_BLW


class FusionEncoder(nn.Module):
    """The remaining layers of BERT, with cross attention to the image tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        layers = nn.ModuleList(BertLayer(config, fuses=True) for _ in range(config.fusion_layers))
        self.layers = cast("Sequence[BertLayer]", layers)
        self.final_norm = _final_norm(config)
        self.checkpoints_activations = False

    def forward(
        self, text_BLW: Tensor, mask_BL: Tensor | None, image_BNW: Tensor | None, *, with_scores: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Fuse text tokens with image tokens.

        Args:
            text_BLW: tokens of the text encoder.
            mask_BL: 0 for padding, else 1. None: nothing is padded.
            image_BNW: tokens of the image encoder. If None, the text is read alone (training only).
            with_scores: return the scores too.

        Returns the fused tokens (B, L, W), and the last layer's cross-attention scores before softmax, mean over
        heads, (B, L, N), or None.
        """
        tokens_BLW, scores_BLN = text_BLW, None
        mask_B11L = _attention_mask(mask_BL)
        for depth, layer in enumerate(self.layers, start=1):
            if image_BNW is None:
                tokens_BLW = _checkpointed(self.checkpoints_activations, layer.read, tokens_BLW, mask_B11L)
                continue
            # Only the last layer's scores are supervised, so only they are computed.
            with_these = with_scores and depth == len(self.layers)
            tokens_BLW, scores_BLN = _checkpointed(
                self.checkpoints_activations, layer.fuse, tokens_BLW, mask_B11L, image_BNW, with_these
            )
        return self.final_norm(tokens_BLW), scores_BLN
