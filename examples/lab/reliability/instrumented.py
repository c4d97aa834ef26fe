# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The process that readers are fuzzed in, each in a fork of it; ``guided`` starts it.

It imports what is to be covered only after atheris was told to watch these imports. What a fork
finds goes to files, since libFuzzer ends the process without returning.
"""

import base64
import hashlib
import importlib
import json
import math
import mmap
import os
import struct
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["LARGEST", "Place", "State", "Wrong", "wrong"]

LARGEST = 1 << 16
"""Bytes that an input may have."""
_KEPT = 4096  # Bytes of an input that the record holds as it is.
_LONGEST_WORD = 64  # Of a dictionary of libFuzzer.
# What runs while a file is read and can be watched: our own modules, and the parsers in Python.
_WATCHED = ["lmr_guard", "tomllib", "tarfile", "PIL"]
# What each fork would else import anew.
_NEEDED = ["examples.lab.reliability.executing", "lmr_guard.pictures"]
_HEAD = struct.Struct("<qqq")


@dataclass(frozen=True, slots=True)
class Wrong:
    """The first input that gave a wrong answer of one kind.

    Args:
        number: Of the execution, from 1.
        error: What was raised, and where; or how the process ended.
        size: Bytes of the input.
        sha256: Of the input.
        base64: The input; None where it is large.
    """

    number: int
    error: str
    size: int
    sha256: str
    base64: str | None


def wrong(number: int, error: str, given: bytes) -> Wrong:
    """A record of an input."""
    kept = base64.b64encode(given).decode() if len(given) < _KEPT else None
    return Wrong(number, error, len(given), hashlib.sha256(given).hexdigest(), kept)


@dataclass(frozen=True, slots=True)
class Place:
    """The files of one reader, in a folder of their own.

    Args:
        root: The folder, which exists.
    """

    root: Path

    @property
    def corpus(self) -> Path:
        """A folder of inputs, each of which covered something new."""
        return self.root / "corpus"

    @property
    def words(self) -> Path:
        """A dictionary for libFuzzer."""
        return self.root / "words"

    @property
    def state(self) -> Path:
        """See ``State``."""
        return self.root / "state"

    @property
    def wrong(self) -> Path:
        """A line of JSON for each ``Wrong``."""
        return self.root / "wrong.jsonl"

    @property
    def log(self) -> Path:
        """What libFuzzer and atheris print."""
        return self.root / "log"


class State:
    """Counts, and the input that is being read: another process sees them when this one is gone.

    Args:
        path: A file, made where it is not there.
    """

    def __init__(self, path: Path) -> None:
        size = _HEAD.size + LARGEST
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), size)

    @property
    def begun(self) -> int:
        """Executions, the one that runs among them."""
        return self._numbers()[0]

    @property
    def accepted(self) -> int:
        """Inputs that were read without complaint."""
        return self._numbers()[1]

    @property
    def given(self) -> bytes:
        """The last input."""
        return self._shared[_HEAD.size : _HEAD.size + self._numbers()[2]]

    def begin(self, given: bytes) -> None:
        """Before an execution."""
        begun, accepted, _ = self._numbers()
        self._shared[_HEAD.size : _HEAD.size + len(given)] = given
        _HEAD.pack_into(self._shared, 0, begun + 1, accepted, len(given))

    def accept(self) -> None:
        """After an execution that raised nothing."""
        begun, accepted, size = self._numbers()
        _HEAD.pack_into(self._shared, 0, begun, accepted + 1, size)

    def _numbers(self) -> tuple[int, int, int]:
        begun, accepted, size = _HEAD.unpack_from(self._shared)
        return begun, accepted, size


def _main(module: str, root: Path) -> None:
    """For each line of JSON a fork that fuzzes: answers its number, and its exit code in the end.

    Args:
        module: Whose ``targets`` has the readers.
        root: Holds their files.
    """
    import atheris

    with atheris.instrument_imports(include=[*_WATCHED, module.partition(".")[0]]):
        for each in _NEEDED:
            importlib.import_module(each)
        readers = importlib.import_module(module).targets(root)
        for line in sys.stdin:
            asked = json.loads(line)
            child = os.fork()
            if not child:
                try:
                    _fuzz(readers[asked.pop("name")], Place(Path(asked.pop("root"))), **asked)
                except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
                    traceback.print_exc()
                finally:
                    os._exit(1)
            print(child, flush=True)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _fuzz(
    target: Any,  # noqa: ANN401 - of a module not imported yet
    place: Place,
    options: list[str],
    seconds: float,
) -> None:
    """Never returns: ends the process, with 0 once the time is over."""
    import atheris

    from examples.lab.reliability.executing import alarmed, execute, kind
    from lmr_guard import pictures

    with place.log.open("ab") as log, Path(os.devnull).open("r+b") as nowhere:
        for descriptor, file in enumerate((nowhere, nowhere, log)):
            os.dup2(file.fileno(), descriptor)
    _prepare(place, target.make)
    with alarmed(), pictures.quiet():
        one = _Execution(place, target, execute, kind)
        one.end = time.monotonic() + seconds
        words = [target.name, *options, str(place.corpus)]
        atheris.Setup(words, one, internal_libfuzzer=True)
        atheris.Fuzz()


def _prepare(place: Place, spoiler: Any) -> None:  # noqa: ANN401 - of a module not imported yet
    """The first time: what the fuzzer begins with."""
    if place.corpus.exists():
        return
    place.corpus.mkdir()
    for number, seed in enumerate(spoiler.seeds):
        (place.corpus / f"seed{number}").write_bytes(seed)
    words = [word for word in spoiler.tokens if len(word) <= _LONGEST_WORD]
    lines = ('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in words)
    place.words.write_text("".join(lines))


class _Execution:
    """One execution after the other; each kind of wrong answer is told once."""

    def __init__(self, place: Place, target: Any, execute: Any, kind: Any) -> None:  # noqa: ANN401
        self._place, self._target, self._execute, self._kind = place, target, execute, kind
        self._state = State(place.state)
        told = place.wrong.read_text().splitlines() if place.wrong.exists() else []
        self._known = {kind(json.loads(line)["error"]) for line in told}
        self.end = math.inf

    def __call__(self, given: bytes) -> None:
        self._state.begin(given)
        error = self._execute(self._target, given)
        if error == "":
            self._state.accept()
        elif error and (of := self._kind(error)) not in self._known:
            self._known.add(of)
            with self._place.wrong.open("a") as file:
                file.write(json.dumps(asdict(wrong(self._state.begun, error, given))) + "\n")
        if time.monotonic() > self.end:
            # In place of -max_total_time: at its exit libraries would wait for threads that no
            # fork has.
            os._exit(0)


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))
