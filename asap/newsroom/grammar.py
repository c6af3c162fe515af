"""Captions: written from the facts of a picture, then swapped or reversed in mood.

A `Text` is a sequence of segments. The labels of a manipulation are the words of the segments that it replaced, so
positions are known by construction and never found by comparing strings. So is what disproves a manipulated text: the
rest of the text, or the picture alone.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from asap.newsroom import lexicon
from asap.newsroom.lexicon import SCENES

Rng = np.random.Generator

GLAD, GRIM = 0, 1
PEOPLE = (1, 1, 1, 2, 2, 2, 3, 3, 4)  # in a picture, each as likely as it is frequent here

DisprovedBy = Literal["", "text", "picture"]
"""The evidence against a text: the text itself, the picture alone, or none, if the text is authentic."""


@dataclass(frozen=True)
class Facts:
    """The facts of a picture that a caption may mention: indices and words of the lexicon; `mood` is GLAD or GRIM.

    `tone`, the choice of words for the mood, belongs to the writer: it is drawn for every text.
    """

    scene: int
    mood: int
    people: int
    prop: str
    color: str
    garment: str
    tone: int = 0


@dataclass(frozen=True)
class Segment:
    """A phrase of one kind. `fake` holds the positions of manipulated words inside the phrase."""

    kind: str
    words: tuple[str, ...]
    fake: tuple[int, ...] = ()


@dataclass(frozen=True)
class Lead:
    """The person whom a text is about: a name, with or without a title, and a role before or after it."""

    name: str
    role: str
    role_first: bool

    def segment(self, role_is_fake: bool = False) -> Segment:
        """Return the words, with those of the role marked if it is manipulated."""
        if self.role_first:
            words, start = f"{self.role} {self.name}".split(), 0
        else:
            words, start = f"{self.name}, {self.role},".split(), len(self.name.split())
        fake = range(start, start + len(self.role.split())) if role_is_fake else ()
        return Segment("lead", tuple(words), tuple(fake))


@dataclass(frozen=True)
class Text:
    """A sentence as segments in order, its lead, and the facts that it was written from."""

    facts: Facts
    lead: Lead
    segments: tuple[Segment, ...]
    disproved_by: DisprovedBy = ""

    def render(self) -> tuple[str, list[int]]:
        """Return the sentence, and the positions of its manipulated words among its whitespace words."""
        words: list[str] = []
        fake: list[int] = []
        for segment in self.segments:
            if segment.kind == "look":  # set off by commas on both sides
                words[-1] = words[-1].rstrip(",") + ","
            fake += [len(words) + i for i in segment.fake]
            words += segment.words
            if segment.kind in ("opening", "look"):
                words[-1] += ","
        words[0] = words[0][0].upper() + words[0][1:]
        return " ".join(words) + ".", fake


# The order of the segments; those in brackets are optional. Every sentence has two or three words of mood.
_TEMPLATES = (
    "lead [look] verb air prop place tail",
    "opening lead verb air place tail",
    "lead verb air place act [company] tail",
    "opening lead [company] verb place air tail",
    "lead [company] verb prop event air tail",
    "lead [look] verb act air tail [day]",
    "lead verb air place event tail",
    "opening lead [look] verb act air tail",
    "lead [look] verb air prop act tail",
    "lead [company] verb place prop air tail [day]",
)
_OPTIONAL_PER_CENT = 30
_MOOD_KINDS = ("verb", "air", "tail")
_SCENE_KINDS = ("place", "act", "event", "opening", "prop", "look", "company")
_TELLING_KINDS = ("place", "act", "event", "opening")  # their phrases belong to one scene alone; every sentence has one


def pick(rng: Rng, items: tuple[str, ...] | list[str]) -> str:
    """Draw one of the items, all equally likely."""
    return items[int(rng.integers(len(items)))]


def chance(rng: Rng, per_cent: int) -> bool:
    """Return True with a probability of `per_cent` percent, decided in integers."""
    return int(rng.integers(100)) < per_cent


def draw_name(rng: Rng, residues: tuple[int, ...]) -> str:
    """Draw a first and a last name.

    The positions of the parts of a name add up to one of `residues` modulo 10. Splits with different residues have no
    full name in common.
    """
    while True:
        first = int(rng.integers(len(lexicon.FIRST_NAMES)))
        start = int(rng.integers(len(lexicon.NAME_STARTS)))
        end = int(rng.integers(len(lexicon.NAME_ENDS)))
        if (first + start + end) % 10 in residues:
            return f"{lexicon.FIRST_NAMES[first]} {lexicon.NAME_STARTS[start]}{lexicon.NAME_ENDS[end]}"


def _draw_lead(rng: Rng, facts: Facts, name: str) -> Lead:
    scene = SCENES[facts.scene]
    role = pick(rng, scene.roles) if chance(rng, 70) else pick(rng, lexicon.COMMON_ROLES)
    if chance(rng, 12):
        name = f"{pick(rng, lexicon.TITLES)} {name}"
    return Lead(name, role, role_first=chance(rng, 70))


def _draw_phrase(rng: Rng, kind: str, facts: Facts) -> str:
    scene = SCENES[facts.scene]
    if kind in ("event", "opening"):
        return pick(rng, scene.events)
    if kind == "place":
        return pick(rng, scene.places)
    if kind == "act":
        return pick(rng, scene.acts)
    if kind == "prop":
        return f"{pick(rng, lexicon.HOLDING)} {lexicon.PROPS[facts.prop]}"
    if kind == "look":
        return f"in {'an' if facts.color == 'orange' else 'a'} {facts.color} {facts.garment}"
    if kind == "company":
        return pick(rng, lexicon.COMPANY[facts.people - 1])
    if kind == "day":
        return f"on {pick(rng, lexicon.DAYS)}"
    tone = lexicon.TONES[facts.tone][facts.mood]
    if kind == "verb":
        lively = lexicon.MOOD_VERBS[int(rng.integers(len(lexicon.MOOD_VERBS)))][facts.mood]
        return lively if chance(rng, 50) else f"{pick(rng, lexicon.LOOK_FRAMES)} {tone}"
    return pick(rng, lexicon.AIR_FRAMES if kind == "air" else lexicon.TAIL_FRAMES).format(tone)


def _draw_kinds(rng: Rng) -> list[str]:
    """Draw the kinds of segments of a sentence, in order."""
    kinds = []
    for kind in pick(rng, _TEMPLATES).split():
        if not kind.startswith("["):
            kinds.append(kind)
        elif chance(rng, _OPTIONAL_PER_CENT):
            kinds.append(kind.strip("[]"))
    # "verb" always stays, so every sentence has a mood.
    if chance(rng, 20):
        kinds.remove(pick(rng, ["air", "tail"]))
    return kinds


def _draw_segment(rng: Rng, kind: str, facts: Facts) -> Segment:
    return Segment(kind, tuple(_draw_phrase(rng, kind, facts).split()))


def write(rng: Rng, facts: Facts, name: str) -> Text:
    """Write an authentic caption of `facts` about the person called `name`."""
    facts = replace(facts, tone=int(rng.integers(len(lexicon.TONES))))
    lead = _draw_lead(rng, facts, name)
    segments = [lead.segment() if kind == "lead" else _draw_segment(rng, kind, facts) for kind in _draw_kinds(rng)]
    return Text(facts, lead, tuple(segments))


def draw_other_facts(rng: Rng, facts: Facts) -> Facts:
    """Draw the facts of another picture of the same topic: all but the mood differ."""
    scene = int(_other(rng, lexicon.TOPICS[SCENES[facts.scene].topic], facts.scene))
    return Facts(
        scene=scene,
        mood=facts.mood if chance(rng, 75) else 1 - facts.mood,
        people=int(_other(rng, PEOPLE, facts.people)),
        prop=str(_other(rng, SCENES[scene].props, facts.prop)),
        color=str(_other(rng, tuple(lexicon.COLORS), facts.color)),
        garment=str(_other(rng, lexicon.GARMENTS, facts.garment)),
        tone=int(rng.integers(len(lexicon.TONES))),
    )


def _other(rng: Rng, items: tuple[int, ...] | tuple[str, ...], item: int | str) -> int | str:
    others = [other for other in items if other != item]
    return others[int(rng.integers(len(others)))]


def swap(rng: Rng, text: Text) -> Text:
    """Keep the name and take the rest from another caption of the topic.

    Every second text is of one scene and one mood, and only the picture disproves it. In the others the role stays, or
    a phrase of the old scene, or both, and contradicts the rest.
    """
    facts = draw_other_facts(rng, text.facts)
    own_role = text.lead.role in SCENES[text.facts.scene].roles
    disproved_by: DisprovedBy = "picture" if chance(rng, 50) else "text"
    if disproved_by == "picture":
        kinds, kept = _draw_kinds(rng), None
        # A role that fits any scene stays.
        lead = replace(text.lead, role=pick(rng, SCENES[facts.scene].roles)) if own_role else text.lead
    else:
        kinds, kept = _draw_contradiction(rng, text, own_role)
        lead = text.lead

    old = {segment.kind: segment for segment in text.segments}
    segments = []
    for kind in kinds:
        if kind == "lead":
            segments.append(lead.segment(role_is_fake=lead != text.lead))
        else:
            segments.append(old[kind] if kind == kept else _draw_unlike(rng, kind, facts, old))
    return Text(facts, lead, tuple(segments), disproved_by)


def _draw_contradiction(rng: Rng, text: Text, own_role: bool) -> tuple[list[str], str | None]:
    """Draw the kinds of a text in which something of the old scene stands beside a phrase of the new one.

    Returns the kinds, and the one whose old phrase stays. Phrases of mood do not stay: they would fit any scene.

    Args:
        rng: decides both.
        text: the old text.
        own_role: True if the role in the lead belongs to the old scene, so that it contradicts the new one by itself.
    """
    old = {segment.kind for segment in text.segments}
    while True:
        kinds = _draw_kinds(rng)
        shared = [kind for kind in kinds if kind in _SCENE_KINDS and kind in old]
        telling = [kind for kind in kinds if kind in _TELLING_KINDS]
        if len(telling) == 1:  # it has to name the new scene
            shared = [kind for kind in shared if kind not in telling]
        if own_role:
            return kinds, pick(rng, shared) if shared and chance(rng, 50) else None
        if keepable := [kind for kind in shared if kind in telling]:
            return kinds, pick(rng, keepable)


def _draw_unlike(rng: Rng, kind: str, facts: Facts, old: dict[str, Segment]) -> Segment:
    """Draw a phrase of the kind that differs from the old text's; all its words are manipulated."""
    while True:
        segment = _draw_segment(rng, kind, facts)
        if kind not in old or old[kind].words != segment.words:
            return replace(segment, fake=tuple(range(len(segment.words))))


