"""Captions: written from what a picture shows, and then swapped or turned round in mood.

A `Text` is a row of segments. The labels of a manipulation are the words of the segments it replaced, so a
position is known by construction and never by comparing strings.
"""

from dataclasses import dataclass, replace

import numpy as np

from asap.newsroom import lexicon
from asap.newsroom.lexicon import SCENES

Rng = np.random.Generator

GLAD, GRIM = 0, 1


@dataclass(frozen=True)
class Facts:
    """What a caption may tell of a picture: indices into the lexicon; `mood` is GLAD or GRIM.

    `tone`, the words for the mood, is the writer's: it is drawn for every text.
    """

    scene: int
    mood: int
    people: int
    prop: str
    colour: str
    garment: str
    tone: int = 0


@dataclass(frozen=True)
class Segment:
    """A phrase of one kind. `fake` are the positions of manipulated words inside the phrase."""

    kind: str
    words: tuple[str, ...]
    fake: tuple[int, ...] = ()


@dataclass(frozen=True)
class Text:
    """A sentence as segments in order; `facts` is what it was written from."""

    facts: Facts
    segments: tuple[Segment, ...]

    def render(self) -> tuple[str, list[int]]:
        """The sentence, and the whitespace-word positions of its manipulated words."""
        words: list[str] = []
        fake: list[int] = []
        for segment in self.segments:
            if segment.kind == "look":
                words[-1] = words[-1].rstrip(",") + ","
            fake += [len(words) + i for i in segment.fake]
            words += segment.words
            if segment.kind in ("opening", "look"):
                words[-1] += ","
        words[0] = words[0][0].upper() + words[0][1:]
        return " ".join(words) + ".", fake


# Order of the segments; those in brackets may be left out. Two or three words of mood in every sentence.
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


def pick(rng: Rng, items: tuple[str, ...] | list[str]) -> str:
    """One of the items, each as likely."""
    return items[int(rng.integers(len(items)))]


def chance(rng: Rng, per_cent: int) -> bool:
    """True in `per_cent` of a hundred cases, decided in integers."""
    return int(rng.integers(100)) < per_cent


def draw_name(rng: Rng, residues: tuple[int, ...]) -> str:
    """A first and a last name. `residues` (of 10) keep the full names of different splits apart."""
    while True:
        first = int(rng.integers(len(lexicon.FIRST_NAMES)))
        start = int(rng.integers(len(lexicon.NAME_STARTS)))
        end = int(rng.integers(len(lexicon.NAME_ENDS)))
        if (first + start + end) % 10 in residues:
            return f"{lexicon.FIRST_NAMES[first]} {lexicon.NAME_STARTS[start]}{lexicon.NAME_ENDS[end]}"


def _draw_lead(rng: Rng, facts: Facts, name: str) -> str:
    scene = SCENES[facts.scene]
    role = pick(rng, scene.roles) if chance(rng, 70) else pick(rng, lexicon.COMMON_ROLES)
    if chance(rng, 12):
        name = f"{pick(rng, lexicon.TITLES)} {name}"
    return f"{role} {name}" if chance(rng, 70) else f"{name}, {role},"


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
        return f"in {'an' if facts.colour == 'orange' else 'a'} {facts.colour} {facts.garment}"
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
    kinds = []
    for kind in pick(rng, _TEMPLATES).split():
        if not kind.startswith("["):
            kinds.append(kind)
        elif chance(rng, _OPTIONAL_PER_CENT):
            kinds.append(kind.strip("[]"))
    if chance(rng, 20):
        kinds.remove(pick(rng, ["air", "tail"]))
    return kinds


def _draw_segment(rng: Rng, kind: str, facts: Facts) -> Segment:
    return Segment(kind, tuple(_draw_phrase(rng, kind, facts).split()))


