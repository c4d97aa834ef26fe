# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What all experiments' command lines do: one line for a mistake, and work that goes on."""

from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from examples.lab.adaptive.__main__ import main as adaptive
from examples.lab.benchmarks.__main__ import main as benchmarks
from examples.lab.kit import command
from examples.lab.kit.records import Store
from examples.lab.population.__main__ import main as population
from examples.lab.reproduce.__main__ import main as reproduce
from examples.lab.structure.__main__ import main as structure
from lmr_guard.errors import ConfigError, StageError

EXPERIMENTS = {
    "adaptive": adaptive,
    "benchmarks": benchmarks,
    "population": population,
    "reproduce": reproduce,
    "structure": structure,
}


@dataclass(frozen=True)
class Piece:
    name: str


ONE, TWO, THREE = Piece("one"), Piece("two"), Piece("three")


def printing() -> tuple[Console, StringIO]:
    text = StringIO()
    return Console(file=text, width=200, highlight=False, soft_wrap=True), text


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_mistake_is_told_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert EXPERIMENTS[name](["--nothing-like-this"]) == 4
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert f"see python -m examples.lab.{name}" in told
    assert told.endswith(" --help\n")
    assert told.count("\n") == 1


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_says_what_the_experiment_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        EXPERIMENTS[name](["--help"])
    assert f"usage: python -m examples.lab.{name}" in capsys.readouterr().out


def test_an_interrupted_run_says_what_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(console: Console) -> int:
        assert console.width == 77
        raise KeyboardInterrupt

    assert command.answer(interrupt, width=77, pieces="cells") == 130
    assert capsys.readouterr().err == "interrupted; finished cells are kept\n"


def fails(*faults: tuple[Piece, Exception]) -> tuple[Callable[[Piece], None], list[Piece]]:
    done: list[Piece] = []

    def do(piece: Piece) -> None:
        for faulty, fault in faults:
            if piece is faulty:
                raise fault
        done.append(piece)

    return do, done


def test_a_piece_that_fails_is_told_and_does_not_stop_the_others() -> None:
    do, done = fails((ONE, StageError("expected a, got b")), (TWO, ValueError("[red]")))
    console, text = printing()
    assert command.do_each([ONE, TWO, THREE], do, limit=60, console=console) == 2
    assert done == [THREE]
    first, second, third = text.getvalue().splitlines()
    assert first == "[1/3] one: failed: expected a, got b"
    assert second == "[2/3] two: failed: ValueError('[red]')"
    assert third.startswith("[3/3] three: 0.")


def test_no_piece_is_begun_after_the_limit() -> None:
    do, done = fails()
    console, text = printing()
    assert command.do_each([ONE, TWO], do, limit=-1, console=console) == 0
    assert (done, text.getvalue()) == ([], "stopped after -1 s, before one\n")


def test_what_has_no_record_is_missing_and_a_cut_off_one_is_told(tmp_path: Path) -> None:
    store = Store(tmp_path / "table.jsonl")
    console, text = printing()
    assert command.missing([ONE, TWO], store, console) == [ONE, TWO]
    assert store.add({"name": "two"})
    assert store.add({"name": "three"})
    assert command.missing([ONE, TWO, THREE], store, console) == [ONE]
    assert text.getvalue() == ""
    store.path.write_bytes(store.path.read_bytes()[:-4])
    assert command.missing([ONE, TWO, THREE], store, console) == [ONE, THREE]
    assert text.getvalue() == (
        f"{store.path}: the last line is cut off; what it held is done again\n"
    )


def test_pieces_are_found_by_a_part_of_their_name() -> None:
    assert command.matching([ONE, TWO, THREE], "o", "cells") == [ONE, TWO]
    with pytest.raises(ConfigError, match="expected cells with 'four' in their name, got none"):
        command.matching([ONE, TWO], "four", "cells")


def test_cut_short_records_do_not_stand_among_the_results(tmp_path: Path) -> None:
    command.refuse_tiny_results(tmp_path, tmp_path, tiny=False)
    command.refuse_tiny_results(tmp_path / "mine", tmp_path, tiny=True)
    with pytest.raises(ConfigError, match="expected --out beside --tiny"):
        command.refuse_tiny_results(tmp_path, tmp_path, tiny=True)
