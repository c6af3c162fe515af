"""Turns what a model wrote into a reply, or into a failure if it is no description.

A refusal is recognized by its English words, and by what an endpoint says of it. A loop is recognized by words that
repeat to the end, as small models and greedy decoding produce it.
"""

from __future__ import annotations

import re

from jobs.descriptions.engine import NO_USAGE, Failure, Outcome, Reply, Usage

_MARKUP = re.compile(r"<\|[^<>|]{1,60}\|>|</?(?:s|pad|unk|bos|eos|mask|image|end_of_turn|start_of_turn)>")
"""Special tokens that came as text: `<|im_end|>`, `</s>`."""
_THOUGHTS = re.compile(r"\A\s*<think>.*?(?:</think>|\Z)", re.DOTALL)
_REFUSAL = re.compile(
    r"\A\W*(?:(?:i(?:'m| am)|we(?:'re| are))?\W*(?:very |really |so )?(?:sorry|afraid)\b.{0,40}?|as an? (?:ai|language"
    r"|large language)\b.{0,60}?|unfortunately\W+|i apologi[sz]e\b.{0,40}?)?"
    r"\b(?:i|we)(?:'m| am|'re| are)?\s?(?:can(?:no|')?t|can not|could(?: no|n')t|won't|will not|unable to|not able to"
    r"|not allowed to|do not feel comfortable|don't feel comfortable|do(?: not|n't) have (?:the ability|access))\b"
    r".{0,30}?\b(?:assist|help|describe|identify|provide|comply|fulfill|process|see|view|access|caption|explain|write"
    r"|answer|do|continue|discuss|analy[sz]e|images?|pictures?)",
    re.IGNORECASE | re.DOTALL,
)
_THING = r"(?:image|picture|photo|photograph|text|article|request)s?"
_NOTHING_THERE = re.compile(
    rf"\A\W*(?:(?:sorry|unfortunately|it (?:seems|appears|looks like)(?: that)?)\W+)?(?:(?:there (?:is|was) )?no "
    rf"{_THING}(?: (?:is|was|has been))? (?:provided|attached|given|included|uploaded|available)\b|please (?:provide"
    rf"|upload|share|attach|send)\b.{{0,20}}?\b{_THING}\b|(?:unable|not able) to (?:process|view|see|access|load|read|open|describe"
    rf"|identify|analy[sz]e|fulfill|complete)\b.{{0,20}}?\b{_THING}\b)",
    re.IGNORECASE,
)
"""Replies of a model that found nothing to describe, which say nothing of the picture."""
_END_MARKS = ".,;:!?\u2026"
_LOOP_WORDS, _LOOP_TIMES, _LONGEST_PERIOD = 12, 2.5, 40


def read_reply(text: str, *, is_cut: bool = False, wrote_special: bool = False, usage: Usage = NO_USAGE) -> Outcome:
    """Return the description in what a model wrote, on one line, or the failure that it is.

    Args:
        text: What the model wrote after the prompt, without its special tokens.
        is_cut: True if the limit of new tokens stopped the model.
        wrote_special: True if special tokens were left out that are no plain end of the text.
        usage: The tokens that it took.
    """
    plain = _THOUGHTS.sub("", text)
    words = " ".join(_MARKUP.sub(" ", plain).split())
    if not any(character.isalnum() for character in words):
        if not plain.strip() and text.strip():
            return Failure("empty", "the model only thought and wrote no answer; raise max_new_tokens", usage)
        if wrote_special or (plain.strip() and not words):
            return Failure("special_tokens", "the model wrote only special tokens", usage)
        return Failure("empty", "the model wrote no words", usage)
    straight = words.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    if _REFUSAL.match(straight) or _NOTHING_THERE.match(straight):
        return Failure("refusal", f"the model refused: {_shorten(words)}", usage)
    if repeated := _find_loop(words):
        return Failure("loop", f"the model repeated itself: {_shorten(repeated)}", usage)
    return Reply(words, is_cut, usage)


def refused(reason: str, usage: Usage = NO_USAGE) -> Failure:
    """Return the failure for a refusal that the endpoint itself names."""
    return Failure("refusal", f"the model refused: {_shorten(' '.join(reason.split()))}", usage)


def _find_loop(text: str) -> str | None:
    """Return the words that repeat to the end, over twelve words and 2.5 times at least; None if none do."""
    words: list[str] = text.lower().split()
    separator = " "
    if len(text) > 20 * len(words):  # a script without spaces: characters repeat
        words, separator = list(text), ""
    words[-1] = words[-1].rstrip(_END_MARKS)
    for period in range(1, min(_LONGEST_PERIOD, int(len(words) / _LOOP_TIMES)) + 1):
        # The last repetition may be cut, also inside a word, so words are compared with those one period before, from
        # the end.
        same = int(words[-1 - period].startswith(words[-1]))
        while 0 < same < len(words) - period and words[-1 - same] == words[-1 - same - period]:
            same += 1
        if same + period >= max(_LOOP_WORDS, _LOOP_TIMES * period):
            return separator.join(words[len(words) - same - period :][:period])
    return None


def _shorten(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."
