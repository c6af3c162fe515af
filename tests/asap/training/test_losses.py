import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou

from asap.training.losses import (
    Contrast,
    Criterion,
    Features,
    box_losses,
    caption_word_loss,
    consistency_loss,
    contrastive_loss,
    diagonal_targets,
    guidance_loss,
    guidance_targets,
    guided_attention_loss,
    hard_negative_loss,
    masked_word_loss,
    patch_loss,
    presence_loss,
    real_fake_loss,
    soft_targets,
    token_loss,
    type_loss,
)
from asap.training.objective import LossWeights, PublishedDefects

TEMPERATURE = torch.tensor(0.07)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def is_zero_with_a_graph(loss: Tensor, parameter: Tensor) -> bool:
    """Return True if the loss is 0, not NaN, and every parameter gets a gradient of 0."""
    loss.backward()
    return loss.item() == 0 and parameter.grad is not None and not parameter.grad.any()


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


# The contrast


def test_a_pair_is_its_own_positive_among_the_keys() -> None:
    student, keys = unit(3, 8), unit(5, 8).t()
    loss = contrastive_loss(student, keys, diagonal_targets(torch.ones(3, dtype=torch.bool), 5), TEMPERATURE)
    torch.testing.assert_close(loss, F.cross_entropy(student @ keys / TEMPERATURE, torch.arange(3)))


def test_a_pair_without_a_positive_adds_nothing_and_counts_in_the_mean() -> None:
    student, keys = leaf(2, 8), unit(5, 8).t()
    loss = contrastive_loss(student, keys, diagonal_targets(torch.tensor([True, False]), 5), TEMPERATURE)
    loss.backward()

    matched = F.cross_entropy(student.detach()[:1] @ keys / TEMPERATURE, torch.tensor([0]))
    torch.testing.assert_close(loss.detach(), matched / 2)
    assert student.grad is not None
    assert student.grad[0].any()
    assert not student.grad[1].any()


def test_a_batch_without_any_positive_has_no_contrast() -> None:
    student = leaf(2, 8)
    targets = diagonal_targets(torch.zeros(2, dtype=torch.bool), 5)
    assert is_zero_with_a_graph(contrastive_loss(student, unit(5, 8).t(), targets, TEMPERATURE), student)


def test_targets_are_hard_at_alpha_0_and_those_of_the_twin_at_alpha_1() -> None:
    twin, keys = unit(3, 8), unit(5, 8).t()
    hard = diagonal_targets(torch.tensor([True, True, False]), 5)
    assert torch.equal(soft_targets(twin, keys, hard, TEMPERATURE, 0.0), hard)
    torch.testing.assert_close(soft_targets(twin, keys, hard, TEMPERATURE, 1.0), (twin @ keys / 0.07).softmax(dim=1))
    mixed = soft_targets(twin, keys, hard, TEMPERATURE, 0.4)
    torch.testing.assert_close(mixed.sum(dim=1), torch.tensor([1.0, 1.0, 0.4]))


def contrast_of(pairs: int = 3, *, described: bool = True) -> Contrast:
    names = ("image", "text", "caption", "explanation") if described else ("image", "text")
    twin = {name: unit(pairs, 8) for name in names}
    queue = {name: unit(4, 8) for name in names}
    return Contrast(
        student=Features(**{name: unit(pairs, 8) for name in names}),
        twin=Features(**twin),
        keys=Features(**{name: torch.cat([twin[name], queue[name]]).t() for name in names}),
    )


