"""Chat templates of models for vLLM, with Ray's own class of the stage that fills them."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path
from typing import Any

import pytest

from asap.errors import ConfigError
from jobs.descriptions import vllm_engine
from jobs.descriptions.chat_templates import load_chat_template
from jobs.descriptions.settings import DescriptionSettings
from jobs.descriptions.vllm_engine import engine_row
from jobs.descriptions.vllm_rows import ERROR, NOT_ASKED, PICTURE, PROMPT
from tests.support.tiny_captioners import save_language_model, save_llava

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of pydantic, about these modules
    from ray.llm._internal.batch.stages.chat_template_stage import ChatTemplateUDF

STRINGS = "{% for message in messages %}{{ message['content'] }}{% endfor %} the"
PARTS = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if 'image' == part['type'] %}<image>{% elif 'text' in part %} {{ part['text'] | trim }}{% endif %}"
    "{% endfor %}{% endfor %} the"
)


def _settings(source: str, kind: str = "explanation") -> DescriptionSettings:
    return DescriptionSettings(engine="vllm", source=source, kind=kind)  # type: ignore[arg-type]


def _explainer(folder: Path, template: str, bos: str | None = None) -> DescriptionSettings:
    """Save a language model with a template, whose tokenizer adds [CLS]."""
    from transformers import AutoTokenizer

    save_language_model(folder, with_template=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template, tokenizer.bos_token = template, bos
    tokenizer.save_pretrained(folder)
    return _settings(str(folder))


def _rendered(settings: DescriptionSettings, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Return rows as Ray's stage hands them on."""
    stage = vllm_engine._templated_class(ChatTemplateUDF, settings, None)("data", ["messages"], model=settings.source)

    async def run() -> list[dict[str, Any]]:
        (batch,) = [batch async for batch in stage({"data": [*rows]})]
        return list(batch["data"])

    return asyncio.run(run())


def _asked(settings: DescriptionSettings, text: str | None) -> dict[str, Any]:
    return engine_row(settings, {PROMPT: text, PICTURE: None})


@pytest.mark.parametrize("template", [STRINGS, PARTS])
def test_a_text_reaches_the_prompt_whether_the_template_takes_strings_or_parts(template: str, tmp_path: Path) -> None:
    settings = _explainer(tmp_path, template)
    first, second, passed = _rendered(settings, *[_asked(settings, text) for text in ("a man", "a crowd", None)])
    assert [row["prompt"].strip() for row in (first, second)] == ["a man the", "a crowd the"]
    assert [row[ERROR] for row in (first, second, passed)] == ["", "", NOT_ASKED]


def test_a_text_to_explain_reaches_the_prompt_of_a_model_that_sees(tmp_path: Path) -> None:
    settings = _settings(save_llava(tmp_path))
    (row,) = _rendered(settings, _asked(settings, "a man"))
    assert row["prompt"].split() == ["a", "man"]


@pytest.mark.parametrize("kind", ["explanation", "caption"])
def test_a_prompt_begins_once_with_the_first_token_if_template_and_tokenizer_write_it(
    tmp_path: Path, kind: str
) -> None:
    settings = _settings(save_llava(tmp_path, writes_first=True), kind)
    content: Any = "a man" if kind == "explanation" else [{"type": "image"}, {"type": "text", "text": "a man"}]
    (row,) = _rendered(settings, {"messages": [{"role": "user", "content": content}]})
    assert row["prompt"].split() == ["<image>"] * (kind == "caption") + ["a", "man"]


def test_the_first_token_of_a_template_stays_if_the_tokenizer_adds_none(tmp_path: Path) -> None:
    settings = _explainer(tmp_path, "[MASK]" + STRINGS, bos="[MASK]")
    (row,) = _rendered(settings, _asked(settings, "a man"))
    assert row["prompt"] == "[MASK]a man the"


def test_entries_that_arrow_adds_to_the_parts_of_a_message_do_not_reach_the_template(tmp_path: Path) -> None:
    settings = _explainer(tmp_path, PARTS.replace("'image' == part['type']", "'image' in part"))
    parts = [{"type": "text", "text": "a man", "image": None}]
    (row,) = _rendered(settings, {"messages": [{"role": "user", "content": parts}]})
    assert row["prompt"] == " a man the"


def test_a_row_whose_words_the_template_leaves_out_has_an_error_and_the_others_have_none(tmp_path: Path) -> None:
    settings = _explainer(tmp_path, "{{ messages[0]['content'] | replace('secret', '') }}")
    rows = _rendered(settings, _asked(settings, "a secret man"), _asked(settings, "a man"))
    assert [row[ERROR] for row in rows] == ["the chat template of the model leaves out words of the request", ""]


def test_the_parser_of_pictures_gets_the_form_that_the_template_takes(tmp_path: Path) -> None:
    class Stage:
        def __init__(self, **kwargs: Any) -> None:
            self.kwargs = kwargs

    for name, template, form in (("parts", PARTS, "openai"), ("strings", STRINGS, "string")):
        settings = _explainer(tmp_path / name, template).model_copy(update={"kind": "caption"})
        made = vllm_engine._pinned_class(Stage, settings, None, reads_weights=False)(
            chat_template_content_format="string"
        )
        assert made.kwargs == {"chat_template_content_format": form}


@pytest.mark.parametrize(
    ("kind", "template", "reason"),
    [
        ("explanation", "Explain it", r"the words of a request, neither .* parts\. It begins with 'Explain it'\."),
        ("caption", PARTS.replace("<image>", ""), r"words of a request with a picture, neither given as a string nor"),
        ("explanation", "{{ raise_exception('no roles') }}", r"nor as parts \(no roles\)\. It begins with "),
        ("explanation", None, r"parts \(Cannot use .*chat template.*\)\. Give a model with a chat template"),
    ],
)
def test_a_template_that_does_not_write_what_is_asked_is_refused(
    tmp_path: Path, kind: str, template: Any, reason: str
) -> None:
    settings = _explainer(tmp_path, template).model_copy(update={"kind": kind})
    with pytest.raises(ConfigError, match=f"the chat template of the model {tmp_path} cannot be used: .*{reason}"):
        load_chat_template(str(tmp_path), settings)
