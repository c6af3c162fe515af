"""The prompts: the published ones, and the task words of models that were trained without a chat.

The published scripts ask a chat model for captions and a language model for explanations (CriliasMiller/ASAP,
`LargeModelScripts/vlm_script.py` and `llm_script.py`).
"""

from __future__ import annotations

from asap.errors import ConfigError
from jobs.descriptions.settings import DescriptionSettings, Kind

PUBLISHED: dict[Kind, str] = {
    "caption": "Give the caption of this picture",
    "explanation": "Refer to the following text to describe the specific information of the corresponding image: "
    '"{text}"',
}
TASK_WORDS: dict[str, str | None] = {
    "florence2": "<CAPTION>",
    "paligemma": "caption en",
    "kosmos-2": "An image of",
    "instructblip": PUBLISHED["caption"],
    "blip": None,
    "blip-2": None,
    "git": None,
    "vision-encoder-decoder": None,
}
"""Words that ask a model without a chat template for a caption, by model type. None: it captions without words."""


def chat_prompt(settings: DescriptionSettings) -> str:
    """Return the prompt for a model that chats, with `{text}` where the text of an explanation goes."""
    return settings.prompt or PUBLISHED[settings.kind]


def plain_prompt(settings: DescriptionSettings, model_type: str) -> str | None:
    """Return the prompt for a model without a chat template; None for a captioner that takes no words.

    Raises `ConfigError` if nobody knows how to ask the model: without a prompt it would write anything.
    """
    if settings.prompt is not None:
        return settings.prompt or None
    if settings.kind == "caption" and model_type in TASK_WORDS:
        return TASK_WORDS[model_type]
    known = f" Known are the {settings.kind} models {', '.join(TASK_WORDS)}." if settings.kind == "caption" else ""
    raise ConfigError(
        f"the model {settings.source} (type {model_type}) has no chat template, and how it is asked for "
        f"{'an explanation' if settings.kind == 'explanation' else 'a caption'} is unknown. Give its words as the "
        f"setting `prompt`.{known}"
    )


def fill(prompt: str, text: str | None) -> str:
    """Put the text, or nothing for a pair without one, into a prompt. Braces in the text mean nothing."""
    return prompt.replace("{text}", text or "")
