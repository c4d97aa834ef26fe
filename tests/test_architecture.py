# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Who may import whom. The checker takes sources as text, so that it is tested itself."""

import ast
from collections.abc import Iterator, Mapping

import pytest
from modules import module_files

# A unit is a module or sub-package right under lmr_guard; a new one must be put here. It may
# import units of lower layers; the vocabulary may also import one another, in no circle.
VOCABULARY = frozenset(
    {
        "arithmetic",
        "by_chance",
        "classifier",
        "files",
        "measure",
        "pictures",
        "random_patterns",
        "training",
    }
)
LAYERS = (
    {"errors"},
    {"contracts", "extras", "untrusted"},
    {"likes", "results"},
    VOCABULARY,
    {"evidence", "onnxfile"},
    {"compress", "localize", "received", "release", "repel"},
    {"budgets"},
    {"redteam", "settings"},
    {"forecast", "workshop"},
    {"remaining"},
    {"repairing"},
    {"foreign", "pipeline", "proposal"},
    {"demo", "doctor", "firedrill", "fleet", "hooks", "terminal"},
    {"cli"},
    {"__main__"},
    {""},  # lmr_guard itself, which may show the others to the user
)
DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names}
# What repairs must not see the evidence, not even through something that it imports.
BLIND = frozenset({"localize", "repel", "compress"})
EVIDENCE = frozenset({"evidence", "redteam"})
MAPPED = frozenset({"hooks", "compress"})


def unit(name: str) -> str:
    """``lmr_guard.compress.prune`` -> ``compress``; ``lmr_guard`` -> the empty name."""
    return [*name.split("."), ""][1]


def imports(source: str) -> Iterator[str]:
    """Full names of all that a source imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def reachable(edges: Mapping[str, set[str]], start: str) -> set[str]:
    """All units that importing one unit brings in."""
    seen: set[str] = set()
    waiting = set(edges[start])
    while waiting:
        name = waiting.pop()
        seen.add(name)
        waiting |= edges.get(name, set()) - seen
    return seen


def unit_edges(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Which units each unit imports, itself left out."""
    edges: dict[str, set[str]] = {}
    for module, source in sources.items():
        own = unit(module)
        inside = [name for name in imports(source) if name.split(".")[0] == "lmr_guard"]
        # `from lmr_guard import __version__` names no unit: it imports the root.
        found = {unit(name) if unit(name) in DEPTH else "" for name in inside}
        edges[own] = edges.get(own, set()) | found - {own}
    return edges


def misspelled(sources: Mapping[str, str]) -> Iterator[str]:
    """Relative imports, and the mapped folders under the names that they must not have."""
    for module, source in sources.items():
        for name in imports(source):
            if name.startswith(".") or name.split(".")[0] in MAPPED:
                yield f"{module} imports {name}, which is not spelled lmr_guard..."


def upward(edges: Mapping[str, set[str]]) -> Iterator[str]:
    """Units without a layer, and imports that do not go down."""
    for own, targets in edges.items():
        if own not in DEPTH:
            yield f"{own} has no layer: add it to LAYERS"
            continue
        below = {name for name in targets if DEPTH[name] < DEPTH[own]}
        allowed = below | VOCABULARY if own in VOCABULARY else below
        for target in sorted(targets - allowed):
            yield f"{own} imports {target or 'lmr_guard'}, which is not below it"


def entangled(edges: Mapping[str, set[str]]) -> Iterator[str]:
    """Circles, and what repairs but can see the evidence."""
    for own in edges:
        reached = reachable(edges, own)
        if own in reached:
            yield f"{own} imports itself through others"
        if own in BLIND and (seen := reached & EVIDENCE):
            yield f"{own} can see {', '.join(sorted(seen))}"


def violations(sources: Mapping[str, str]) -> list[str]:
    """Every breach of the layers in the given modules (import name -> source text)."""
    edges = unit_edges(sources)
    return [*misspelled(sources), *upward(edges), *entangled(edges)]


def test_the_package_keeps_its_layers() -> None:
    sources = {name: path.read_text(encoding="utf-8") for name, path in module_files().items()}
    assert "lmr_guard.contracts" in sources
    assert violations(sources) == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("release.verify", "from lmr_guard.repel import repel", "release imports repel, which is"),
        ("release.verify", "from lmr_guard import repel", "release imports repel, which is not"),
        ("errors", "import lmr_guard.files", "errors imports files, which is not below it"),
        ("repel", "from lmr_guard import __version__", "repel imports lmr_guard, which is not"),
        ("compress.prune", "from lmr_guard.evidence import Patch", "compress can see evidence"),
        ("localize", "def f():\n    import lmr_guard.redteam.badnets", "localize can see redteam"),
        ("files", "from .errors import InputError", "lmr_guard.files imports .errors.InputError,"),
        ("pipeline", "import compress.prune", "lmr_guard.pipeline imports compress.prune, which"),
        ("pipeline", "from hooks import x", "lmr_guard.pipeline imports hooks.x, which"),
        ("novelty", "", "novelty has no layer: add it to LAYERS"),
    ],
)
def test_a_planted_breach_is_found(module: str, source: str, complaint: str) -> None:
    found = violations({f"lmr_guard.{module}": source})
    assert any(line.startswith(complaint) for line in found), found


def test_a_breach_through_a_third_module_is_found() -> None:
    sources = {
        "lmr_guard.localize": "from lmr_guard.measure import accuracy",
        "lmr_guard.measure": "from lmr_guard.evidence import Patch",
    }
    assert "localize can see evidence" in violations(sources)


def test_a_circle_in_the_vocabulary_is_found() -> None:
    sources = {
        "lmr_guard.files": "import lmr_guard.measure",
        "lmr_guard.measure": "import lmr_guard.files",
    }
    assert "files imports itself through others" in violations(sources)


def test_what_is_allowed_is_not_complained_about() -> None:
    sources = {
        "lmr_guard.compress.prune": "import torch\nfrom lmr_guard.compress.recipes import Keep",
        "lmr_guard.cli": "import json\nfrom lmr_guard import localize, pipeline",
        "lmr_guard.files": "from lmr_guard.classifier import Classifier",
    }
    assert violations(sources) == []
