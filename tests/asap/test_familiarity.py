import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from scipy.stats import binom

from asap.errors import CheckpointError, ConfigError
from asap.familiarity import CONFIDENCE, Familiarity, Gaussian, HeldOut, PairFeatures

ABOUT = {"weights_sha256": "a" * 64, "corpus": "drawn pairs"}


def drawn_features(
    pairs: int, seed: int, *, image: float = 0.0, change: float = 0.0, text: float = 0.0
) -> PairFeatures:
    """Draw correlated features; `image` and `text` move them along a direction in which they hardly vary.

    `change` moves features of the image tokens, as a change of the picture does.
    """
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(pairs, 12, generator=generator)
    base[:, 1] = base[:, 0] + 0.01 * base[:, 1]  # features 0 and 1 are nearly the same
    moved = base.clone()
    moved[:, 1] += image
    texts = torch.randn(pairs, 6, generator=generator)
    texts[:, 0] += text
    tokens = torch.randn(pairs, 8, generator=generator) + change * torch.tensor([1.0, -1.0] * 4)
    return PairFeatures(3 + 5 * moved, tokens, texts)


CHANGED = [drawn_features(200, 11, change=2.5).whole_image, drawn_features(19, 12, change=-9).whole_image]
"""Features of changed pictures: two kinds, of which the second is too rare to be learned."""


@pytest.fixture(scope="module")
def familiarity() -> Familiarity:
    return Familiarity.fit(drawn_features(4000, 1), drawn_features(6000, 2), ABOUT, CHANGED)


def test_strangeness_is_the_squared_mahalanobis_distance() -> None:
    features = drawn_features(4000, 1).image_ND.double().numpy()
    precision = np.linalg.inv(np.cov(features.T, bias=True))
    apart = features[:50] - features.mean(0)
    expected = np.einsum("nd,de,ne->n", apart, precision, apart)
    found = Gaussian.fit(torch.from_numpy(features)).strangeness(torch.from_numpy(features[:50]).float())
    # The ridge makes the narrowest direction, with a variance of 5e-5 of the widest, weigh less.
    without_narrow = Gaussian.fit(torch.from_numpy(features[:, 1:])).strangeness(
        torch.from_numpy(features[:50, 1:]).float()
    )
    assert np.corrcoef(found, expected)[0, 1] > 0.9
    apart, precision = apart[:, 1:], np.linalg.inv(np.cov(features[:, 1:].T, bias=True))
    assert without_narrow == pytest.approx(np.einsum("nd,de,ne->n", apart, precision, apart), rel=1e-3)


def test_many_features_are_projected_onto_directions_that_stay_the_same() -> None:
    features = torch.randn(3000, 1500, generator=torch.Generator().manual_seed(0))
    first, second = Gaussian.fit(features), Gaussian.fit(features)
    assert first.whitening_DK.shape == (1500, 1024)
    assert torch.equal(first.whitening_DK, second.whitening_DK)
    assert first.strangeness(features).mean() == pytest.approx(1024, rel=0.02)


def test_the_share_is_an_upper_bound_with_the_stated_confidence() -> None:
    held_out = HeldOut(np.arange(1000.0))
    (share,) = held_out.share_as_strange(np.array([990.0]))  # as strange are 990 to 999
    assert binom.cdf(10, 1000, share) == pytest.approx(1 - CONFIDENCE, rel=1e-6)
    assert held_out.share_as_strange(np.array([-1.0, 0.0])).tolist() == [1, 1]
    assert held_out.share_as_strange(np.array([2000.0])) == pytest.approx(1 - (1 - CONFIDENCE) ** (1 / 1000))


def test_the_share_falls_as_strangeness_rises() -> None:
    shares = HeldOut(np.random.default_rng(0).normal(size=500)).share_as_strange(np.linspace(-4, 4, 200))
    assert (np.diff(shares) <= 0).all()
    assert ((shares > 0) & (shares <= 1)).all()


def test_of_own_pairs_no_more_fall_below_a_threshold_than_it_says(familiarity: Familiarity) -> None:
    found = familiarity.of_pairs(drawn_features(20_000, 3), [False] * 20_000)
    for threshold in (0.005, 0.02, 0.1):
        for part in ("pair", "image", "text"):
            below = np.mean([getattr(one, part) < threshold for one in found])
            assert 0.3 * threshold < below < threshold * 1.1, (part, threshold)


@pytest.mark.parametrize(
    ("image", "change", "text"), [(1.0, 0.0, 0.0), (0.0, 4.0, 0.0), (0.0, 0.0, 8.0), (1.0, 4.0, 8.0)]
)
def test_the_strangest_of_kind_change_and_text_decides(
    familiarity: Familiarity, image: float, change: float, text: float
) -> None:
    for one in familiarity.of_pairs(drawn_features(50, 4, image=image, change=change, text=text), [False] * 50):
        assert one.pair < 0.005
        assert one.image < 0.005 or not (image or change)
        assert one.text is not None
        assert (one.text < 0.005) == bool(text) or not text


def test_a_change_on_which_the_model_hardly_errs_is_not_learned(familiarity: Familiarity) -> None:
    assert familiarity.changed.weight_DK.shape == (20, 1)
    rare = familiarity.of_pairs(drawn_features(50, 13, change=-4.0), [False] * 50)
    assert np.median([one.image for one in rare]) > 0.1


