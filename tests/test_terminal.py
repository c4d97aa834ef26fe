# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What is said while a command works, and that one signal stops it and the next do not."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from lmr_guard import terminal

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
