# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Plans of tiny networks, as a user writes them; a unit takes some seconds."""

import os
from collections.abc import Sequence
from pathlib import Path

from factories import row_classifier, row_images, weights_file, white_png, write_images
from modules import ROOT

from lmr_guard.fleet.plan import Names, Option, Plan, read

DEFAULTS = """\
[defaults]
arch = "factories:row_architecture"
clean = "clean"
trigger = "patch.png@3,3:2"
policy = "fast.toml"
variants = ["float32"]
repair = false
audit_steps = 0
"""

# What a plan may say where no command line is asked.
OPTIONS = {
    "arch": Option(on="--arch"),
    "clean": Option(on="--clean", names=Names.PATH),
    "policy": Option(on="--policy", names=Names.PATH),
    "trigger": Option(on="--trigger", many=True, names=Names.PATCH),
    "triggered": Option(on="--triggered", many=True, names=Names.FOLDER),
    "variants": Option(on="--variants", joined=True),
    "seed": Option(on="--seed", kind=int),
    "scale": Option(on="--scale", kind=float),
    "repair": Option(on="--repair", off="--no-repair", kind=bool),
    "compare": Option(on="--compare", kind=bool),
    "audit_steps": Option(on="--audit-steps", kind=int),
}


def units(*names: str, **keys: str) -> str:
    """A table for each; the model of a unit is called like it where no key says otherwise."""
    text = ""
    for name in names:
        own = {"name": name, "model": f"{name}.safetensors", **keys}
        text += "\n[[unit]]\n" + "".join(f'{key} = "{value}"\n' for key, value in own.items())
    return text


def fleet_files(folder: Path, names: Sequence[str]) -> Path:
    """A plan with a model for each name, images, a patch and a policy; returns the plan."""
    for seed, name in enumerate(names):
        weights_file(row_classifier(seed=seed), folder / f"{name}.safetensors")
    write_images(row_images(420, seed=1), folder / "clean")
    white_png(folder / "patch.png", 1)
    (folder / "fast.toml").write_text('require = ["float32"]\n')
    plan = folder / "plan.toml"
    plan.write_text(DEFAULTS + units(*names))
    return plan


def written(folder: Path, text: str | bytes) -> Plan:
    """A plan of this text, read with ``OPTIONS``."""
    path = folder / "plan.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(path, OPTIONS)


def environment() -> dict[str, str]:
    """In which processes find the architectures of the tests."""
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
