import dataclasses

import pytest
import torch
from torch import Tensor, nn

from asap.training.batch import Batch, Tokens
from asap.training.losses import IGNORED_TOKEN
from asap.training.micro_batches import separate_gradients, term_shares
from asap.training.objective import LOSS_NAMES, LossWeights, PublishedDefects
from asap.training.step import TERMS, TrainingStep
from tests.support.tiny import draw_batch, tiny_model

# The first half has no box and the second no manipulated word; the means must still be those of the whole batch.
CLASSES = ("orig", "text_swap", "orig", "text_attribute", "face_swap", "orig", "face_attribute", "face_swap")
WITHOUT_CONTRAST = LossWeights(vlc=0)


pytestmark = pytest.mark.usefixtures("one_thread")


def new_step(weights: LossWeights | None = None, defects: PublishedDefects | None = None) -> TrainingStep:
    # The linear patch embedding is used: the convolutional one normalizes over the pairs that it sees together.
    step = TrainingStep(
        tiny_model(patch_embedding="linear"), queue_size=16, momentum=0.9, weights=weights, defects=defects, mask_id=4
    ).train()
    with torch.no_grad():  # the twin differs from the student, so that an update would show
        step.student.patch_head.bias.add_(1.0)
    return step


def run(step: TrainingStep, parts: int, batch: Batch | None = None) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the terms of a batch cut into `parts` micro batches, and the gradients."""
    batches = (batch or draw_batch(CLASSES)).parts(parts)
    shares = term_shares(batches, step.criterion.defects)
    sums: dict[str, float] = {}
    for number, batch in enumerate(batches):
        terms = step(batch, 0.4, shares[number] if parts > 1 else None, update_twin=number == 0)
        terms["total"].backward()
        sums = {name: sums.get(name, 0.0) + term.item() for name, term in terms.items()}
    return sums, gradients(step)


def gradients(step: TrainingStep) -> dict[str, Tensor]:
    return {name: p.grad for name, p in step.student.named_parameters() if p.grad is not None}


def test_terms_without_weight_by_default_count_the_same_in_micro_batches() -> None:
    names = ("mgca_patches", "mgca_words", "patch_consistency", "word_consistency", "hard_negative", "presence")
    weights = LossWeights(vlc=0, **dict.fromkeys(names, 0.3))
    settings = {"patch_embedding": "linear", "box_gate": "presence"}
    one, several = (
        TrainingStep(tiny_model(**settings), queue_size=16, weights=weights, mask_id=4).train() for _ in range(2)
    )
    whole_terms, whole = run(one, 1)
    terms, found = run(several, 4)
    assert set(names) <= set(terms)
    assert terms == pytest.approx(whole_terms, abs=1e-5)
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_micro_batches_give_the_terms_and_gradients_of_the_whole_batch(parts: int) -> None:
    whole_terms, whole = run(new_step(WITHOUT_CONTRAST), 1)
    terms, gradients = run(new_step(WITHOUT_CONTRAST), parts)
    assert terms == pytest.approx(whole_terms, abs=1e-5)
    assert gradients.keys() == whole.keys()
    torch.testing.assert_close(gradients, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_are_exact_with_the_published_defects_too(parts: int) -> None:
    # The words that MGCA marks in every sample are those of the micro batch, so that defect is left out.
    defects = dataclasses.replace(PublishedDefects.all(), mgca_words_of_the_batch=False)
    whole_terms, whole = run(new_step(WITHOUT_CONTRAST, defects), 1)
    terms, gradients = run(new_step(WITHOUT_CONTRAST, defects), parts)
    assert terms == pytest.approx(whole_terms, abs=1e-5)
    torch.testing.assert_close(gradients, whole, atol=1e-5, rtol=1e-4)


def hide_words(*rows: int) -> Batch:
    """Return the batch with the word labels of some pairs unknown."""
    batch = draw_batch(CLASSES)
    labels = batch.token_labels.clone()
    labels[list(rows)] = IGNORED_TOKEN
    return dataclasses.replace(batch, token_labels=labels)


@pytest.mark.parametrize("padding", [False, True])
def test_micro_batches_are_exact_if_words_are_unknown(padding: bool) -> None:
    weights, defects = dataclasses.replace(WITHOUT_CONTRAST, mgca_words=0.3), PublishedDefects(mgca_padding=padding)
    whole_terms, whole = run(new_step(weights, defects), 1, hide_words(1, 6, 7))
    terms, gradients = run(new_step(weights, defects), 4, hide_words(1, 6, 7))
    assert terms == pytest.approx(whole_terms, abs=1e-5)
    torch.testing.assert_close(gradients, whole, atol=1e-5, rtol=1e-4)


def test_pairs_with_unknown_words_take_no_part_in_the_terms_of_words() -> None:
    """Their own numbers do not matter: another text in their place leaves these terms as they are."""
    step, batch = new_step(WITHOUT_CONTRAST), hide_words(1, 3)
    step.eval()
    before = step(batch, 0.0, update_twin=False)
    ids = batch.text.input_ids.clone()
    ids[[1, 3], 1:] = ids[[1, 3], 1:].flip(1)
    after = step(dataclasses.replace(batch, text=Tokens(ids, batch.text.mask)), 0.0, update_twin=False)
    for name in ("tmg", "mgca"):
        torch.testing.assert_close(after[name], before[name])
    assert not torch.allclose(after["bic"], before["bic"])


def test_without_any_known_word_the_terms_of_words_are_zero_and_train_nothing() -> None:
    terms, found = run(new_step(LossWeights(**dict.fromkeys(LOSS_NAMES, 0.0) | {"tmg": 1.0, "mgca": 1.0})), 1,
                       hide_words(*range(len(CLASSES))))  # fmt: skip
    assert terms["tmg"] == terms["mgca"] == terms["total"] == 0
    assert not any(gradient.any() for gradient in found.values())


def test_gradients_differ_without_shares() -> None:
    step, (_, whole) = new_step(WITHOUT_CONTRAST), run(new_step(WITHOUT_CONTRAST), 1)
    for number, batch in enumerate(draw_batch(CLASSES).parts(2)):
        (step(batch, 0.4, update_twin=number == 0)["total"] / 2).backward()
    assert not torch.allclose(step.student.box_head[0].weight.grad, whole["box_head.0.weight"], atol=1e-5)


def test_the_twin_moves_once_and_the_queues_take_every_pair_in_order() -> None:
    one, several = new_step(), new_step()
    run(one, 1)
    run(several, 4)
    torch.testing.assert_close(several.twin.model.state_dict(), one.twin.model.state_dict(), rtol=0, atol=0)
    assert several.queues.pointer == one.queues.pointer == len(CLASSES)
    torch.testing.assert_close(several.queues.state_dict(), one.queues.state_dict(), atol=1e-5, rtol=1e-5)


def test_shares_add_up_to_one_or_are_zero_if_nothing_is_counted() -> None:
    shares = term_shares(draw_batch(CLASSES).parts(2))
    for term in TERMS:
        assert sum(share[term].item() for share in shares) == pytest.approx(1)
    assert [share["giou"].item() for share in shares] == [0, 1]
    assert [share["vlc"].item() for share in shares] == [0.5, 0.5]
    boxless = term_shares(draw_batch(["orig"] * 4).parts(2))
    assert [share["bbox_l1"].item() for share in boxless] == [0, 0]


def test_parts_are_the_pairs_of_the_batch_in_order() -> None:
    batch = draw_batch(CLASSES)
    parts = batch.parts(4)
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert torch.equal(torch.cat([part.text.input_ids for part in parts]), batch.text.input_ids)
    assert [len(part.manipulated) for part in parts] == [2] * 4


def hide_every_second(words: Tokens, mask_id: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Mask every second word: a deterministic `mask_words`."""
    hidden = words.mask.bool()
    hidden[:, ::2] = False
    return words.input_ids.masked_fill(hidden, mask_id), hidden


