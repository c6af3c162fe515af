"""The sample of an input: seeded, of pairs that could be read, and drawn again as it was after a stop."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from asap.limits import Limits
from asap.storage.location import Location
from jobs.scan.input import manifest as manifest_module
from jobs.scan.input.manifest import ManifestRow, row_tables, write_manifest
from jobs.scan.sample import SAMPLE, Sample, read_positions, take_sample
from jobs.scan.stages.result_rows import failure, result_table, write_table

ROWS = 9000
Verdict = Callable[[int], str | None]


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Location:
    """Write a manifest of two files, the first of two row groups. Row ids are three times the positions."""
    monkeypatch.setattr(manifest_module, "ROWS_PER_FILE", 8192)
    write_manifest(
        row_tables(ManifestRow(row_id=3 * number) for number in range(ROWS)), Location(str(tmp_path / "manifest"))
    )
    return Location(str(tmp_path / "manifest"))


class Scanner:
    """A scan that gives each row the verdict of a function; None is an error."""

    def __init__(self, results: Location, verdict: Verdict) -> None:
        self.results, self.verdict = results, verdict
        self.rounds: list[list[int]] = []

    def __call__(self, table: pa.Table) -> None:
        row_ids = table["row_id"].to_pylist()
        outcomes = [
            {"status": "ok", "verdict": verdict} if (verdict := self.verdict(row_id)) else failure("not_found", "gone")
            for row_id in row_ids
        ]
        write_table(result_table(table, outcomes), self.results / f"{len(self.rounds)}.parquet")
        self.rounds.append(row_ids)


def _sample(manifest: Location, verdict: Verdict, name: str = "results", seed: int = 0) -> tuple[Sample, Scanner]:
    scanner = Scanner(manifest.parent / name, verdict)
    return take_sample(manifest, ROWS, scanner.results, scanner, seed), scanner


def test_positions_are_read_over_all_files_in_their_order(manifest: Location) -> None:
    positions = [8999, 0, 8192, 4096, 4095, 8191]
    assert read_positions(manifest, positions)["row_id"].to_pylist() == [3 * position for position in positions]


def test_a_sample_of_pairs_that_can_be_read_takes_one_round_all_over_the_input(manifest: Location) -> None:
    sample, scanner = _sample(manifest, lambda row_id: "unfamiliar" if row_id % 2 else "authentic")
    (row_ids,) = scanner.rounds
    assert len(set(row_ids)) == SAMPLE == sample.judged
    assert sample.unfamiliar == sum(row_id % 2 for row_id in row_ids)
    assert min(row_ids) < 3 * ROWS / 10
    assert max(row_ids) > 3 * ROWS * 9 / 10


def test_the_seed_decides_the_rows(manifest: Location) -> None:
    rounds = [
        _sample(manifest, lambda _: "review", f"r{seed}-{run}", seed)[1].rounds for seed in (0, 1) for run in (0, 1)
    ]
    assert rounds[0] == rounds[1]
    assert rounds[2] == rounds[3]
    assert rounds[0] != rounds[2]


def test_rows_that_are_errors_are_replaced_by_further_rows(manifest: Location) -> None:
    sample, scanner = _sample(manifest, lambda row_id: None if row_id % 2 else "unfamiliar")
    assert sample == Sample(SAMPLE, SAMPLE)
    assert 2 <= len(scanner.rounds) <= 5
    drawn = [row_id for row_ids in scanner.rounds for row_id in row_ids]
    assert len(drawn) == len(set(drawn))
    assert len(drawn) < 3 * SAMPLE


def test_an_input_that_cannot_be_read_ends_the_sample_after_a_bounded_number_of_rows(manifest: Location) -> None:
    sample, scanner = _sample(manifest, lambda _: None)
    assert sample == Sample(0, 0)
    assert not sample.is_mostly_unfamiliar
    assert len(scanner.rounds) <= 5
    assert sum(map(len, scanner.rounds)) <= 16 * SAMPLE


def test_a_row_whose_process_died_counts_as_not_read(manifest: Location) -> None:
    scanner = Scanner(manifest.parent / "results", lambda _: "authentic")
    sample = take_sample(manifest, ROWS, scanner.results, lambda table: scanner(table.slice(1)))
    assert sample.judged == SAMPLE
    assert len(scanner.rounds) > 1


def test_a_sample_that_was_interrupted_is_drawn_again_as_it_was(manifest: Location) -> None:
    def verdict(row_id: int) -> str | None:
        return None if row_id % 3 else "unfamiliar" if row_id % 2 else "authentic"

    whole, scanner = _sample(manifest, verdict)
    asked: list[list[int]] = []
    again = take_sample(manifest, ROWS, scanner.results, lambda table: asked.append(table["row_id"].to_pylist()))
    assert again == whole
    assert asked == scanner.rounds, "the rows are the same, and their results are read and not made"


@pytest.mark.parametrize(("unfamiliar", "is_mostly"), [(0, False), (100, False), (101, True), (200, True)])
def test_more_than_half_is_most(unfamiliar: int, is_mostly: bool) -> None:
    assert Sample(200, unfamiliar).is_mostly_unfamiliar == is_mostly


def test_the_sentence_names_the_model_and_what_it_was_made_from() -> None:
    limits = Limits(made_from="drawn pictures")
    assert Sample(200, 188).sentence("asap-demo@abc", limits) == (
        "188 of 200 sampled pairs look like nothing that asap-demo was made from (drawn pictures); its verdicts mean "
        "nothing here. --allow-unfamiliar scans all the same."
    )
    assert "was made from; its verdicts" in Sample(200, 188).sentence("asap-demo@abc", None)
