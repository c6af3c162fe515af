import dataclasses
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asap.model.asap import Asap, AsapOutput
from asap.model.encoders import Attention, BertLayer
from asap.training.batch import Batch, Tokens
from tests.support.tiny import draw_batch, draw_texts, tiny_config, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=[("asap", "joint"), ("hammer", "joint"), ("asap", "apart")])
def model(request: pytest.FixtureRequest) -> Asap:
    variant, type_heads = request.param
    return tiny_model(variant=variant, type_heads=type_heads)


@pytest.fixture
def batch() -> Batch:
    return draw_batch(["orig"] * 6)


def predict(model: Asap, images: Tensor, text: Tokens) -> AsapOutput:
    with torch.inference_mode():
        return model(images, *text)


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_the_outputs_have_the_documented_shapes_and_ranges(model: Asap, batch: Batch) -> None:
    output = predict(model, batch.images, batch.text)
    length = batch.text.mask.shape[1]
    assert [tuple(value.shape) for value in output] == [(6, 2), (6, 4), (6, 4), (6, length - 1, 2)]
    assert (output.box_cxcywh >= 0).all()
    assert (output.box_cxcywh <= 1).all()


def test_a_pair_is_judged_alike_alone_and_in_any_company(model: Asap, batch: Batch) -> None:
    together = predict(model, batch.images, batch.text)
    assert together.logits_real_fake.std(dim=0).min() > 0.01  # every pair has an output of its own to compare
    for row in range(6):
        length = int(batch.text.mask[row].sum())
        text = Tokens(*(part[row : row + 1, :length] for part in batch.text))
        alone = predict(model, batch.images[row : row + 1], text)
        for name in ("logits_real_fake", "logits_multilabel", "box_cxcywh"):
            same(getattr(alone, name)[0], getattr(together, name)[row])
        same(alone.logits_token[0], together.logits_token[row, : length - 1])


def test_what_stands_in_the_padding_does_not_matter(model: Asap, batch: Batch) -> None:
    noise = Tokens(torch.where(batch.text.mask == 1, batch.text.input_ids, 9), batch.text.mask)
    clean, noisy = predict(model, batch.images, batch.text), predict(model, batch.images, noise)
    same(noisy.logits_real_fake, clean.logits_real_fake)
    same(noisy.box_cxcywh, clean.box_cxcywh)


@pytest.mark.parametrize("kind", [torch.long, torch.bool, torch.float32])
def test_a_mask_of_any_type_means_the_same(model: Asap, batch: Batch, kind: torch.dtype) -> None:
    text = Tokens(batch.text.input_ids, batch.text.mask.to(kind))
    for one, other in zip(predict(model, batch.images, text), predict(model, batch.images, batch.text), strict=True):
        assert torch.equal(one, other)


def test_image_and_text_both_matter_to_every_output(model: Asap, batch: Batch) -> None:
    output = predict(model, batch.images, batch.text)
    other_text = Tokens((54 - batch.text.input_ids) * batch.text.mask, batch.text.mask)
    for changed in (predict(model, batch.images.flip(0), batch.text), predict(model, batch.images, other_text)):
        for before, after in zip(output, changed, strict=True):
            assert not torch.allclose(before, after, atol=1e-4)


def test_a_text_of_one_word_and_a_text_of_none_are_judged(model: Asap, batch: Batch) -> None:
    for length in (2, 1):
        text = draw_texts(torch.Generator().manual_seed(0), [length])
        output = predict(model, batch.images[:1], text)
        assert output.logits_token.shape == (1, length - 1, 2)
        assert all(value.isfinite().all() for value in output)


