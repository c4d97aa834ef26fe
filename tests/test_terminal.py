# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What is said while a command works, and that one signal stops it and the next do not."""

import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from lmr_guard import terminal
from lmr_guard.remaining import Watching
from lmr_guard.terminal import _Observer

STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("first", STOPS)
@pytest.mark.parametrize("second", STOPS)
def test_the_first_signal_stops_and_the_next_do_not_cut_the_tidying(
    first: signal.Signals, second: signal.Signals
) -> None:
    before = [signal.getsignal(number) for number in STOPS]
    tidied: list[bool] = []

    def work() -> None:
        with terminal.stoppable():
            try:
                signal.raise_signal(first)
            finally:
                signal.raise_signal(second)
                tidied.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert tidied == [True]
    assert [signal.getsignal(number) for number in STOPS] == before


def test_a_signal_that_was_ignored_before_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminal.stoppable():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_no_signal_is_touched() -> None:
    handlers: list[object] = []

    def work() -> None:
        with terminal.stoppable():
            handlers.extend(signal.getsignal(number) for number in STOPS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(number) for number in STOPS]


ENDING = """
import signal
from lmr_guard import terminal
terminal.ignore_stops()
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.raise_signal(number)
raise SystemExit(130)
"""


def test_a_process_that_is_about_to_end_keeps_its_exit_code() -> None:
    done = subprocess.run([sys.executable, "-c", ENDING], check=False)
    assert done.returncode == 130


def test_a_complaint_is_one_line_whatever_stands_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert terminal.complain("two\nlines  here", 4) == 4
    assert capsys.readouterr().err == "lmr-guard: two lines here\n"


def test_a_log_gets_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with terminal.progress() as progress:
        for seconds in (1, 10, 20, 30, 39, 3700):
            now[0] = 100.0 + seconds
            progress("search int8", seconds, 4000)
    assert capsys.readouterr().err.splitlines() == [
        "lmr-guard: 0:00:20 search int8 20/4000, about 1:06:20 left of this step",
        "lmr-guard: 1:01:40 search int8 3700/4000, about 0:05:00 left of this step",
    ]


def test_a_terminal_gets_bars_and_nothing_stays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with terminal.progress() as progress:
        progress("reading images", 1, 2)
        time.sleep(0.2)
        progress("reading images", 2, 2)
    shown = capsys.readouterr().err
    assert "reading images" in shown
    # The last thing written clears the line: transient bars leave the terminal as it was.
    assert shown.rstrip().endswith("\x1b[2K\x1b[?25h")


@pytest.mark.parametrize("columns", ["80", "120"])
def test_a_terminal_tells_what_is_left_of_the_whole_run_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", columns)
    with terminal.progress() as progress:
        assert isinstance(progress, Watching)
        progress("search l1-0.6+int8", 1, 1000)
        progress.left(4000, 7000)
        time.sleep(0.3)
    lines = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "\n", capsys.readouterr().err).splitlines()
    assert max(map(len, lines)) <= int(columns)
    assert "whole run 0:00:00, about 67 to 117 minutes left" in lines


def test_what_is_left_counts_down_and_is_silent_where_it_was_too_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setenv("FORCE_COLOR", "1")
    with terminal.progress() as progress:
        assert isinstance(progress, _Observer)
        seen = [progress.line()]
        progress.left(30, 50)
        for passed in (0, 10, 35, 49.5, 51):
            now[0] = 100 + passed
            seen.append(progress.line())
        progress.left(0, 0)
        seen.append(progress.line())
    assert seen == [
        "",
        "whole run 0:00:00, about 30 to 50 seconds left",
        "whole run 0:00:10, about 20 to 40 seconds left",
        "whole run 0:00:35, about 1 to 15 seconds left",
        "whole run 0:00:49, about 1 second left",
        "",
        "",
    ]


def test_neither_a_log_nor_silence_asks_for_the_whole_run() -> None:
    with terminal.progress() as logged, terminal.progress(quiet=True) as quiet:
        assert not isinstance(logged, Watching)
        assert not isinstance(quiet, Watching)
