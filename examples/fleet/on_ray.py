# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""05: every checkpoint of a folder under one policy, on Ray.

python -m examples.fleet.on_ray MODELS IMAGES PATCH.png@X,Y:TARGET ARCH OUT
"""

import sys
from pathlib import Path

from lmr_guard import cli


def main(models: str, images: str, trigger: str, arch: str, out: str) -> int:
    """Write the plan, run it on this machine's cores, and return the worst exit code."""
    patch = str(Path(trigger).absolute())
    lines = ["[defaults]", f"clean = '{Path(images).absolute()}'", f"arch = '{arch}'"]
    lines += [f"trigger = '{patch}'", "variants = ['float32', 'int8']", "audit_steps = 0"]
    for path in sorted(Path(models).glob("*.safetensors")):
        lines += ["[[unit]]", f"name = '{path.stem}'", f"model = '{path.name}'"]
    plan = Path(models) / "plan.toml"
    plan.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return cli.main(["fleet", str(plan), "--out", out, "--executor", "ray", "--workers", "2"])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
