import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from asap.training.batch import Batch, Tokens
from asap.training.word_prediction import (
    MASKED_SHARE,
    CaptionWordHead,
    MaskedWordHead,
    caption_words,
    mask_words,
    true_words,
)
from tests.support.tiny import draw_batch, draw_texts, tiny_config, tiny_model

MASK, VOCABULARY = 4, 50


def pieces(words: Tokens) -> list[list[int]]:
    """Return the pieces of each text, without [CLS] and padding."""
    return [ids[1:][mask[1:] == 1].tolist() for ids, mask in zip(*words, strict=True)]


def with_captions(batch: Batch, captions: Tokens) -> Batch:
    return dataclasses.replace(batch, caption=captions)


def test_true_words_are_the_text_or_the_caption_of_a_manipulated_text() -> None:
    batch = draw_batch(("orig", "text_swap", "face_swap", "face_swap&text_attribute"))
    texts, captions = pieces(batch.text), pieces(batch.caption)
    assert pieces(true_words(batch)) == [texts[0], captions[1], texts[2], captions[3]]


def test_a_manipulated_text_in_place_of_a_caption_has_no_true_words() -> None:
    batch = draw_batch(("orig", "text_swap", "face_swap"))
    batch = with_captions(batch, batch.text)
    texts = pieces(batch.text)
    assert pieces(caption_words(batch)) == [texts[0], [], texts[2]]
    assert pieces(true_words(batch)) == [texts[0], [], texts[2]]
    # Attention over a text without any token would be NaN, so [CLS] stays.
    assert true_words(batch).mask[:, 0].tolist() == [1, 1, 1]


def test_a_caption_that_begins_like_the_text_is_a_caption() -> None:
    batch = draw_batch(("text_swap",))
    longer = Tokens(*(F.pad(part, (0, 1), value=1) for part in batch.text))
    assert pieces(caption_words(with_captions(batch, longer))) == pieces(longer)


def test_a_share_of_every_text_is_hidden_but_never_cls_or_padding() -> None:
    torch.manual_seed(0)
    lengths = [1, 2, 3, 11, 21]
    words = draw_texts(torch.Generator().manual_seed(0), lengths)
    for _ in range(20):
        shown, hidden = mask_words(words, MASK, VOCABULARY)
        assert hidden.sum(dim=1).tolist() == [math.ceil((length - 1) * MASKED_SHARE) for length in lengths]
        assert not hidden[:, 0].any()
        assert not hidden[words.mask == 0].any()
        assert torch.equal(shown[~hidden], words.input_ids[~hidden])


def test_most_hidden_pieces_are_masked_some_are_replaced_and_some_stay() -> None:
    torch.manual_seed(0)
    words = draw_texts(torch.Generator().manual_seed(0), [401] * 20)
    shown, hidden = mask_words(words, MASK, VOCABULARY)
    masked = (shown == MASK)[hidden].float().mean().item()
    stayed = (shown == words.input_ids)[hidden].float().mean().item()
    assert masked == pytest.approx(0.8, abs=0.02)
    assert stayed == pytest.approx(0.1 + 0.1 / VOCABULARY, abs=0.02)
    assert masked + stayed < 0.95


def test_hidden_pieces_are_drawn_anew_and_follow_the_seed() -> None:
    words = draw_texts(torch.Generator().manual_seed(0), [30, 30])
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(mask_words(words, MASK, VOCABULARY))
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert not torch.equal(drawn[0][1], drawn[2][1])
    assert not torch.equal(drawn[0][1][0], drawn[0][1][1])


@pytest.mark.parametrize("head", [CaptionWordHead, MaskedWordHead])
def test_a_new_head_starts_near_a_uniform_guess_at_any_width(head: type[nn.Module]) -> None:
    torch.manual_seed(0)
    config = tiny_config(width=192, heads=4, vocab_size=1000)
    embeddings = torch.randn(1000, 192)
    tokens = torch.randn(64, 10, 192) if head is CaptionWordHead else torch.randn(64, 192)
    logits = head(config)(tokens, embeddings)
    loss = F.cross_entropy(logits, torch.randint(1000, (64,))).item()
    assert loss == pytest.approx(math.log(1000), rel=0.15)


def test_a_hidden_word_is_predicted_with_the_picture() -> None:
    model, head = tiny_model(), MaskedWordHead(tiny_config())
    batch = draw_batch()
    torch.manual_seed(0)
    words = true_words(batch)
    shown, hidden = mask_words(words, MASK, VOCABULARY)
    predicted = []
    for images in (batch.images, batch.images.flip(0)):
        tokens, _ = model.fusion_encoder(model.encode_text(shown, words.mask), words.mask, model.encode_image(images))
        predicted.append(head(tokens[hidden], model.text_encoder.embeddings.word_embeddings.weight))
    assert predicted[0].shape == (int(hidden.sum()), VOCABULARY)
    assert not torch.allclose(predicted[0], predicted[1])
