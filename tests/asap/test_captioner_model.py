"""A captioner is trained on a drawn corpus, and its folder is one that any engine of captions loads."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

import asap
from asap.errors import ConfigError, CorpusError
from asap.newsroom import generate
from asap.newsroom.captioner_model import (
    FACTS,
    MAX_TOKENS,
    build_captioner,
    card,
    evaluate,
    make_captioner,
    read_captions,
    read_facts,
    train_tokenizer,
)

PAIRS = 80
SHIPPED = Path(asap.__path__[0]) / "demo_captioner"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("newsroom") / "corpus"
    generate(folder, pairs=PAIRS, seed=3, workers=1, splits=(0.9, 0.0, 0.1))
    return folder


@pytest.fixture(scope="module")
def captions(corpus: Path) -> list[str]:
    return list(json.loads((corpus / "captions.json").read_text()).values())


def test_every_fact_of_a_caption_is_read(captions: list[str]) -> None:
    assert len(captions) == PAIRS
    for caption in captions:
        assert sorted(read_facts(caption)) == sorted(FACTS), caption
    assert read_facts(
        "Two people in a hospital ward on a grey day: a frowning person with a brown hat and dark glasses, in "
        "turquoise, holding a phone."
    ) == {
        "people": "2", "place": "in a hospital ward", "light": "grim", "expression": "grim", "head": "a brown hat",
        "clothes": "turquoise", "thing": "a phone",
    }  # fmt: skip


def test_words_of_one_meaning_are_one_fact_and_a_sentence_about_something_else_names_none() -> None:
    one = "One person on a beach in warm light: a smiling person with red hair, in green, holding a ball."
    other = one.replace("in warm light", "on a bright day").replace("smiling", "happy")
    assert read_facts(one) == read_facts(other)
    assert read_facts(one) != read_facts(one.replace("smiling", "sad"))
    assert read_facts("A dog runs: it is happy.") == {}


def test_the_tokenizer_returns_each_caption_as_it_was(captions: list[str]) -> None:
    tokenizer = train_tokenizer(captions)
    for caption in captions:
        tokens = tokenizer(caption)["input_ids"]
        assert len(tokens) <= MAX_TOKENS
        assert tokenizer.decode(tokens, skip_special_tokens=True) == caption


def test_a_trained_captioner_is_loaded_by_the_engine_of_a_scan_and_its_card_counts_the_unseen_pairs(
    corpus: Path, tmp_path: Path, one_thread: None
) -> None:
    from jobs.descriptions.engine import Request
    from jobs.descriptions.settings import DescriptionSettings
    from jobs.descriptions.transformers_engine import TransformersEngine

    seen: list[int] = []
    card = make_captioner(corpus, corpus, tmp_path / "captioner", 64, progress=lambda shown, loss: seen.append(shown))
    assert seen == [64]
    assert card == (tmp_path / "captioner/README.md").read_text()
    assert "On 8 pairs of a drawn corpus (newsroom-3, seed 3)" in card
    assert [f"| {name} | " in card for name in FACTS] == [True] * len(FACTS)
    assert (tmp_path / "captioner/model.safetensors").stat().st_size < 12_000_000
    engine = TransformersEngine(DescriptionSettings(engine="transformers", source=str(tmp_path / "captioner")), "cpu")
    (outcome,) = engine.describe([Request("one", "one.jpg", Image.new("RGB", (300, 200), "white"))])
    assert outcome is not None
    with pytest.raises(ConfigError, match=r"captioner exists\. Name a new folder"):
        make_captioner(corpus, corpus, tmp_path / "captioner", 64)


def test_the_captioner_that_ships_names_what_is_in_pictures_of_a_seed_it_never_saw(tmp_path: Path) -> None:
    generate(tmp_path / "unseen", pairs=128, seed=7, workers=1, splits=(0.0, 0.0, 1.0))
    figures = evaluate(SHIPPED, *read_captions(tmp_path / "unseen", "test"))
    shares = {name: right / asked for name, (right, asked) in figures.items()}
    card = (SHIPPED / "README.md").read_text()
    for name, share in shares.items():
        found = re.search(rf"\| {name} \| (0\.\d+|1\.000) \|", card)
        assert found, f"the card does not name {name}"
        assert share > float(found[1]) - 0.12, (name, share, found[1])  # 128 pairs: three standard errors at most


def test_the_captioner_that_ships_is_small() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 12_000_000


def test_a_fact_that_no_caption_names_is_left_out_of_the_card(corpus: Path, tmp_path: Path) -> None:
    model = build_captioner(train_tokenizer(["One person on a beach."]))
    figures = dict.fromkeys(FACTS, (1, 2)) | {"head": (0, 0)}
    text = card(tmp_path, figures, model, 190_000, 45, (corpus, corpus))
    assert "| people | 0.500 |" in text
    assert "| head |" not in text
    assert "189,952 pictures of" in text  # 2,968 steps of 64


def test_a_corpus_that_was_not_drawn_and_one_without_pairs_are_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(CorpusError, match=r"was not drawn by asap newsroom: it has no newsroom\.json\. Draw one\."):
        make_captioner(tmp_path / "other", corpus, tmp_path / "captioner", 64)
    generate(tmp_path / "test-only", pairs=9, seed=4, workers=1, splits=(0.0, 0.0, 1.0))
    generate(tmp_path / "small", pairs=20, seed=4, workers=1, splits=(1.0, 0.0, 0.0))
    with pytest.raises(CorpusError, match=r"small has 20 pairs to learn from; one step takes 64\. Draw more pairs\."):
        make_captioner(tmp_path / "small", corpus, tmp_path / "captioner", 64)
    with pytest.raises(CorpusError, match=r"metadata/train\.json is not a list of DGM4 records, or is empty"):
        make_captioner(tmp_path / "test-only", corpus, tmp_path / "captioner", 64)
    assert not (tmp_path / "captioner").exists()
