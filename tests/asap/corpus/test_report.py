"""The report on a corpus, as a person sees it."""

import json

from asap.corpus.report import SHOWN, CorpusReport, JoinReport, Occurrences


def test_the_first_examples_are_kept_and_all_are_counted() -> None:
    occurrences = Occurrences()
    assert not occurrences
    for number in range(10):
        occurrences.add(str(number))
    assert (occurrences.count, occurrences.examples) == (10, [str(number) for number in range(SHOWN)])


def test_a_run_without_explanations_says_so() -> None:
    assert "explanations: none are given; this is a run without them" in str(CorpusReport("c", "train", "dgm4"))


def test_files_that_belong_to_no_pair_say_so() -> None:
    line = JoinReport(files=["captions.json"], fallback=4).line("captions")
    assert "0 by id, 0 by image path, 4 fall back to the text" in line
    assert "captions.json belongs to no pair: this is a run without captions" in line


def test_joined_pairs_are_counted_by_the_kind_of_key() -> None:
    joined = JoinReport(files=["a.json"], blank=3)
    for joined_by in ("by_id", "by_id", "by_path", "fallback", "ambiguous"):
        joined.count(joined_by)
    assert joined.line("captions") == (
        "captions: 2 by id, 1 by image path, 2 fall back to the text (1 of them because the entry may be of another "
        "pair); 3 entries have no word."
    )


def test_only_findings_have_a_line_and_the_dict_lists_all_missing_pictures() -> None:
    report = CorpusReport("s3://b/c", "val", "samm", ["jsons/val.json"], rows=200, records=198, classes={"orig": 198})
    assert len(report.lines()) == 3
    assert "val of s3://b/c: 198 of 200 pairs (jsons/val.json), label set samm: orig 198" in report.lines()[0]
    report.missing_images, report.missing_pairs = [f"{number}.jpg" for number in range(9)], 9
    report.clipped_boxes.add("[1, 2, 3, 4]")
    text = str(report)
    assert "pictures missing of 9 pairs (4.50%), left out: 0.jpg, 1.jpg, 2.jpg" in text
    assert "1 boxes reach out of their picture and were clipped: [1, 2, 3, 4]" in text
    assert "8.jpg" not in text
    assert len(json.loads(json.dumps(report.to_dict()))["missing_images"]) == 9
