"""The chat template of a model for vLLM: the form of messages that it takes, and the prompts that it makes of them.

Templates of language models take the content of a message as a string, those of models that see as parts, or both. In
the wrong form a template writes nothing of a message, and raises no error. So each form is tried with a known word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from asap.errors import ConfigError
from jobs.descriptions.settings import DescriptionSettings

Form = Literal["string", "openai"]
"""Content of a message, as vLLM names it: a string, or the parts of OpenAI's API."""
_WORD = "sentinel"


class ChatTemplate:
    """The chat template of a model.

    Raises `ConfigError` if there is none, or if it writes the words of a request in neither form.

    Args:
        processor: The processor of a model that sees, or a tokenizer, of transformers.
        settings: Settings of the engine.
    """

    def __init__(self, processor: Any, settings: DescriptionSettings) -> None:
        self._processor = processor
        self._tokenizer = getattr(processor, "tokenizer", processor)
        self.form = self._find_form(settings)
        first = self._tokenizer.bos_token
        # vLLM has the tokenizer add its special tokens to each prompt. Some templates write the first one too.
        is_doubled = bool(first) and self._tokenizer(first)["input_ids"][:2] == [self._tokenizer.bos_token_id] * 2
        self._first = first if is_doubled else ""

    def in_form(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return messages in the form of the template."""
        return [{**message, "content": self._content(message["content"])} for message in messages]

    def _content(self, content: Any) -> Any:
        if isinstance(content, str):
            return content if self.form == "string" else [{"type": "text", "text": content}]
        # Arrow gives each part the entries of all, as nulls, and some templates ask which entries there are.
        return [{name: value for name, value in part.items() if value is not None} for part in content]

    def without_first(self, prompt: str) -> str:
        """Return a prompt without the first token that the tokenizer of vLLM adds."""
        return prompt.removeprefix(self._first)

    def _find_form(self, settings: DescriptionSettings) -> Form:
        """Return the form in which the template writes a word, and the mark of a picture if there is one."""
        try:
            as_string = self._render(_WORD)
        except Exception as error:  # templates raise anything; a model without one raises too
            as_string, reason = "", f" ({' '.join(str(error).split())[:200]})"
        else:
            reason = ""
        text, picture = {"type": "text", "text": _WORD}, {"type": "image"}
        as_parts = with_picture = ""
        with suppress(Exception):
            as_parts = self._render([text])
            with_picture = self._render([picture, text])
        # A template that takes strings may write the list of the parts itself.
        takes_parts = _WORD in as_parts and not any(f"{mark}type{mark}" in as_parts for mark in "'\"")
        if settings.kind == "caption" and takes_parts and _WORD in with_picture and with_picture != as_parts:
            return "openai"
        if _WORD in as_string:
            return "string"  # vLLM writes the mark of a picture into the string itself
        if settings.kind == "explanation" and takes_parts:
            return "openai"
        template = str(getattr(self._processor, "chat_template", None) or "")
        begins = f" It begins with {' '.join(template.split())[:100]!r}." if template else ""
        raise ConfigError(
            f"the chat template of the model {settings.source} cannot be used: it does not write the words of a "
            f"request{' with a picture' if settings.kind == 'caption' else ''}, neither given as a string nor as parts"
            f"{reason}.{begins} Give a model with a chat template for such requests, or use the engine transformers."
        )

    def _render(self, content: Any) -> str:
        prompt: str = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return prompt


def load_chat_template(folder: str, settings: DescriptionSettings) -> ChatTemplate:
    """Return the chat template of the model in a folder. Raises `ConfigError` as `ChatTemplate` does."""
    from transformers import AutoProcessor

    return ChatTemplate(AutoProcessor.from_pretrained(folder, trust_remote_code=False), settings)


def has_words(prompt: str, messages: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if a prompt has all words of its messages. Templates may cut and add blanks."""
    packed = "".join(prompt.split())
    texts = [
        part if isinstance(part, str) else part.get("text") or ""
        for message in messages
        for part in ([message["content"]] if isinstance(message["content"], str) else message["content"])
    ]
    return all("".join(text.split()) in packed for text in texts)
