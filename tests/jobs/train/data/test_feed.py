"""The records of a step."""

from jobs.train.data.feed import Order


def test_every_epoch_shows_each_pair_at_most_once_over_all_workers() -> None:
    workers = [Order(11, 4, 10, seed=1, rank=rank, world=2) for rank in range(2)]
    alone = Order(11, 4, 10, seed=1)
    assert alone.steps_an_epoch == 2
    seen: dict[int, list[int]] = {}
    for step in range(6):
        numbers, epoch = alone.rows_of_step(step)
        parts = [worker.rows_of_step(step) for worker in workers]
        assert [number for rows_of_step, _ in parts for number in rows_of_step] == numbers
        assert {number for _, number in parts} == {epoch}
        seen.setdefault(epoch, []).extend(numbers)
    assert sorted(seen) == [0, 1, 2]
    assert all(len(set(numbers)) == len(numbers) == 8 for numbers in seen.values())
    assert seen[0] != seen[1]


def test_the_order_follows_the_seed() -> None:
    assert Order(100, 10, 5, seed=1).rows_of_step(3) == Order(100, 10, 50, seed=1).rows_of_step(3)
    assert Order(100, 10, 5, seed=1).rows_of_step(3) != Order(100, 10, 5, seed=2).rows_of_step(3)