def test_the_contrast_is_a_mean_of_four_terms_plus_a_mean_of_six() -> None:
    contrast, authentic = contrast_of(), torch.tensor([True, False, True])

    def term(query: str, keys: str, matched: Tensor) -> float:
        similarities = getattr(contrast.student, query) @ getattr(contrast.keys, keys) / 0.07
        lost = F.cross_entropy(similarities, torch.arange(3), reduction="none")
        return (lost * matched).mean().item()

    every = torch.ones(3)
    a = authentic.float()
    four = [
        term("image", "text", a),
        term("text", "image", a),
        term("image", "image", every),
        term("text", "text", every),
    ]
    six = [
        term("image", "caption", every), term("caption", "image", every), term("caption", "caption", every),
        term("image", "explanation", a), term("explanation", "image", a), term("explanation", "explanation", every),
    ]  # fmt: skip
    loss = Criterion(LossWeights()).contrast(contrast, authentic, TEMPERATURE, 0.0)
    assert loss.item() == pytest.approx(sum(four) / 4 + sum(six) / 6, rel=1e-5)

    hammer = Contrast(*(Features(side.image, side.text) for side in (contrast.student, contrast.twin, contrast.keys)))
    loss = Criterion(LossWeights()).contrast(hammer, authentic, TEMPERATURE, 0.0)
    assert loss.item() == pytest.approx(sum(four) / 4, rel=1e-5)


def test_a_batch_of_only_manipulated_pairs_has_a_contrast() -> None:
    loss = Criterion(LossWeights()).contrast(contrast_of(), torch.zeros(3, dtype=torch.bool), TEMPERATURE, 0.4)
    assert loss.isfinite()
    assert loss > 0


def test_the_defect_of_explanation_targets_needs_soft_targets() -> None:
    contrast, authentic = contrast_of(), torch.tensor([True, False, True])
    sound, defect = (Criterion(LossWeights(), PublishedDefects(explanation_targets=on)) for on in (False, True))
    assert torch.equal(*(it.contrast(contrast, authentic, TEMPERATURE, 0.0) for it in (sound, defect)))
    assert not torch.equal(*(it.contrast(contrast, authentic, TEMPERATURE, 0.4) for it in (sound, defect)))


# Words


def test_padded_tokens_do_not_count() -> None:
    logits, labels = torch.randn(2, 4, 2), torch.tensor([[1, 0, 0, 1], [0, -100, -100, -100]])
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    torch.testing.assert_close(token_loss(logits, labels, None, 0.0), expected)
    padded = token_loss(F.pad(logits, (0, 0, 0, 3), value=9.0), F.pad(labels, (0, 3), value=-100), None, 0.0)
    torch.testing.assert_close(padded, expected)


def test_the_probabilities_of_the_twin_have_weight_alpha() -> None:
    logits, labels = torch.randn(2, 4, 2), torch.tensor([[1, 0, 0, 1], [0, 1, -100, -100]])
    soft = torch.rand(2, 4, 2).softmax(dim=-1)
    hard_loss, soft_loss, mixed = (token_loss(logits, labels, soft, alpha) for alpha in (0.0, 1.0, 0.25))
    counted = labels.flatten() >= 0
    torch.testing.assert_close(soft_loss, F.cross_entropy(logits.flatten(0, 1)[counted], soft.flatten(0, 1)[counted]))
    torch.testing.assert_close(mixed, 0.75 * hard_loss + 0.25 * soft_loss)


@pytest.mark.parametrize("length", [0, 3])
def test_a_batch_without_tokens_has_no_token_loss(length: int) -> None:
    logits = leaf(2, length, 2)
    loss = token_loss(logits, torch.full((2, length), -100), None, 0.0)
    assert is_zero_with_a_graph(loss, logits)


# Boxes


def test_only_pairs_with_a_box_have_box_losses() -> None:
    predicted, target = torch.rand(3, 4) * 0.3 + 0.3, torch.rand(3, 4) * 0.3 + 0.3
    counts = torch.tensor([1.0, 0.0, 1.0])
    l1, giou = box_losses(predicted, target, counts)

    def corners(box: Tensor) -> Tensor:
        return torch.cat([box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2], dim=1)

    by_pair = 1 - generalized_box_iou(corners(predicted), corners(target)).diagonal()
    assert l1.item() == pytest.approx((predicted - target).abs().sum(dim=1)[[0, 2]].mean().item(), rel=1e-5)
    assert giou.item() == pytest.approx(by_pair[[0, 2]].mean().item(), rel=1e-4)


