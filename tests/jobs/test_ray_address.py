"""Addresses of a cluster: which form is meant, for a job and for a submission."""

import pytest

from asap.errors import ConfigError
from jobs.ray_address import check_joining, dashboard_url


@pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379", "head:6379", "[::1]:6379"])
def test_a_job_joins_a_cluster_at_a_host_with_a_port(address: str) -> None:
    check_joining(address)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("ray://head:10001", r"not run through Ray Client\. .* 'auto' or head:6379; .* --address http://head:8265\."),
        ("http://head:8265", r"a dashboard, to which asap submit sends commands\. .* give 'auto' or head:6379\."),
        ("https://[::1]/ray", r"give 'auto' or \[::1\]:6379\."),
        ("local", "leave the address out to start Ray on this machine"),
        ("s3://bucket", "no cluster has such an address"),
        ("ray://[", "HOST:6379"),
    ],
)
def test_a_job_is_refused_an_address_of_another_form(address: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_joining(address)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://127.0.0.1:8265", "http://127.0.0.1:8265"),
        ("https://ray.example/proxy/", "https://ray.example/proxy"),
        ("http://[::1]:8265/", "http://[::1]:8265"),
    ],
)
def test_a_submission_goes_to_the_dashboard(address: str, url: str) -> None:
    assert dashboard_url(address) == url


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("ray://head:10001", "Give http://head:8265,"),
        ("10.0.0.1:6379", r"Give http://10\.0\.0\.1:8265,"),
        ("auto", "Give http://HOST:8265,"),
        ("http://", "Give http://HOST:8265,"),
        ("http://user:word@head:8265", "holds a user or a password"),
    ],
)
def test_a_submission_is_refused_any_other_address(address: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        dashboard_url(address)
