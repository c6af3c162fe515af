"""The prompts that reach a model."""

from __future__ import annotations

import pytest

from asap.errors import ConfigError
from jobs.descriptions.prompts import chat_prompt, fill, plain_prompt
from jobs.descriptions.settings import DescriptionSettings

CAPTIONS = DescriptionSettings(engine="transformers", source="m")


def test_the_published_prompts_are_the_defaults() -> None:
    assert chat_prompt(CAPTIONS) == "Give the caption of this picture"
    explains = DescriptionSettings(engine="transformers", source="m", kind="explanation")
    assert fill(chat_prompt(explains), "News {of} today") == (
        'Refer to the following text to describe the specific information of the corresponding image: "News {of} today"'
    )


def test_a_prompt_with_a_text_has_nothing_there_for_a_pair_without_one() -> None:
    assert fill("Caption the picture of this news: {text}", None) == "Caption the picture of this news: "


@pytest.mark.parametrize(
    ("model_type", "words"),
    [("florence2", "<CAPTION>"), ("paligemma", "caption en"), ("blip", None), ("vision-encoder-decoder", None)],
)
def test_a_model_without_a_chat_template_gets_its_task_words(model_type: str, words: str | None) -> None:
    assert plain_prompt(CAPTIONS, model_type) == words


def test_the_prompt_of_the_settings_comes_before_the_task_words_and_an_empty_one_means_no_words() -> None:
    assert (
        plain_prompt(CAPTIONS.model_copy(update={"prompt": "<DETAILED_CAPTION>"}), "florence2") == "<DETAILED_CAPTION>"
    )
    assert plain_prompt(CAPTIONS.model_copy(update={"prompt": ""}), "florence2") is None


def test_a_model_that_nobody_knows_how_to_ask_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"m \(type fuyu\) has no chat template.*setting `prompt`.*florence2, paligemma"
    ):
        plain_prompt(CAPTIONS, "fuyu")