def test_a_right_box_has_no_loss_and_a_distant_box_more_than_one() -> None:
    box, far = torch.tensor([[0.2, 0.2, 0.1, 0.1]]), torch.tensor([[0.8, 0.8, 0.1, 0.1]])
    assert [loss.item() for loss in box_losses(box, box, torch.ones(1))] == pytest.approx([0, 0], abs=1e-5)
    l1, giou = box_losses(box, far, torch.ones(1))
    assert l1.item() == pytest.approx(1.2)
    assert 1 < giou.item() <= 2


def test_a_batch_without_boxes_has_no_box_loss() -> None:
    predicted = leaf(3, 4)
    l1, giou = box_losses(predicted.sigmoid(), torch.zeros(3, 4), torch.zeros(3))
    assert (l1.item(), giou.item()) == (0, 0)
    assert is_zero_with_a_graph(l1 + giou, predicted)


@pytest.mark.parametrize("degenerate", [[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.2, 0.0], [0.0, 0.0, 0.0, 0.0]])
@pytest.mark.parametrize("place", ["predicted", "target"])
def test_a_degenerate_box_affects_no_other_giou(degenerate: list[float], place: str) -> None:
    predicted, target = torch.rand(3, 4) * 0.3 + 0.3, torch.rand(3, 4) * 0.3 + 0.3
    _, alone = box_losses(predicted[:2], target[:2], torch.ones(2))
    {"predicted": predicted, "target": target}[place][2] = torch.tensor(degenerate)
    predicted.requires_grad_()

    _, giou = box_losses(predicted, target, torch.ones(3))
    giou.backward()

    of_the_third = 3 * giou.item() - 2 * alone.item()
    assert 0 <= of_the_third <= 2
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()
    assert predicted.grad[:2].any(dim=1).all()


def test_two_degenerate_boxes_give_a_finite_loss() -> None:
    nothing = torch.zeros(1, 4, requires_grad=True)
    _, giou = box_losses(nothing, torch.zeros(1, 4), torch.ones(1))
    giou.backward()
    assert giou.isfinite()
    assert nothing.grad is not None
    assert nothing.grad.isfinite().all()


# Patches and words: MGCA and MPP


def test_a_word_is_supervised_in_its_own_pair_one_row_after_cls() -> None:
    patches = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    labels = torch.tensor([[0, 0, -100], [0, 1, 0]])
    targets = guidance_targets(patches, labels)
    assert targets[0].tolist() == [[0, 1, 0]] * 4
    assert targets[1].tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 1], [0, 0, 0]]


def test_the_published_defect_marks_every_pair_one_row_early() -> None:
    labels = torch.tensor([[1, 0, -100], [0, 0, 1]])
    targets = guidance_targets(torch.zeros(2, 2), labels, words_of_the_batch=True)
    assert targets[:, :, 0].tolist() == [[1, 0, 1, 0]] * 2


def test_guidance_leaves_out_the_images_cls_and_padded_words() -> None:
    scores, targets = torch.randn(2, 4, 4), torch.randint(0, 2, (2, 4, 3)).float()
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]])
    loss = guidance_loss(scores, targets, mask)

    counted = mask.bool()
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(scores[:, :, 1:][counted], targets[counted]))
    assert not torch.equal(guidance_loss(scores, targets, torch.ones(2, 4)), loss)


def test_ignored_patches_are_left_out_of_the_mean() -> None:
    logits, labels = torch.randn(2, 4), torch.tensor([[1.0, 0, -1, -1], [-1, -1, -1, -1]])
    lost = F.binary_cross_entropy_with_logits(logits[0, :2], labels[0, :2], reduction="sum").item()
    assert patch_loss(logits, labels).item() == pytest.approx(lost / 2)
    assert patch_loss(logits, labels, count_ignored=True).item() == pytest.approx((lost + 6 * math.log(2)) / 8)


def test_a_batch_whose_patches_are_all_ignored_has_no_patch_loss() -> None:
    logits = leaf(2, 4)
    assert is_zero_with_a_graph(patch_loss(logits, torch.full((2, 4), -1.0)), logits)


# Heads and the sum


