# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The documentation builds as a site without a warning, and what it tells to type works."""

import importlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from factories import row_classifier, row_images, six_rows
from modules import ROOT

from lmr_guard.cli import _HOMES, cli, main
from lmr_guard.contracts import Clean
from lmr_guard.errors import ExitCode
from lmr_guard.onnxfile.export import export_onnx
from lmr_guard.received.parts import split
from lmr_guard.release.policy import Policy

PAGES = sorted(
    [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("README.md")]
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return [block for kind, block in BLOCK.findall(text) if kind == language]


def commands(page: Path) -> Iterator[list[str]]:
    """Every ``lmr-guard`` line of a page's blocks, as words."""
    for _, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.search(r"(?:^|- |run: |sh ')\s*(lmr-guard (?!\.\.\.)[^'|]+)", line)
            if found:
                yield shlex.split(found[1].split("||")[0], comments=True)


LINES = [(page, words) for page in PAGES for words in commands(page) if "..." not in words]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    words = ["-W", "--keep-going", "-n", "-q", "-b", "html", "docs", str(tmp_path / "site")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    built = {path.relative_to(tmp_path / "site").as_posix() for path in tmp_path.rglob("*.html")}
    sources = (path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md"))
    assert {path.with_suffix(".html").as_posix() for path in sources} <= built
    index = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "What a pass means, and what not" in index
    assert "pass-light.png" in index


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    shutil.copy(ROOT / "docs" / "conf.py", tmp_path)
    (tmp_path / "index.md").write_text("# Title\n\n[nowhere](nowhere.md)\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-n", "-q", str(tmp_path), str(tmp_path / "site")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr


def test_there_are_commands_to_look_at() -> None:
    assert len(LINES) >= 12
    assert {words[1] for _, words in LINES} >= {"init", "run", "admit", "drill", "report", "diff"}


@pytest.mark.parametrize(
    ("page", "words"),
    LINES,
    ids=[f"{page.stem}-{words[1]}-{n}" for n, (page, words) in enumerate(LINES)],
)
def test_every_command_parses(page: Path, words: list[str]) -> None:
    assert words[1] in _HOMES, page
    found = cli.get_command(click.Context(cli), words[1])
    assert found is not None
    values, left, _ = found.make_parser(click.Context(found)).parse_args(words[2:])
    assert left == [], page
    required = {each.name for each in found.params if each.required}
    assert required <= values.keys(), page


# --- typed as it stands -------------------------------------------------------------------------


@pytest.fixture
def place(six_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with files called as in the documentation."""
    shutil.copytree(six_files / "clean", tmp_path / "images")
    for name in ("model.safetensors", "patch.png"):
        shutil.copy(six_files / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(words: list[str], *more: str) -> int:
    """The answer to a command whose network and trigger are those of the small files."""
    other = {
        "torchvision:resnet18": "factories:six_rows",
        "patch.png@24,24:7": "patch.png@6,6:2",
        "images/": "images",
    }
    return main([*(other.get(word, word) for word in words[1:]), *more])


def lines_of(name: str, command: str) -> list[list[str]]:
    return [words for page, words in LINES if page.name == name and words[1] == command]


SHORT = ("--variants", "float32,int8", "--audit-steps", "0", "--threads", "1")


@pytest.mark.slow
def test_from_init_to_admit_as_usage_has_it(place: Path) -> None:
    (init,) = lines_of("usage.md", "init")
    arch = ["--arch", "factories:six_rows", "--variants", "float32,int8"]
    assert typed(init, *arch) == ExitCode.PASSED
    policy = place / "policy.toml"
    loose = policy.read_text().replace("max_asr = 0.05", "max_asr = 0.9")
    policy.write_text(loose.replace("max_accuracy_drop = 0.03", "max_accuracy_drop = 0.9"))
    (run,) = lines_of("usage.md", "run")
    assert typed(run, *SHORT, "--no-repair") == ExitCode.PASSED
    (admit,) = lines_of("usage.md", "admit")
    shutil.copy("release/float32.onnx", "model.onnx")
    shutil.copy("release/report.json", "report.json")
    assert typed(admit) == ExitCode.PASSED
    shutil.copytree("release", "before")
    shutil.copytree("release", "after")
    for words in (*lines_of("report.md", "report"), *lines_of("report.md", "diff")):
        assert typed(words) == ExitCode.PASSED
    assert (place / "release" / "report.html").is_file()
    for words in lines_of("evidence.md", "attest"):
        if "--check" not in words:  # What was published has no statement beside it here.
            assert typed(words) == ExitCode.PASSED


def six_parts() -> Clean:
    """Images of six classes, as the calls in Python take them."""
    generator = torch.Generator().manual_seed(1)
    return split(row_images(420, seed=1, rows=6), repair=250, select=85, generator=generator)


@pytest.mark.slow
def test_an_onnx_file_as_its_page_has_it(place: Path) -> None:
    export_onnx(row_classifier(six_rows, rows=6), place / "model.onnx")
    (snippet,) = blocks(ROOT / "docs" / "onnx-in.md", "python")
    space: dict[str, Any] = {"clean": six_parts()}
    exec(compile(snippet, "onnx-in.md", "exec"), space)  # noqa: S102 - the page is ours
    assert (place / "repaired.onnx").is_file()
    assert space["receipt"].hook == "pre_quantize"


def test_the_policy_is_the_default_one() -> None:
    (text,) = blocks(ROOT / "docs" / "usage.md", "toml")
    assert Policy.from_json(tomllib.loads(text)) == Policy()
    assert tomllib.loads(text).keys() == asdict(Policy()).keys()


HOSTED = blocks(ROOT / "docs" / "hosts.md", "python")


@pytest.mark.parametrize("number", range(len(HOSTED)))
def test_what_hosts_md_imports_is_there(number: int) -> None:
    """The blocks themselves need hosts at work: ``tests/test_hooks_*.py`` run what they name."""
    compile(HOSTED[number], "hosts.md", "exec")
    for module, names in re.findall(r"^from (\S+) import (.+)$", HOSTED[number], re.MULTILINE):
        found = importlib.import_module(module)
        assert all(hasattr(found, name.strip()) for name in names.split(","))


@pytest.mark.slow
def test_the_hook_of_hosts_md_runs() -> None:
    (snippet,) = (block for block in HOSTED if "pre_prune, pre_quantize" in block)
    model = row_classifier(six_rows, rows=6)
    space: dict[str, Any] = {
        "network": model.network,
        "shape": model.preprocessing,
        "clean": six_parts(),
    }
    exec(compile(snippet, "hosts.md", "exec"), space)  # noqa: S102 - the page is ours
    assert space["receipt"].hook == "pre_quantize"
