from pathlib import Path

import pytest

from asap.errors import ConfigError
from serve.api.keys import Keyring, Rates, new_key
from serve.errors import Refused


def test_a_new_key_matches_its_line_and_no_other_key_does(tmp_path: Path) -> None:
    key, line = new_key("newsroom")
    file = tmp_path / "keys"
    file.write_text(f"# the callers\n\n{new_key('other')[1]}\n{line}  # the desk\n")
    keyring = Keyring.load(str(file))
    assert keyring.name_of(key) == "newsroom"
    assert key not in line
    for wrong in (key[:-1], key + "x", "", "ключ", line.partition(":")[2]):
        assert keyring.name_of(wrong) is None


def test_keys_are_read_from_the_environment_if_no_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    (first, line), (second, other) = new_key("a"), new_key("b")
    monkeypatch.setenv("ASAP_KEYS", f"{line}, {other}")
    assert [Keyring.load(None).name_of(key) for key in (first, second)] == ["a", "b"]
    monkeypatch.delenv("ASAP_KEYS")
    assert not Keyring.load(None)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("asap_secret", "key 1 of .* is not NAME:SHA256"),
        ("a:" + "0" * 64 + "\na:" + "1" * 64, "two keys named 'a'"),
        ("# nothing", "holds no key"),
    ],
)
def test_an_invalid_keys_file_is_rejected_without_repeating_a_possible_key(
    tmp_path: Path, content: str, sentence: str
) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ConfigError, match=sentence) as caught:
        Keyring.load(str(file))
    assert "asap_secret" not in str(caught.value)


def test_a_missing_keys_file_and_an_invalid_name_are_rejected() -> None:
    with pytest.raises(ConfigError, match="/nowhere/keys cannot be read"):
        Keyring.load("/nowhere/keys")
    with pytest.raises(ConfigError, match="key name 'a b'"):
        new_key("a b")


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
