# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The wheel holds exactly the three folders, under one top-level name, and works on its own."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from email.parser import Parser
from itertools import chain
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import pytest
from modules import FOLDERS, ROOT, module_files
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def shipped_files() -> set[str]:
    """Where every file of the three folders stands in the wheel."""
    found = set()
    for package, folder in FOLDERS.items():
        files = [p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        inside = PurePosixPath(*package.split("."))
        found |= {str(inside / path.relative_to(folder).as_posix()) for path in files}
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built offline from a copy, so that nothing is left in the checkout or taken from it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS.values():
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(folder, source / folder.name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_every_file_and_no_other(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == shipped_files()
    assert {"lmr_guard/py.typed", "lmr_guard/release/report.schema.json"} <= names


def test_the_only_top_level_name_is_the_package(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        (top_level,) = (n for n in archive.namelist() if n.endswith("top_level.txt"))
        assert archive.read(top_level).split() == [b"lmr_guard"]
        roots = {name.split("/")[0] for name in archive.namelist()}
    assert roots == {"lmr_guard", top_level.split("/")[0]}


def test_the_installed_wheel_works_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with ZipFile(wheel) as archive:
        archive.extractall(site)
    names = sorted(name for name in module_files() if not name.endswith("__main__"))
    probe = (
        "import importlib, sys\n"
        "for name in sys.argv[2:]:\n"
        "    module = importlib.import_module(name)\n"
        "    assert module.__name__ == name, module.__name__\n"
        "    assert module.__file__.startswith(sys.argv[1]), module.__file__\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", probe, str(site), *names],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {"lmr_guard.hooks", "lmr_guard.compress"} <= set(names)


def test_the_licence_is_named_and_included(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        (metadata,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        fields = Parser().parsestr(archive.read(metadata).decode())
        (licence,) = (n for n in archive.namelist() if n.endswith("licenses/LICENSE"))
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    assert fields["License-Expression"] == "Apache-2.0"
    assert fields["Requires-Python"] == ">=3.11"


def test_the_base_install_pulls_no_other_tool(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        (metadata,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        fields = Parser().parsestr(archive.read(metadata).decode())
    needs = [Requirement(line) for line in fields.get_all("Requires-Dist", [])]
    base = {r.name for r in needs if not r.marker or r.marker.evaluate({"extra": ""})}
    for extra in ("mlflow", "torchao", "nncf", "olive", "ray"):
        own = {r.name for r in needs if r.marker and r.marker.evaluate({"extra": extra})} - base
        assert any(name.startswith(extra) for name in own), extra
    assert base == {Requirement(line).name for line in wanted_on_this_platform()}


def wanted_on_this_platform() -> list[str]:
    """The dependencies that everybody gets."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [Requirement(line) for line in project["dependencies"]]
    return [str(line) for line in lines if not line.marker or line.marker.evaluate()]


def test_importing_every_module_loads_no_other_tool() -> None:
    """Each is loaded when it is used, so that a hook can be imported without its tool."""
    names = sorted(name for name in module_files() if not name.endswith("__main__"))
    probe = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "print(*{n.partition('.')[0] for n in sys.modules})\n"
    )
    command = [sys.executable, "-c", probe, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "lmr_guard" in done.stdout.split()
    hosts = {"dagster", "mlflow", "nncf", "olive", "ray", "torchao"}
    formats = {"model_signing", "pyarrow", "transformers"}
    assert not (hosts | formats) & set(done.stdout.split())


def requirements() -> list[Requirement]:
    """All direct dependencies, the extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(line) for line in chain(project["dependencies"], *extras)]


@pytest.mark.parametrize(
    ("platform", "runtime"), [("linux", "onnxruntime-gpu"), ("darwin", "onnxruntime")]
)
def test_a_platform_gets_one_onnx_runtime(platform: str, runtime: str) -> None:
    environment = {"sys_platform": platform}
    wanted = [r.name for r in requirements() if not r.marker or r.marker.evaluate(environment)]
    assert [name for name in wanted if name.startswith("onnxruntime")] == [runtime]


def test_every_direct_dependency_is_pinned_within_its_bounds() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    version = {canonicalize_name(p.name): str(p.specifier).removeprefix("==") for p in pins}
    assert all(str(pin.specifier).startswith("==") for pin in pins)
    for requirement in requirements():
        assert version[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_what_is_installed_has_the_pinned_versions_and_digests() -> None:
    pins, locked = (ROOT / name for name in ("constraints.txt", "locked.txt"))
    pinned = dict(_versions(pins.read_text(encoding="utf-8").splitlines()))
    blocks = locked.read_text(encoding="utf-8").replace(" \\\n", " ").splitlines()
    blocks = [block for block in blocks if not block.startswith("#")]
    assert all(re.search(r" --hash=sha256:[0-9a-f]{64}", block) for block in blocks)
    found = dict(_versions(block.partition(" --hash")[0] for block in blocks))
    assert {name: found[name] for name in pinned if name in found} == {
        name: version for name, version in pinned.items() if name in found
    }
    here = {canonicalize_name(r.name) for r in requirements()}
    assert here <= set(found)


def _versions(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        if line and not line.startswith("#"):
            pin = Requirement(line)
            yield canonicalize_name(pin.name), str(pin.specifier).removeprefix("==")
