import pytest
import torch

from asap.training.batch import Tokens, pad_texts, stack_texts
from asap.training.objective import LossWeights
from asap.training.step import TrainingStep
from tests.support.tiny import draw_batch, tiny_model


def test_texts_of_different_lengths_are_stacked_and_padded_to_the_longest() -> None:
    short = Tokens(torch.tensor([[2, 5]]), torch.tensor([[1, 1]]))
    long = Tokens(torch.tensor([[2, 6, 7, 8], [2, 9, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]))

    stacked = stack_texts(short, long)

    assert stacked.input_ids.tolist() == [[2, 5, 0, 0], [2, 6, 7, 8], [2, 9, 0, 0]]
    assert stacked.mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]


def test_a_single_text_is_stacked_unchanged() -> None:
    text = Tokens(torch.tensor([[2, 5]]), torch.tensor([[1, 1]]))
    stacked = stack_texts(text)
    assert (stacked.input_ids.tolist(), stacked.mask.tolist()) == ([[2, 5]], [[1, 1]])


def test_a_batch_moves_with_all_its_tensors() -> None:
    batch = draw_batch()
    moved = batch.to("meta")
    assert all(value.device.type == "meta" for value in vars(moved).values() if isinstance(value, torch.Tensor))
    texts = (moved.text, moved.caption, moved.explanation)
    assert all(isinstance(text, Tokens) for text in texts)
    assert all(part.device.type == "meta" for text in texts for part in text)
    assert batch.images.device.type == "cpu"


def test_texts_are_padded_to_a_multiple_but_not_beyond_what_the_model_reads() -> None:
    batch = draw_batch()
    assert batch.text.mask.shape[1] == 6
    padded = pad_texts(batch, 4, 64)
    assert {text.mask.shape[1] for text in (padded.text, padded.caption, padded.explanation)} == {8}
    assert padded.token_labels.shape[1] == 7
    assert int(padded.text.mask.sum()) == int(batch.text.mask.sum())
    assert pad_texts(batch, 16, 10).text.input_ids.shape[1] == 10
    assert torch.equal(pad_texts(batch, 1, 64).token_labels, batch.token_labels)


def test_padding_changes_no_loss_beyond_rounding() -> None:
    weights = LossWeights(cwp=0.2)
    losses, gradients = [], []
    for change in (lambda batch: batch, lambda batch: pad_texts(batch, 16, 64)):
        step = TrainingStep(tiny_model(), weights=weights, queue_size=12).train()
        terms = step(change(draw_batch()), 0.4)
        terms["total"].backward()
        losses.append({name: term.item() for name, term in terms.items()})
        gradients.append({name: p.grad for name, p in step.student.named_parameters()})
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)
