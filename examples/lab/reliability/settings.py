# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Policies, drills, reports, options and places for results that nobody should hand in."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from examples.lab.reliability.onnxfiles import verify, with_option
from examples.lab.reliability.place import ARCHITECTURE
from examples.lab.reliability.trial import Case
from lmr_guard.release.policy import policy_from_toml
from lmr_guard.release.report import Report

__all__ = ["cases"]

# --- policies, drills, reports ------------------------------------------------------------------

_POLICIES: dict[str, bytes] = {
    "no TOML": b"max_asr = ",
    "no UTF-8": b"\xff\xfe",
    "NUL": b"\0",
    "a key of nobody": b"max_ars = 0.1",
    "a key twice": b"max_asr = 0.1\nmax_asr = 0.2",
    "text for a number": b"max_asr = '0.1'",
    "truth for a number": b"max_asr = true",
    "a rate of 1": b"max_asr = 1.0",
    "a negative rate": b"max_asr = -0.1",
    "no number": b"max_excess = nan",
    "an infinite number": b"max_strangeness = inf",
    "a number of 5000 digits": b"min_trials = " + b"9" * 5000,
    "a number of 400 digits": b"max_strangeness = " + b"9" * 400,
    "no trials": b"min_trials = 0",
    "half a trial": b"min_trials = 1.5",
    "confidence of 1": b"confidence = 1.0",
    "confidence next to 1": b"confidence = 0.99999999999999999",
    "confidence nearly next to 1": b"confidence = 0.9999999999999999",
    "confidence of 0": b"confidence = 0.0",
    "nothing required": b"require = []",
    "a number required": b"require = [1]",
    "text required": b"require = 'float32'",
    "lists nested 10,000 times": b"require = " + b"[" * 10_000,
    "a table": b"[max_asr]\nx = 1",
    "2 MB": b"#" * (2 << 20),
    "publish what": b"publish = 'some'",
    "a date": b"min_trials = 2020-01-01",
}


def _policies() -> Iterator[Case]:
    def given(name: str, write: Callable[[Path], object]) -> Case:
        def make(folder: Path) -> list[str]:
            write(folder / "given.toml")
            return with_option(verify(folder), "--policy", folder / "given.toml")

        return Case(f"policy: {name}", make, (4,))

    for name, content in _POLICIES.items():
        yield given(name, partial(Path.write_bytes, data=content))
    yield given("a named pipe", os.mkfifo)
    yield given("zeros without end", lambda path: path.symlink_to("/dev/zero"))
    yield given("a folder", lambda path: path.mkdir())
    yield given("no such file", lambda _: None)
    yield given("a link to itself", lambda path: path.symlink_to(path.name))

    def read(folder: Path) -> Callable[[], object]:
        return lambda: policy_from_toml(folder / ("x" * 5000))

    yield Case("policy: a path too long", read, (4,))


_DOCUMENTS: dict[str, bytes] = {
    "no bytes": b"",
    "no JSON": b"{",
    "no UTF-8": b"\xff\xfe\xfd",
    "a list": b"[]",
    "nothing": b"null",
    "an empty object": b"{}",
    "lists nested 100,000 times": b"[" * 100_000,
    "a number of 5000 digits": b'{"schema_version": ' + b"9" * 5000 + b"}",
    "an unknown version": b'{"schema_version": "99", "drill_version": "99"}',
    "a version and no more": b'{"schema_version": "1.0", "drill_version": "1.0"}',
    "no number": b'{"schema_version": NaN}',
}
_DRILL = {
    "drill_version": "1.0",
    "source": "drilled",
    "model": {"path": "m", "sha256": "0" * 64, "weights_sha256": "0" * 64},
    "verdict": "incomplete",
    "exit_code": 3,
    "attacks": [],
    "config": {},
    "environment": {},
}
_ATTACK = {
    "attack": "badnets",
    "wakes": "float32",
    "target": 1,
    "suspect": 1,
    "variants": [],
    "took": True,
    "outcome": "pass",
    "seconds": 1.0,
}
_DRILLS: dict[str, dict[str, object]] = {
    "without attacks": {},
    "attacks that are a number": {"attacks": 3},
    "attacks that are text": {"attacks": "abc"},
    "an attack that is empty": {"attacks": [{}]},
    "a config that is a list": {"attacks": [_ATTACK], "verdict": "pass", "config": []},
    "a model that is text": {"model": "m"},
    "another verdict": {"attacks": [_ATTACK], "verdict": "fail"},
    "a verdict that is a number": {"attacks": [_ATTACK], "verdict": 5},
    "an outcome of nobody": {"attacks": [{**_ATTACK, "outcome": "maybe"}]},
    "forms that are numbers": {"attacks": [{**_ATTACK, "variants": [1]}]},
    "other weights": {"attacks": [_ATTACK], "verdict": "pass"},
}


def _run(folder: Path, **options: object) -> list[str]:
    said: dict[str, object] = {
        "--arch": ARCHITECTURE,
        "--clean": folder / "clean",
        "--out": folder / "out",
        "--trigger": f"{folder / 'patch.png'}@5,5:2",
        **{f"--{name.replace('_', '-')}": value for name, value in options.items()},
    }
    words = [str(word) for pair in said.items() for word in pair]
    return ["run", str(folder / "model.safetensors"), *words]


