import pytest

from serve.api.capacity import ConcurrencyLimit


class Queue:
    """A simulated server that processes `rate` pairs a second, one at a time, and callers that never stop sending."""

    def __init__(self, concurrency: ConcurrencyLimit, rate: float) -> None:
        self.concurrency, self.rate, self.now = concurrency, rate, 0.0

    def clock(self) -> float:
        return self.now

    def run(self, seconds: float) -> list[float]:
        """Return the latency of each response. A request waits for all that were admitted before it."""
        waiting: list[float] = []
        took, end = [], self.now + seconds
        while self.now < end:
            while len(waiting) < self.concurrency.limit:
                waiting.append(self.now)
            self.now += 1 / self.rate
            took.append(self.now - waiting.pop(0))
            self.concurrency.record(took[-1])
        return took


def queue(most: int, wait_s: float, rate: float) -> Queue:
    made = Queue(ConcurrencyLimit(8, most, wait_s, lambda: made.now), rate)
    return made


@pytest.mark.parametrize("rate", [4.0, 20.0, 60.0])
def test_latency_settles_at_the_target_whatever_the_rate_of_the_server(rate: float) -> None:
    served = queue(256, 2.0, rate)
    served.run(120)
    late = sorted(served.run(120))
    assert 1 <= late[len(late) // 2] <= 2.25  # nor are fewer requests admitted than there is time for
    assert late[-1] <= 3


def test_the_limit_reaches_its_maximum_if_responses_are_fast() -> None:
    served = queue(64, 2.0, 1000)
    served.run(10)
    assert served.concurrency.limit == 64


def test_the_limit_rises_again_when_the_server_gets_faster() -> None:
    served = queue(64, 1.0, 5)
    served.run(60)
    assert served.concurrency.limit < 16
    served.rate = 500
    served.run(60)
    assert served.concurrency.limit == 64


def test_single_slow_pictures_do_not_lower_the_limit() -> None:
    concurrency = ConcurrencyLimit(64, 64, 2.0)
    for number in range(200):
        concurrency.record(25.0 if number % 5 == 0 else 0.1)
    assert concurrency.limit == 64


@pytest.mark.parametrize(("most", "fewest"), [(64, 2), (1, 1)])
def test_the_limit_never_falls_below_its_minimum(most: int, fewest: int) -> None:
    now = 0.0
    concurrency = ConcurrencyLimit(8, most, 1.0, lambda: now)
    for _ in range(2000):
        now += 1.0
        concurrency.record(30.0)
    assert concurrency.limit == fewest
