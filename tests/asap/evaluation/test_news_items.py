"""News items: which pairs belong together, and the draw of one pair of each."""

import numpy as np

from asap.evaluation.news_items import item_keys, news_items, one_of_each


def test_pairs_that_share_a_picture_or_an_id_are_one_item() -> None:
    items = news_items(np.array([[1, 11], [2, 11], [2, 12], [3, 13], [0, 0], [0, 0]], np.uint64))
    assert items[0] == items[1] == items[2]
    assert len(set(items.tolist())) == 4


def test_no_pairs_have_no_items() -> None:
    items = news_items(item_keys([]))
    assert items.tolist() == []
    assert one_of_each(items, np.zeros(0, bool), np.zeros(0, np.uint64)).tolist() == []


def test_one_pair_of_each_item_is_drawn_in_any_order_of_the_pairs() -> None:
    generator = np.random.default_rng(0)
    items, fake = generator.integers(0, 200, 900), generator.random(900) < 0.6
    lots = generator.integers(0, 2**64, 900, np.uint64, endpoint=False)
    drawn = one_of_each(items, fake, lots)
    assert sorted(items[drawn].tolist()) == sorted(set(items.tolist()))
    assert drawn.tolist() == sorted(drawn.tolist())
    order = generator.permutation(900)
    assert set(order[one_of_each(items[order], fake[order], lots[order])]) == set(drawn)


def test_the_lone_authentic_pair_of_an_item_is_drawn_in_half_of_the_cases_and_others_alike() -> None:
    generator = np.random.default_rng(1)
    items, place = np.repeat(np.arange(4000), 5), np.tile(np.arange(5), 4000)
    drawn = one_of_each(items, place > 0, generator.integers(0, 2**64, 20_000, np.uint64, endpoint=False))
    shares = np.bincount(place[drawn], minlength=5) / 4000
    assert abs(shares[0] - 0.5) < 0.04  # five standard deviations
    assert np.abs(shares[1:] - 0.125).max() < 0.027
