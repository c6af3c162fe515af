"""Tests of `asap plan`."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.cli.input_tables import pilot_tables
from jobs.scan.pilot import Fleet, Forecast, Pilot

MAIN = "import sys; from jobs.cli.app import main; sys.exit(main())"


def _plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", MAIN, "plan", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def table(tmp_path: Path, jpeg: Callable[..., bytes]) -> Path:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    path = tmp_path / "pairs.csv"
    path.write_text("id,image,text\nfirst,a.jpg,a text of its own\nsecond,gone.jpg,another\n")
    return path


def test_a_plan_shows_what_was_understood_and_the_command_to_run(table: Path) -> None:
    done = _plan(str(table), "--limit", "2")
    assert done.returncode == 0, done.stderr
    for shown in ("csv", "first", "a text of its own", "not_found", "1 of 2 pairs can be read"):
        assert shown in done.stdout
    assert f"asap scan {shlex.quote(str(table))} --out OUT --limit 2" in done.stdout
    assert {path.name for path in table.parent.iterdir()} == {"a.jpg", "pairs.csv"}


def test_a_plan_as_json_has_all_of_it(table: Path) -> None:
    done = _plan(str(table), "--json")
    document = json.loads(done.stdout)
    assert document["rows"] == 2
    assert document["sample"]["failures"]["not_found"]["count"] == 1
    assert document["command"].startswith("asap scan ")


def test_a_plan_for_what_a_scan_refuses_says_so_in_the_same_words(table: Path) -> None:
    (table.parent / "a.jpg").unlink()
    done = _plan(str(table))
    assert done.returncode == 1
    assert "all 2 pairs of it would fail" in done.stderr
    assert "asap scan" not in done.stdout
    missing = _plan(str(table.parent / "nothing"))
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "is not there" in missing.stderr
    assert "Traceback" not in done.stderr + missing.stderr


def test_a_plan_loads_neither_torch_nor_ray(table: Path) -> None:
    loaded = "; print(sorted({'torch', 'ray'} & set(sys.modules)))"
    code = f"import sys; sys.argv = ['asap', 'plan', {str(table)!r}]; from jobs.cli.app import app\n"
    code += f"try: app()\nexcept SystemExit: pass\nprint{loaded.partition('print')[2]}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_a_pilot_forecasts_hours_requests_and_price_of_the_whole_input(table: Path, jpeg: Callable[..., bytes]) -> None:
    (table.parent / "gone.jpg").write_bytes(jpeg(2))
    options = ("--pilot", "8", "--machines", "3", "--machine-cpus", "4", "--machine-price", "1.5")
    done = _plan(str(table), *options, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["pilot"]["pairs"] == 2
    assert document["forecast"]["fleet"] == {
        "machines": 3, "cpus": 4, "gpus": 0, "machine_price": 1.5, "get_price": 0.0
    }  # fmt: skip
    assert document["forecast"]["hours"][0] > 0
    assert document["forecast"]["price"][0] == pytest.approx(document["forecast"]["hours"][0] * 3 * 1.5)
    shown = _shown(document)
    for words in ("pairs/s", "the CPUs decide", "to prepare it", "hours", "price"):
        assert words in shown, shown


def _shown(document: dict[str, Any]) -> str:
    """Return the tables of a pilot as a terminal shows them."""
    whole = document["forecast"] | {"fleet": Fleet(**document["forecast"]["fleet"])}
    with io.StringIO() as screen:
        Console(file=screen, width=100).print(
            pilot_tables(Pilot(**document["pilot"]), Forecast(**whole), is_whole=document["is_whole"])
        )
        return screen.getvalue()


def test_what_belongs_to_a_pilot_is_refused_without_one(table: Path) -> None:
    done = _plan(str(table), "--machines", "3")
    assert done.returncode == 1
    assert "--machines is for a pilot, and there is none. Add --pilot with a number of pairs." in done.stderr