def test_the_heads_are_trained_by_plain_cross_entropy() -> None:
    logits, manipulated = torch.randn(4, 2), torch.tensor([True, False, True, True])
    torch.testing.assert_close(real_fake_loss(logits, manipulated), F.cross_entropy(logits, manipulated.long()))
    sure = torch.tensor([[20.0, -20.0]])
    assert real_fake_loss(sure, torch.tensor([False])) < 1e-6 < 10 < real_fake_loss(sure, torch.tensor([True]))
    assert type_loss(torch.full((1, 4), 20.0), torch.ones(1, 4)) < 1e-6


def test_the_total_weighs_the_terms() -> None:
    criterion = Criterion(LossWeights(vlc=0, bic=2, mpp=0.5))
    total = criterion.total({"bic": torch.tensor(3.0), "mpp": torch.tensor(4.0), "vlc": torch.tensor(5.0)})
    assert total.item() == 8
    assert [criterion.has_weight(term) for term in ("vlc", "bic", "mpp")] == [False, True, True]


def test_a_criterion_counts_boxless_pairs_only_as_the_published_defect() -> None:
    predicted, target, has_box = torch.rand(2, 4), torch.zeros(2, 4), torch.tensor([False, False])
    sound, defect = (Criterion(LossWeights(), PublishedDefects(boxless_pairs=on)) for on in (False, True))
    assert all(loss == 0 for loss in sound.boxes(predicted, target, has_box).values())
    assert all(loss > 0 for loss in defect.boxes(predicted, target, has_box).values())


