# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What the long runs found, as records in JSON and as a page."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from examples.lab.kit.provenance import commit, provenance
from examples.lab.reliability.fuzz import Run
from examples.lab.reliability.guided import Extent, GuidedRun
from examples.lab.reliability.kills import Struck
from examples.lab.reliability.states import Held
from lmr_guard.errors import InputError
from lmr_guard.files import atomic

__all__ = [
    "PAGE",
    "RESULTS",
    "bypasses_record",
    "fuzz_record",
    "guided_record",
    "inputs_record",
    "kills_record",
    "large_record",
    "load",
    "page",
    "save",
]

_ROOT = Path(__file__).parents[3]
RESULTS = Path(__file__).parent / "results"
PAGE = _ROOT / "docs" / "reliability.md"
_COMMAND = "python -m examples.lab.reliability"

Record = dict[str, Any]


# --- records ------------------------------------------------------------------------------------


def inputs_record(found: Mapping[str, Sequence[str]], seconds: float) -> Record:
    """Of the corpus.

    Args:
        found: What is wrong with each case, by its name.
        seconds: That all of them took.
    """
    families: dict[str, Counter[str]] = {}
    for name, faults in found.items():
        counts = families.setdefault(name.partition(":")[0], Counter(tried=0, right=0, wrong=0))
        counts.update(["tried", "wrong" if faults else "right"])
    wrong = [{"name": name, "faults": list(faults)} for name, faults in found.items() if faults]
    return _with_source({"families": families, "faults": wrong, "seconds": round(seconds)})


def kills_record(found: Mapping[str, Sequence[Struck]], seed: int, seconds: float) -> Record:
    """Of attempts, by their kind."""
    kinds = {}
    for kind, struck in found.items():
        wrong = sum(bool(each.faults) for each in struck)
        kinds[kind] = {
            "tried": len(struck),
            "survived": len(struck) - wrong,
            "wrong": wrong,
            "killed": sum(each.code < 0 for each in struck),
            "held": {str(state): sum(each.held is state for each in struck) for state in Held},
            "codes": {str(code): n for code, n in sorted(Counter(s.code for s in struck).items())},
        }
    faults = [
        {"name": f"{kind}: {each.name}", "faults": list(each.faults)}
        for kind, struck in found.items()
        for each in struck
        if each.faults
    ]
    return _with_source({"seed": seed, "kinds": kinds, "faults": faults, "seconds": round(seconds)})


def fuzz_record(runs: Iterable[Run], seed: int) -> Record:
    """Of fuzzing, by target."""
    return _with_source({"seed": seed, "targets": [asdict(run) for run in runs]})


def guided_record(runs: Iterable[GuidedRun], extent: Extent, atheris: str) -> Record:
    """Of coverage-guided fuzzing, by target.

    Args:
        runs: Of each reader.
        extent: Of each of them.
        atheris: Its version.
    """
    targets = [asdict(run) for run in runs]
    return _with_source({**asdict(extent), "atheris": atheris, "targets": targets})


def bypasses_record(found: Mapping[str, str], seconds: float) -> Record:
    """Of the known ways past the gate.

    Args:
        found: How the test of each ended, by what it says.
        seconds: That all of them took.
    """
    return _with_source({"tests": dict(found), "seconds": round(seconds)})


def large_record(sizes: Sequence[Mapping[str, object]]) -> Record:
    """Of inputs that are right, and large."""
    return _with_source({"sizes": list(sizes)})


def _with_source(record: Record) -> Record:
    return {**record, "environment": provenance(commit())}


