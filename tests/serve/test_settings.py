from typing import Any

import pytest
from pydantic import ValidationError

from serve.settings import JobSettings, ServeSettings, is_loopback


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"min_replicas": 3}, "min_replicas 3 is more than max_replicas 2"),
        ({"max_batch_items": 100}, "is more than a key's key_burst"),
        ({"max_bytes_in_flight": 2**20}, "max_bytes_in_flight 1048576 is less than a request may have, 67108864"),
        ({"wait_s": 30}, "wait_s 30 is not less than deadline_s 30"),
        ({"device": "cuda"}, "device cuda needs a GPU for each detector. Set detector_gpus too, as to 1"),
        ({"deadline_s": 61}, "drain_s 60 is less than deadline_s 61. A server that stops would cut off requests"),
        ({"max_text_chars": 20_001}, "less than or equal to 20000"),
        ({"uri_prefixes": ("s3://bucket",)}, "'s3://bucket' is not s3://BUCKET"),
        ({"uri_prefixes": ("http://host/",)}, "is not s3://BUCKET"),
        ({"uri_prefixes": ("https://name@host/",)}, "is not s3://BUCKET"),
        ({"cors_origins": ("*",)}, "cors_origins '\\*'"),
        ({"max_image_pixels": 10**10}, "Pillow's limit"),
        ({"jobs": {"records": "s3://b/r", "keys": {"a": {"inputs": ["s3://b"]}}}}, "the prefix 's3://b' is not s3://"),
        ({"jobs": {"records": "s3://b/r", "keys": {"a": {"outputs": ["/out/"]}}}}, "the prefix '/out/' is not s3://"),
        ({"jobs": {"records": "s3://b/r", "keys": {"a": {"models": ["s3://b/../"]}}}}, "has an empty part, '.' or"),
        ({"jobs": {"records": "s3://b/r", "keys": {"a": {"outputs": ["s3://b/"]}}}}, "whose jobs could read or write"),
        ({"jobs": {"records": "/srv/records"}}, "records '/srv/records' is not s3://BUCKET/"),
        ({"jobs": {"records": "s3://b/r", "dashboard": "http://u:p@h:8265"}}, "is not http://HOST:PORT"),
        ({"colour": "red"}, "Extra inputs"),
        ({"port": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        ServeSettings(**change)


def test_the_limit_of_a_body_has_room_for_the_largest_picture_and_text() -> None:
    settings = ServeSettings(max_image_bytes=3000, max_text_chars=10)
    assert settings.max_body_bytes > 4000 + 10 * len(r"\ud83d\ude00")


def test_a_server_that_stops_may_take_just_as_long_as_a_request() -> None:
    assert ServeSettings(deadline_s=60, drain_s=60).drain_s == 60


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("[::1]", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("localhost.example.com", False), ("", False)],
)  # fmt: skip
def test_only_loopback_addresses_are_this_machine(host: str, local: bool) -> None:
    assert is_loopback(host) == local


@pytest.mark.parametrize("rules", [{"inputs": ["s3://b/api/jobs/"]}, {"outputs": ["s3://b/api/"]}])
def test_records_with_a_prefix_of_a_key_in_them_are_refused(rules: dict[str, list[str]]) -> None:
    with pytest.raises(ValidationError, match="in it, whose jobs could read or write the records"):
        JobSettings.model_validate({"records": "s3://b/api", "keys": {"*": rules}})