# Workers, faked: the collective returns the count of another worker


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Make this process the second of two workers; `theirs` is the count of the first."""
    state: dict[str, Any] = {"theirs": 0.0}
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "all_reduce", lambda count: count.add_(state["theirs"]))
    return state


def test_targets_of_the_second_worker_start_after_the_keys_of_the_first(second_of_two: dict[str, Any]) -> None:
    targets = diagonal_targets(torch.tensor([True, False, True]), 8)
    assert targets.nonzero().tolist() == [[0, 3], [2, 5]]


def test_a_mean_divides_by_what_all_workers_count(second_of_two: dict[str, Any]) -> None:
    second_of_two["theirs"] = 6.0
    logits, labels = torch.randn(1, 4), torch.tensor([[1.0, 0, -1, -1]])
    lost = F.binary_cross_entropy_with_logits(logits[0, :2], labels[0, :2], reduction="sum").item()
    # Gradients are averaged over workers, so each worker's loss is its sum, times 2 workers, over the count 2 + 6.
    assert patch_loss(logits, labels).item() == pytest.approx(2 * lost / 8)


def test_a_worker_without_items_adds_0(second_of_two: dict[str, Any]) -> None:
    second_of_two["theirs"] = 3.0
    predicted = leaf(2, 4)
    l1, _ = box_losses(predicted.sigmoid(), torch.zeros(2, 4), torch.zeros(2))
    assert is_zero_with_a_graph(l1, predicted)


# Caption words


def test_each_piece_of_a_caption_counts_once() -> None:
    logits = leaf(2, 6)
    ids, mask = torch.tensor([[1, 3, 5, 3], [1, 2, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    loss = caption_word_loss(logits, ids, mask)
    log_probabilities = F.log_softmax(logits, dim=1)
    expected = -(log_probabilities[0, [3, 5]].mean() + log_probabilities[1, 2]) / 2
    torch.testing.assert_close(loss, expected)


def test_a_pair_without_a_caption_is_left_out_of_the_mean() -> None:
    logits = leaf(2, 6)
    ids, mask = torch.tensor([[1, 3], [1, 0]]), torch.tensor([[1, 1], [1, 0]])
    torch.testing.assert_close(caption_word_loss(logits, ids, mask), -F.log_softmax(logits, dim=1)[0, 3])
    logits = leaf(1, 6)
    assert is_zero_with_a_graph(caption_word_loss(logits, ids[1:], mask[1:]), logits)


# Masked words


def test_hidden_pieces_are_predicted_and_every_text_has_the_same_weight() -> None:
    ids = torch.tensor([[1, 3, 5, 4], [1, 2, 0, 0], [1, 2, 3, 0]])
    hidden = torch.tensor([[0, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]]).bool()
    logits = leaf(3, 6)
    log_probabilities = F.log_softmax(logits, dim=1)
    expected = -((log_probabilities[0, 3] + log_probabilities[1, 4]) / 2 + log_probabilities[2, 2]) / 2
    torch.testing.assert_close(masked_word_loss(logits, ids, hidden), expected)


def test_texts_without_hidden_pieces_have_no_loss() -> None:
    logits = leaf(0, 6)
    assert masked_word_loss(logits, torch.ones(2, 3).long(), torch.zeros(2, 3).bool()).item() == 0


# Terms that are not in the paper


def test_guided_attention_wants_a_share_for_each_manipulated_key() -> None:
    attention = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]])
    both, last = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    every, first = torch.ones(1, 2), torch.tensor([[1.0, 0.0]])
    wanted = -(math.log(0.5) + math.log(0.25)) / 2
    assert guided_attention_loss(attention.log(), both, first).item() == pytest.approx(wanted)
    wanted = -(math.log(0.25) + math.log(0.8)) / 2
    assert guided_attention_loss(attention.log(), last, every).item() == pytest.approx(wanted)


def test_guided_attention_leaves_out_pairs_without_a_manipulated_key_and_survives_attention_of_0() -> None:
    scores = leaf(2, 2, 3)
    guide = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    guided_attention_loss(F.log_softmax(scores, dim=-1), guide, torch.ones(2, 2)).backward()
    assert scores.grad is not None
    assert (scores.grad[0, :, 0] < 0).all()  # more attention to the manipulated key
    assert not scores.grad[1].any()
    nothing = torch.tensor([[[0.0, 1.0, 0.0]]]).log()
    assert guided_attention_loss(nothing, guide[:1], torch.ones(1, 1)).isfinite()
    assert is_zero_with_a_graph(guided_attention_loss(leafed := leaf(1, 2, 3), guide[1:], torch.ones(1, 2)), leafed)


def test_tokens_of_a_label_are_alike_and_tokens_of_two_labels_are_not() -> None:
    labels = torch.tensor([[1.0, 1.0, 0.0, -1.0]])
    apart = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 9.0]]])
    # Within the label the logit is 5 and across it is -5: both have the loss of a sure and right answer.
    assert consistency_loss(apart, labels).item() == pytest.approx(math.log1p(math.exp(-5)), rel=1e-5)
    alike = torch.ones(1, 4, 2)
    wanted = (math.log1p(math.exp(-5)) + math.log1p(math.exp(5))) / 2
    assert consistency_loss(alike, labels).item() == pytest.approx(wanted, rel=1e-5)


def test_consistency_moves_labeled_tokens_of_items_with_both_labels_alone() -> None:
    tokens = leaf(3, 4, 8)
    labels = torch.tensor([[1, 0, 0, -100], [0, 0, 0, 0], [1, 1, -100, -100]])
    consistency_loss(tokens, labels).backward()
    assert tokens.grad is not None
    assert tokens.grad[0, :3].abs().sum(dim=1).all()
    assert not tokens.grad[0, 3].any()
    assert not tokens.grad[1:].any()
    assert is_zero_with_a_graph(consistency_loss(leafed := leaf(1, 4, 8), labels[1:2]), leafed)


def test_presence_is_that_of_an_image_type() -> None:
    logits = torch.tensor([0.5, -2.0, 1.0])
    types = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0]])
    wanted = F.binary_cross_entropy_with_logits(logits, torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(presence_loss(logits, types), wanted)


def test_a_manipulated_text_loses_against_the_caption() -> None:
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    true, false = torch.tensor([[0.6, 0.8], [1.0, 0.0]]), torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    loss = hard_negative_loss(image, true, false, torch.tensor([1.0, 0.0]), torch.tensor(0.1))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.0)), rel=1e-5)
    pictures = leaf(2, 2)
    hard_negative_loss(pictures, true, false, torch.tensor([1.0, 0.0]), torch.tensor(0.1)).backward()
    assert pictures.grad is not None
    assert pictures.grad[0].any()
    assert not pictures.grad[1].any()
