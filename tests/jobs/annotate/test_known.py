"""The actor that knows what is described, without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from asap.storage.location import Location
from jobs.annotate import known as known_module
from jobs.annotate.known import AWAITED, CLAIMED, Known, key_of, read_known
from jobs.descriptions.engine import Failure, Reply
from tests.support.annotations import annotation, write_annotations
from tests.support.waiting import Clock

ROW = {"image_sha256": "abc", "text": "a text", "text_escapes": None}


def test_a_key_is_claimed_once_and_then_known_to_all() -> None:
    known = Known({"old": Reply("an old one")})
    assert known.claim("a", ["old", "new", "other"]) == [Reply("an old one"), CLAIMED, CLAIMED]
    assert known.claim("b", ["new", "mine"]) == [AWAITED, CLAIMED]
    known.tell("a", {"new": Reply("a new one"), "other": Failure("refusal", "no")})
    assert known.claim("b", ["new", "other"]) == [Reply("a new one"), Failure("refusal", "no")]


def test_a_process_that_starts_again_has_its_claims() -> None:
    known = Known({})
    assert known.claim("a", ["k"]) == known.claim("a", ["k"]) == [CLAIMED]


def test_a_failure_that_may_pass_is_tried_again_by_the_next_row() -> None:
    known = Known({})
    known.claim("a", ["k"])
    known.tell("a", {"k": Failure("throttled", "HTTP 429")})
    assert known.claim("b", ["k"]) == [CLAIMED]


def test_the_claims_of_a_dead_process_end_and_those_of_a_slow_one_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(known_module, "time", clock)
    known = Known({})
    known.claim("dead", ["a"])
    known.claim("slow", ["b"])
    clock.sleep(50)
    known.renew("slow")
    clock.sleep(50)
    assert known.claim("c", ["a", "b"]) == [CLAIMED, AWAITED]


def test_another_pipeline_waits_for_nothing_that_the_one_before_had_claimed() -> None:
    known = Known({})
    known.claim("a", ["k"])
    known.release()
    assert known.claim("b", ["k"]) == [CLAIMED]


def test_a_key_is_that_of_what_decides_the_description() -> None:
    other = ROW | {"text": "another text"}
    assert key_of("caption", ROW) == key_of("caption", other) == "abc"
    assert key_of("caption", ROW, with_text=True) != key_of("caption", other, with_text=True)
    assert key_of("explanation", ROW) == key_of("explanation", ROW | {"image_sha256": "other"})
    assert key_of("explanation", ROW) != key_of("explanation", other)


def test_the_rows_of_a_job_say_what_is_known_and_failures_are_not(tmp_path: Path) -> None:
    rows = [
        annotation(0, image_sha256="abc", caption="a crowd", caption_is_cut=True, explanation="it is so"),
        annotation(1, image_sha256="def", status="error", caption_error="refusal", text="another"),
    ]
    write_annotations(Location(str(tmp_path)), rows)
    folder = Location(str(tmp_path / "annotations"))
    assert read_known(folder, "caption") == {"abc": Reply("a crowd", is_cut=True)}
    assert read_known(folder, "explanation") == {key_of("explanation", ROW): Reply("it is so")}
    assert read_known(Location(str(tmp_path / "none")), "caption") == {}
