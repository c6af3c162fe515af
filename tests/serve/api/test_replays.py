import pytest

from serve.api.replays import KEPT_S, OVERHEAD_BYTES, Replays
from serve.errors import Refused
from tests.support.waiting import Clock

NAME, OTHER = ("desk", "/v1/detect", None, "1"), ("desk", "/v1/detect", None, "2")


def test_a_response_is_kept_for_the_same_request_only() -> None:
    replays = Replays()
    assert replays.begin(NAME, b"pair") is None
    replays.end(NAME, b"response")
    assert replays.begin(NAME, b"pair") == b"response"
    for other in (OTHER, ("web", *NAME[1:]), (None, *NAME[1:])):
        assert replays.begin(other, b"pair") is None
    with pytest.raises(Refused, match="another request had this Idempotency-Key") as caught:
        replays.begin(NAME, b"another pair")
    assert (caught.value.status, caught.value.code, caught.value.param) == (422, "invalid_field", "Idempotency-Key")


def test_a_request_in_progress_is_not_begun_twice_and_one_without_response_is_forgotten() -> None:
    replays = Replays()
    replays.begin(NAME, b"pair")
    with pytest.raises(Refused, match="is in progress") as caught:
        replays.begin(NAME, b"pair")
    assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (409, "in_progress", 1)
    with pytest.raises(Refused, match="another request had this"):
        replays.begin(NAME, b"another pair")
    replays.end(NAME)
    assert replays.begin(NAME, b"another pair") is None


def test_a_response_is_dropped_after_a_while() -> None:
    clock = Clock()
    replays = Replays(clock=lambda: clock.now)
    replays.begin(NAME, b"pair")
    clock.now += KEPT_S
    replays.end(NAME, b"response")  # it is kept from now on
    clock.now += KEPT_S - 1
    assert replays.begin(NAME, b"pair") == b"response"
    clock.now += 1
    assert replays.begin(NAME, b"pair") is None


def test_the_oldest_responses_are_dropped_when_they_take_too_much_memory() -> None:
    around = OVERHEAD_BYTES + len("desk/v1/detect1pair")
    replays = Replays(most_bytes=2 * (around + 5))
    for name, size in ((NAME, 5), (OTHER, 5)):
        replays.begin(name, b"pair")
        replays.end(name, b"x" * size)
    assert replays.begin(NAME, b"pair") == replays.begin(OTHER, b"pair") == b"x" * 5
    third = ("web", "/v1/detect", None, "3")
    replays.begin(third, b"pair")
    replays.end(third, b"x")
    assert replays.begin(OTHER, b"pair") == b"x" * 5
    assert replays.begin(NAME, b"pair") is None
    large = ("web", "/v1/detect", None, "4")
    replays.begin(large, b"pair")
    replays.end(large, b"x" * 2 * (around + 5))
    assert replays.begin(large, b"pair") is None


def test_a_long_name_and_an_empty_response_take_room_too() -> None:
    replays = Replays(most_bytes=3 * OVERHEAD_BYTES)
    names = [("desk", "/v1/detect", "image", letter * OVERHEAD_BYTES) for letter in "ab"]
    for name in names:
        replays.begin(name, b"pair")
        replays.end(name, b"")
    assert [replays.begin(name, b"pair") for name in names] == [None, b""]
