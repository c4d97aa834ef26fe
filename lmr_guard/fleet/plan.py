# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""A plan in TOML: which models under which policies, as the arguments of one run each.

::

    [defaults]                             # every unit takes these
    clean = "images"
    trigger = ["patch.png@24,24:7"]
    policy = ["strict.toml", "usual.toml"] # each unit once under each

    [[unit]]
    name = "door"
    model = "door.safetensors"
    arch = "torchvision:resnet18"

Keys are the options of ``lmr-guard run`` with underscores, values as the option takes them: a list
where it may be repeated or takes names separated by commas, ``true`` or ``false`` for a switch.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any

from lmr_guard.errors import ConfigError, cut_short, printable
from lmr_guard.evidence import PatchFile, TriggeredFolder
from lmr_guard.files import sha256_of
from lmr_guard.untrusted import read_toml, require_known, shown

__all__ = ["Names", "Option", "Plan", "Shard", "Unit", "read"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_READABLE = 80  # characters of a value that one line can hold
_OWN = ("name", "model")
_MODEL, _POLICY, _ARCH, _CLEAN = "model", "policy", "arch", "clean"
_SHARD = re.compile(r"([0-9]{1,6}|kubernetes|slurm)/([0-9]{1,6})")
# Where a scheduler tells a task which of its array it is, counted from 0 as the examples do.
_INDICES = {"kubernetes": "JOB_COMPLETION_INDEX", "slurm": "SLURM_ARRAY_TASK_ID"}


class Names(Enum):
    """What the value of an option names, of which the content decides the run."""

    NOTHING = "nothing"
    PATH = "path"
    PATCH = "patch"
    FOLDER = "folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An option of ``lmr-guard run`` as a key of a unit.

    Args:
        on: How it is spelled, e.g. ``--arch``.
        off: How a switch is turned off, e.g. ``--no-repair``; None where it has no such form.
        kind: Of its value: ``bool`` for a switch, else ``int``, ``float`` or ``str``.
        many: Whether it may be repeated.
        joined: Whether it takes several values separated by commas.
        names: What its value names.
    """

    on: str
    off: str | None = None
    kind: type[bool] | type[int] | type[float] | type[str] = str
    many: bool = False
    joined: bool = False
    names: Names = Names.NOTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One run of a plan.

    Args:
        name: Unique in the plan, also where a file system ignores case; a plain file name.
        model: The checkpoint as the plan names it.
        policy: The policy file as the plan names it; None for the default limits.
        arch: As the plan names it; None for an ONNX file.
        clean: The folder of clean images.
        words: Arguments of ``lmr-guard run`` without ``--out``, for the folder of the plan.
        files: What it reads: for each key and place, where that lies.
    """

    name: str
    model: str
    policy: str | None
    arch: str | None
    clean: Path
    words: tuple[str, ...]
    files: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class Plan:
    """All units of a plan, in its order.

    Args:
        path: The file that it was read from.
        folder: Where that lies, absolute; what the plan names is looked for from there.
        units: At least one.
        sha256: Of the file.
    """

    path: Path
    folder: Path
    units: tuple[Unit, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class Shard:
    """Every ``count``-th unit of a plan, from ``index`` on.

    Args:
        index: From 0.
        count: Into how many parts the plan is cut, >= 1.

    Raises:
        ConfigError: The index is not below the count.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        """Validates; see the class."""
        if not 0 <= self.index < self.count:
            raise ConfigError(
                f"expected shard I/N with I in 0..N-1, got {self.index}/{self.count}; "
                "shards are counted from 0"
            )

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> "Shard":
        """``I/N``; or ``kubernetes/N``, ``slurm/N``, where the scheduler says which.

        >>> Shard.parse("2/8")
        Shard(index=2, count=8)
        >>> Shard.parse("slurm/8", {"SLURM_ARRAY_TASK_ID": "3"})
        Shard(index=3, count=8)

        Raises:
            ConfigError: The text has another form, or the scheduler's variable is not there.
        """
        found = _SHARD.fullmatch(text)
        if found is None:
            raise ConfigError(
                f"expected --shard I/N, kubernetes/N or slurm/N, got {text[:_READABLE]!r}"
            )
        which, count = found[1], int(found[2])
        if which not in _INDICES:
            return cls(int(which), count)
        variable = _INDICES[which]
        said = environment.get(variable, "")
        if re.fullmatch("[0-9]{1,6}", said) is None:
            got = repr(said[:_READABLE]) if said else "nothing"
            raise ConfigError(
                f"expected a whole number in {variable} for --shard {which}/{count}, got {got}; "
                "start it as a task of an array, or say --shard I/N"
            )
        return cls(int(said), count)

    def of(self, plan: Plan) -> tuple[Unit, ...]:
        """Its units. Raises nothing: a shard may be empty."""
        return tuple(islice(plan.units, self.index, None, self.count))


def read(path: Path, options: Mapping[str, Option]) -> Plan:
    """A plan, checked for its form; no model, image or policy is read.

    Args:
        path: Of a TOML file.
        options: By key, all that ``lmr-guard run`` takes and a plan may say.

    Raises:
        ConfigError: No such file, no TOML, a key that is not known, a value of another type, a
            name that is none, or one that two units have.
    """
    table = read_toml(path, "a plan")
    sha256 = sha256_of(path)
    require_known(table, ("defaults", "unit"), "a key of a plan", str(path))
    folder = path.absolute().parent
    defaults = _table(table.get("defaults", {}), "defaults")
    require_known(defaults, (_MODEL, *options), "an option of run", "defaults")
    listed = table.get("unit", [])
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f"expected units, each under [[unit]], got none: {shown(path)}")
    units: list[Unit] = []
    for number, each in enumerate(listed, 1):
        own = _table(each, f"unit {number}")
        name = _name(own, number)
        require_known(own, (*_OWN, *options), "a key of a unit", f"unit {name}")
        units += _under_each_policy(name, {**defaults, **own}, options, folder)
    _require_each_once([unit.name for unit in units])
    return Plan(path, folder, tuple(units), sha256)


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"expected {where} to be a table, got {_said(value)}")
    return value


def _name(own: Mapping[str, Any], number: int) -> str:
    name = own.get("name")
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        got = "none" if name is None else _said(name)
        raise ConfigError(
            f"expected a name of unit {number} that a file can have (letters, digits, and . _ - "
            f"after the first), got {got}"
        )
    return name


def _require_each_once(names: Sequence[str]) -> None:
    taken: set[str] = set()
    for name in names:
        # Some file systems take two names that differ in case for one.
        if name.lower() in taken:
            raise ConfigError(f"expected each name once, got {name!r} again; rename a unit")
        taken.add(name.lower())


def _under_each_policy(
    name: str, table: Mapping[str, Any], options: Mapping[str, Option], folder: Path
) -> Iterator[Unit]:
    """One unit, or one for each of a list of policies, called ``NAME@POLICY``."""
    policies = table.get(_POLICY)
    if not isinstance(policies, list):
        yield _unit(name, table, options, folder)
        return
    if not policies or not all(isinstance(each, str) for each in policies):
        raise ConfigError(f"expected policies in unit {name}, got {_said(policies)}")
    for each in policies:
        stem = Path(each).stem
        if _NAME.fullmatch(stem) is None:
            raise ConfigError(
                f"expected policy files of plain names in unit {name}, got {_said(each)}"
            )
        yield _unit(f"{name}@{stem}", {**table, _POLICY: each}, options, folder)


def _unit(name: str, table: Mapping[str, Any], options: Mapping[str, Option], folder: Path) -> Unit:
    for key in (_MODEL, _CLEAN):
        if key not in table:
            raise ConfigError(f"expected {key} in unit {name} or in the defaults, got none")
    model = _text(table[_MODEL], _MODEL, name)
    words: list[str] = []
    files = {_MODEL: folder / model}
    for key, option in options.items():
        if key not in table:
            continue
        values = _values(table[key], option, key, name)
        words += _words(values, option)
        for number, value in enumerate(values):
            if (place := _place(value, option)) is not None:
                files[f"{key} {number}"] = folder / place
    # Behind the two dashes nothing is an option.
    return Unit(
        name=name,
        model=model,
        policy=table.get(_POLICY),
        arch=table.get(_ARCH),
        clean=files[f"{_CLEAN} 0"],
        words=(*words, "--", model),
        files=files,
    )


def _values(value: object, option: Option, key: str, unit: str) -> list[Any]:
    """What a key holds, each value of the right type."""
    listed = value if isinstance(value, list) and (option.many or option.joined) else [value]
    kinds = (int, float) if option.kind is float else option.kind
    for each in listed:
        text = _written(each)
        # A bool is an int to Python, and not to whoever wrote the plan.
        fits = isinstance(each, kinds) and (option.kind is bool or not isinstance(each, bool))
        if option.joined and isinstance(value, list):
            fits = isinstance(each, str | int | float) and not isinstance(each, bool)
            fits = fits and "," not in (text or "")
        if not fits or text is None:
            more = " or a list" if option.many or option.joined else ""
            word = {bool: "true or false", int: "a whole number", float: "a number"}
            kind = word.get(option.kind, "text")
            raise ConfigError(f"expected {kind}{more} for {key} in unit {unit}, got {_said(each)}")
    if option.joined:
        return [",".join(str(each) for each in listed)]
    return list(listed)


def _written(value: object) -> str | None:
    """As it stands in a command; None for a number that TOML holds and Python does not write."""
    try:
        return str(value)
    except (RecursionError, ValueError):
        return None


def _words(values: Sequence[Any], option: Option) -> Iterator[str]:
    for value in values:
        if option.kind is not bool:
            yield f"{option.on}={value}"
        elif value:
            yield option.on
        elif option.off is not None:
            yield option.off


def _place(value: object, option: Option) -> Path | None:
    """The path that a value names. Raises ConfigError for another form of a trigger."""
    if option.names is Names.PATH:
        return Path(str(value))
    if option.names is Names.PATCH:
        return PatchFile.parse(str(value)).path
    if option.names is Names.FOLDER:
        return TriggeredFolder.parse(str(value)).path
    return None


def _text(value: object, key: str, unit: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"expected text for {key} in unit {unit}, got {_said(value)}")
    return value


def _said(value: object) -> str:
    return printable(cut_short(value, _READABLE))