def write(rng: Rng, facts: Facts, name: str) -> Text:
    """An honest caption of `facts` about the person called `name`."""
    facts = replace(facts, tone=int(rng.integers(len(lexicon.TONES))))
    lead = Segment("lead", tuple(_draw_lead(rng, facts, name).split()))
    segments = [lead if kind == "lead" else _draw_segment(rng, kind, facts) for kind in _draw_kinds(rng)]
    return Text(facts, tuple(segments))


def draw_other_facts(rng: Rng, facts: Facts) -> Facts:
    """What another picture of the same topic shows: another scene, thing, colour and number of people."""
    scene = int(_other(rng, lexicon.TOPICS[SCENES[facts.scene].topic], facts.scene))
    return Facts(
        scene=scene,
        mood=facts.mood if chance(rng, 75) else 1 - facts.mood,
        people=int(_other(rng, (1, 2, 3, 4), facts.people)),
        prop=str(_other(rng, SCENES[scene].props, facts.prop)),
        colour=str(_other(rng, tuple(lexicon.COLOURS), facts.colour)),
        garment=str(_other(rng, lexicon.GARMENTS, facts.garment)),
        tone=int(rng.integers(len(lexicon.TONES))),
    )


def _other(rng: Rng, items: tuple[int, ...] | tuple[str, ...], item: int | str) -> int | str:
    others = [other for other in items if other != item]
    return others[int(rng.integers(len(others)))]


def swap(rng: Rng, text: Text) -> Text:
    """The same lead, the rest from another caption of the topic; every second time one phrase stays as well.

    The role in the lead and the phrase that stays belong to the old scene: they contradict the new rest.
    """
    facts = draw_other_facts(rng, text.facts)
    old = {segment.kind: segment for segment in text.segments}
    kinds = _draw_kinds(rng)
    keepable = [kind for kind in kinds if kind in _SCENE_KINDS and kind in old]
    kept = {"lead"}
    if keepable and chance(rng, 50):
        kept.add(pick(rng, keepable))
    segments = [old[kind] if kind in kept else _draw_unlike(rng, kind, facts, old) for kind in kinds]
    return Text(facts, tuple(segments))


def _draw_unlike(rng: Rng, kind: str, facts: Facts, old: dict[str, Segment]) -> Segment:
    """A phrase of the kind that the old text does not have; all its words are manipulated."""
    while True:
        segment = _draw_segment(rng, kind, facts)
        if kind not in old or old[kind].words != segment.words:
            return replace(segment, fake=tuple(range(len(segment.words))))


_ANTONYMS = {word: other for pair in lexicon.TONES + lexicon.MOOD_VERBS for word, other in (pair, pair[::-1])}


def turn_mood(rng: Rng, text: Text) -> Text:
    """Some of the mood words, now and then all of them, turned into their opposite; as many words as before."""
    moody = [i for i, segment in enumerate(text.segments) if segment.kind in _MOOD_KINDS]
    turned = len(moody) if chance(rng, 25) else int(rng.integers(1, len(moody)))
    chosen = {moody[int(i)] for i in rng.permutation(len(moody))[:turned]}
    return replace(text, segments=tuple(_turn(s) if i in chosen else s for i, s in enumerate(text.segments)))


def _turn(segment: Segment) -> Segment:
    words = tuple(_ANTONYMS.get(word, word) for word in segment.words)
    return Segment(segment.kind, words, tuple(i for i, word in enumerate(words) if word != segment.words[i]))


def explain(rng: Rng, text: Text) -> str:
    """A paraphrase of the text by someone who sees neither the picture nor the label."""
    phrases = {segment.kind: " ".join(segment.words).rstrip(",") for segment in text.segments}
    start = pick(rng, ["The text is about", "The sentence tells of", "This reports on"])
    where = " ".join(phrases[kind] for kind in ("place", "opening", "event") if kind in phrases)
    what = " ".join(phrases[kind] for kind in ("act", "prop", "look", "company") if kind in phrases)
    moods = [phrases[kind] for kind in _MOOD_KINDS if kind in phrases]
    return f"{start} {phrases['lead']} {where} {what}; mood: {', '.join(moods)}.".replace("  ", " ")
