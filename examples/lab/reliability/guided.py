# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of what reads files: atheris keeps each input that reaches new code.

Each reader runs in a process of its own, see ``instrumented``; after one that goes down another
goes on.
"""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Self

from examples.lab.reliability.fuzz import workplace
from examples.lab.reliability.instrumented import LARGEST, Place, State, Wrong, wrong
from examples.lab.reliability.targets import targets
from lmr_guard.errors import ConfigError, StageError

__all__ = ["READERS", "Extent", "GuidedRun", "Nursery", "atheris_version", "guided", "readers"]

READERS = "examples.lab.reliability.targets"
"""The module whose ``targets`` are the readers."""

_ROOT = Path(__file__).parents[3]
_MEMORY = 2048  # MB of the process, libraries included
_STUCK = 30.0  # seconds without a new execution: more than an alarm takes that is heard
_STARTS = 5  # of one reader, each after the end of the one before
_COVERED = re.compile(rb"cov: (\d+)")


@dataclass(frozen=True, slots=True)
class Extent:
    """How much.

    Args:
        seed: Of libFuzzer; by it, and by how many executions there is time for, what is tried.
        seconds: Of each reader.
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
        seconds: On the clock.
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


class Nursery:
    """A process that has imported all readers, watched by atheris, and forks one for each run.

    Args:
        module: Whose ``targets`` has the readers.
        folder: Exists; holds all files.
    """

    def __init__(self, folder: Path, module: str = READERS) -> None:
        self._folder, self._log = folder, folder / "log"
        (folder / "readers").mkdir()
        command = [sys.executable, "-m", "examples.lab.reliability.instrumented", module]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [*command, str(folder / "readers")],
                cwd=_ROOT,
                env=_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def __enter__(self) -> Self:
        """It has started, and may still import."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it."""
        self._process.kill()
        self._process.communicate()

    def place(self, name: str) -> Place:
        """Of the files of one reader, made where it is not there."""
        place = Place(self._folder / name)
        place.root.mkdir(exist_ok=True)
        return place

    def run(
        self, name: str, options: Sequence[str], seconds: float, state: State
    ) -> tuple[str, float]:
        """One process, until it ends or is stuck.

        Args:
            name: Of the reader.
            options: Of libFuzzer.
            seconds: After which it is to end.
            state: Of the reader.

        Returns:
            How it ended, '' where it should have, and its seconds.

        Raises:
            StageError: It could not be started, or read nothing.
        """
        root = str(self.place(name).root)
        asked = {"name": name, "root": root, "options": list(options), "seconds": seconds}
        try:
            self._pipe(self._process.stdin).write(json.dumps(asked).encode() + b"\n")
            self._pipe(self._process.stdin).flush()
        except BrokenPipeError:
            raise self._unread(name, self._log) from None
        told = self._pipe(self._process.stdout).readline()
        if not told:
            raise self._unread(name, self._log)
        before, start = state.begun, time.monotonic()
        stuck = self._watch(int(told), state)
        code = int(self._pipe(self._process.stdout).readline())
        if state.begun == before:
            raise self._unread(name, self.place(name).log)
        how = f"the process ended with {code}" if code else ""
        return stuck or how, time.monotonic() - start

    def _watch(self, child: int, state: State) -> str:
        """Until it ended; kills one that begins nothing for long, and says so."""
        last, moved = state.begun, time.monotonic()
        answers = self._pipe(self._process.stdout)
        try:
            while not select.select([answers], [], [], 0.2)[0]:
                if state.begun != last:
                    last, moved = state.begun, time.monotonic()
                elif time.monotonic() - moved > _STUCK:
                    os.kill(child, signal.SIGKILL)
                    return f"an execution of more than {_STUCK:g} seconds that no alarm ended"
        except BaseException:
            os.kill(child, signal.SIGKILL)
            raise
        return ""

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe

    @staticmethod
    def _unread(name: str, log: Path) -> StageError:
        lines = log.read_text("utf-8", "replace").strip().splitlines() if log.exists() else []
        got = repr(lines[-1][:200]) if lines else "nothing"
        return StageError(f"expected {name} to be read, got {got}")


def guided(name: str, extent: Extent, nursery: Nursery) -> GuidedRun:
    """Fuzzes one reader; where its process goes down, another goes on.

    Raises:
        StageError: Nothing was read.
    """
    place = nursery.place(name)
    state = State(place.state)
    found: list[Wrong] = []
    left = extent.seconds
    for start in range(_STARTS):
        options = _options(place, extent.seed + start)
        ended, took = nursery.run(name, options, left, state)
        left -= took
        if ended and ended not in {each.error for each in found}:
            found.append(wrong(state.begun, ended, state.given))
        if not ended or left < 1:
            break
    return _run(name, place, state, found, extent.seconds - left)


def _options(place: Place, seed: int) -> list[str]:
    """Of libFuzzer, whose own timeout yields to the alarm of ``fuzz``."""
    return [
        f"-seed={seed + 1}",  # 0 stands for a random one.
        f"-max_len={LARGEST}",
        f"-rss_limit_mb={_MEMORY}",
        f"-artifact_prefix={place.root}/",
        f"-dict={place.words}",
    ]


def _environment() -> dict[str, str]:
    """With atheris and what this process imports from on the path."""
    path = [entry for entry in sys.path if entry]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


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
