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


def test_a_pair_gets_the_same_outputs_alone_and_in_a_batch(model: Asap, batch: Batch) -> None:
    together = predict(model, batch.images, batch.text)
    assert together.logits_real_fake.std(dim=0).min() > 0.01  # the pairs' outputs differ, so a mix-up would be noticed
    for row in range(6):
        length = int(batch.text.mask[row].sum())
        text = Tokens(*(part[row : row + 1, :length] for part in batch.text))
        alone = predict(model, batch.images[row : row + 1], text)
        for name in ("logits_real_fake", "logits_multilabel", "box_cxcywh"):
            same(getattr(alone, name)[0], getattr(together, name)[row])
        same(alone.logits_token[0], together.logits_token[row, : length - 1])


def test_the_content_of_padding_does_not_matter(model: Asap, batch: Batch) -> None:
    noise = Tokens(torch.where(batch.text.mask == 1, batch.text.input_ids, 9), batch.text.mask)
    clean, noisy = predict(model, batch.images, batch.text), predict(model, batch.images, noise)
    same(noisy.logits_real_fake, clean.logits_real_fake)
    same(noisy.box_cxcywh, clean.box_cxcywh)


@pytest.mark.parametrize("kind", [torch.long, torch.bool, torch.float32])
def test_a_mask_of_any_dtype_gives_the_same_outputs(model: Asap, batch: Batch, kind: torch.dtype) -> None:
    text = Tokens(batch.text.input_ids, batch.text.mask.to(kind))
    for one, other in zip(predict(model, batch.images, text), predict(model, batch.images, batch.text), strict=True):
        assert torch.equal(one, other)


def test_every_output_depends_on_image_and_text(model: Asap, batch: Batch) -> None:
    output = predict(model, batch.images, batch.text)
    other_text = Tokens((54 - batch.text.input_ids) * batch.text.mask, batch.text.mask)
    for changed in (predict(model, batch.images.flip(0), batch.text), predict(model, batch.images, other_text)):
        for before, after in zip(output, changed, strict=True):
            assert not torch.allclose(before, after, atol=1e-4)


def test_texts_of_one_word_and_of_no_word_have_finite_outputs(model: Asap, batch: Batch) -> None:
    for length in (2, 1):
        text = draw_texts(torch.Generator().manual_seed(0), [length])
        output = predict(model, batch.images[:1], text)
        assert output.logits_token.shape == (1, length - 1, 2)
        assert all(value.isfinite().all() for value in output)


