from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from asap.model.activations import EarlyActivations, text_features, text_sums
from tests.support.tiny import draw_texts, tiny_model


@pytest.mark.parametrize("patch_embedding", ["conv", "linear"])
@torch.inference_mode()
def test_features_are_mean_and_deviation_of_early_channels_over_the_image(patch_embedding: str) -> None:
    model = tiny_model(patch_embedding=patch_embedding)
    images = torch.randn(5, 3, 48, 48)
    tokens, features = EarlyActivations(model).encode_image(images)
    assert torch.equal(tokens, model.encode_image(images))
    if patch_embedding == "linear":
        patches = model.image_encoder.patch_embed(images)
        layers = [patches, model.image_encoder.blocks[0](model.image_encoder._pos_embed(patches))]
    else:
        layers, output = [], images
        for layer in model.image_encoder.patch_embed.proj:
            output = layer(output)
            if isinstance(layer, nn.ReLU):
                layers.append(output.flatten(2).transpose(1, 2))
        layers = layers[-3:]
    expected = [part for layer in layers for part in (layer.mean(1), layer.std(1, correction=0))]
    torch.testing.assert_close(features, torch.cat(expected, dim=1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_several_watchers_of_one_model_in_several_threads_do_not_mix_their_features() -> None:
    model = tiny_model()
    watchers = [EarlyActivations(model) for _ in range(3)]
    images = [torch.randn(2, 3, 48, 48) for _ in range(24)]
    expected = [watchers[0].encode_image(batch)[1] for batch in images]

    @torch.no_grad()
    def encode(number: int) -> torch.Tensor:
        return watchers[number % 3].encode_image(images[number])[1]

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(encode, range(24)))
    assert all(map(torch.equal, found, expected))


@torch.inference_mode()
def test_a_model_that_is_watched_computes_what_it_did() -> None:
    model = tiny_model()
    images = torch.randn(2, 3, 48, 48)
    before = model.encode_image(images)
    EarlyActivations(model)
    assert torch.equal(model.encode_image(images), before)


def test_a_text_in_two_passes_has_the_features_of_its_words_together() -> None:
    tokens = torch.randn(1, 9, 48)
    mask = torch.ones(1, 9)
    whole = text_features(text_sums(tokens, mask))
    # The same words as two passes, each behind its own [CLS], the second one padded.
    first, second = torch.randn(1, 7, 48), torch.randn(1, 7, 48)
    first[:, 1:6], second[:, 1:4] = tokens[:, 1:6], tokens[:, 6:9]
    masks = torch.tensor([[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0, 0]])
    sums = text_sums(torch.cat([first, second]), masks)
    torch.testing.assert_close(text_features(sums.sum(0, keepdim=True)), whole, atol=1e-5, rtol=1e-5)
    words = tokens[0, 1:]
    expected = torch.cat([words.mean(0), words.std(0, correction=0)])
    torch.testing.assert_close(whole[0], expected, atol=1e-4, rtol=1e-4)


def test_padding_changes_no_feature_of_a_text() -> None:
    texts = draw_texts(torch.Generator().manual_seed(0), [4, 9])
    tokens = torch.randn(2, texts.mask.shape[1], 48)
    short = text_sums(tokens[:1, :4], texts.mask[:1, :4])
    torch.testing.assert_close(text_sums(tokens, texts.mask)[:1], short)
    # A text of one word has no deviation, and no NaN.
    one = text_features(text_sums(tokens[:1, :2], torch.ones(1, 2)))
    assert one[0, 48:].abs().max() < 1e-2
    assert one.isfinite().all()
