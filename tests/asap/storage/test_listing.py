"""Deep listings of a bucket: the order of the keys, each once, whatever is listed at a time."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from asap.storage.objects import list_objects

PAGE = 10


class _Store:
    """A client of a store with these keys, whose pages are short."""

    def __init__(self, keys: Sequence[str], broken: str | None = None) -> None:
        self.keys, self.broken = sorted(keys, key=str.encode), broken
        self.requests: list[str] = []
        self.threads: set[int] = set()

    def get_paginator(self, name: str) -> _Store:
        assert name == "list_objects_v2"
        return self

    def paginate(self, *, Bucket: str, Prefix: str, Delimiter: str = "", **more: Any) -> Iterator[dict[str, Any]]:
        found: dict[str, bool] = {}
        for key in self.keys:
            if key.startswith(Prefix):
                folder, slash, _ = key[len(Prefix) :].partition("/")
                found[f"{Prefix}{folder}/" if Delimiter and slash else key] = bool(Delimiter and slash)
        names = list(found)
        for start in range(0, max(len(names), 1), PAGE):
            self.requests.append(Prefix)
            self.threads.add(threading.get_ident())
            if self.broken is not None and Prefix == self.broken:
                raise OSError("the store is away")
            some = names[start : start + PAGE]
            yield {
                "IsTruncated": start + PAGE < len(names),
                "Contents": [{"Key": name, "Size": len(name), "ETag": name} for name in some if not found[name]],
                "CommonPrefixes": [{"Prefix": name} for name in some if found[name]],
            }


def _listed(store: _Store, prefix: str = "") -> list[str]:
    return [info.location.key for info in list_objects(store, "b", prefix)]


@pytest.mark.parametrize("seed", range(30))
def test_every_key_comes_once_and_in_order(seed: int) -> None:
    chance = random.Random(seed)
    folders = [f"{chance.choice('abé')}{n}" for n in range(chance.choice([1, 2, 4, 9, 12]))]
    keys = set()
    for folder in folders:
        for number in range(chance.choice([0, 1, 25, 60])):
            deeper = chance.choice(["", "x/", "x/y/", "x-", "."])
            keys.add(f"top/{folder}{chance.choice(['/', '/', '/', '-', '.jpg', '.jpg.txt/'])}{deeper}{number}.jpg")
    keys |= {f"top/{folder}" for folder in folders if chance.random() < 0.3}
    keys |= {f"top/{name}.jpg" for name in "abc" if chance.random() < 0.5} | {"other/1.jpg"}
    store = _Store(sorted(keys))
    wanted = [key for key in store.keys if key.startswith("top/")]
    assert _listed(store, "top/") == wanted
    assert _listed(store) == store.keys


def test_large_folders_are_listed_at_a_time() -> None:
    store = _Store([f"deep/only/{folder}/{number:03d}.jpg" for folder in "abcdefgh" for number in range(50)])
    assert _listed(store, "deep/") == store.keys
    assert {f"deep/only/{folder}/" for folder in "abcdefgh"} <= set(store.requests)
    assert len(store.threads) > 1
    assert len(store.requests) <= len(store.keys) // PAGE + 5


def test_small_folders_are_not_listed_by_themselves() -> None:
    store = _Store([f"{folder:03d}/{number}.jpg" for folder in range(40) for number in range(2)])
    assert _listed(store) == store.keys
    assert store.requests == [""] * (len(store.keys) // PAGE)


def test_the_beginning_of_a_listing_is_one_request() -> None:
    store = _Store([f"{folder}/{number:03d}.jpg" for folder in "ab" for number in range(50)])
    assert next(list_objects(store, "b", "")).location.key == "a/000.jpg"
    assert store.requests == [""]


def test_a_listing_that_is_left_early_ends_its_threads() -> None:
    store = _Store([f"{folder}/{number:03d}.jpg" for folder in "abcdefgh" for number in range(200)])
    listing = list_objects(store, "b", "")
    assert [next(listing).location.key for _ in range(30)] == store.keys[:30]
    listing.close()  # type: ignore[attr-defined]  # it waits for its threads
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("list_")]


def test_what_a_folder_raises_is_raised_in_its_turn() -> None:
    keys = [f"{folder}/{number:03d}.jpg" for folder in "abcd" for number in range(50)]
    listing = list_objects(_Store(keys, broken="c/"), "b", "")
    assert [next(listing).location.key for _ in range(100)] == keys[:100]
    with pytest.raises(OSError, match="the store is away"):
        next(listing)


def test_no_key_is_missed_in_a_store_that_lists_in_another_order() -> None:
    store = _Store([f"{folder}/{number:03d}.jpg" for folder in "abcd" for number in range(50)])
    store.keys = store.keys[70:] + store.keys[:70]
    assert sorted(_listed(store)) == sorted(store.keys)
