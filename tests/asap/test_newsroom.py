"""The drawn corpus: its classes, captions, pictures, and that a seed fixes all of them."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops

from asap.corpus.reader import fingerprint, read_split
from asap.errors import ConfigError, CorpusError
from asap.newsroom import CLASS_SHARES, CORPUS_VERSION, SPLITS, generate
from asap.newsroom.corpus import RESIDUES, allot, face_part, plan_split, text_part
from asap.newsroom.grammar import GLAD, GRIM, Facts, Text, draw_name, swap, turn_mood, write
from asap.newsroom.lexicon import MOOD_VERBS, PROPS, SCENES, TONES, TOPICS
from asap.newsroom.looks import draw_plan
from asap.newsroom.picture import draw_picture
from tests.support.waiting import HANG_S

PLAN_7 = [
    (240, 304),
    Facts(scene=15, mood=GRIM, people=4, prop="balloons", color="purple", garment="coat"),
    [(9, 175, 53, 230), (67, 71, 110, 124), (131, 193, 174, 246), (189, 177, 231, 229)],
    1,
]
TEXT_8 = (
    "Football captain Ada Balberg celebrates with joyful eyes beside the running lanes after the running final amid "
    "joyful songs.",
    list(range(4, 19)),
)
TEXT_10 = (
    "Running champion Ada Balberg argues clutching a medal setting a running record to tearful music.",
    [0, 1, *range(4, 15)],
)
FACTS = Facts(scene=4, mood=GLAD, people=2, prop="trophy", color="red", garment="shirt")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("newsroom") / "corpus"
    generate(out, pairs=150, seed=5, workers=1)
    return out


def records(corpus: Path, split: str = "train") -> list[dict[str, Any]]:
    return json.loads((corpus / "metadata" / f"{split}.json").read_text("utf-8"))


def every_record(corpus: Path) -> list[dict[str, Any]]:
    return [record for split in SPLITS for record in records(corpus, split)]


def test_the_same_seed_draws_the_same_corpus_whatever_the_number_of_workers(tmp_path: Path) -> None:
    generate(tmp_path / "one", pairs=100, seed=3, workers=1)
    generate(tmp_path / "two", pairs=100, seed=3, workers=2)
    one, two = ({p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
                for root in (tmp_path / "one", tmp_path / "two"))  # fmt: skip
    assert one == two


def test_another_seed_draws_other_texts(tmp_path: Path, corpus: Path) -> None:
    generate(tmp_path / "other", pairs=30, seed=6, workers=1)
    assert not {r["text"] for r in every_record(corpus)} & {r["text"] for r in every_record(tmp_path / "other")}


def test_the_annotations_of_this_version_never_change() -> None:
    # Frozen with CORPUS_VERSION. If this fails, results on older corpora no longer compare: raise the version.
    assert CORPUS_VERSION == "newsroom-3"
    plan = draw_plan(np.random.default_rng(7), "swap")
    text = write(np.random.default_rng(7), FACTS, "Ada Balberg")
    contradicting, consistent = (swap(np.random.default_rng(seed), text) for seed in (8, 10))
    assert [plan.size, plan.facts, plan.boxes, plan.target] == PLAN_7
    assert (contradicting.render(), contradicting.disproved_by) == (TEXT_8, "text")
    assert (consistent.render(), consistent.disproved_by) == (TEXT_10, "picture")


def test_classes_have_the_proportions_of_dgm4_in_every_split() -> None:
    for split in SPLITS:
        jobs = plan_split(1, split, 1000, 0)
        classes = [fake_cls for job in jobs for _, fake_cls in job.records]
        assert {name: classes.count(name) for name in CLASS_SHARES} == CLASS_SHARES


def test_shares_are_divided_by_largest_remainder() -> None:
    assert allot(10, (0.8, 0.1, 0.1)) == [8, 1, 1]
    assert allot(1, (0.8, 0.1, 0.1)) == [1, 0, 0]
    assert allot(7, (1, 1, 1)) == [3, 2, 2]
    assert sum(allot(7, list(CLASS_SHARES.values()))) == 7


def test_a_record_has_the_fields_of_dgm4(corpus: Path) -> None:
    for record in every_record(corpus):
        assert list(record) == [
            "id", "image", "text", "fake_cls", "fake_image_box", "fake_text_pos", "mtcnn_boxes", "disproved_by"
        ]  # fmt: skip
        assert bool(record["fake_image_box"]) == bool(face_part(record["fake_cls"]))
        assert bool(record["fake_text_pos"]) == bool(text_part(record["fake_cls"])) == bool(record["disproved_by"])
        assert all(0 <= i < len(record["text"].split()) for i in record["fake_text_pos"])


def test_boxes_lie_inside_the_picture_and_the_fake_one_is_a_face(corpus: Path) -> None:
    for record in every_record(corpus):
        with Image.open(corpus / record["image"]) as image:
            width, height = image.size
        for x0, y0, x1, y1 in record["mtcnn_boxes"]:
            assert 0 <= x0 < x1 <= width
            assert 0 <= y0 < y1 <= height
            assert x1 - x0 >= 0.16 * width
            assert y1 - y0 >= 0.16 * height
        assert not record["fake_image_box"] or record["fake_image_box"] in record["mtcnn_boxes"]


def test_faces_never_overlap() -> None:
    for seed in range(200):
        boxes = draw_plan(np.random.default_rng(seed), "").boxes
        assert all(a[2] <= b[0] for a, b in pairwise(boxes))


def test_captions_and_explanations_are_keyed_by_record(corpus: Path) -> None:
    ids = [str(record["id"]) for record in every_record(corpus)]
    assert ids == [str(i) for i in range(150)]
    for name in ("captions", "explanations"):
        assert list(json.loads((corpus / f"{name}.json").read_text("utf-8"))) == ids


def test_a_recurring_picture_keeps_its_face_and_gets_another_text(corpus: Path) -> None:
    by_image: dict[str, list[dict[str, Any]]] = {}
    for record in every_record(corpus):
        by_image.setdefault(record["image"], []).append(record)
    again = [group for group in by_image.values() if len(group) > 1]
    assert again
    for group in again:
        assert len({r["text"] for r in group}) == len(group)
        assert len({str(r["fake_image_box"]) for r in group}) == 1
        assert len({face_part(r["fake_cls"]) for r in group}) == 1


def test_a_manipulation_changes_the_face_and_nothing_else() -> None:
    for seed, kind in ((1, "swap"), (2, "attribute"), (3, "swap")):
        plan = draw_plan(np.random.default_rng(seed), kind)
        honest = draw_plan(np.random.default_rng(seed), "")
        fake, real = (draw_picture(p, np.random.default_rng(9), np.random.default_rng(10)) for p in (plan, honest))
        assert (honest.facts, honest.people) == (plan.facts, plan.people)
        changed = ImageChops.difference(fake, real).getbbox()
        assert changed is not None
        x0, y0, x1, y1 = plan.boxes[plan.target]
        margin = (x1 - x0) // 4
        assert changed[0] >= x0 - margin
        assert changed[1] >= y0 - margin
        assert changed[2] <= x1 + margin
        assert changed[3] <= y1 + margin


def test_a_manipulated_face_has_the_noise_of_its_picture() -> None:
    ratios = []
    for seed in range(24):
        plan = draw_plan(np.random.default_rng(seed), "swap" if seed % 2 else "attribute")
        honest = draw_plan(np.random.default_rng(seed), "")
        fake, real = (draw_picture(p, np.random.default_rng(9), np.random.default_rng(10)) for p in (plan, honest))
        box = plan.boxes[plan.target]
        ratios.append(np.log(_noise(fake.crop(box)) / _noise(real.crop(box))))
    assert abs(np.mean(ratios)) < 0.1
    assert np.abs(ratios).max() < 0.5


def _noise(picture: Image.Image) -> float:
    """Return the mean of the smaller half of the second differences along both axes: edges do not count."""
    gray = np.asarray(picture.convert("L"), np.float32)
    rough = np.sort(np.abs(np.diff(np.diff(gray, 2, 0), 2, 1)), None)
    return float(rough[: rough.size // 2].mean())


def test_a_swapped_text_keeps_the_name_and_marks_what_it_replaced() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        text = write(rng, FACTS, "Ada Balberg")
        fake = swap(rng, text)
        old = {segment.kind: segment.words for segment in text.segments}
        for segment in fake.segments:
            if segment.kind == "lead":
                marked = [word.strip(",") for i, word in enumerate(segment.words) if i in segment.fake]
                assert marked == (fake.lead.role.split() if fake.lead.role != text.lead.role else [])
                assert fake.lead.name == text.lead.name
            else:
                kept = not segment.fake
                assert kept == (old.get(segment.kind) == segment.words)
                assert kept or segment.fake == tuple(range(len(segment.words)))
        assert fake.facts.scene != FACTS.scene
        assert SCENES[fake.facts.scene].topic == SCENES[FACTS.scene].topic


def scenes_named(text: Text) -> set[int]:
    """Return the scenes that the phrases and the role of a text belong to."""
    phrases = {" ".join(segment.words) for segment in text.segments} | {text.lead.role}
    return {
        number
        for number, scene in enumerate(SCENES)
        if phrases & {*scene.places, *scene.roles, *scene.acts, *scene.events}
    }


def moods_named(text: Text) -> set[int]:
    """Return the moods of the words of a text."""
    words = {word for segment in text.segments for word in segment.words}
    return {mood for pair in TONES + MOOD_VERBS for mood, word in enumerate(pair) if word in words}


def test_every_second_manipulated_text_is_disproved_by_the_picture_alone() -> None:
    counts: Counter[tuple[str, str]] = Counter()
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        text = write(rng, FACTS, "Ada Balberg")
        swapped, turned = swap(rng, text), turn_mood(rng, text)
        assert (len(scenes_named(text)), len(moods_named(text)), text.disproved_by) == (1, 1, "")
        assert (len(scenes_named(swapped)) > 1) == (swapped.disproved_by == "text")
        assert len(moods_named(swapped)) == 1
        assert (len(moods_named(turned)) > 1) == (turned.disproved_by == "text")
        counts.update([("swap", swapped.disproved_by), ("turn", turned.disproved_by)])
        if swapped.disproved_by == "picture":
            assert scenes_named(swapped) == {swapped.facts.scene}
            assert next(s.words for s in swapped.segments if s.kind == "lead") == swapped.lead.segment().words
    assert all(440 <= count <= 560 for count in counts.values())
    assert len(counts) == 4


def test_what_disproves_a_text_reaches_no_model(corpus: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(corpus, changed)
    path = changed / "metadata" / "train.json"
    path.write_text(json.dumps([record | {"disproved_by": "unknown"} for record in records(corpus)]))
    before, after = (read_split(folder, "train") for folder in (corpus, changed))
    assert fingerprint(before) == fingerprint(after)
    assert not any("disproved_by" in vars(record) for record in before)


def test_a_turned_mood_replaces_words_one_for_one() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        text = write(rng, FACTS, "Ada Balberg")
        before, _ = text.render()
        after, fake = turn_mood(rng, text).render()
        pairs = zip(before.split(), after.split(), strict=True)
        assert fake == [i for i, (old, new) in enumerate(pairs) if old != new]
        assert fake


def test_no_mood_word_is_both_glad_and_grim() -> None:
    pairs = TONES + MOOD_VERBS
    words = [word for pair in pairs for word in pair]
    assert len(words) == len(set(words))
    assert all(len(word.split()) == 1 for word in words)


def test_an_authentic_text_has_one_mood() -> None:
    for seed in range(100):
        words = {word.strip(".,") for word in write(np.random.default_rng(seed), FACTS, "A B").render()[0].split()}
        assert not words & {pair[GRIM] for pair in TONES + MOOD_VERBS}
        assert len(words & {pair[GLAD] for pair in TONES}) == 1


def test_manipulated_texts_are_as_long_as_authentic_ones() -> None:
    lengths: dict[str, list[int]] = {"": [], "swap": [], "mood": []}
    for seed in range(600):
        rng = np.random.default_rng(seed)
        text = write(rng, FACTS, "Ada Balberg")
        for kind, shown in (("", text), ("swap", swap(rng, text)), ("mood", turn_mood(rng, text))):
            lengths[kind].append(len(shown.render()[0].split()))
    means = {kind: np.mean(values) for kind, values in lengths.items()}
    assert max(means.values()) - min(means.values()) < 0.5
    assert max(max(values) for values in lengths.values()) <= 28


def test_phrases_of_a_scene_belong_to_no_other() -> None:
    for field in ("places", "roles", "acts", "events"):
        phrases = [phrase for scene in SCENES for phrase in getattr(scene, field)]
        assert len(phrases) == len(set(phrases))
    assert {prop for scene in SCENES for prop in scene.props} <= set(PROPS)
    assert all(len(scenes) >= 4 for scenes in TOPICS.values())


def test_different_splits_have_no_name_in_common() -> None:
    names = {split: {draw_name(np.random.default_rng(i), RESIDUES[split]) for i in range(1500)} for split in SPLITS}
    assert not names["train"] & (names["val"] | names["test"])
    assert not names["val"] & names["test"]


def test_one_pair_is_a_corpus(tmp_path: Path) -> None:
    summary = generate(tmp_path / "one", pairs=1, seed=0)
    assert summary.pairs == {"train": 1, "val": 0, "test": 0}
    assert records(tmp_path / "one", "test") == []


def test_progress_counts_every_pair(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    generate(tmp_path / "c", pairs=12, seed=0, workers=1, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (12, 12)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_finished_corpus_records_its_version_and_counts(corpus: Path) -> None:
    metadata = json.loads((corpus / "newsroom.json").read_text("utf-8"))
    assert (metadata["corpus_version"], metadata["seed"], metadata["pairs"]) == (CORPUS_VERSION, 5, 150)
    assert metadata["splits"] == {"train": 120, "val": 15, "test": 15}
    assert metadata["classes"]["train"]["orig"] == sum(r["fake_cls"] == "orig" for r in records(corpus))


def test_a_folder_in_use_is_refused_and_named(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(
        CorpusError, match=f"{tmp_path} exists and is not an empty folder. Remove it, or choose another folder."
    ):
        generate(tmp_path, pairs=1, seed=0)


def test_an_unfinished_corpus_is_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    with pytest.raises(CorpusError, match="never finished"):
        generate(tmp_path, pairs=1, seed=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pairs": 0}, "pairs is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"workers": 0}, "workers is 0"),
        ({"splits": (1, 0)}, "splits is"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"pairs": 1, "seed": 0} | wrong
    with pytest.raises(ConfigError, match=message):
        generate(tmp_path / "c", **settings)
    assert not (tmp_path / "c").exists()


def test_a_script_without_a_main_guard_gets_an_error_and_does_not_hang(tmp_path: Path) -> None:
    script = tmp_path / "draw.py"
    script.write_text(
        "from pathlib import Path\nfrom asap.newsroom import generate\n"
        f"generate(Path({str(tmp_path / 'corpus')!r}), pairs=200, seed=1, workers=2)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 1
    assert "the script that calls generate() does so outside `if __name__ == '__main__':`" in done.stderr