def save(record: Record, path: Path) -> None:
    """As JSON; an earlier record is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        file.write(json.dumps(record, indent=1).encode() + b"\n")


def load(path: Path) -> Record | None:
    """None where there is no such record yet.

    Raises:
        InputError: It is damaged.
    """
    if not path.exists():
        return None
    try:
        found: Record = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"expected a record in JSON, got {error}: {path}") from error
    return found


# --- the page -----------------------------------------------------------------------------------


def page(folder: Path) -> str:
    """What is in the records of a folder, in Markdown; what is missing is named."""
    parts = [
        "# Reliability",
        f"Written by `make reliability` (`{_COMMAND} inputs`, `kills`, `fuzz`, `large`, "
        "`bypasses`, `show --write`) and `make guided` (`guided`) from the records in "
        "`examples/lab/reliability/results/`. "
        "Every fault that the last runs found is listed by name.",
        *_inputs(load(folder / "inputs.json")),
        *_kills(load(folder / "kills.json")),
        *_fuzz(load(folder / "fuzz.json")),
        *_guided(load(folder / "guided.json")),
        *_large(load(folder / "large.json")),
        *_bypasses(load(folder / "bypasses.json")),
    ]
    return "\n\n".join(parts) + "\n"


def _inputs(record: Record | None) -> list[str]:
    said = [
        "## Bad inputs",
        "Each is handed to the command line. Right is the exit code that belongs to it, one line "
        "*expected ..., got ...*, nothing written, less than 2 GB and two minutes.",
    ]
    if record is None:
        return [*said, _missing("inputs")]
    rows = [[name, *(n[k] for k in _COUNTS)] for name, n in record["families"].items()]
    return [*said, _table(("family", *_COUNTS), rows), *_ending(record)]


_COUNTS = ("tried", "right", "wrong")


def _kills(record: Record | None) -> list[str]:
    said = [
        "## Kills",
        "A run that publishes one file, or an audit that replaces a record, is cut short. It "
        "survived where the output holds nothing or one whole result (the record, and each file "
        "that it names with the digest that it gives), the same command once more ends as if "
        "nothing had been, and nothing is left behind. *Died* counts those that a signal ended; "
        "others were told an error, or had ended before. *Half* counts those that an empty folder "
        "held a part of, the record first, until the next run took it back: see `finish` in "
        "`lmr_guard/release/publish.py`.",
    ]
    if record is None:
        return [*said, _missing("kills")]
    rows = [
        [kind, n["tried"], n["killed"], n["survived"], n["held"]["begun"], n["wrong"]]
        for kind, n in record["kinds"].items()
    ]
    head = ("kind", "tried", "died", "survived", "half", "wrong")
    return [*said, _table(head, rows), *_ending(record)]


def _fuzz(record: Record | None) -> list[str]:
    said = [
        "## Fuzzing",
        "Valid input is spoilt and read. A crash is whatever is raised that is no refusal with "
        "exit code 4 or 5, an execution of more than ten seconds, or the end of the process. "
        f"`{_COMMAND} fuzz --target T --seed S --replay N` does execution N again.",
    ]
    if record is None:
        return [*said, _missing("fuzz")]
    runs = record["targets"]
    rows = [[r["target"], r["executions"], r["accepted"], len(r["crashes"])] for r in runs]
    whole = [sum(row[i] for row in rows) for i in (1, 2, 3)]
    faults = [
        {"name": f"{r['target']} {c['number']}", "faults": [f"{c['error']}, {c['times']} times"]}
        for r in runs
        for c in r["crashes"]
    ]
    table = _table(("target", "executions", "read", "crashes"), [*rows, ["all", *whole]])
    return [*said, table, *_ending({**record, "faults": faults})]


def _guided(record: Record | None) -> list[str]:
    said = [
        "## Coverage-guided fuzzing",
        "Those readers that are handed a file which somebody else made, once more: "
        "[atheris](https://github.com/google/atheris) spoils the same valid files and keeps, to "
        "spoil it further, each input by which the reader takes a branch that none before took. "
        "Counted are branches of this package and of the parsers in Python below it (tomllib, "
        "tarfile, Pillow's), not those of C, C++ and Rust, nor those of a process apart, as the "
        "one that opens `checkpoint.torch`. An answer is wrong as above; the record holds the "
        "first input of each kind.",
    ]
    if record is None:
        return [*said, _missing("guided")]
    runs = record["targets"]
    numbers = ("executions", "accepted", "covered", "corpus")
    rows = [[r["target"], *(r[n] for n in numbers), len(r["wrong"])] for r in runs]
    whole = [sum(row[i] for row in rows) for i in (1, 2)]
    rows.append(["all", *whole, "", "", sum(row[5] for row in rows)])
    faults = [
        {"name": f"{r['target']} {w['number']}", "faults": [f"{w['error']}, {w['size']} bytes"]}
        for r in runs
        for w in r["wrong"]
    ]
    table = _table(("target", "executions", "read", "branches", "kept", "wrong"), rows)
    how = f"atheris {record['atheris']}, {record['seconds']:g} seconds for each reader."
    rest = {name: value for name, value in record.items() if name != "seconds"}
    return [*said, table, how, *_ending({**rest, "faults": faults})]


def _large(record: Record | None) -> list[str]:
    said = [
        "## Large inputs",
        "`lmr-guard verify`, on one thread. Memory is what the process, or the one that it opens "
        "the file in first, takes beyond its imports.",
    ]
    if record is None:
        return [*said, _missing("large")]
    rows = [[n["name"], n["code"], n["seconds"], n["megabytes"]] for n in record["sizes"]]
    return [*said, _table(("input", "exit code", "seconds", "MB"), rows), *_ending(record)]


def _bypasses(record: Record | None) -> list[str]:
    said = [
        "## Bypasses",
        "`tests/test_bypasses.py` holds a test for each known way to get something published that "
        "nobody should ship, and for what has to get through beside it. They run with all others.",
    ]
    if record is None:
        return [*said, _missing("bypasses")]
    wrong = {name: word for name, word in record["tests"].items() if word != "passed"}
    held = "\n".join(f"- {name}" for name in record["tests"] if name not in wrong)
    faults = [{"name": name, "faults": [word]} for name, word in wrong.items()]
    counts = f"{len(record['tests'])} tried, {len(wrong)} ended wrongly. Those that held:"
    return [*said, counts, held, *_ending({**record, "faults": faults})]


def _missing(command: str) -> str:
    return f"Not run yet: `{_COMMAND} {command}`."


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def _ending(record: Record) -> list[str]:
    """Every fault by name, and where the numbers come from."""
    listed = []
    if "faults" in record:
        faults = [
            f"- `{fault['name']}`: {'; '.join(map(_shown, fault['faults']))}"
            for fault in record["faults"]
        ]
        listed = ["Faults:", "\n".join(faults)] if faults else ["No faults."]
    made = record["environment"]
    versions = made["packages"]
    runtime = versions["onnxruntime"] or versions["onnxruntime-gpu"]
    source = (
        f"Commit {made['commit']}, Python {made['python']}, torch {versions['torch']}, onnxruntime "
        f"{runtime}, {made['cpu']['model']}"
    )
    more = [f"seed {record['seed']}"] if "seed" in record else []
    more += [f"{record['seconds']} seconds"] if "seconds" in record else []
    return [*listed, ", ".join([source, *more]) + "."]


def _shown(text: str) -> str:
    """In one line, and no mark-up."""
    line = " ".join(text.split())[:300].replace("`", "'")
    return f"`{line}`"