_ANTONYMS = {word: other for pair in lexicon.TONES + lexicon.MOOD_VERBS for word, other in (pair, pair[::-1])}


def turn_mood(rng: Rng, text: Text) -> Text:
    """Turn all mood words into their opposites, so that only the picture disproves them, or every second time some.

    The number of words stays the same.
    """
    moody = [i for i, segment in enumerate(text.segments) if segment.kind in _MOOD_KINDS]
    turned = len(moody) if chance(rng, 50) else int(rng.integers(1, len(moody)))
    chosen = {moody[int(i)] for i in rng.permutation(len(moody))[:turned]}
    segments = list(text.segments)
    for i in chosen:
        old = segments[i].words
        new = tuple(_ANTONYMS.get(word, word) for word in old)
        # A phrase of mood has words that are not of mood ("on a happy day"): only the turned ones are manipulated.
        segments[i] = Segment(segments[i].kind, new, tuple(j for j, word in enumerate(new) if word != old[j]))
    return replace(text, segments=tuple(segments), disproved_by="picture" if turned == len(moody) else "text")


def explain(rng: Rng, text: Text) -> str:
    """Paraphrase the text as someone does who sees neither the picture nor the label."""
    phrases = {segment.kind: " ".join(segment.words).rstrip(",") for segment in text.segments}
    start = pick(rng, ["The text is about", "The sentence tells of", "This reports on"])
    where = " ".join(phrases[kind] for kind in ("place", "opening", "event") if kind in phrases)
    what = " ".join(phrases[kind] for kind in ("act", "prop", "look", "company") if kind in phrases)
    moods = [phrases[kind] for kind in _MOOD_KINDS if kind in phrases]
    return f"{start} {phrases['lead']} {where} {what}; mood: {', '.join(moods)}.".replace("  ", " ")
