# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The numbers that the figures are drawn from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

from rich.console import RenderableType
from rich.text import Text

from examples.lab.kit.measuring import per_cent
from examples.lab.kit.records import Record
from examples.lab.reproduce import cells
from examples.lab.reproduce.cells import method_shares
from examples.lab.reproduce.rows import RECOVERED_MEANS, TITLES, empty_table, summary, where

__all__ = ["PARTS"]

_OURS = ("none", "lmr", "lmr-paper")
_RECOVERED = ("none", "lmr", "lmr-recovered", "lmr-paper")


def _fig2(title: str, records: Sequence[Record]) -> Iterator[RenderableType]:
    table = empty_table(title, "attack", "images", *_method_columns(_OURS), "n")
    keys = sorted({(r["cell"]["attack"], r["cell"]["share"]) for r in records})
    for attack, share in keys:
        own = where(records, attack=attack, share=share)
        used = cells.defence_images(own[0])
        rates = [
            summary(method_shares(own, method, "float32", metric))
            for method in _OURS
            for metric in ("ca", "asr")
        ]
        table.add_row(attack, f"{used} ({share:.2%})", *rates, str(len(own)))
    yield table


def _fig3(title: str, records: Sequence[Record]) -> Iterator[RenderableType]:
    table = empty_table(title, "form", *_method_columns(_RECOVERED), "n")
    for form in records[0]["cell"]["forms"] if records else ():
        rates = [
            summary(method_shares(records, method, form, metric))
            for method in _RECOVERED
            for metric in ("ca", "asr")
        ]
        table.add_row(form, *rates, str(len(records)))
    yield table
    yield Text(RECOVERED_MEANS)


def _method_columns(methods: Sequence[str]) -> list[str]:
    return [f"{TITLES[method]}: {metric}" for method in methods for metric in ("CA", "ASR")]


def _geometry(title: str, records: Sequence[Record]) -> Iterator[RenderableType]:
    table = empty_table(title, "method", "state", "lands in the target", "certified safe", "n")
    for method, first in records[0]["geometry"].items() if records else ():
        for state in first["states"]:
            found = [record["geometry"][method]["states"][state] for record in records]
            shares = [
                summary([per_cent(each[count]) for each in found])
                for count in ("lands", "certified")
            ]
            table.add_row(method, state, *shares, str(len(found)))
    yield table


PARTS: Mapping[str, Callable[[str, Sequence[Record]], Iterator[RenderableType]]] = MappingProxyType(
    {"fig2": _fig2, "fig3": _fig3, "geometry": _geometry}
)
"""What is printed of a title and records, by figure; one for figures 4 to 7."""
