import math
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from asap.model.encoders import Attention, AttentionBlock, ConvStem, FusionEncoder, ImageEncoder, TextEncoder
from asap.preprocessing.images import normalize
from tests.support.tiny import tiny_config


@pytest.fixture(autouse=True)
def one_thread_and_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def softmax_attention(attention: Attention, tokens: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute attention by its textbook definition, head by head."""
    heads = []
    for query, key, value in zip(
        attention.query(tokens).chunk(attention.heads, dim=-1),
        attention.key(context).chunk(attention.heads, dim=-1),
        attention.value(context).chunk(attention.heads, dim=-1),
        strict=True,
    ):
        scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask.bool()[:, None], -math.inf)
        heads.append(scores.softmax(dim=-1) @ value)
    return torch.cat(heads, dim=-1)


@pytest.mark.parametrize("heads", [4, 12])
def test_attention_matches_its_textbook_definition_with_and_without_a_mask(heads: int) -> None:
    attention = Attention(tiny_config(heads=heads))
    tokens, context = torch.randn(3, 5, 48), torch.randn(3, 7, 48)
    mask = torch.arange(7)[None] < torch.tensor([7, 4, 1])[:, None]

    same(attention(tokens, context, None), softmax_attention(attention, tokens, context))
    same(attention(tokens, context, mask[:, None, None]), softmax_attention(attention, tokens, context, mask))


@pytest.mark.parametrize("heads", [4, 12])
def test_scores_are_the_mean_over_heads_of_each_heads_scores(heads: int) -> None:
    attention = Attention(tiny_config(heads=heads))
    tokens, context = torch.randn(3, 5, 48), torch.randn(3, 7, 48)
    query, key = (
        projected.unflatten(-1, (heads, -1)).transpose(1, 2)
        for projected in (attention.query(tokens), attention.key(context))
    )
    per_head = query @ key.transpose(-1, -2) / math.sqrt(48 / heads)
    same(attention.scores(tokens, context), per_head.mean(dim=1))


def test_dropout_acts_in_training_only() -> None:
    block = AttentionBlock(tiny_config(dropout=0.5))
    tokens = torch.randn(2, 5, 48)
    assert not torch.equal(block(tokens, tokens), block(tokens, tokens))
    block.eval()
    assert torch.equal(block(tokens, tokens), block(tokens, tokens))


def test_the_text_encoder_ignores_padding() -> None:
    encoder = TextEncoder(tiny_config()).eval()
    ids = torch.randint(1, 50, (2, 9))
    mask = torch.tensor([[1] * 9, [1] * 4 + [0] * 5])
    whole = encoder(ids, mask)

    same(encoder(ids[1:, :4], mask[1:, :4]), whole[1:, :4])
    other_padding = encoder(torch.where(mask == 1, ids, 7), mask)
    same(other_padding[1, :4], whole[1, :4])


def test_the_encoding_of_a_word_depends_on_its_position() -> None:
    encoder = TextEncoder(tiny_config()).eval()
    forward, backward = (encoder(torch.tensor([ids]), torch.ones(1, 3)) for ids in ([4, 5, 6], [4, 6, 5]))
    assert not torch.allclose(forward[0, 1], backward[0, 2], atol=1e-3)


def test_a_text_of_cls_alone_is_encoded() -> None:
    assert TextEncoder(tiny_config()).eval()(torch.tensor([[3]]), torch.ones(1, 1)).isfinite().all()


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_fusion_attends_to_the_image_and_ignores_padding(norm: str) -> None:
    encoder = FusionEncoder(tiny_config(fusion_layers=2, text_norm=norm)).eval()
    text, image = torch.randn(2, 6, 48), torch.randn(2, 10, 48)
    mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    fused, scores = encoder(text, mask, image)

    assert scores is None
    alone, _ = encoder(text[1:, :3], mask[1:, :3], image[1:])
    same(alone, fused[1:, :3])
    other, _ = encoder(text, mask, image.flip(0))
    assert not torch.allclose(other[:, 0], fused[:, 0], atol=1e-3)


def test_a_text_without_an_image_is_read_alone() -> None:
    encoder = FusionEncoder(tiny_config(fusion_layers=2)).eval()
    text, mask = torch.randn(2, 6, 48), torch.ones(2, 6)
    with mock.patch.object(Attention, "scores", autospec=True, side_effect=Attention.scores) as computed:
        alone, scores = encoder(text, mask, None, with_scores=True)
    assert (scores, computed.call_count) == (None, 0)
    for layer in encoder.layers:  # an image that contributes nothing changes nothing
        layer.crossattention.output.dense.weight.data.zero_()
        layer.crossattention.output.dense.bias.data.zero_()
    same(encoder(text, mask, torch.randn(2, 10, 48))[0], alone)


def test_scores_are_computed_only_on_request_and_only_in_the_last_layer() -> None:
    encoder = FusionEncoder(tiny_config(fusion_layers=2)).eval()
    text, mask, image = torch.randn(2, 6, 48), torch.ones(2, 6), torch.randn(2, 10, 48)

    with mock.patch.object(Attention, "scores", autospec=True, side_effect=Attention.scores) as computed:
        plain, _ = encoder(text, mask, image)
        assert computed.call_count == 0
        fused, scores = encoder(text, mask, image, with_scores=True)

    assert [call.args[0] for call in computed.call_args_list] == [encoder.layers[-1].crossattention.self]
    assert scores is not None
    assert scores.shape == (2, 6, 10)
    assert torch.equal(plain, fused)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_the_last_layer_attends_with_the_returned_scores(norm: str) -> None:
    encoder = FusionEncoder(tiny_config(heads=1, text_norm=norm)).eval()
    text, mask, image = torch.randn(2, 6, 48), torch.ones(2, 6), torch.randn(2, 10, 48)
    attention = encoder.layers[-1].crossattention.self
    attended: list[Tensor] = []
    attention.register_forward_hook(lambda module, inputs, output: attended.append(output))

    _, scores = encoder(text, mask, image, with_scores=True)

    assert scores is not None
    same(attended[0], F.softmax(scores, dim=-1) @ attention.value(image))


def test_a_branch_normalizes_its_input_or_the_sum() -> None:
    tokens, context = torch.randn(2, 5, 48), torch.randn(2, 7, 48)
    for norm in ("post", "pre"):
        block = AttentionBlock(tiny_config(text_norm=norm)).eval()
        output = block.output
        if norm == "post":
            expected = output.LayerNorm(tokens + output.dense(block.self(tokens, context, None)))
        else:
            expected = tokens + output.dense(block.self(output.LayerNorm(tokens), context, None))
        same(block(tokens, context), expected)


def test_words_stay_distinct_beside_a_strong_image_with_pre_norm() -> None:
    text, mask, image = torch.randn(1, 6, 48), torch.ones(1, 6), 100 * torch.randn(1, 10, 48)
    variances = {}
    for norm in ("post", "pre"):
        torch.manual_seed(1)
        encoder = FusionEncoder(tiny_config(fusion_layers=4, text_norm=norm)).eval()
        for layer in encoder.layers:  # every word has the same query, so the image dominates every word
            layer.crossattention.self.query.weight.data.zero_()
            layer.crossattention.output.dense.weight.data.mul_(3)
        variances[norm] = encoder(text, mask, image)[0].var(dim=1).mean().item()
    assert variances["pre"] > 10 * variances["post"]


def test_patch_positions_of_a_conv_stem_start_strong_and_ordered() -> None:
    encoder = ImageEncoder(tiny_config(image_size=128))
    positions = encoder.pos_embed[0, 1:].unflatten(0, (8, 8))
    assert positions.std() > 0.5
    to_the_first = (positions - positions[0, 0]).norm(dim=-1)
    assert to_the_first[0, 1] < to_the_first[0, 4]
    assert to_the_first[1, 0] < to_the_first[4, 0]
    assert ImageEncoder(tiny_config(patch_embedding="linear")).pos_embed.std() < 0.05  # timm's positions, as published


@pytest.mark.parametrize("embedding", ["linear", "conv"])
def test_an_image_becomes_cls_and_its_patches_row_by_row(embedding: str) -> None:
    encoder = ImageEncoder(tiny_config(patch_embedding=embedding)).eval()
    images = torch.randn(1, 3, 48, 48)
    patches = encoder.patch_embed(images)
    changed = images.clone()
    changed[:, :, 37:42, 5:10] += 9  # well inside the first patch of the third row

    assert encoder(images).shape == (1, 10, 48)
    moved = (encoder.patch_embed(changed) - patches).norm(dim=-1)[0]
    assert moved.argmax() == 6


@pytest.mark.parametrize("embedding", ["linear", "conv"])
def test_the_encoding_of_an_image_does_not_depend_on_its_batch(embedding: str) -> None:
    encoder = ImageEncoder(tiny_config(patch_embedding=embedding)).eval()
    images = torch.randn(3, 3, 48, 48) * torch.tensor([1.0, 10.0, 0.1])[:, None, None, None]
    together = encoder(images)
    for row in range(3):
        same(encoder(images[row : row + 1])[0], together[row])


def test_the_image_encoder_has_no_dropout() -> None:
    encoder = ImageEncoder(tiny_config(dropout=0.5)).train()
    images = torch.randn(1, 3, 48, 48)
    assert torch.equal(encoder(images), encoder(images))


def test_the_mlp_width_is_the_configured_one() -> None:
    # timm takes a ratio, and 384 / 47 * 47 is a little less than 384.
    encoder = ImageEncoder(tiny_config(width=47, heads=1, image_mlp_width=384, patch_embedding="linear"))
    assert encoder.blocks[0].mlp.fc1.out_features == 384


def test_the_stem_halves_the_image_four_times() -> None:
    stem = ConvStem(img_size=64, patch_size=16, in_chans=3, embed_dim=48)
    assert stem(torch.randn(2, 3, 64, 64)).shape == (2, 16, 48)
    assert (stem.num_patches, stem.grid_size) == (16, (4, 4))


@pytest.mark.parametrize("embedding", ["linear", "conv"])
def test_bytes_are_encoded_as_their_normalized_pixels_are_and_no_weight_changes(embedding: str) -> None:
    encoder = ImageEncoder(tiny_config(patch_embedding=embedding)).eval()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    side = tiny_config().image_size
    pixels = torch.randint(0, 256, (3, side, side, 3), dtype=torch.uint8)
    pixels[0, :8], pixels[1, :, :8] = 0, 255  # at the border the mean color follows
    with torch.inference_mode():
        found, expected = encoder(pixels.permute(0, 3, 1, 2)), encoder(normalize(pixels))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert encoder.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_texts_of_one_length_need_no_mask() -> None:
    config = tiny_config()
    text, fusion = TextEncoder(config).eval(), FusionEncoder(config).eval()
    ids, image = torch.randint(1, config.vocab_size, (3, 7)), torch.randn(3, 5, config.width)
    ones = torch.ones_like(ids)
    same(text(ids, None), text(ids, ones))
    same(fusion(text(ids, None), None, image)[0], fusion(text(ids, ones), ones, image)[0])
