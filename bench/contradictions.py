"""Tell manipulated texts of newsroom that contradict themselves from those that only the picture disproves.

The corpus files do not say so. Its texts depend on its seed alone, so they are written again, phrase by phrase.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from asap.newsroom import lexicon
from asap.newsroom.corpus import CORPUS_VERSION, RESIDUES, SPLITS, _rng, face_part, plan_split, text_part
from asap.newsroom.grammar import Text, draw_name, swap, turn_mood, write
from asap.newsroom.looks import draw_plan

TextEvidence = Literal["true", "contradicts itself", "only the picture disproves it"]


def text_evidence(corpus: Path, split: str) -> Mapping[int, TextEvidence]:
    """Return what disproves the text of each record of a split, by the record's id.

    Raises `SystemExit` if the texts of the corpus are not those of its seed.
    """
    about = json.loads((corpus / "newsroom.json").read_text("utf-8"))
    if about["corpus_version"] != CORPUS_VERSION:
        raise SystemExit(f"{corpus} is {about['corpus_version']}, and this code writes {CORPUS_VERSION}.")
    records = {record["id"]: record for record in json.loads((corpus / "metadata" / f"{split}.json").read_text())}
    first_id = sum(about["splits"][name] for name in SPLITS[: SPLITS.index(split)])
    found: dict[int, TextEvidence] = {}
    for job in plan_split(about["seed"], split, about["splits"][split], first_id):
        rng = _rng(job.seed, split, job.picture, 1)
        plan = draw_plan(rng, face_part(job.records[0][1]))
        name = draw_name(rng, RESIDUES[split])
        for record_id, fake_cls in job.records:
            rng = _rng(job.seed, split, record_id, 4)
            text = write(rng, plan.facts, name)
            if change := text_part(fake_cls):
                text = swap(rng, text) if change == "swap" else turn_mood(rng, text)
            if text.render()[0] != records[record_id]["text"]:
                raise SystemExit(f"the text of record {record_id} of {corpus} is not that of seed {about['seed']}")
            found[record_id] = "true" if not change else evidence_against(text)
    return found


def evidence_against(text: Text) -> TextEvidence:
    """Tell if a manipulated text contradicts itself: no picture could have been described so."""
    scenes, moods = set(range(len(lexicon.SCENES))), set()
    for segment in text.segments:
        phrase = " ".join(segment.words)
        scenes &= _scenes_of(segment.kind, phrase)
        if segment.kind in ("verb", "air", "tail"):
            moods |= {mood for word in segment.words for mood in _MOODS.get(word, ())}
    # A writer uses one pair of words for the mood; the verbs of mood belong to all pairs (None).
    sides, tones = {side for side, _ in moods}, {tone for _, tone in moods if tone is not None}
    consistent = scenes and len(sides) <= 1 and len(tones) <= 1
    return "only the picture disproves it" if consistent else "contradicts itself"


def _scenes_of(kind: str, phrase: str) -> set[int]:
    """Return the scenes in which a phrase can have been written."""
    every = set(range(len(lexicon.SCENES)))
    numbered = list(enumerate(lexicon.SCENES))
    if kind == "lead":
        # "role name" or "name, role,": the role of a scene stands in it as whole words; a common role fits any scene.
        words = f" {phrase.replace(',', ' ')} "
        own = {number for number, scene in numbered if any(f" {role} " in words for role in scene.roles)}
        return own or every
    if kind == "prop":
        held = next(prop for prop, words in lexicon.PROPS.items() if phrase.endswith(f" {words}"))
        return {number for number, scene in numbered if held in scene.props}
    phrases = {"place": "places", "act": "acts", "event": "events", "opening": "events"}
    if kind not in phrases:
        return every
    return {number for number, scene in numbered if phrase in getattr(scene, phrases[kind])}


def _moods() -> dict[str, list[tuple[int, int | None]]]:
    moods: dict[str, list[tuple[int, int | None]]] = {}
    for pairs, numbered in ((lexicon.TONES, True), (lexicon.MOOD_VERBS, False)):
        for number, pair in enumerate(pairs):
            for side, word in enumerate(pair):
                moods.setdefault(word, []).append((side, number if numbered else None))
    return moods


_MOODS = _moods()
