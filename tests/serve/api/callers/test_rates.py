import pytest

from serve.api.callers.rates import Rates
from serve.errors import Refused


def test_a_rate_allows_a_burst_and_then_says_when_to_retry() -> None:
    now = 0.0
    rates = Rates(rate=2, burst=3, clock=lambda: now)
    rates.take("a", 3)
    rates.take("b")  # each key has a bucket of its own
    with pytest.raises(Refused) as caught:
        rates.take("a", 2)
    assert (caught.value.status, caught.value.retry_after_s) == (429, 1.0)
    now = 1.0
    rates.take("a", 2)
    now = 100.0
    rates.take("a", 3)
    with pytest.raises(Refused):
        rates.take("a")


def test_a_request_above_the_burst_is_accepted_once_and_paid_for_before_the_next() -> None:
    now = 100.0
    rates = Rates(2.0, 4, lambda: now)
    rates.take("a", 10)
    with pytest.raises(Refused) as caught:
        rates.take("a", 10)
    assert caught.value.retry_after_s == pytest.approx((10 - 4 + 4) / 2)
    rates.take("b", 1)
    rates.take("b", 9, paid=1)
    now += 3.4
    with pytest.raises(Refused):
        rates.take("a")
    now += 0.2
    rates.take("a")


def test_the_state_of_a_key_says_what_it_may_send_now_and_when_it_may_send_a_burst_again() -> None:
    now = 0.0
    rates = Rates(rate=2, burst=5, clock=lambda: now)
    assert rates.state("a").headers() == {
        "RateLimit-Limit": "5", "RateLimit-Remaining": "5", "RateLimit-Reset": "0", "RateLimit-Policy": "5;w=3",
    }  # fmt: skip
    rates.take("a", 4)
    now = 0.25
    assert (rates.state("a").remaining, rates.state("a").reset_s) == (1, 1.75)
    assert rates.state("a").headers()["RateLimit-Reset"] == "2"
    now = 100.0
    rates.take("a", 9)  # a debt
    assert (rates.state("a").remaining, rates.state("a").reset_s) == (0, 4.5)
