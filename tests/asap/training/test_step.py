import dataclasses
from typing import Any
from unittest import mock

import pytest
import torch

from asap.errors import ConfigError
from asap.model.encoders import Attention, TextEncoder
from asap.preprocessing.images import normalize
from asap.training.batch import Batch, Tokens
from asap.training.losses import real_fake_loss, type_loss
from asap.training.objective import LossWeights
from asap.training.step import TrainingStep, descriptions_read
from tests.support.tiny import CLASSES, draw_batch, draw_texts, tiny_config, tiny_model

HAMMER = LossWeights(ied=0, mpp=0, mgca=0)
ASAP_TERMS = {"vlc", "bic", "bbox_l1", "giou", "tmg", "mlc", "mgca", "ied", "mpp", "total"}


pytestmark = pytest.mark.usefixtures("one_thread")


def new_step(*, variant: str = "asap", dropout: float = 0.0, **settings: Any) -> TrainingStep:
    return TrainingStep(tiny_model(variant=variant, dropout=dropout), **({"queue_size": 12} | settings)).train()


def values(terms: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: term.item() for name, term in terms.items()}


def test_a_step_returns_every_term_and_their_weighted_sum() -> None:
    terms = values(new_step()(draw_batch(), 0.4))
    weights = dataclasses.asdict(LossWeights())
    assert set(terms) == ASAP_TERMS
    weighted = sum(weights[name] * value for name, value in terms.items() if name != "total")
    assert terms["total"] == pytest.approx(weighted, rel=1e-5)


def test_every_parameter_of_the_student_gets_a_gradient_and_none_of_the_twin() -> None:
    step = new_step()
    step(draw_batch(), 0.4)["total"].backward()
    unmoved = [name for name, parameter in step.student.named_parameters() if parameter.grad is None]
    assert unmoved == []
    unmoved = [name for name, p in step.student.named_parameters() if p.grad is not None and not p.grad.any()]
    # The bias of a key adds the same value to every score of a row, which softmax ignores.
    assert [name for name in unmoved if not name.endswith("key.bias")] == []
    assert all(parameter.grad is None for parameter in step.twin.parameters())


def test_losses_are_computed_from_the_predictions_of_the_model() -> None:
    step, batch = new_step(), draw_batch()
    predicted = step.student(batch.images, *batch.text)
    terms = step(batch, 0.0)
    torch.testing.assert_close(terms["bic"], real_fake_loss(predicted.logits_real_fake, batch.manipulated))
    torch.testing.assert_close(terms["mlc"], type_loss(predicted.logits_multilabel, batch.types))


@pytest.mark.parametrize("classes", [["orig"] * 3, ["text_swap"] * 3, ["face_swap"] * 3, ["orig"], list(CLASSES)])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_every_batch_has_finite_losses(classes: list[str], alpha: float) -> None:
    step = new_step()
    terms = step(draw_batch(classes), alpha)
    terms["total"].backward()
    assert all(term.isfinite() for term in terms.values())
    assert all(p.grad.isfinite().all() for p in step.student.parameters() if p.grad is not None)
    boxless = not any("face" in name for name in classes)
    assert all((terms[name] == 0) == boxless for name in ("bbox_l1", "giou", "mpp"))
    # Every parameter has a gradient all the same: workers that average gradients must not wait for one.
    assert all(parameter.grad is not None for parameter in step.student.parameters())


def test_a_text_of_one_word_can_be_trained_on() -> None:
    batch = dataclasses.replace(
        draw_batch(["orig", "text_swap"]),
        text=draw_texts(torch.Generator().manual_seed(0), [2, 2]),
        token_labels=torch.tensor([[0], [1]]),
    )
    assert all(term.isfinite() for term in new_step()(batch, 0.4).values())


