import pytest

from serve.api.capacity import ConcurrencyLimit


class Queue:
    """A server that judges so many pairs a second, one after the other, and callers that never stop asking."""

    def __init__(self, admission: ConcurrencyLimit, rate: float) -> None:
        self.admission, self.rate, self.now = admission, rate, 0.0

    def clock(self) -> float:
        return self.now

    def run(self, seconds: float) -> list[float]:
        """What each answer took: whoever is let in waits for all that were let in before."""
        waiting: list[float] = []
        took, end = [], self.now + seconds
        while self.now < end:
            while len(waiting) < self.admission.limit:
                waiting.append(self.now)
            self.now += 1 / self.rate
            took.append(self.now - waiting.pop(0))
            self.admission.answered(took[-1])
        return took


def queue(most: int, wait_s: float, rate: float) -> Queue:
    made = Queue(ConcurrencyLimit(8, most, wait_s, lambda: made.now), rate)
    return made


@pytest.mark.parametrize("rate", [4.0, 20.0, 60.0])
def test_whatever_a_server_judges_a_second_answers_come_to_take_as_long_as_they_may(rate: float) -> None:
    served = queue(256, 2.0, rate)
    served.run(120)
    late = sorted(served.run(120))
    assert 1 <= late[len(late) // 2] <= 2.25  # and no fewer are let in than there is time for
    assert late[-1] <= 3


def test_all_are_let_in_where_answers_are_quick() -> None:
    served = queue(64, 2.0, 1000)
    served.run(10)
    assert served.admission.limit == 64


def test_the_limit_rises_again_when_the_server_is_quicker() -> None:
    served = queue(64, 1.0, 5)
    served.run(60)
    assert served.admission.limit < 16
    served.rate = 500
    served.run(60)
    assert served.admission.limit == 64


def test_one_slow_picture_lets_in_no_fewer() -> None:
    admission = ConcurrencyLimit(64, 64, 2.0)
    for number in range(200):
        admission.answered(25.0 if number % 5 == 0 else 0.1)
    assert admission.limit == 64


@pytest.mark.parametrize(("most", "fewest"), [(64, 2), (1, 1)])
def test_some_are_always_let_in(most: int, fewest: int) -> None:
    now = 0.0
    admission = ConcurrencyLimit(8, most, 1.0, lambda: now)
    for _ in range(2000):
        now += 1.0
        admission.answered(30.0)
    assert admission.limit == fewest