def test_every_layer_runs_once_and_no_score_is_computed(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(image_layers=2, text_layers=2, fusion_layers=2)
    monkeypatch.setattr(Attention, "scores", lambda *_: pytest.fail("inference needs no scores"))
    runs: Counter[str] = Counter()
    for name, module in model.named_modules():
        if isinstance(module, Attention | nn.Linear | nn.MultiheadAttention):
            module.register_forward_hook(lambda *_, name=name: runs.update([name]))

    predict(model, batch.images, batch.text)

    assert set(runs.values()) == {1}
    inference = {name for name, module in model.named_modules() if isinstance(module, Attention)}
    assert inference <= set(runs)
    assert not any(name.startswith(("explanation_head", "patch_head", "text_projection")) for name in runs)


def test_scores_come_on_request_and_change_nothing_else(model: Asap, batch: Batch) -> None:
    with torch.inference_mode():
        image, text = model.encode_image(batch.images), model.encode_text(*batch.text)
        plain = model.fuse(image, text, batch.text.mask)
        scored = model.fuse(image, text, batch.text.mask, with_scores=True)
    assert plain.scores_BLN is None
    assert scored.scores_BLN is not None
    assert scored.scores_BLN.shape == (6, batch.text.mask.shape[1], 10)
    assert torch.equal(plain.tokens_BLW, scored.tokens_BLW)


def test_the_parts_that_training_calls_have_the_documented_shapes(batch: Batch) -> None:
    model = tiny_model()
    with torch.inference_mode():
        image, text = model.encode_image(batch.images), model.encode_text(*batch.text)
        fused = model.fuse(image, text, batch.text.mask)
        assert model.explain(fused).shape == (6, 2)
        assert model.patch_logits(fused.seen).shape == (6, 9)
        for features in (model.image_features(image), model.text_features(text)):
            assert features.shape == (6, 8)
            same(features.norm(dim=1), torch.ones(6))


def test_hammer_has_none_of_asaps_own_parts() -> None:
    asap, hammer = (
        {name for name, _ in tiny_model(variant=variant).named_parameters()} for variant in ("asap", "hammer")
    )
    assert hammer < asap
    assert {name.split(".")[0] for name in asap - hammer} == {
        "real_fake_scale", "type_scale", "explanation_head", "patch_head", "image_side_attention",
    }  # fmt: skip


def test_asaps_scalar_decides_how_much_the_patches_say(batch: Batch) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.real_fake_scale.zero_()
    image, text = model.encode_image(batch.images), model.encode_text(*batch.text)
    fused = model.fuse(image, text, batch.text.mask)
    same(model.predict(fused).logits_real_fake, model.real_fake_head(fused.tokens_BLW[:, 0]))


def test_apart_each_side_has_a_say_in_its_own_types_only(batch: Batch) -> None:
    model = tiny_model(type_heads="apart")
    image, text = model.encode_image(batch.images), model.encode_text(*batch.text)
    fused = model.fuse(image, text, batch.text.mask)
    told = model.predict(fused).logits_multilabel
    deaf = dataclasses.replace(fused, tokens_BLW=torch.zeros_like(fused.tokens_BLW))
    blind = dataclasses.replace(
        fused, seen=dataclasses.replace(fused.seen, aggregate_BW=torch.zeros_like(fused.seen.aggregate_BW))
    )
    same(model.predict(deaf).logits_multilabel[:, :2], told[:, :2])
    same(model.predict(blind).logits_multilabel[:, 2:], told[:, 2:])
    assert not torch.allclose(model.predict(deaf).logits_multilabel[:, 2:], told[:, 2:])
    assert not torch.allclose(model.predict(blind).logits_multilabel[:, :2], told[:, :2])


def test_linear_text_heads_replace_the_published_ones_where_only_the_text_is_read() -> None:
    for type_heads in ("joint", "apart"):
        published, linear = (tiny_model(type_heads=type_heads, text_heads=form) for form in ("mlp", "linear"))
        own = {"joint": ["token_head"], "apart": ["token_head", "type_head.text"]}[type_heads]
        for name, module in linear.named_modules():
            if name in own:
                assert isinstance(module, torch.nn.Linear)
                assert isinstance(published.get_submodule(name), torch.nn.Sequential)
        others = [
            {name for name, _ in model.named_parameters() if not name.startswith(tuple(own))}
            for model in (published, linear)
        ]
        assert others[0] == others[1]


def test_a_model_to_be_pretrained_starts_as_bert_does_and_leaves_the_image_encoder_to_timm() -> None:
    torch.manual_seed(0)
    model = Asap(tiny_config(width=192, heads=4, text_norm="post"))
    std = 0.02 * 2  # 0.02 at a width of 768; a weight's share of the sum goes by the root of the width
    layer = model.text_encoder.layers[0]
    assert isinstance(layer, BertLayer)
    embeddings = model.text_encoder.embeddings
    for weight in (layer.attention.self.query.weight, model.box_head[0].weight):
        assert weight.std().item() == pytest.approx(std, rel=0.05)
    for table in (embeddings.word_embeddings, embeddings.position_embeddings):
        assert table.weight.std().item() == pytest.approx(std, rel=0.1)
    assert model.aggregate_token.std().item() == pytest.approx(0.02, rel=0.3)
    biases = {name: p for name, p in model.named_parameters() if name.endswith("bias") and "image_encoder" not in name}
    assert all(not bias.any() for bias in biases.values())
    assert model.image_encoder.blocks[0].attn.qkv.weight.std() > 0.015
    assert model.temperature.item() == pytest.approx(0.07)


def test_a_model_from_random_weights_starts_with_words_that_last_and_stand_anywhere() -> None:
    torch.manual_seed(0)
    model = Asap(tiny_config(width=192, heads=4))
    embeddings = model.text_encoder.embeddings
    assert embeddings.word_embeddings.weight.std().item() == pytest.approx(1, rel=0.1)
    for table in (embeddings.position_embeddings, embeddings.token_type_embeddings):
        assert table.weight.std().item() == pytest.approx(0.1, rel=0.1)
    layer = model.text_encoder.layers[0]
    assert isinstance(layer, BertLayer)
    glorot = (2 / (192 + 192)) ** 0.5
    assert layer.attention.self.query.weight.std().item() == pytest.approx(glorot, rel=0.05)


def test_the_types_of_a_text_are_read_without_its_image(batch: Batch) -> None:
    for type_heads in ("joint", "apart"):
        model = tiny_model(type_heads=type_heads)
        tokens, _ = model.fusion_encoder(model.encode_text(*batch.text), batch.text.mask, None)
        assert model.text_types(tokens[:, 0]).shape == (6, 2)
        same(model.text_types(tokens[:1, 0]), model.text_types(tokens[:, 0])[:1])


def test_half_precision_judges_nearly_alike(batch: Batch) -> None:
    model = tiny_model()
    full = predict(model, batch.images, batch.text)
    with torch.autocast("cpu", torch.bfloat16):
        half = predict(model, batch.images, batch.text)
    for one, other in zip(half, full, strict=True):
        torch.testing.assert_close(one.float(), other, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    "changes", [{"heads": 12}, {"image_size": 64, "patch_embedding": "linear"}, {"fusion_layers": 3}]
)
def test_other_shapes_work(batch: Batch, changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    side = model.config.image_size
    assert predict(model, torch.randn(6, 3, side, side), batch.text).box_cxcywh.isfinite().all()