def _drills() -> Iterator[Case]:
    def given(name: str, content: bytes, codes: tuple[int, ...] = (5,)) -> Case:
        def make(folder: Path) -> list[str]:
            (folder / "drill.json").write_bytes(content)
            return _run(folder, drill=folder / "drill.json")

        return Case(f"drill: {name}", make, codes)

    for name, content in _DOCUMENTS.items():
        yield given(name, content)
    for name, change in _DRILLS.items():
        codes = (4,) if name == "other weights" else (5,)
        yield given(name, json.dumps({**_DRILL, **change}).encode(), codes)
    for name, path in {
        "zeros without end": "/dev/zero",
        "no such file": "none",
        "too long": "x" * 5000,
    }.items():
        yield Case(f"drill: {name}", partial(_run, drill=path))


def _reports() -> Iterator[Case]:
    def given(name: str, content: bytes) -> Case:
        def make(folder: Path) -> Callable[[], object]:
            (folder / "report.json").write_bytes(content)
            return lambda: Report.read(folder / "report.json")

        return Case(f"report: {name}", make)

    for name, content in _DOCUMENTS.items():
        yield given(name, content)
    for name, place in {"zeros without end": "/dev/zero", "no such file": "none"}.items():
        yield Case(f"report: {name}", partial(_read, place=place))


def _read(_: Path, place: str) -> Callable[[], object]:
    return lambda: Report.read(Path(place))


# --- options ------------------------------------------------------------------------------------


def _options() -> Iterator[Case]:
    numbers = {
        "mean": ("nan", "inf", "x", "1,2", "9" * 5000),
        "std": ("0", "-1", "nan"),
        "input-size": (
            "-1,6,6",
            "1,6",
            "0,0,0",
            "1,6,x",
            "1,-6,6",
            "9,9,9",
            "1,100000000,100000000",
        ),
        "threads": ("0", "-1", "1024", "x"),
    }
    for option, values in numbers.items():
        pair = {"mean": ["--std", "1"], "std": ["--mean", "0"]}.get(option, [])
        for value in values:
            words = [f"--{option}", value, *pair]
            yield Case(
                f"option: verify --{option} {value[:12]}",
                partial(_replaced, words=words),
                (4,),
            )
    run = {
        "seed": ("-1", "4294967296", "x"),
        "variants": ("int4", "l1-1.5", "l1--1", "l1-nan", "", "int8,int8", "l1-" + "9" * 5000),
        "suspect": ("-1", "3", "1e9", "1,1", "1,", ""),
        "audit-steps": ("-1", "5", "x"),
        "budget": ("none", ""),
        "repair-images": ("-1", "0", "1000000000"),
        "num-classes": ("0", "1", "-3", "7", "1000000000000"),
        "arch": ("", "x", "torchvision:", "torchvision:nobody", "a.b:c", "timm:../x", "os:getcwd"),
        "classes": ("a,b,c", "class0,class0,class1", "class0"),
        "input-size": ("1,-6,6", "3,6,6", "1,7,7", "1,100000,100000"),
    }
    for option, values in run.items():
        for value in values:
            name = f"option: run --{option} {value[:20]!r}"
            made = {option.replace("-", "_"): value}
            yield Case(name, partial(_told, options=made), (4, 5))


def _told(folder: Path, options: dict[str, str]) -> list[str]:
    return _run(folder, **options)


def _replaced(folder: Path, words: Sequence[str]) -> list[str]:
    """The words of an audit, with one option another."""
    usual = verify(folder)
    if words[0] in usual:
        at = usual.index(words[0])
        usual = [*usual[:at], *usual[at + 2 :]]
    return [*usual, *words]


def _into(folder: Path, place: Callable[[Path], object]) -> list[str]:
    return _run(folder, out=place(folder))


def _recorded(folder: Path, place: Callable[[Path], object]) -> list[str]:
    return [*verify(folder), "--report", str(place(folder))]


def _outputs() -> Iterator[Case]:
    places: dict[str, Callable[[Path], object]] = {
        "inside the clean images": lambda folder: folder / "clean" / "out",
        "the clean images": lambda folder: folder / "clean",
        "a folder that is not empty": lambda folder: folder,
        "a file": lambda folder: folder / "patch.png",
        "below a file": lambda folder: folder / "patch.png" / "out",
        "a path too long": lambda folder: folder / ("x" * 300),
        "a path with NUL": lambda _: "a\0b",
        "a device": lambda _: "/dev/null",
        "where nobody writes": lambda _: "/proc/out",
    }
    for name, place in places.items():
        yield Case(f"output: {name}", partial(_into, place=place), (4,))
    records: dict[str, Callable[[Path], object]] = {
        "over the model": lambda folder: folder / "model.onnx",
        "over a stranger's JSON": _strangers,
        "in no folder": lambda folder: folder / "none" / "r.json",
        "on a folder": lambda folder: folder / "clean",
        "on a device": lambda _: "/dev/null",
        "at a path too long": lambda folder: folder / ("x" * 300),
    }
    for name, place in records.items():
        yield Case(
            f"output: a report {name}",
            partial(_recorded, place=place),
            (4,),
        )


def _strangers(folder: Path) -> Path:
    path = folder / "theirs.json"
    path.write_text('{"schema_version": "1.0", "verdict": "pass"}')
    return path


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _policies()
    yield from _drills()
    yield from _reports()
    yield from _options()
    yield from _outputs()
