"""Replies and failures, read from the words of a model."""

from __future__ import annotations

import pytest

from jobs.descriptions.engine import Failure, Reply
from jobs.descriptions.replies import read_reply, refused


@pytest.mark.parametrize(
    ("text", "description"),
    [
        ("  a man\n in a\tsuit ", "a man in a suit"),
        ("A crowd.<|im_end|>", "A crowd."),
        ("<s>A crowd</s><pad>", "A crowd"),
        ("<think>It is gray. Perhaps fog.</think>\n\nFog over a street.", "Fog over a street."),
        ("A sign reads <STOP>", "A sign reads <STOP>"),
        ("ein Mann schüttelt die Hand", "ein Mann schüttelt die Hand"),
        ("一名男子在街上微笑", "一名男子在街上微笑"),
        ("A sorry sight: houses that cannot be seen", "A sorry sight: houses that cannot be seen"),
        ('The minister says: "I cannot help them."', 'The minister says: "I cannot help them."'),
        ("I am sorry, says the coach after the match", "I am sorry, says the coach after the match"),
        ("An AI conference in Geneva", "An AI conference in Geneva"),
        ("no no no, says the child", "no no no, says the child"),
        ("a man, a woman, a child and a dog", "a man, a woman, a child and a dog"),
        ("a red car and a red bus and a red van", "a red car and a red bus and a red van"),
        ("Unable to see the stage, fans wait outside", "Unable to see the stage, fans wait outside"),
        ("No pictures are allowed, a sign says", "No pictures are allowed, a sign says"),
        ("Please provide change, says a sign on the bus", "Please provide change, says a sign on the bus"),
        ("There is no text on the banner", "There is no text on the banner"),
    ],
)  # fmt: skip
def test_a_description_is_kept_on_one_line(text: str, description: str) -> None:
    outcome = read_reply(text)
    assert isinstance(outcome, Reply), outcome
    assert outcome.text == description


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("...", "empty"),
        ("<think>It is gray, and", "empty"),
        ("<|endoftext|>", "special_tokens"),
        ("</s> <pad><pad>", "special_tokens"),
        ("I'm sorry, but I can't assist with that request.", "refusal"),
        ("I\N{RIGHT SINGLE QUOTATION MARK}m sorry, I can\N{RIGHT SINGLE QUOTATION MARK}t identify people.", "refusal"),
        ("I cannot provide a caption for this picture.", "refusal"),
        ("I'm unable to view images.", "refusal"),
        ("As an AI language model, I am not able to see images.", "refusal"),
        ("Sorry, I can't describe this.", "refusal"),
        ("Unfortunately, I cannot process this image.", "refusal"),
        ("I won't describe this person.", "refusal"),
        ("Unable to process the image.", "refusal"),
        ("There is no image provided.", "refusal"),
        ("No picture was attached to the message.", "refusal"),
        ("It seems that no image is available.", "refusal"),
        ("Please provide the image.", "refusal"),
        ("As an AI, I don't have the ability to see images.", "refusal"),
        ("I do not have access to the picture.", "refusal"),
        ("a man " * 20, "loop"),
        ("a man in a suit and " * 9 + "a man in a su", "loop"),
        ("a man in a suit and " * 9 + "a man in a suit.", "loop"),
        ("the " * 30 + "th", "loop"),
        ("the man. " * 12 + "...", "loop"),
        ("the the the the the the the the the the the the", "loop"),
        ("A photo of a man in a suit and a tie and a man in a suit and a tie and a man in a suit and a", "loop"),
        ("一个男人和一个男人和一个男人和一个男人和一个男人和一个男人和", "loop"),
    ],
)
def test_what_is_no_description_has_a_kind(text: str, kind: str) -> None:
    outcome = read_reply(text)
    assert isinstance(outcome, Failure), outcome
    assert outcome.kind == kind
    assert not outcome.is_retryable
    assert len(outcome.detail) < 200


def test_special_tokens_that_the_tokenizer_left_out_are_recognized() -> None:
    outcome = read_reply("", wrote_special=True)
    assert isinstance(outcome, Failure)
    assert outcome.kind == "special_tokens"
    assert isinstance(read_reply("a man", wrote_special=True), Reply)


def test_a_long_refusal_is_shortened() -> None:
    assert len(refused("I would rather not. " * 100).detail) < 200


@pytest.mark.parametrize(
    "text", ["a" * 200_000, "a b " * 50_000, "I am sorry " * 20_000, "<|" * 100_000, "<think>" * 30_000]
)
def test_a_very_long_text_is_read_too(text: str) -> None:
    assert isinstance(read_reply(text), Reply | Failure)
