"""Words predicted from pictures, in training only: what is said of a picture teaches it words, and how to be read.

Neither term is of the paper, whose model starts from encoders and a fusion that captions have trained (ALBEF). From
random weights the fusion does without the picture for as long as the words of a text tell enough of each other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asap.labels import IMAGE_TYPES
from asap.model.config import ModelConfig
from asap.training.batch import Batch, Tokens, stack_texts

MASKED_SHARE = 0.4
"""Of the words of a text: more than BERT's 0.15, so that the words left often do not tell those that are not, and the
picture must (Wettig et al., EACL 2023, who find 0.4 as good for the text alone)."""
_KEPT, _REPLACED = 0.1, 0.1
"""Of the masked words, those that stay and those that another stands for, as BERT's."""


def caption_words(batch: Batch) -> Tokens:
    """The captions; [CLS] alone where a caption is only a manipulated text that stands in for a missing one."""
    text, caption = _of_one_length(batch.text, batch.caption)
    same_B = (text.input_ids == caption.input_ids).all(dim=1) & (text.mask == caption.mask).all(dim=1)
    mask_BL = caption.mask.clone()
    mask_BL[:, 1:] *= ~(same_B & _text_manipulated(batch))[:, None]
    return Tokens(caption.input_ids, mask_BL)


def true_words(batch: Batch) -> Tokens:
    """What is truly said of each picture: the text where it was not manipulated, else the caption, or [CLS] alone."""
    text, caption = _of_one_length(batch.text, caption_words(batch))
    manipulated_B1 = _text_manipulated(batch)[:, None]
    return Tokens(*(torch.where(manipulated_B1, other, own) for own, other in zip(text, caption, strict=True)))


def _text_manipulated(batch: Batch) -> Tensor:
    return batch.types[:, len(IMAGE_TYPES) :].any(dim=1)


def _of_one_length(*texts: Tokens) -> list[Tokens]:
    stacked = stack_texts(*texts)
    return [Tokens(*parts) for parts in zip(*(part.chunk(len(texts)) for part in stacked), strict=True)]


def mask_words(words: Tokens, mask_id: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Hide some pieces of each text: the ids with them hidden, and which they are; (B, L) each.

    As many of every text, by its length, [CLS] never; most become [MASK], some another piece, some stay (BERT).
    """
    ids_BL, mask_BL = words
    maskable_BL = mask_BL.bool()
    maskable_BL[:, 0] = False
    count_B1 = (maskable_BL.sum(dim=1, keepdim=True) * MASKED_SHARE).ceil()
    drawn_BL = torch.rand_like(ids_BL, dtype=torch.float32).masked_fill(~maskable_BL, 2.0)
    hidden_BL = (drawn_BL.argsort(dim=1).argsort(dim=1) < count_B1) & maskable_BL
    how_BL = torch.rand_like(ids_BL, dtype=torch.float32)
    other_BL = torch.randint_like(ids_BL, vocab_size)
    shown_BL = torch.where(how_BL < _REPLACED, other_BL, torch.full_like(ids_BL, mask_id))
    shown_BL = torch.where(how_BL >= 1 - _KEPT, ids_BL, shown_BL)
    return torch.where(hidden_BL, shown_BL, ids_BL), hidden_BL


class _WordHead(nn.Module):
    """To a logit for each piece of the vocabulary, by the text side's own word embeddings (training only)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def words(self, hidden_TW: Tensor, embeddings_VW: Tensor) -> Tensor:
        """Logits (T, V).

        Scaled as attention scores are: words are drawn at 1 (`Asap`), which would make the first logits as large as
        the root of the width, and the first loss above that of knowing nothing.
        """
        normed_TW = self.norm(hidden_TW)
        return F.linear(normed_TW * normed_TW.shape[-1] ** -0.5, embeddings_VW, self.bias)


class CaptionWordHead(_WordHead):
    """From image tokens to words (CWP).

    A patch and a word that mean the same come to lie in the same place, which is where cross attention finds them.
    """

    def forward(self, image_BNW: Tensor, embeddings_VW: Tensor) -> Tensor:
        """Logits (B, V) of the mean patch."""
        return self.words(self.dense(image_BNW[:, 1:].mean(dim=1)), embeddings_VW)


class MaskedWordHead(_WordHead):
    """From a fused token to words (MLM), with BERT's transform."""

    def forward(self, tokens_TW: Tensor, embeddings_VW: Tensor) -> Tensor:
        """Logits (T, V) of T tokens."""
        return self.words(F.gelu(self.dense(tokens_TW)), embeddings_VW)