def test_longer_captions_only_add_padding_to_the_text() -> None:
    batch = draw_batch()
    longer = dataclasses.replace(batch, caption=draw_texts(torch.Generator().manual_seed(0), [4, 5, 6, 20]))
    short, long = values(new_step()(batch, 0.4)), values(new_step()(longer, 0.4))
    assert short.pop("vlc") != pytest.approx(long.pop("vlc"), abs=1e-4)
    short.pop("total")
    assert {name: long[name] for name in short} == pytest.approx(short, abs=1e-5)


def test_a_term_without_weight_is_not_computed() -> None:
    with mock.patch.object(Attention, "scores", autospec=True, side_effect=Attention.scores) as scores:
        terms = new_step(weights=LossWeights(vlc=0, mgca=0, mpp=0, ied=0))(draw_batch(), 0.0)
    assert set(terms) == ASAP_TERMS - {"vlc", "mgca", "mpp", "ied"}
    assert scores.call_count == 0


OPTIONAL = {
    "mgca_patches": "student.fusion_encoder.layers.0.crossattention.self.query.weight",
    "mgca_words": "student.image_side_attention.cross_attention.in_proj_weight",
    "patch_consistency": "student.image_encoder.patch_embed.proj.0.weight",
    "word_consistency": "student.fusion_encoder.layers.0.output.dense.weight",
    "presence": "student.presence_head.0.weight",
    "hard_negative": "student.text_projection.weight",
}
"""The terms without weight by default, and a parameter that each must move."""


@pytest.mark.parametrize("term", OPTIONAL)
def test_an_optional_term_moves_its_part_of_the_model_and_leaves_the_other_terms(term: str) -> None:
    alone = dict.fromkeys(dataclasses.asdict(LossWeights()), 0.0) | {term: 1.0}
    gate = {"box_gate": "presence" if term == "presence" else "none"}
    step = TrainingStep(tiny_model(**gate), queue_size=12, weights=LossWeights(**alone)).train()
    terms = step(draw_batch(), 0.4)
    terms["total"].backward()
    assert terms[term] > 0
    moved = dict(step.named_parameters())[OPTIONAL[term]].grad
    assert moved is not None
    assert moved.any()
    # Beside the published terms, it changes none of them.
    step = TrainingStep(tiny_model(**gate), queue_size=12, weights=LossWeights(**{term: 1.0})).train()
    plain = TrainingStep(tiny_model(**gate), queue_size=12).train()
    beside, without = values(step(draw_batch(), 0.4)), values(plain(draw_batch(), 0.4))
    assert {name: beside[name] for name in without if name != "total"} == pytest.approx(
        {name: value for name, value in without.items() if name != "total"}, abs=1e-6
    )


def test_presence_without_its_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="the loss term presence needs a model with box_gate presence"):
        new_step(weights=LossWeights(presence=1.0))


def test_captions_and_explanations_are_encoded_only_if_a_term_reads_them() -> None:
    batch = draw_batch()
    rows = []
    for weights in (LossWeights(vlc=0, ied=0), LossWeights(vlc=0)):
        step = new_step(weights=weights)
        with mock.patch.object(step.student, "encode_text", side_effect=step.student.encode_text) as encode:
            step(batch, 0.0)
        rows.append(len(encode.call_args.args[0]))
    assert rows == [len(batch.images), 3 * len(batch.images)]


@pytest.mark.parametrize(
    ("weights", "variant", "expected"),
    [
        ({"vlc": 0.1}, "asap", ("caption", "explanation")),
        ({"ied": 0.1, "cwp": 1}, "asap", ("caption", "explanation")),
        ({"vlc": 0.1}, "hammer", ()),
        ({"vlc": 0.0, "mlm": 0.5}, "asap", ("caption",)),
        ({"vlc": 0.1, "cwp": 0.5}, "hammer", ("caption",)),
        ({"tmg": 1.0}, "asap", ()),
    ],
)
def test_a_step_reads_the_descriptions_of_its_terms(
    weights: dict[str, float], variant: str, expected: tuple[str, ...]
) -> None:
    assert descriptions_read(tiny_config(variant=variant), weights) == expected


