"""News items: groups of labeled pairs that depend on each other.

Pairs of one news item share a picture, and in DGM4 an authentic pair and the pairs made from it share an id. What a
model gets wrong in one of them it tends to get wrong in the others. Intervals therefore draw items, and a calibration
uses one pair of each.

An item is a connected component of pairs that share a picture or an id. Equal texts do not join pairs: a swapped text
comes from another item, so chains of swaps would join nearly the whole corpus to one item.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Keys = NDArray[np.uint64]


def item_keys(items: Sequence[tuple[str, str]]) -> NDArray[np.uint64]:
    """Return 64-bit keys, (B, 2), of the address of the picture and of the id of each pair. No key is 0."""
    digests = [
        hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for pair in items
        for name in pair
    ]
    return np.maximum(np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2), 1)


def news_items(keys_B2: Keys) -> NDArray[np.int64]:
    """Return the number of the news item of each pair, (B,).

    The numbers follow from the keys of the ids, not from the order of the pairs, so the same pairs in another order
    have the same numbers.

    Args:
        keys_B2: keys of picture and id of each pair, see `item_keys`. A pair whose keys are 0 is an item of its own.
    """
    alone_B = np.asarray(~keys_B2.any(axis=1))
    columns = []
    for column in keys_B2.T:
        _, number_B = np.unique(column, return_inverse=True)
        number_B = number_B.astype(np.int64)
        number_B[alone_B] = number_B.max(initial=0) + 1 + np.arange(alone_B.sum())
        columns.append(number_B)
    # A graph of pictures and ids: each pair joins its picture to its id.
    pictures = int(columns[0].max(initial=-1)) + 1
    size = pictures + int(columns[1].max(initial=-1)) + 1
    edges = coo_array((np.ones(len(alone_B), np.int8), (columns[0], columns[1] + pictures)), shape=(size, size))
    _, component = connected_components(edges, directed=False)
    found_B = component[columns[0]]
    _, found_B = np.unique(found_B, return_inverse=True)
    least = np.full(int(found_B.max(initial=-1)) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(least, found_B, keys_B2[:, 1])
    rank = np.empty(len(least), np.int64)
    rank[np.argsort(least, kind="stable")] = np.arange(len(least))
    return np.asarray(rank[found_B])


def one_of_each(items_B: NDArray[np.int64], classes_B: NDArray[np.bool_], lots_B: Keys) -> NDArray[np.int64]:
    """Return the positions of one pair of each item, in their order.

    First the class is drawn, then a pair of that class: of an item with one authentic and nine manipulated pairs, the
    authentic one is drawn in half of the cases.

    Args:
        items_B: the item of each pair.
        classes_B: True for a manipulated pair.
        lots_B: a random number of 64 bits for each pair. One that follows from the pair alone makes the draw the same
            in any order of the pairs.
    """
    by_pair_B, by_class_B = lots_B >> np.uint64(32), lots_B & np.uint64(0xFFFFFFFF)
    order = np.lexsort((by_pair_B, classes_B, items_B))
    groups = np.stack([items_B[order], classes_B[order]])
    starts = np.diff(groups, axis=1, prepend=-1).any(axis=0)
    first = order[starts]
    order = first[np.lexsort((by_class_B[first], items_B[first]))]
    _, positions = np.unique(items_B[order], return_index=True)
    return np.sort(order[positions])
