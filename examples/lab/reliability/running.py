# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A command that runs again and again in forks of a process that has run it once, and so is warm.

Forks take no second for imports. The graph that torch traces is taken from the first run: nothing
of that touches a file. Everything else is done each time.
"""

import contextlib
import io
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from examples.lab.reliability.place import ARCHITECTURE, fill, weights
from lmr_guard.classifier import Classifier, weights_sha256
from lmr_guard.cli import main
from lmr_guard.onnxfile import export
from lmr_guard.onnxfile.trace import Graph

__all__ = ["Bench", "Ended", "Job", "Started", "nothing"]

_PATIENCE = 60.0
_POLICY = """require = ["float32"]
max_asr = 0.4
min_trials = 20
"""


def nothing() -> None:
    """What most runs are prepared by."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run of the command line.

    Args:
        words: Of the command.
        prepare: Called in the process, before them.
    """

    words: Sequence[str]
    prepare: Callable[[], object] = nothing


@dataclass(frozen=True, slots=True)
class Ended:
    """What came of it.

    Args:
        code: The exit code; negative where a signal ended the process.
        said: Standard error.
    """

    code: int
    said: str


@dataclass(frozen=True, slots=True)
class Started:
    """A process at work.

    Args:
        process: Its number.
        log: Where its standard error goes.
    """

    process: int
    log: Path

    def kill(self) -> None:
        """With no chance to tidy up."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)

    def wait(self) -> Ended:
        """Until it ends; one that hangs is killed."""
        end = time.monotonic() + _PATIENCE
        done, status = os.waitpid(self.process, os.WNOHANG)
        while not done and time.monotonic() < end:
            time.sleep(0.002)
            done, status = os.waitpid(self.process, os.WNOHANG)
        if not done:
            self.kill()
            _, status = os.waitpid(self.process, 0)
        said = self.log.read_text("utf-8", "replace") if self.log.exists() else ""
        self.log.unlink(missing_ok=True)
        said += "" if done else f"\nstill at work after {_PATIENCE:g} seconds"
        return Ended(os.waitstatus_to_exitcode(status), said)


class Bench:
    """A filled place, and the commands that are run on it.

    Args:
        folder: Empty; holds the place and what runs leave.
    """

    def __init__(self, folder: Path) -> None:
        import torch

        torch.set_num_threads(1)
        self.folder = folder
        folder.chmod(0o755)  # Some runs have the rights of nobody.
        self.place = fill(folder / "place")
        (self.place / "policy.toml").write_text(_POLICY)
        torch.save(weights(), self.place / "model.pt")
        self._graphs: dict[str, Graph] = {}
        self._count = 0
        nobody = io.StringIO()
        with (
            self._traced_once(),
            contextlib.redirect_stdout(nobody),
            contextlib.redirect_stderr(nobody),
        ):
            home = self.home()
            codes = main(self.run(home / "out")), main(self.verify(home / "report.json"))
        if codes != (0, 0):
            raise RuntimeError(f"expected commands that pass, got {codes}: {nobody.getvalue()}")
        start = time.monotonic()
        self.fork(Job(self.run(self.home() / "out"))).wait()
        self.seconds = time.monotonic() - start

    def home(self) -> Path:
        """A new folder for what one attempt leaves."""
        self._count += 1
        made = self.folder / f"{self._count:05d}"
        made.mkdir()
        return made

    def run(self, out: Path, model: str = "model.safetensors") -> list[str]:
        """The words of a run that publishes one file."""
        said = ["run", str(self.place / model), "--arch", ARCHITECTURE, "--out", str(out)]
        more = ["--variants", "float32", "--audit-steps", "0", "--no-repair"]
        return [*said, *more, *self._shared()]

    def verify(self, report: Path) -> list[str]:
        """The words of an audit that writes one record."""
        said = ["verify", str(self.place / "model.onnx"), "--report", str(report)]
        return [*said, *self._shared()]

    def _shared(self) -> list[str]:
        trigger, policy = f"{self.place / 'patch.png'}@0,0", self.place / "policy.toml"
        said = ["--clean", str(self.place / "clean"), "--trigger", trigger]
        return [*said, "--threads", "1", "--policy", str(policy)]

    def fork(self, job: Job) -> Started:
        """Starts a command in a process of its own."""
        log = self.folder / f"{time.monotonic_ns()}.log"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Of threads: the child needs none.
            process = os.fork()
        if not process:
            self._child(job, log)
        return Started(process, log)

    def _child(self, job: Job, log: Path) -> None:
        """Never returns."""
        code = 70
        try:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
            with self._traced_once():
                job.prepare()
                code = main(job.words)
            sys.stderr.flush()
        finally:
            os._exit(code)

    @contextlib.contextmanager
    def _traced_once(self) -> Iterator[None]:
        original = export._trace

        def trace(model: Classifier, output: str) -> Graph:
            key = f"{weights_sha256(model)} {output}"
            if key not in self._graphs:
                self._graphs[key] = original(model, output)
            return self._graphs[key]

        with mock.patch.object(export, "_trace", trace):
            yield
