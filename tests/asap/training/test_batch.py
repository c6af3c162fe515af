import torch

from asap.training.batch import Tokens, stack_texts
from tests.support.tiny import draw_batch


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
