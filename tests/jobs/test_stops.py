"""Signals interrupt the main thread, and handlers survive what replaces them."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from jobs import stops
from jobs.stops import (
    SIGNALS,
    handlers_kept,
    in_background,
    stop_held,
    stop_on_signals,
    what_is_kept,
)
from tests.support.waiting import HANG_S


@pytest.fixture(autouse=True)
def _handlers_restored() -> Iterator[None]:
    former = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    yield
    for number, handler in former.items():
        signal.signal(number, handler)
    stops._last_s = float("-inf")


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_interrupts_and_one_that_follows_at_once_does_not(number: signal.Signals) -> None:
    stop_on_signals()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    signal.raise_signal(number)
    stops._last_s -= 10
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_sigint_is_obeyed_where_a_shell_has_it_ignored_and_nohup_is_respected() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop_on_signals()
    signal.raise_signal(signal.SIGHUP)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_handlers_that_a_block_sets_are_replaced_by_ours_and_its_exit_is_a_stop() -> None:
    stop_on_signals()

    def start_something() -> None:
        with handlers_kept():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        start_something()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_in_a_block_that_holds_stops_back_is_not_swallowed_and_a_second_one_interrupts() -> None:
    stop_on_signals()
    done: list[str] = []

    def start_something(signals: int) -> None:
        with stop_held():
            try:
                for _ in range(signals):
                    stops._last_s -= 10
                    signal.raise_signal(signal.SIGTERM)
            except BaseException:  # as code of others does
                done.append("swallowed")
            done.append("ended")

    with pytest.raises(KeyboardInterrupt):
        start_something(1)
    assert done == ["ended"]
    with pytest.raises(KeyboardInterrupt):
        start_something(2)
    assert done == ["ended", "swallowed", "ended"]
    start_something(0)
    stops._last_s -= 10
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_another_thread_holds_no_signal_back() -> None:
    stop_on_signals()
    is_inside, may_end = threading.Event(), threading.Event()

    def work() -> None:
        with stop_held():
            is_inside.set()
            may_end.wait(HANG_S)

    thread = threading.Thread(target=work)
    thread.start()
    assert is_inside.wait(HANG_S)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    may_end.set()
    thread.join()


def test_handlers_are_left_alone_in_other_threads() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with handlers_kept():
            pass

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_call_in_the_background_gives_its_result_or_its_error() -> None:
    with in_background(lambda is_stopped: 7) as call:
        assert call.result == 7

    def fail(is_stopped: threading.Event) -> None:
        raise ValueError("no")

    with in_background(fail) as failing, pytest.raises(ValueError, match="no"):
        failing.wait(HANG_S)


def test_a_signal_reaches_the_main_thread_during_a_call_that_is_then_asked_to_stop() -> None:
    stop_on_signals()
    ended = threading.Event()

    def work(is_stopped: threading.Event) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        is_stopped.wait(HANG_S)
        ended.set()

    with pytest.raises(KeyboardInterrupt), in_background(work) as call:
        call.wait(HANG_S)
    assert ended.wait(HANG_S)


def test_a_call_that_must_end_is_hurried_until_it_has() -> None:
    is_free, hurried = threading.Event(), []

    def hurry() -> None:
        hurried.append(is_free.is_set())
        if len(hurried) > 1:
            is_free.set()

    with pytest.raises(KeyError), in_background(lambda _: is_free.wait(HANG_S), hurry) as call:
        raise KeyError
    assert call.wait(0)
    assert hurried[:2] == [False, False]
    with in_background(lambda _: 7, lambda: pytest.fail("it had ended")) as quick:
        assert quick.result == 7


def test_what_a_job_keeps_is_found_behind_a_second_interruption_of_its_stop() -> None:
    def stop_twice() -> None:
        first = KeyboardInterrupt()
        first.add_note("All is kept.")
        try:
            raise first
        finally:
            raise KeyboardInterrupt

    def leave() -> None:
        try:
            stop_twice()
        except KeyboardInterrupt as error:
            raise SystemExit(130) from error

    with pytest.raises(SystemExit) as caught:
        leave()
    assert what_is_kept(caught.value) == "All is kept."
    assert what_is_kept(SystemExit(130)) == ""


@pytest.mark.parametrize(
    ("command", "sentence"),
    [("evaluate", "stopped. Nothing was written."), ("scan", "stopped. Finished pairs are kept. Run the same command")],
)
def test_a_stopped_command_exits_with_130_and_says_what_is_kept(command: str, sentence: str) -> None:
    code = (
        "import os, signal, sys, typer\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "from jobs.cli import app\n"
        f"sys.argv[1:] = [{command!r}]\n"
        "stub = typer.Typer()\n"
        "stub.callback()(lambda: None)\n"
        f"stub.command({command!r})(lambda: os.kill(os.getpid(), signal.SIGHUP))\n"
        "app.app = stub\n"
        "app.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=False)
    assert (done.returncode, done.stderr.startswith(f"asap: {sentence}")) == (130, True), done


@pytest.mark.parametrize(
    "second",
    [
        "app.what_is_kept = lambda stop: kill() or 'Finished pairs are kept.'",
        "atexit.register(lambda: (kill(), print('not reached')))",
        "app.freed_last = Last()",
    ],
    ids=["before the sentence", "at the exit", "after the exit"],
)
def test_a_signal_during_the_end_of_a_stopped_command_changes_neither_its_sentence_nor_its_code(second: str) -> None:
    code = (
        "import atexit, os, signal, sys, typer\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "from jobs.cli import app\n"
        "sys.argv[1:] = ['scan']\n"
        "def kill(kill=os.kill, pid=os.getpid(), number=signal.SIGTERM): kill(pid, number)\n"
        "class Last:\n"
        "    def __del__(self, kill=kill): kill()\n"
        "def scan():\n"
        f"    {second}\n"
        "    kill()\n"
        "stub = typer.Typer()\n"
        "stub.callback()(lambda: None)\n"
        "stub.command('scan')(scan)\n"
        "app.app = stub\n"
        "app.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.startswith("asap: stopped. Finished pairs are kept.")
    assert len(done.stderr.splitlines()) == 1, done.stderr
