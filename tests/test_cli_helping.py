# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Help in groups with an example that parses, completion, and both in a real pseudo-terminal."""

import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from contextlib import suppress

import click
import pytest
from modules import ROOT

from lmr_guard.cli import _HOMES, cli
from lmr_guard.cli.helping import EXAMPLES, GROUPS

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
WIDTHS = [80, 120]


def command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


def told(*words: str, **variables: str) -> str:
    """What the command line prints where nobody's terminal is."""
    done = subprocess.run(
        [sys.executable, "-m", "lmr_guard", *words],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout


def in_terminal(words: list[str], columns: int, variables: Mapping[str, str] | None = None) -> str:
    """What a terminal of so many columns receives."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    usual = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES", "NO_COLOR"}}
    own = usual | {"TERM": "xterm-256color"} | dict(variables or {})
    with subprocess.Popen(
        words, stdin=theirs, stdout=theirs, stderr=theirs, env=own, cwd=ROOT
    ) as p:
        os.close(theirs)
        received = b""
        # Linux ends the reading with an error once nobody writes any more.
        with suppress(OSError):
            while part := os.read(ours, 1 << 16):
                received += part
        os.close(ours)
        assert p.wait(60) == 0, received
    return received.decode()


def lines(received: str) -> list[str]:
    """What stood in a line at any time, without colours."""
    return re.split(r"[\r\n]+", CONTROL.sub("", received))


# --- help ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(_HOMES))
def test_every_option_stands_under_a_heading_and_the_example_parses(name: str) -> None:
    found = command(name)
    options = [each for each in found.params if isinstance(each, click.Option)]
    headings = [[h for h, names in GROUPS.items() if each.name in names] for each in options]
    assert all(len(each) == 1 for each in headings), name
    program, own, *words = shlex.split(EXAMPLES[name].replace("\\\n", ""))
    assert (program, own) == ("lmr-guard", name)
    context = click.Context(found)
    values, left, _ = found.make_parser(context).parse_args(list(words))
    assert values
    assert left == []
    required = {each.name for each in found.params if each.required}
    assert required <= values.keys()


def test_every_example_belongs_to_a_command() -> None:
    assert EXAMPLES.keys() == _HOMES.keys()


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("name", ["run", "admit"])
def test_help_in_a_terminal(name: str, columns: int) -> None:
    shown = lines(in_terminal([sys.executable, "-m", "lmr_guard", name, "--help"], columns))
    assert max(map(len, shown)) <= min(columns, 100)
    heads = [line for line in shown if line.endswith(":") and not line.startswith(" ")]
    assert heads[-2:] == ["Options:", "Example:"]
    assert "Limits:" in heads
    assert EXAMPLES[name].splitlines()[0] in "\n".join(shown)


# --- completion ---------------------------------------------------------------------------------


def test_commands_are_completed_without_loading_torch() -> None:
    probe = (
        "import os, sys\n"
        "os.environ |= {'_LMR_GUARD_COMPLETE': 'bash_complete',\n"
        "               'COMP_WORDS': 'lmr-guard re', 'COMP_CWORD': '1'}\n"
        "from lmr_guard.cli import main\n"
        "try:\n"
        "    main([])\n"
        "except SystemExit:\n"
        "    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["plain,repair", "plain,report"]


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("lmr-guard run --tri", {"plain,--trigger", "plain,--triggered"}),
        ("lmr-guard scan --device cu", {"plain,cuda"}),
        ("lmr-guard doctor --out re", {"file,re"}),
    ],
)
def test_options_and_values_are_completed(typed: str, completed: set[str]) -> None:
    at = str(len(typed.split()) - 1)
    found = told(_LMR_GUARD_COMPLETE="bash_complete", COMP_WORDS=typed, COMP_CWORD=at)
    assert set(found.split()) == completed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_script_for_each_shell(shell: str) -> None:
    assert "_LMR_GUARD_COMPLETE" in told(_LMR_GUARD_COMPLETE=f"{shell}_source")


# --- progress -----------------------------------------------------------------------------------

WORK = """
import time
from lmr_guard import terminal
with terminal.progress() as progress:
    for step in range(11):
        progress("layer shares at 0.3", step, 10)
        time.sleep(0.15)
"""


@pytest.mark.parametrize("columns", WIDTHS)
def test_a_bar_says_how_long_it_still_takes(columns: int) -> None:
    shown = lines(in_terminal([sys.executable, "-c", WORK], columns))
    assert max(map(len, shown)) <= columns
    bars = [line for line in shown if "layer shares at 0.3" in line]
    assert any(re.search(r"\d+/10 0:00:0\d left 0:00:0\d", line) for line in bars), bars


def test_a_log_says_how_long_a_step_still_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lmr_guard import terminal

    monkeypatch.setattr(terminal, "QUIET", 0.0)
    with terminal.progress() as progress:
        progress("localize", 0, 4)
        time.sleep(0.6)
        progress("localize", 1, 4)
        progress("localize", 4, 4)
    first, second, last = capsys.readouterr().err.splitlines()
    assert "left" not in first + last
    assert second.endswith("localize 1/4, about 0:00:02 left of this step")