def test_inference_runs_every_layer_once_and_computes_no_scores(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_scores_are_returned_on_request_and_change_nothing_else(model: Asap, batch: Batch) -> None:
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
        assert model.patch_logits(fused.image_side).shape == (6, 9)
        for features in (model.image_features(image), model.text_features(text)):
            assert features.shape == (6, 8)
            same(features.norm(dim=1), torch.ones(6))


def test_hammer_lacks_the_parts_that_only_asap_has() -> None:
    asap, hammer = (
        {name for name, _ in tiny_model(variant=variant).named_parameters()} for variant in ("asap", "hammer")
    )
    assert hammer < asap
    assert {name.split(".")[0] for name in asap - hammer} == {
        "real_fake_scale", "type_scale", "explanation_head", "patch_head", "image_side_attention",
    }  # fmt: skip


def test_the_fusion_scalar_of_asap_weights_the_patches(batch: Batch) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.real_fake_scale.zero_()
    image, text = model.encode_image(batch.images), model.encode_text(*batch.text)
    fused = model.fuse(image, text, batch.text.mask)
    same(model.predict(fused).logits_real_fake, model.real_fake_head(fused.tokens_BLW[:, 0]))


def test_each_side_affects_only_its_own_types_if_the_type_heads_are_apart(batch: Batch) -> None:
    model = tiny_model(type_heads="apart")
    image, text = model.encode_image(batch.images), model.encode_text(*batch.text)
    fused = model.fuse(image, text, batch.text.mask)
    logits = model.predict(fused).logits_multilabel
    without_text = dataclasses.replace(fused, tokens_BLW=torch.zeros_like(fused.tokens_BLW))
    without_image = dataclasses.replace(
        fused,
        image_side=dataclasses.replace(fused.image_side, aggregate_BW=torch.zeros_like(fused.image_side.aggregate_BW)),
    )
    same(model.predict(without_text).logits_multilabel[:, :2], logits[:, :2])
    same(model.predict(without_image).logits_multilabel[:, 2:], logits[:, 2:])
    assert not torch.allclose(model.predict(without_text).logits_multilabel[:, 2:], logits[:, 2:])
    assert not torch.allclose(model.predict(without_image).logits_multilabel[:, :2], logits[:, :2])


def test_linear_text_heads_replace_only_the_heads_that_read_the_text_alone() -> None:
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


def test_a_post_norm_model_is_initialized_as_bert_with_the_image_encoder_of_timm() -> None:
    torch.manual_seed(0)
    model = Asap(tiny_config(width=192, heads=4, text_norm="post"))
    std = 0.02 * 2  # 0.02 at a width of 768; the std scales with the inverse root of the width
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


def test_a_pre_norm_model_is_initialized_with_large_words_and_small_positions() -> None:
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


def test_text_types_can_be_predicted_without_the_image(batch: Batch) -> None:
    for type_heads in ("joint", "apart"):
        model = tiny_model(type_heads=type_heads)
        tokens, _ = model.fusion_encoder(model.encode_text(*batch.text), batch.text.mask, None)
        assert model.text_types(tokens[:, 0]).shape == (6, 2)
        same(model.text_types(tokens[:1, 0]), model.text_types(tokens[:, 0])[:1])


def test_in_training_the_token_head_reads_its_tokens_with_dropout() -> None:
    model = tiny_model(dropout=0.5)
    tokens_BLW = torch.randn(2, 5, 48)
    same(model.token_logits(tokens_BLW), model.token_head(tokens_BLW[:, 1:]))
    model.train()
    torch.manual_seed(1)
    dropped = model.token_logits(tokens_BLW)
    torch.manual_seed(1)
    same(dropped, model.token_head(nn.functional.dropout(tokens_BLW[:, 1:], 0.5)))
    assert (dropped - model.token_logits(tokens_BLW)).abs().max() > 0.01


def test_half_precision_gives_nearly_the_same_outputs(batch: Batch) -> None:
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


def test_a_box_is_gated_by_the_presence_head() -> None:
    model, batch = tiny_model(box_gate="presence"), draw_batch()
    ungated = tiny_model()(batch.images, *batch.text).box_cxcywh
    boxes = []
    for bias in (100.0, -100.0):
        with torch.no_grad():
            model.presence_head[-1].bias.fill_(bias)
        boxes.append(model(batch.images, *batch.text).box_cxcywh)
    assert boxes[0].all()
    assert boxes[0].shape == ungated.shape
    assert not boxes[1].any()


def test_the_attention_of_the_image_to_the_text_is_a_distribution_over_its_words() -> None:
    for variant in ("asap", "hammer"):
        model, batch = tiny_model(variant=variant), draw_batch()
        image, text = model.encode_image(batch.images), model.encode_text(*batch.text)
        fused = model.fuse(image, text, batch.text.mask, with_attention=True)
        attention = fused.image_side.attention_BNL
        assert attention is not None
        torch.testing.assert_close(attention.sum(dim=-1), torch.ones(attention.shape[:2]))
        assert not attention.transpose(1, 2)[batch.text.mask == 0].any()
        plain = model.fuse(image, text, batch.text.mask)
        assert plain.image_side.attention_BNL is None
        torch.testing.assert_close(fused.image_side.patches_BPW, plain.image_side.patches_BPW)
