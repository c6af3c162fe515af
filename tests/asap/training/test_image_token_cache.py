from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from asap.training.image_token_cache import ImageTokens
from tests.support.tiny import tiny_config

CONFIG = tiny_config()
SHAPE = (10, CONFIG.width)
BYTES_A_PAIR = 2 * SHAPE[0] * SHAPE[1]


def encoder_of(numbers: list[int], calls: list[list[int]]) -> Callable[[], Tensor]:
    def encode() -> Tensor:
        calls.append(numbers)
        return torch.stack([torch.full(SHAPE, number + 1 / 3) for number in numbers])

    return encode


@pytest.mark.parametrize(("most_bytes", "expected"), [(6 * BYTES_A_PAIR, 3), (6 * BYTES_A_PAIR - 1, 5), (0, 5)])
def test_tokens_are_computed_once_if_those_of_all_pairs_fit(most_bytes: int, expected: int) -> None:
    tokens, calls = ImageTokens(6, CONFIG, most_bytes), list[list[int]]()
    for numbers in ([3, 0], [0, 3], [0, 1], [5, 4], [1, 4]):
        found = tokens.get_or_encode(numbers, encoder_of(numbers, calls))
        # The tokens are rounded the same way whether they are kept or not.
        assert torch.equal(found[:, 0, 0], torch.tensor(numbers).add(1 / 3).half().float())
        assert found.shape == (2, *SHAPE)
        assert found.dtype == torch.float32
    assert len(calls) == expected


def test_a_batch_with_a_missing_pair_is_computed_as_a_whole() -> None:
    tokens, calls = ImageTokens(6, CONFIG, 6 * BYTES_A_PAIR), list[list[int]]()
    for numbers in ([0, 1], [1, 2]):
        tokens.get_or_encode(numbers, encoder_of(numbers, calls))
    assert calls == [[0, 1], [1, 2]]
