# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Every module of the package by its import name, found on the disk.

``pkgutil`` does not see the mapped folders of an editable install, hence the walk.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "lmr_guard": ROOT / "lmr_guard",
    "lmr_guard.compress": ROOT / "compress",
    "lmr_guard.hooks": ROOT / "hooks",
}


def module_files() -> dict[str, Path]:
    """Import name of every module, packages included, and its file."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            kept = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *kept))] = path
    return found
