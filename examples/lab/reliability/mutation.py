# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Valid bytes and valid records, spoilt by what was drawn: the same numbers spoil the same way."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any

import numpy as np

__all__ = ["EXTREME", "Draws", "Spoiler", "Tree", "drawn"]

Draws = list[int]
"""What one execution may use up, each a whole number from 0 to 2**62."""

_BLOCK = 1000
_DRAWS = 24
_MOST = 4  # changes of one input

EXTREME: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 0.5, -0.0, 1e308, -1e308, 5e-324),
    *(math.nan, math.inf, -math.inf, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**400, 1 << 40),
    *("", "x", "pass", "fail", "\0", "\ud800", "\x1b[31m", "a" * 1000, "../..", "１"),
    *([], {}, [[]], [{}], [None], [1, 2], {"": None}, {"x": {}}, [0.5] * 40, ["a", "a"]),
)
"""Values that JSON can hold and that few expect."""

_NUMBERS = (
    *(b"0", b"-0", b"-1", b"1e999", b"-1e999", b"1e-999", b"nan", b"inf", b"-inf", b"0x10"),
    *(b"1_0", b"007", b"1e5", b"0.99999999999", b"2147483648", b"9223372036854775807"),
    *(b"18446744073709551616", b"1979-05-27", b"true", "１２".encode()),
    *(b"9" * 400, b"9" * 5000, b"0." + b"0" * 400 + b"1"),
)
_WORDS = (
    *(0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF),
    *(1 << 62, 1 << 63, (1 << 64) - 1, (1 << 64) - 8),
)
_DIGITS = re.compile(rb"-?[0-9][0-9.eE+-]*")


def drawn(seed: int, start: int = 0) -> Iterator[tuple[int, Draws]]:
    """Each execution's number and draws, without end; any can be had again from its number."""
    for block in count(start // _BLOCK):
        generator = np.random.default_rng((seed, block))
        rows: list[Draws] = generator.integers(0, 1 << 62, (_BLOCK, _DRAWS)).tolist()
        first = block * _BLOCK
        for number in range(max(start, first), first + _BLOCK):
            yield number, rows[number - first]


class Spoiler:
    """Makes invalid bytes from valid ones.

    Args:
        seeds: Valid ones.
        tokens: What a reader of this kind looks for.
    """

    def __init__(self, seeds: Sequence[bytes], tokens: Sequence[bytes] = (b"\0",)) -> None:
        self.seeds, self.tokens = tuple(seeds), tuple(tokens)
        self._changes: tuple[Callable[[bytearray, int, int, int], None], ...] = (
            *(_flip, _set, _cut, _double, _insert, _truncate, _word, _number),
            *(self._token, self._over, self._splice),
        )

    def __call__(self, draws: Draws) -> bytes:
        """One to four changes."""
        data = bytearray(self.seeds[draws[0] % len(self.seeds)])
        for start in range(2, 2 + 4 * (1 + draws[1] % _MOST), 4):
            kind, place, value, more = draws[start : start + 4]
            change = self._changes[kind % len(self._changes)]
            change(data, place % (len(data) + 1), value, more)
        return bytes(data)

    def _token(self, data: bytearray, at: int, value: int, _more: int) -> None:
        data[at:at] = self.tokens[value % len(self.tokens)]

    def _over(self, data: bytearray, at: int, value: int, _more: int) -> None:
        token = self.tokens[value % len(self.tokens)]
        data[at : at + len(token)] = token

    def _splice(self, data: bytearray, at: int, value: int, more: int) -> None:
        other = self.seeds[value % len(self.seeds)]
        data[at:] = other[more % (len(other) + 1) :]


def _flip(data: bytearray, at: int, value: int, _more: int) -> None:
    if data:
        data[at % len(data)] ^= 1 << value % 8


def _set(data: bytearray, at: int, value: int, _more: int) -> None:
    data[at : at + 1] = bytes([value % 256])


def _cut(data: bytearray, at: int, value: int, _more: int) -> None:
    del data[at : at + 1 + value % 16]


def _double(data: bytearray, at: int, value: int, more: int) -> None:
    data[at:at] = data[at : at + 1 + value % 64] * (1 + more % 3)


def _insert(data: bytearray, at: int, value: int, more: int) -> None:
    data[at:at] = value.to_bytes(8, "little")[: 1 + more % 8]


def _truncate(data: bytearray, at: int, _value: int, _more: int) -> None:
    del data[at:]


def _word(data: bytearray, at: int, value: int, more: int) -> None:
    """A count, a length or an offset that nobody means."""
    wide = (1, 2, 4, 8)[more % 4]
    word = _WORDS[value % len(_WORDS)] & ((1 << 8 * wide) - 1)
    data[at : at + wide] = word.to_bytes(wide, "little" if more & 4 else "big")


def _number(data: bytearray, at: int, value: int, _more: int) -> None:
    found = _DIGITS.search(data, at) or _DIGITS.search(data)
    if found is not None:
        data[found.start() : found.end()] = _NUMBERS[value % len(_NUMBERS)]


_Way = tuple[str | int, ...]


class Tree:
    """Makes invalid records from a valid one, of JSON's types; it stays as it is."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._paths = list(_paths(document))

    def __call__(self, draws: Draws) -> Any:  # noqa: ANN401 - any value of JSON
        """One to four changes."""
        found: Any = self._document
        for start in range(2, 2 + 4 * (1 + draws[1] % _MOST), 4):
            kind, place, value, more = draws[start : start + 4]
            path = self._paths[place % len(self._paths)]
            found = _changed(found, path, partial(self._other, (kind, value, more)))
        return found

    def _other(self, draws: tuple[int, int, int], old: Any) -> Any:  # noqa: ANN401
        kind, value, more = draws
        if kind % 4 == 0:
            path = self._paths[value % len(self._paths)]
            return _at(self._document, path)
        if kind % 4 == 1 and isinstance(old, dict) and old:
            return _without(old, value, more)
        if kind % 4 == 1 and isinstance(old, list) and old:
            return old[: value % len(old)] if more % 2 else old * (2 + more % 3)
        return EXTREME[value % len(EXTREME)]


def _without(old: dict[str, Any], value: int, more: int) -> dict[str, Any]:
    """A key less, or under another name."""
    name = list(old)[value % len(old)]
    rest = {key: item for key, item in old.items() if key != name}
    return rest if more % 2 else {**rest, f"{name}x": old[name]}


def _paths(value: object, path: _Way = ()) -> Iterator[_Way]:
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _paths(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _paths(item, (*path, index))


def _at(value: Any, path: _Way) -> Any:  # noqa: ANN401
    for step in path:
        value = value[step]
    return value


def _changed(value: Any, path: _Way, change: Callable[[Any], Any]) -> Any:  # noqa: ANN401
    """A copy along a path; as it is where an earlier change took the path away."""
    if not path:
        return change(value)
    step, rest = path[0], path[1:]
    if isinstance(value, dict) and step in value:
        return {**value, step: _changed(value[step], rest, change)}
    if isinstance(value, list) and isinstance(step, int) and step < len(value):
        return [*value[:step], _changed(value[step], rest, change), *value[step + 1 :]]
    return value
