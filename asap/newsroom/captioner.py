"""The caption of a picture, written by someone who sees only the picture as it is shown."""

from dataclasses import replace

import numpy as np

from asap.newsroom.grammar import GLAD, chance, pick
from asap.newsroom.lexicon import NUMBERS, PROPS, SCENES
from asap.newsroom.looks import Person, Plan

Rng = np.random.Generator

_GLAD_FACE = ("a smiling", "a happy", "a cheerful")
_GRIM_FACE = ("a frowning", "a sad", "a gloomy")
_GLAD_LIGHT = ("in warm light", "on a bright day", "in bright colours")
_GRIM_LIGHT = ("in dull light", "on a grey day", "in pale colours")


def describe(rng: Rng, plan: Plan) -> str:
    """Return a sentence about the scene, the number of people, and the looks of the one in front."""
    facts = plan.facts
    person = _visible_person(plan)
    people = f"{NUMBERS[facts.people]} {'person' if facts.people == 1 else 'people'}"
    glad = facts.mood == GLAD
    light = pick(rng, _GLAD_LIGHT if glad else _GRIM_LIGHT)
    face = pick(rng, _GLAD_FACE if person.mood == GLAD else _GRIM_FACE)
    return (f"{people} {SCENES[facts.scene].seen} {light}: {face} person with {_describe_head(rng, person)}, "
            f"in {facts.color}, holding {PROPS[facts.prop]}.")  # fmt: skip


def _visible_person(plan: Plan) -> Person:
    """Return the person who holds the prop, with the face that the manipulated picture shows."""
    person = plan.people[plan.lead]
    if plan.target != plan.lead or not plan.tamper:
        return person
    if plan.tamper == "swap" and plan.donor is not None:
        # A swap brings the face; hair stays the target's.
        donor = replace(plan.donor, hair=person.identity.hair, hair_color=person.identity.hair_color)
        return replace(person, identity=donor)
    if plan.attribute == "expression":
        return replace(person, mood=1 - person.mood)
    return person


def _describe_head(rng: Rng, person: Person) -> str:
    identity = person.identity
    hair = "no hair" if identity.hair == "bald" else f"{identity.hair_color} hair"
    article = "an" if person.hat_color == "orange" else "a"
    parts = [f"{article} {person.hat_color} hat" if person.hat != "none" else hair]
    if identity.glasses != "none":
        parts.append("dark glasses" if identity.glasses == "dark" else "glasses")
    if identity.beard not in ("none", "stubble") and chance(rng, 90):
        parts.append("a moustache" if identity.beard == "moustache" else "a beard")
    return " and ".join(parts[:2])
