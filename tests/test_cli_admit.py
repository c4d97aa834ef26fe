# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""``lmr-guard admit``: one line, an exit code, and an answer before torch could be loaded."""

import json
import os
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from factories import REPORT, variant, write_onnx
from ruamel.yaml import YAML

from lmr_guard.cli import main
from lmr_guard.errors import ExitCode
from lmr_guard.files import sha256_of
from lmr_guard.release.records import Check, Finding, Outcome

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("onnx", "onnxruntime", "torch", "torchvision", "lmr_guard.cli.commands")


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A published folder of one file, made three days ago."""
    folder = tmp_path / "release"
    folder.mkdir()
    digest = sha256_of(write_onnx(folder / "float32.onnx"))
    covers = Finding(Check.DIGEST, Outcome.PASS, "measured the staged bytes")
    passed = variant("float32", published="float32.onnx").with_finding(covers)
    only = replace(passed, sha256=digest)
    made = datetime.now(UTC) - timedelta(days=3, hours=1)
    replace(REPORT, variants=(only,), created=made).write(folder / "report.json")
    return folder


def words(release: Path, *more: str) -> list[str]:
    return [
        "admit",
        str(release / "float32.onnx"),
        "--report",
        str(release / "report.json"),
        *more,
    ]


def test_what_is_admitted_is_told_in_one_line(
    release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, report = release / "float32.onnx", release / "report.json"
    line = f"admitted: {file} is float32 of {report}: pass, 3 days old\n"
    policy = release / "policy.toml"
    policy.write_text('require = ["float32"]\n')
    for more in ([], ["--max-age", "30d"], ["--policy", str(policy), "--max-age", "74h"]):
        assert main(words(release, *more)) == ExitCode.PASSED
        assert capsys.readouterr() == (line, "")


def test_a_report_without_a_time_is_of_unknown_age(
    release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = release / "report.json"
    document = json.loads(path.read_text())
    del document["created"]
    path.write_text(json.dumps(document))
    assert main(words(release)) == ExitCode.PASSED
    assert capsys.readouterr().out.endswith(": pass, of unknown age\n")
    assert main(words(release, "--max-age", "1d")) == ExitCode.REFUSED
    assert "got one that does not say when it was made" in capsys.readouterr().err


def nothing(release: Path) -> None:
    del release


def one_bit(release: Path) -> None:
    path = release / "float32.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def no_file(release: Path) -> None:
    (release / "float32.onnx").unlink()


def no_report(release: Path) -> None:
    (release / "report.json").write_text("{}")


def loose(release: Path) -> None:
    path = release / "report.json"
    document = json.loads(path.read_text())
    document["config"]["policy"]["max_asr"] = 0.5
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "more", "expected"),
    [
        (one_bit, [], (1, "expected the bytes [0-9a-f]{12} that were verified as float32, got")),
        (nothing, ["--max-age", "2d"], (1, "expected a report of at most 2 days, got one made 3")),
        (loose, ["--policy", "POLICY"], (1, "expected a report that was judged by limits as stri")),
        (
            nothing,
            ["--policy", "ALL"],
            (1, "expected all variants that the policy requires to pass"),
        ),
        (
            nothing,
            ["--max-age", "soon"],
            (4, "expected an age such as 30d, 12h or 45m, got 'soon'"),
        ),
        (nothing, ["--policy", "NONE"], (4, "expected a policy file, got no such file")),
        (nothing, ["--qqq"], (4, "No such option")),
        (no_file, [], (5, "expected a file, got no such file")),
        (
            no_report,
            [],
            (5, "expected a report of lmr-guard, got another: expected a report that m"),
        ),
    ],
)
def test_what_is_refused_is_told_in_one_line(
    release: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None],
    more: list[str],
    expected: tuple[int, str],
) -> None:
    code, told = expected
    for name, text in (("POLICY", 'require = ["float32"]'), ("ALL", "")):
        (release / name).write_text(text)
    change(release)
    places = [str(release / word) if word.isupper() else word for word in more]
    assert main(words(release, *places)) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert re.match(f"lmr-guard: {told}", line), line


def test_no_report_is_a_usage_error(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(release)[:2]) == ExitCode.USAGE
    assert capsys.readouterr().err == "lmr-guard: Missing option '--report'.\n"


def test_names_write_nothing_but_text_to_a_terminal(
    release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = release / "a\x1b[2J\nb.onnx"
    (release / "float32.onnx").rename(odd)
    assert main(["admit", str(odd), *words(release)[2:]]) == ExitCode.PASSED
    (line,) = capsys.readouterr().out.splitlines()
    assert line.isprintable()
    odd.write_bytes(b"other")
    assert main(["admit", str(odd), *words(release)[2:]]) == ExitCode.REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()


def test_nothing_heavy_is_loaded_whatever_the_answer(release: Path) -> None:
    probe = f"""
import sys
from lmr_guard.cli import main
given = {words(release)!r}
assert main(given) == 0
assert main([*given, "--max-age", "1d"]) == 1
assert main([*given, "--max-age", "x"]) == 4
assert main(["admit", "none.onnx", *given[2:]]) == 5
print(*sorted(set({HEAVY!r}) & set(sys.modules)))"""
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [""]


def test_the_answer_takes_less_than_two_seconds(release: Path) -> None:
    """Of processor time: a machine that is busy with other things makes a process wait."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "lmr_guard", *words(release)],
        cwd=ROOT,
        env=os.environ | {"COVERAGE_PROCESS_START": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert took < 2, took


def test_the_hook_for_pre_commit_is_this_command(
    release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What stands in the file is all that pre-commit's own manifest may hold, and it works."""
    (hook,) = YAML(typ="safe", pure=True).load(ROOT / ".pre-commit-hooks.yaml")
    texts = {"id", "name", "description", "entry", "language", "files"}
    assert {name for name, value in hook.items() if isinstance(value, str)} == texts
    assert hook.keys() - texts == {"pass_filenames"}
    assert hook["pass_filenames"] is False
    assert all(re.search(hook["files"], name) for name in ("a/int8.onnx", "a/report.json"))
    program, *command = shlex.split(hook["entry"])
    assert (program, hook["language"]) == ("lmr-guard", "system")
    assert main([*command, *words(release)[1:]]) == ExitCode.PASSED
    assert capsys.readouterr().out.startswith("admitted: ")
