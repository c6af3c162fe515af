"""A training run that gets a signal ends in one sentence, at any stage: what is kept, and the command that goes on."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.small_run import draw_corpus, settings_for
from tests.support.waiting import HANG_S, wait_until

pytestmark = pytest.mark.slow

AGAIN = "Run the same command again, or `asap resume {run}`, to go on."
READING = "import jobs.train.run; jobs.train.run.read_splits = lambda *_: time.sleep(600)"
DECODING = (
    "import asap.corpus.picture_cache as m; f = m.decode_picture; m.decode_picture = lambda *a: (time.sleep(9), f(*a))"
)
EXPORTING = "import jobs.train.export; jobs.train.export.bootstrap_intervals = lambda *_: time.sleep(600)"
NOT_DEAF = "import jobs.stops; jobs.stops._DEAF_S = 0"


class Command:
    """`asap train` as a process whose lines are in a file."""

    def __init__(self, words: Sequence[str], folder: Path, change: str) -> None:
        code = (
            "import signal, time; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
            f"{change}\n"
            "from jobs.cli.app import main\n"
            "main()"
        )
        self._output, self._errors = folder / "output.txt", folder / "errors.txt"
        with self._output.open("w") as output, self._errors.open("w") as errors:
            self.process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=output, stderr=errors)

    def stop_at(self, line: str, number: signal.Signals) -> str:
        """Send a signal once a line was printed, and return what is printed about the stop."""
        wait_until(lambda: line in self._output.read_text(), process=self.process)
        os.kill(self.process.pid, number)
        assert self.process.wait(HANG_S) == 130, self._errors.read_text()
        printed = self._errors.read_text()
        assert len(printed.splitlines()) == 1, printed
        assert "Traceback" not in self._output.read_text()
        assert "\r" not in self._output.read_text()
        return printed.strip()


def words_for(corpus: Path, run: Path, **changes: Any) -> list[str]:
    settings = settings_for(corpus, run, device="cpu", **changes)
    given = settings.model_dump(exclude_unset=True, exclude={"corpus", "out", "name"})
    named = [word for name, value in given.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    return ["train", str(corpus), "--out", str(run), *named]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_the_corpus_is_read_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, number: signal.Signals
) -> None:
    command = Command(words_for(draw_corpus(tmp_path_factory), tmp_path / "run"), tmp_path, READING)
    said = command.stop_at("reading the corpus\n", number)
    assert said == "asap: stopped. Nothing was changed. Run the same command again."
    assert not (tmp_path / "run").exists()


@pytest.mark.drill
def test_a_stop_at_each_later_stage_says_what_is_kept_and_the_same_command_goes_on(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = words_for(draw_corpus(tmp_path_factory), run, pairs=800, checkpoint_pairs=400)
    again = AGAIN.format(run=run)

    nothing = f"asap: stopped. No checkpoint was written yet; the data that were prepared are kept. {again}"
    assert Command(words, tmp_path, "").stop_at("starting Ray on this machine\n", signal.SIGINT) == nothing
    assert Command(words, tmp_path, DECODING).stop_at("decoding train pictures:", signal.SIGTERM) == nothing
    assert Command(words, tmp_path, "").stop_at("starting 1 worker with 1 CPU\n", signal.SIGTERM) == nothing

    snapshot = run / "ray_train" / "checkpoint_manager_snapshot.json"
    training = Command(words, tmp_path, NOT_DEAF)
    wait_until(snapshot.exists, process=training.process)
    said = training.stop_at("validation  AUC", signal.SIGTERM)
    assert said == f"asap: stopped. The checkpoint after 400 of 800 pairs is kept. {again}"

    said = Command(words, tmp_path, EXPORTING).stop_at("computing the intervals", signal.SIGTERM)
    kept = "The checkpoint after all 800 pairs is kept, and only the model folder is missing."
    assert said == f"asap: stopped. {kept} {again}"

    last = Command(words, tmp_path, "")
    assert last.process.wait(HANG_S) == 0
    assert (run / "model" / "config.json").exists()
