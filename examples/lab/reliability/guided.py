# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of what reads files: atheris keeps each input that reaches new code.

Each reader runs in a process of its own, see ``instrumented``; one that goes down is started anew.
"""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from examples.lab.reliability.fuzz import workplace
from examples.lab.reliability.instrumented import LARGEST, Place, State, Wrong, wrong
from examples.lab.reliability.targets import targets
from lmr_guard.errors import ConfigError, StageError

__all__ = ["READERS", "Extent", "GuidedRun", "atheris_version", "guided", "readers"]

READERS = "examples.lab.reliability.targets"
"""The module whose ``targets`` are the readers."""

_ROOT = Path(__file__).parents[3]
_MEMORY = 2048  # MB of the process, libraries included
_STUCK = 30.0  # seconds without a new execution: more than an alarm takes that is heard
_STARTING = 300.0  # seconds that imports may take
_STARTS = 5  # of one reader, each after the end of the one before
_COVERED = re.compile(rb"cov: (\d+)")


@dataclass(frozen=True, slots=True)
class Extent:
    """How much.

    Args:
        seed: Of libFuzzer; by it, and by how many executions there is time for, what is tried.
        seconds: Of each reader, without its imports.
    """

    seed: int = 0
    seconds: float = 20.0


@dataclass(slots=True)
class GuidedRun:
    """What came of one reader.

    Args:
        target: Its name.
        executions: How many there were.
        accepted: How many inputs were read without complaint.
        seconds: On the clock, without imports.
        covered: Branches of the watched modules that were taken, as libFuzzer counts them.
        corpus: Inputs kept, each of which took a branch that none before had.
        wrong: Each kind once.
    """

    target: str
    executions: int = 0
    accepted: int = 0
    seconds: float = 0.0
    covered: int = 0
    corpus: int = 0
    wrong: list[Wrong] = field(default_factory=list)


def atheris_version() -> str:
    """Of the atheris that is there.

    Raises:
        ConfigError: None is.
    """
    if find_spec("atheris") is None:
        raise ConfigError("expected atheris 3 on the path of Python, got none; run make guided")
    return metadata.version("atheris")


def readers() -> list[str]:
    """Names of all that read a file which somebody else made."""
    with workplace() as folder:
        return [target.name for target in targets(folder).values() if target.file]


def guided(name: str, extent: Extent, module: str = READERS) -> GuidedRun:
    """Fuzzes one reader, with atheris there.

    Args:
        name: Of the reader.
        extent: How much.
        module: Whose ``targets`` has it.

    Raises:
        StageError: The process never came to read anything.
    """
    with workplace() as folder:
        place = Place(folder)
        state = State(place.state)
        found: list[Wrong] = []
        left = extent.seconds
        for start in range(_STARTS):
            before = state.begun
            options = _options(place, extent.seed + start, left)
            ended, took = _watched([module, name, str(folder), *options], place, state)
            left -= took
            if state.begun == before:
                raise StageError(f"expected {name} to be read, got {_last_line(place)}")
            if ended and ended not in {each.error for each in found}:
                found.append(wrong(state.begun, ended, state.given))
            if not ended or left < 1:
                break
        return _run(name, place, state, found, extent.seconds - left)


def _options(place: Place, seed: int, seconds: float) -> list[str]:
    """Of libFuzzer, whose own timeout yields to the alarm of ``fuzz``."""
    return [
        f"-seed={seed + 1}",  # 0 stands for a random one.
        f"-max_total_time={max(1, round(seconds))}",
        f"-max_len={LARGEST}",
        f"-rss_limit_mb={_MEMORY}",
        f"-artifact_prefix={place.root}/",
        f"-dict={place.words}",
    ]


def _watched(words: list[str], place: Place, state: State) -> tuple[str, float]:
    """Runs the process: how it ended, '' where it should, and its seconds of fuzzing."""
    command = [sys.executable, "-m", "examples.lab.reliability.instrumented", *words]
    first = state.begun
    with place.log.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - our own module
            command, cwd=_ROOT, env=_environment(), stdout=subprocess.DEVNULL, stderr=log
        )
    begun, moved = 0.0, time.monotonic()
    last = first
    stuck = False
    try:
        while process.poll() is None:
            time.sleep(0.1)
            now = time.monotonic()
            if state.begun != last:
                last, moved = state.begun, now
                begun = begun or now
            elif stuck := now - moved > (_STUCK if begun else _STARTING):
                break
    finally:
        process.kill()
        code = process.wait()
    took = time.monotonic() - begun if begun else 0.0
    if stuck:
        return f"an execution of more than {_STUCK:g} seconds that no alarm ended", took
    return f"the process ended with {code}" if code else "", took


def _environment() -> dict[str, str]:
    """With atheris and what this process imports from on the path."""
    path = [entry for entry in sys.path if entry]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def _last_line(place: Place) -> str:
    lines = place.log.read_text("utf-8", "replace").strip().splitlines()
    return repr(lines[-1][:200]) if lines else "nothing"


def _run(name: str, place: Place, state: State, ended: list[Wrong], seconds: float) -> GuidedRun:
    lines = place.wrong.read_text().splitlines() if place.wrong.exists() else []
    raised = [Wrong(**json.loads(line)) for line in lines]
    covered = _COVERED.findall(place.log.read_bytes())
    return GuidedRun(
        name,
        executions=state.begun,
        accepted=state.accepted,
        seconds=round(seconds, 2),
        covered=max(map(int, covered), default=0),
        corpus=sum(1 for _ in place.corpus.iterdir()),
        wrong=[*raised, *ended],
    )