@pytest.mark.parametrize("variant", ["asap", "hammer"])
def test_descriptions_that_are_not_read_can_be_left_out(variant: str) -> None:
    batch, none = draw_batch(), Tokens(*(torch.zeros(len(CLASSES), 0, dtype=torch.long) for _ in range(2)))
    weights = HAMMER if variant == "hammer" else LossWeights(vlc=0, ied=0)
    with_all, without = (new_step(weights=weights, variant=variant) for _ in range(2))
    some = dataclasses.replace(batch, caption=none, explanation=none)
    assert values(without(some, 0.4)) == values(with_all(batch, 0.4))


def test_the_fusion_encoder_computes_no_padding_of_longer_captions() -> None:
    batch = draw_batch()
    longer = dataclasses.replace(batch, caption=draw_texts(torch.Generator().manual_seed(0), [4, 5, 6, 20]))
    step = new_step()
    with mock.patch.object(step.student, "fuse", side_effect=step.student.fuse) as fuse:
        step(longer, 0.4)
    read = [call.args[1].shape[1] for call in fuse.call_args_list]
    assert read == [batch.text.mask.shape[1], batch.explanation.mask.shape[1]]


def test_pictures_are_normalized_by_the_step() -> None:
    pixels = torch.randint(256, (len(CLASSES), 48, 48, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    raw = dataclasses.replace(draw_batch(), images=pixels)
    ready = dataclasses.replace(raw, images=normalize(pixels))
    assert values(new_step()(raw, 0.4)) == values(new_step()(ready, 0.4))


def test_the_twin_runs_only_if_a_term_reads_it() -> None:
    def runs(alpha: float, **settings: Any) -> int:
        step = new_step(**settings)
        with mock.patch.object(TextEncoder, "forward", autospec=True, side_effect=TextEncoder.forward) as run:
            step(draw_batch(), alpha)
        return run.call_count

    without = LossWeights(vlc=0)
    assert runs(0.0) == 2  # the student and the twin's keys
    assert runs(0.0, weights=without) == 1
    assert runs(0.4, weights=without) == 2  # the twin's token probabilities
    assert runs(0.4, weights=without, token_momentum=False) == 1


def test_alpha_and_token_momentum_change_only_the_terms_with_soft_targets() -> None:
    hard, soft = (values(new_step()(draw_batch(), alpha)) for alpha in (0.0, 0.4))
    plain = values(new_step(token_momentum=False)(draw_batch(), 0.4))

    def differing(one: dict[str, float], other: dict[str, float]) -> set[str]:
        return {name for name in one if one[name] != pytest.approx(other[name], abs=1e-6)}

    assert differing(hard, soft) == {"vlc", "tmg", "total"}
    assert differing(plain, soft) == {"tmg", "total"}


def test_hammer_trains_without_captions_and_explanations() -> None:
    step, batch = new_step(variant="hammer", weights=HAMMER), draw_batch()
    queues = {name: value.clone() for name, value in step.queues.state_dict().items()}
    terms = step(batch, 0.4)
    terms["total"].backward()

    assert set(terms) == {"vlc", "bic", "bbox_l1", "giou", "tmg", "mlc", "total"}
    assert all(parameter.grad is not None for parameter in step.student.parameters())
    assert not torch.equal(step.queues.text, queues["text"])
    assert torch.equal(step.queues.caption, queues["caption"])
    other = dataclasses.replace(batch, caption=batch.explanation, explanation=batch.caption)
    assert values(new_step(variant="hammer", weights=HAMMER)(other, 0.4)) == pytest.approx(values(terms))


def test_hammer_refuses_terms_without_a_head() -> None:
    with pytest.raises(
        ConfigError, match=r"HAMMER model has no head for \['ied', 'mpp'\]. Set those loss weights to 0"
    ):
        new_step(variant="hammer")


def test_a_step_moves_the_twin_towards_the_student_and_the_queues_on() -> None:
    step = new_step(momentum=0.9)
    with torch.no_grad():
        step.student.patch_head.bias.add_(1.0)
    before = step.twin.model.patch_head.bias.item()

    step(draw_batch(), 0.4)

    assert step.twin.model.patch_head.bias.item() == pytest.approx(before + 0.1)
    assert step.queues.pointer == len(CLASSES)


@pytest.mark.parametrize(("wild", "tamed"), [(-1.0, 0.001), (3.0, 0.5), (0.1, 0.1)])
def test_the_temperature_stays_within_its_bounds(wild: float, tamed: float) -> None:
    step = new_step()
    with torch.no_grad():
        step.student.temperature.fill_(wild)
    assert step(draw_batch(), 0.4)["vlc"].isfinite()
    assert step.student.temperature.item() == pytest.approx(tamed)


def test_only_the_student_has_dropout() -> None:
    batch = draw_batch()

    def features(seed: int) -> tuple[dict[str, float], torch.Tensor]:
        step = new_step(dropout=0.5)
        torch.manual_seed(seed)
        terms = values(step(batch, 0.4))
        return terms, step.queues.text[:, : len(CLASSES)].clone()

    (one, one_keys), (other, other_keys) = features(1), features(2)
    assert one["bic"] != pytest.approx(other["bic"], abs=1e-3)
    torch.testing.assert_close(one_keys, other_keys)


def test_the_objective_can_be_learned() -> None:
    step, batch = new_step(weights=LossWeights(mpp=0.5, mgca=0.5)), draw_batch()
    optimizer = torch.optim.AdamW(step.student.parameters(), lr=2e-3)
    first = values(step(batch, 0.0))
    for _ in range(30):
        terms = step(batch, 0.0)
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
    last = values(terms)
    for name in ("bic", "mlc", "tmg", "bbox_l1", "giou", "ied", "mpp"):
        assert last[name] < 0.7 * first[name], name


def test_the_state_of_a_step_is_complete() -> None:
    step, other = new_step(momentum=0.9), new_step(momentum=0.9)
    step(draw_batch(), 0.4)
    other.load_state_dict(step.state_dict())
    batch: Batch = draw_batch(seed=1)
    assert values(step(batch, 0.4)) == values(other(batch, 0.4))
    torch.testing.assert_close(step.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_masked_words_need_a_mask_token() -> None:
    with pytest.raises(ConfigError, match="the loss term mlm needs a tokenizer with a mask token"):
        new_step(weights=LossWeights(mlm=0.5))


def test_a_locked_image_encoder_keeps_its_average_and_the_rest_learns() -> None:
    step = new_step(weights=LossWeights(cwp=0.2, mlm=0.5), mask_id=4, momentum=0.5)
    with torch.no_grad():
        for parameter in step.student.image_encoder.parameters():
            parameter.add_(0.1)
    average = {name: value.clone() for name, value in step.twin.model.image_encoder.state_dict().items()}
    step.lock_image_encoder()
    step.train()
    torch.testing.assert_close(step.student.image_encoder.state_dict(), average, rtol=0, atol=0)
    step(draw_batch(), 0.4)["total"].backward()
    # Gradients, running statistics and rounding in the twin's average must all leave it unchanged.
    torch.testing.assert_close(step.student.image_encoder.state_dict(), average, rtol=0, atol=0)
    torch.testing.assert_close(step.twin.model.image_encoder.state_dict(), average, rtol=0, atol=0)
    unmoved = {name for name, p in step.student.named_parameters() if p.grad is None}
    assert {name.partition(".")[0] for name in unmoved} == {"image_encoder"}


def test_cached_image_tokens_give_the_losses_of_their_images() -> None:
    batch = draw_batch()
    with_images, with_tokens = (new_step() for _ in range(2))
    for step in (with_images, with_tokens):
        step.lock_image_encoder()
    with torch.no_grad():
        tokens = with_tokens.student.encode_image(batch.images)
    known = dataclasses.replace(batch, images=torch.zeros_like(batch.images), image_tokens=tokens)
    assert values(with_tokens(known, 0.4)) == pytest.approx(values(with_images(batch, 0.4)), abs=1e-5)