def test_each_kind_of_change_is_learned_and_none_is_needed() -> None:
    kinds = [drawn_features(200, 14, change=value).whole_image for value in (2.5, -2.5)]
    both = Familiarity.fit(drawn_features(2000, 1), drawn_features(6000, 2), ABOUT, kinds)
    assert both.changed.weight_DK.shape == (20, 2)
    for value in (4.0, -4.0):
        strange = both.of_pairs(drawn_features(50, 15, change=value), [False] * 50)
        assert max(one.pair for one in strange) < 0.005
    none = Familiarity.fit(drawn_features(2000, 1), drawn_features(2000, 2), ABOUT)
    assert none.changed.weight_DK.shape == (20, 0)
    again = Familiarity.from_bytes(none.to_bytes(), ABOUT["weights_sha256"], "the file")
    own = drawn_features(50, 16)
    assert again.of_pairs(own, [False] * 50) == none.of_pairs(own, [False] * 50)
    assert np.median([one.pair for one in none.of_pairs(own, [False] * 50)]) > 0.1


def test_a_caption_says_nothing_about_the_familiarity_of_a_pair(familiarity: Familiarity) -> None:
    strange_text = drawn_features(20, 5, text=8.0)
    for one in familiarity.of_pairs(strange_text, [True] * 20):
        assert one.text is None
        assert one.pair == one.image


def test_a_pair_is_as_familiar_alone_as_among_others(familiarity: Familiarity) -> None:
    features = drawn_features(40, 6)
    together = familiarity.of_pairs(features, [False] * 40)
    for number in (0, 17):
        alone = familiarity.of_pairs(PairFeatures(*(part[number : number + 1] for part in features)), [False])
        assert alone == [together[number]]


def test_a_familiarity_that_was_moved_finds_the_same(familiarity: Familiarity) -> None:
    features = drawn_features(40, 6)
    moved = familiarity.to(torch.device("cpu"))
    assert moved.of_pairs(features, [False] * 40) == familiarity.of_pairs(features, [False] * 40)
    assert moved.familiarity_id == familiarity.familiarity_id


def test_the_file_gives_back_what_was_fitted(familiarity: Familiarity) -> None:
    content = familiarity.to_bytes()
    again = Familiarity.from_bytes(content, ABOUT["weights_sha256"], "the file")
    features = drawn_features(30, 7)
    assert again.of_pairs(features, [False] * 30) == familiarity.of_pairs(features, [False] * 30)
    assert again.about == ABOUT | {"fitted_pairs": "4000", "held_out_pairs": "6000"}
    assert again.familiarity_id == familiarity.familiarity_id
    assert len(again.familiarity_id) == 12
    assert again.to_bytes() == content
    other = Familiarity.fit(drawn_features(4000, 1), drawn_features(6000, 8), ABOUT)
    assert other.familiarity_id != familiarity.familiarity_id


def test_statistics_of_other_weights_are_refused(familiarity: Familiarity) -> None:
    with pytest.raises(CheckpointError, match="the file was fitted to other weights than those of this model"):
        Familiarity.from_bytes(familiarity.to_bytes(), "b" * 64, "the file")


def changed(content: bytes, **tensors: torch.Tensor | None) -> bytes:
    """Return a file with other tensors; None removes one."""
    kept = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    whole = {name: tensor for name, tensor in (load(content) | kept).items() if tensor is not None}
    header = content[8 : 8 + int.from_bytes(content[:8], "little")].decode()
    return save(whole, json.loads(header)["__metadata__"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda content: b"", "is not a familiarity file"),
        (lambda content: content[: len(content) // 2], "is not a familiarity file"),
        (lambda content: b"\x80\x04cos\nsystem\n", "is not a familiarity file"),
        (lambda content: save({"a": torch.zeros(1)}), "is not a familiarity file"),
        (lambda content: changed(content, pairs=None), "is not a familiarity file: 'pairs'"),
        (lambda content: changed(content, texts=torch.tensor([float("nan")]).double()), "a value is not finite"),
        (lambda content: changed(content, image__mean_D=torch.zeros(3)), "sizes of its tensors do not fit"),
        (lambda content: content.replace(b'\\"version\\": 1', b'\\"version\\": 7'), "has version 7; 1 is known"),
    ],
    ids=["empty", "cut", "pickle", "other tensors", "a part is missing", "NaN", "sizes", "version"],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(
    familiarity: Familiarity, content: Callable[[bytes], bytes], reason: str
) -> None:
    broken = content(familiarity.to_bytes())
    with pytest.raises(CheckpointError, match=f"model/familiarity.safetensors .*{reason}"):
        Familiarity.from_bytes(broken, ABOUT["weights_sha256"], "model/familiarity.safetensors")


@pytest.mark.parametrize(("known", "held_out", "name"), [(999, 1000, "999 known"), (1000, 999, "999 held-out")])
def test_too_few_pairs_are_refused(known: int, held_out: int, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} pairs are too few to fit familiarity. Give at least 1000."):
        Familiarity.fit(drawn_features(known, 1), drawn_features(held_out, 2), ABOUT)
