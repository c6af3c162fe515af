from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from asap.errors import ConfigError
from serve.api.callers.keys import Keyring, new_key

HASH = "0" * 64
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def test_a_new_key_matches_its_line_and_no_other_key_does(tmp_path: Path) -> None:
    key, line = new_key("newsroom")
    file = tmp_path / "keys"
    file.write_text(f"# the callers\n\n{new_key('other')[1]}\n{line}  # the desk\n")
    keyring = Keyring.load(str(file))
    found = keyring.find(key)
    assert found is not None
    assert (found.name, found.scopes, found.expires) == ("newsroom", ("detect", "metrics"), None)
    assert key not in line
    for wrong in (key[:-1], key + "x", "", "ключ", line.partition(":")[2][:64]):
        assert keyring.find(wrong) is None


def test_keys_are_read_from_the_environment_if_no_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    (first, line), (second, other) = new_key("a"), new_key("b")
    monkeypatch.setenv("ASAP_KEYS", f"{line}, {other}")
    found = [Keyring.load(None).find(key) for key in (first, second)]
    assert [key and key.name for key in found] == ["a", "b"]
    monkeypatch.delenv("ASAP_KEYS")
    assert not Keyring.load(None)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("asap_secret", "key 1 of .* is not NAME:SHA256"),
        ("a:" + "0" * 64 + "\na:" + "1" * 64, "two keys named 'a'"),
        ("# nothing", "holds no key"),
        (f"a:{HASH};asap_secret", "key 1 of .* has an attribute that is neither scope nor expires"),
        (f"a:{HASH}\nb:{HASH};scope=detect;scope=detect", "key 2 of .* has the attribute scope twice"),
        (f"a:{HASH};scope=", "key 1 of .* has an unknown scope. Use detect, metrics, jobs or all-jobs"),
        (f"a:{HASH};scope=detect+asap_secret", "key 1 of .* has an unknown scope"),
        (f"a:{HASH};expires=asap_secret", "key 1 of .* expires at what is not a date"),
        (f"a:{HASH};expires=2027-02-30", "key 1 of .* expires at what is not a date"),
        (f"a:{HASH};expires=9999-12-31T23:59:59-05:00", "key 1 of .* expires at what is not a date"),
        (f"a:{HASH}:scope=detect", "key 1 of .* is not NAME:SHA256"),
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


@pytest.mark.parametrize(
    ("attributes", "scopes", "expires"),
    [
        ("", ("detect", "metrics"), None),
        (";scope=metrics", ("metrics",), None),
        (";scope=metrics+detect", ("detect", "metrics"), None),
        (";expires=2027-03-01", ("detect", "metrics"), datetime(2027, 3, 1, tzinfo=UTC)),
        (";expires=2027-03-01T02:00+02:00;scope=detect", ("detect",), datetime(2027, 3, 1, tzinfo=UTC)),
    ],
)
@pytest.mark.parametrize("from_file", [True, False])
def test_a_line_says_what_its_key_may_be_used_for_and_until_when(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attributes: str, scopes: object, expires: object, from_file: bool
) -> None:
    line = f"a:{HASH}{attributes}"
    file = tmp_path / "keys"
    file.write_text(f"{line} # the desk\n")
    monkeypatch.setenv("ASAP_KEYS", f"{line},b:{HASH}")
    key = Keyring.load(str(file) if from_file else None).keys["a"]
    assert (key.scopes, key.expires) == (scopes, expires)


def test_a_key_is_valid_until_the_moment_at_which_it_expires() -> None:
    key = Keyring.parse([f"a:{HASH};expires=2026-06-01"], "here").keys["a"]
    assert not key.has_expired(NOW - timedelta(microseconds=1))
    assert key.has_expired(NOW)
    assert not Keyring.parse([f"a:{HASH}"], "here").keys["a"].has_expired(NOW)


def test_a_new_key_has_the_scopes_and_the_expiry_that_it_was_made_with() -> None:
    key, line = new_key("desk", ["metrics", "metrics"], "2026-06-01T01:30+01:00", NOW - timedelta(days=1))
    found = Keyring.parse([line], "here").find(key)
    assert found is not None
    assert (found.scopes, found.expires) == (("metrics",), NOW + timedelta(minutes=30))


@pytest.mark.parametrize(
    ("scopes", "expires", "sentence"),
    [
        (["all"], None, "scope 'all' is unknown. Use detect, metrics, jobs or all-jobs"),
        (["detect"], "soon", "expiry 'soon' is not a date or a time"),
        (["detect"], "9999-12-31T23:59:59-05:00", "expiry '9999-.*' is not a date or a time"),
        (["detect"], "2026-06-01", "expiry '2026-06-01' is in the past"),
    ],
)
def test_a_key_with_an_unknown_scope_or_a_wrong_expiry_is_not_made(
    scopes: list[str], expires: str | None, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        new_key("desk", scopes, expires, NOW)