def test_hidden_words_count_the_same_in_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asap.training.step.mask_words", hide_every_second)
    weights = LossWeights(vlc=0, cwp=0.2, mlm=0.5)
    # Without captions, a manipulated text leaves no true words, so the micro batches have different counts.
    batch = draw_batch(CLASSES)
    batch = dataclasses.replace(batch, caption=batch.text)
    whole, parts = (new_step(weights) for _ in range(2))
    terms = whole(batch, 0.4)
    terms["total"].backward()
    sums = dict.fromkeys(terms, 0.0)
    micro = batch.parts(4)
    for number, (part, share) in enumerate(zip(micro, term_shares(micro), strict=True)):
        some = parts(part, 0.4, share, update_twin=number == 0)
        some["total"].backward()
        sums = {name: sums[name] + term.item() for name, term in some.items()}
    assert sums == pytest.approx({name: term.item() for name, term in terms.items()}, abs=1e-5)
    torch.testing.assert_close(gradients(parts), gradients(whole), atol=1e-5, rtol=1e-4)


def test_gradients_in_the_same_memory_are_separated() -> None:
    positions, token, same, unused = (nn.Parameter(torch.zeros(1, count, 4)) for count in (5, 1, 5, 2))
    positions.grad = torch.arange(20.0).view(1, 5, 4)
    token.grad, same.grad = positions.grad[:, :1], positions.grad.view(1, 5, 4)
    separate_gradients([positions, token, same, unused])
    positions.grad.mul_(2)
    token.grad.add_(1)
    assert positions.grad.flatten().tolist() == [2.0 * number for number in range(20)]
    assert token.grad.flatten().tolist() == [1, 2, 3, 4]
    assert same.grad.flatten().tolist() == list(range(20))
    assert unused.grad is None
