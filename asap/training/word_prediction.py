"""Words predicted from pictures: caption word prediction (CWP) and masked language modeling (MLM).

Both are used in training only. CWP teaches the image side words; MLM teaches the fusion encoder to read pictures.
Neither term is in the paper: its model starts from encoders and a fusion encoder that were trained on captions (ALBEF).
From random weights, the fusion encoder ignores the picture as long as the words of a text predict each other well.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asap.labels import IMAGE_TYPES
from asap.model.config import ModelConfig
from asap.training.batch import Batch, Tokens, stack_texts

MASKED_SHARE = 0.4
"""The share of a text's words that are masked.

It is larger than BERT's 0.15, so that the remaining words often do not determine the masked ones and the picture must.
Wettig et al. (EACL 2023) find 0.4 as good for the text alone.
"""
_KEPT, _REPLACED = 0.1, 0.1
"""The shares of the masked words that stay as they are, and that are replaced by another word (as in BERT)."""


def caption_words(batch: Batch) -> Tokens:
    """Return the captions; [CLS] alone where the caption is only a copy of the manipulated text.

    A text stands in for a missing caption. A manipulated one does not describe its picture.
    """
    text, caption = _pad_to_one_length(batch.text, batch.caption)
    same_B = (text.input_ids == caption.input_ids).all(dim=1) & (text.mask == caption.mask).all(dim=1)
    mask_BL = caption.mask.clone()
    mask_BL[:, 1:] *= ~(same_B & _text_manipulated(batch))[:, None]
    return Tokens(caption.input_ids, mask_BL)


def has_false_text(batch: Batch) -> Tensor:
    """Return (B,) bool: True if the text is manipulated and a caption says what the picture shows."""
    return _text_manipulated(batch) & caption_words(batch).mask[:, 1:].any(dim=1)


def true_words(batch: Batch) -> Tokens:
    """Return a true text for each picture: the text unless it was manipulated, else the caption or [CLS] alone."""
    text, caption = _pad_to_one_length(batch.text, caption_words(batch))
    manipulated_B1 = _text_manipulated(batch)[:, None]
    return Tokens(*(torch.where(manipulated_B1, other, own) for own, other in zip(text, caption, strict=True)))


def _text_manipulated(batch: Batch) -> Tensor:
    return batch.types[:, len(IMAGE_TYPES) :].any(dim=1)


def _pad_to_one_length(*texts: Tokens) -> list[Tokens]:
    stacked = stack_texts(*texts)
    return [Tokens(*parts) for parts in zip(*(part.chunk(len(texts)) for part in stacked), strict=True)]


def mask_words(words: Tokens, mask_id: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Mask `MASKED_SHARE` of the pieces of each text, except [CLS].

    As in BERT, most of them become [MASK], some become another piece, and some stay.

    Returns the ids with these pieces masked, (B, L), and a mask of the hidden pieces, (B, L) bool.
    """
    ids_BL, mask_BL = words
    maskable_BL = mask_BL.bool()
    maskable_BL[:, 0] = False
    count_B1 = (maskable_BL.sum(dim=1, keepdim=True) * MASKED_SHARE).ceil()
    # Rank the pieces by a random number and take the first: an exact number of each text. Pieces that cannot be masked
    # get a number above all others.
    drawn_BL = torch.rand_like(ids_BL, dtype=torch.float32).masked_fill(~maskable_BL, 2.0)
    hidden_BL = (drawn_BL.argsort(dim=1).argsort(dim=1) < count_B1) & maskable_BL
    how_BL = torch.rand_like(ids_BL, dtype=torch.float32)
    other_BL = torch.randint_like(ids_BL, vocab_size)
    shown_BL = torch.where(how_BL < _REPLACED, other_BL, torch.full_like(ids_BL, mask_id))
    shown_BL = torch.where(how_BL >= 1 - _KEPT, ids_BL, shown_BL)
    return torch.where(hidden_BL, shown_BL, ids_BL), hidden_BL


class _WordHead(nn.Module):
    """A head with a logit for each piece of the vocabulary, tied to the word embeddings of the text side."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def words(self, hidden_TW: Tensor, embeddings_VW: Tensor) -> Tensor:
        """Return logits (T, V), scaled as attention scores are.

        The word embeddings are initialized with standard deviation 1 (`Asap`). Unscaled, the first logits would be as
        large as the square root of the width, and the first loss larger than that of a uniform guess.
        """
        normed_TW = self.norm(hidden_TW)
        return F.linear(normed_TW * normed_TW.shape[-1] ** -0.5, embeddings_VW, self.bias)


class CaptionWordHead(_WordHead):
    """The head of caption word prediction (CWP): image tokens to words.

    It draws a patch and a word of the same meaning to the same point, where cross attention finds them.
    """

    def forward(self, image_BNW: Tensor, embeddings_VW: Tensor) -> Tensor:
        """Return the logits of the mean patch, (B, V)."""
        return self.words(self.dense(image_BNW[:, 1:].mean(dim=1)), embeddings_VW)


class MaskedWordHead(_WordHead):
    """The head of masked language modeling (MLM): fused tokens to words, with the transform of BERT."""

    def forward(self, tokens_TW: Tensor, embeddings_VW: Tensor) -> Tensor:
        """Return the logits of T tokens, (T, V)."""
        return self.words(F.gelu(self.dense(tokens_TW)), embeddings_VW)
