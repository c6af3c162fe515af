from pathlib import Path

import pytest

from asap.errors import ConfigError, StorageError
from asap.policy import Policy
from asap.storage.files import exists, list_files, write_bytes
from asap.storage.location import Location
from jobs.policy.files import read_policy, replace_policy


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "local":
        return Location(str(tmp_path))
    return Location(f"s3://{request.getfixturevalue('bucket')}/policies")


def test_a_policy_is_read_back_as_it_was_written(folder: Location) -> None:
    policy = Policy(manipulated=0.9, review=0.2, calibration={"prevalence": 0.01})
    assert replace_policy(folder / "p.json", policy) is None
    assert read_policy(folder / "p.json") == policy


def test_a_different_former_policy_is_copied_under_its_id(folder: Location) -> None:
    former, policy = Policy(manipulated=0.9), Policy(manipulated=0.8)
    replace_policy(folder / "p.json", former)
    kept = replace_policy(folder / "p.json", policy)
    assert kept == folder / f"p.{former.policy_id}.json"
    assert (read_policy(kept), read_policy(folder / "p.json")) == (former, policy)


@pytest.mark.parametrize("former", [Policy(), Policy(manipulated=0.8)])
def test_an_uncalibrated_or_equal_policy_is_not_copied(tmp_path: Path, former: Policy) -> None:
    location = Location(str(tmp_path / "p.json"))
    replace_policy(location, former)
    assert replace_policy(location, Policy(manipulated=0.8)) is None
    assert len(list(list_files(Location(str(tmp_path))))) == 1


def test_calibrations_of_the_same_thresholds_are_all_copied(tmp_path: Path) -> None:
    location = Location(str(tmp_path / "policy.json"))
    policies = [Policy(calibration={"on": name}) for name in ("a", "b", "c")]
    kept = [replace_policy(location, policy) for policy in policies]
    identity = policies[0].policy_id
    assert kept == [None, location.parent / f"policy.{identity}.json", location.parent / f"policy.{identity}-2.json"]
    assert [Policy.load(Path(copy.uri)) for copy in kept if copy] == policies[:2]
    assert replace_policy(location, policies[0]) == location.parent / f"policy.{identity}-3.json"
    assert replace_policy(location, policies[2]) == kept[1], "an existing copy is not copied again"


def test_a_file_that_is_not_a_policy_is_left_alone(folder: Location) -> None:
    write_bytes(folder / "thesis.txt", b"x")
    with pytest.raises(ConfigError, match=r"thesis\.txt cannot be used"):
        replace_policy(folder / "thesis.txt", Policy(manipulated=0.8))
    with pytest.raises(StorageError, match=r"none\.json does not exist"):
        read_policy(folder / "none.json")
    assert not exists(folder / "none.json")
