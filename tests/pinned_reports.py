# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Reports that a change of structure must leave as they are, byte for byte.

A change that means to change numbers renews them, in a commit of its own::

    LMR_GUARD_PIN=1 .venv/bin/python -m pytest tests/test_pipeline.py -k pinned
"""

import copy
import json
import os
from pathlib import Path
from typing import Any

__all__ = ["outline", "pinned", "without_place"]

_FOLDER = Path(__file__).parent / "pinned"
_HOST = ("cpu", "packages", "python", "threads")


def without_place(document: dict[str, Any]) -> dict[str, Any]:
    """All of a report but its time and where the model lay, of its environment what decides."""
    kept = copy.deepcopy(document)
    del kept["model"]["path"], kept["created"]
    kept["environment"] = {name: kept["environment"][name] for name in _HOST}
    return kept


def outline(document: dict[str, Any]) -> dict[str, object]:
    """What every processor agrees on: who was suspected, what was built, and how it was set."""
    forms = (*document["variants"], *document["received"])
    return {
        "names": sorted(document),
        "suspect": document["suspicion"]["target"],
        "forms": [(form["name"], form["achieved"]["bits"], sorted(form)) for form in forms],
        "config": document["config"],
        "notes": document["notes"],
    }


def pinned(name: str, document: dict[str, Any]) -> tuple[object, object]:
    """Ours and the pinned report, in the form in which both must be the same.

    Whole on a host like the one that it was pinned on: the same processor, packages, Python and
    number of threads. Elsewhere the last bits of a training differ, and their outlines remain.
    """
    ours, place = without_place(document), _FOLDER / f"{name}.json"
    if os.environ.get("LMR_GUARD_PIN"):
        place.write_text(json.dumps(ours, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    theirs = json.loads(place.read_text(encoding="utf-8"))
    if ours["environment"] == theirs["environment"]:
        return ours, theirs
    return outline(ours), outline(theirs)
