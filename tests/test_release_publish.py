# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Nothing appears that is not complete and allowed, and nothing stays behind."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from factories import REPORT, room_for

from lmr_guard.contracts import Rate
from lmr_guard.errors import ConfigError, ExitCode, ExportRefused, InputError, StageError
from lmr_guard.files import Artifact, atomic, sweep
from lmr_guard.release.policy import Policy
from lmr_guard.release.publish import (
    finish,
    publish,
    publish_variants,
    require_place,
    staging,
)
from lmr_guard.release.records import Check, Finding, Outcome, Variant, Verdict
from lmr_guard.release.report import suspicion_record, write_json
from lmr_guard.results import Achieved, Method, Suspicion


def staged(path: Path, data: bytes = b"bytes") -> Artifact:
    path.write_bytes(data)
    return Artifact.of(path)


def verdict(artifact: Artifact, *outcomes: Outcome) -> Verdict:
    findings = [Finding(Check.GRAPH, outcome, f"it was {outcome.name}") for outcome in outcomes]
    return Verdict(artifact.sha256, tuple(findings))


def test_the_staging_folder_is_private_and_on_the_same_file_system(tmp_path: Path) -> None:
    with staging(tmp_path / "a" / "b") as stage:
        assert stat.S_IMODE(stage.stat().st_mode) == 0o700
        assert stage.parent == tmp_path
        (stage / "deep").mkdir()
        (stage / "deep" / "file").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_result_appears_by_one_rename(tmp_path: Path) -> None:
    into = tmp_path / "new" / "result"
    with staging(into) as stage:
        out = stage / "out"
        out.mkdir()
        (out / "report.json").write_text("{}")
        assert not into.parent.exists()
        finish(out, into)
    assert [p.name for p in into.iterdir()] == ["report.json"]
    assert [p.name for p in tmp_path.rglob("*")] == ["new", "result", "report.json"]


@pytest.mark.parametrize("relative", [False, True])
def test_an_empty_directory_is_filled_and_keeps_its_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    into = Path("mounted") if relative else tmp_path / "mounted"
    into.mkdir()
    inode = into.stat().st_ino
    with staging(into) as stage:
        assert stage.parent == tmp_path / "mounted"
        out = stage / "out"
        out.mkdir()
        for name in ("report.json", "a.onnx", "z.onnx"):
            (out / name).write_text(name)
        finish(out, into)
    assert sorted(p.name for p in into.iterdir()) == ["a.onnx", "report.json", "z.onnx"]
    assert into.stat().st_ino == inode


def result(stage: Path, *names: str) -> Path:
    out = stage / "out"
    out.mkdir()
    for name in names:
        (out / name).write_text(name)
    return out


def test_what_was_put_there_meanwhile_stays_alone(tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()

    def work() -> None:
        with staging(into) as stage:
            out = result(stage, "a.onnx", "report.json")
            (into / "z.txt").write_text("meanwhile")
            finish(out, into)

    with pytest.raises(StageError, match=r"expected nothing at .*z.txt, got what was put there"):
        work()
    assert {p.name: p.read_text() for p in into.iterdir()} == {"z.txt": "meanwhile"}


def test_of_two_runs_into_one_new_folder_the_first_to_finish_counts(tmp_path: Path) -> None:
    into = tmp_path / "out"

    def second() -> None:
        with staging(into) as stage:
            ours = result(stage, "b.onnx", "report.json")
            with staging(into) as other:
                finish(result(other, "a.onnx", "report.json"), into)
            finish(ours, into)

    with pytest.raises(StageError, match=r"expected nothing at .*out, got .* as by another run"):
        second()
    assert sorted(p.name for p in into.iterdir()) == ["a.onnx", "report.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_record_comes_first_and_a_failure_undoes_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into, order = tmp_path / "into", []
    into.mkdir()
    move = Path.replace

    def recorded(self: Path, target: Path) -> Path:
        order.append(target.name)
        if len(order) == 4:
            raise KeyboardInterrupt("the fourth")
        return move(self, target)

    def work() -> None:
        with staging(into) as stage:
            out = result(stage, "report.json", "z.onnx", "a.onnx")
            monkeypatch.setattr(Path, "replace", recorded)
            finish(out, into)

    with pytest.raises(KeyboardInterrupt, match="the fourth"):
        work()
    assert order[:4] == ["filling.json", "report.json", "a.onnx", "z.onnx"]
    assert list(into.iterdir()) == []


def publish_and_die(into: Path, most: int) -> None:
    """Publishes three files, in a fork that ends itself before the rename after ``most``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Of threads that a fork leaves behind.
        process = os.fork()
    if process:
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
        return
    done, move = 0, Path.replace

    def replace(self: Path, target: Path) -> Path:
        nonlocal done
        done += 1
        if done > most:
            os.kill(os.getpid(), signal.SIGKILL)
        return move(self, target)

    Path.replace = replace  # type: ignore[method-assign, assignment]
    with staging(into) as stage:
        finish(result(stage, "a.onnx", "report.json", "z.onnx"), into)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("existed", [True, False], ids=["into a folder", "as a new folder"])
@pytest.mark.parametrize("renames", range(5))
def test_a_kill_leaves_no_file_without_its_record_and_the_next_run_tidies(
    tmp_path: Path, renames: int, existed: bool
) -> None:
    into = tmp_path / "into"
    if existed:
        into.mkdir()
    publish_and_die(into, renames)
    present = {entry.name for entry in into.iterdir()} if into.exists() else set()
    published = {name for name in present if name.endswith(".onnx")}
    assert not published or "report.json" in present
    whole = {"a.onnx", "report.json", "z.onnx"}
    if whole <= present:
        with pytest.raises(ConfigError, match=r"expected an empty output directory, got a.onnx"):
            staging(into).__enter__()
        assert {entry.name for entry in into.iterdir()} == whole
    else:
        with staging(into) as stage:
            left = {entry.name for entry in stage.parent.iterdir()} - {"into"}
            assert left == {stage.name}
    assert not list(tmp_path.glob(".lmr-guard-*"))


def test_what_a_killed_run_left_goes_and_what_one_at_work_holds_stays(tmp_path: Path) -> None:
    (tmp_path / ".lmr-guard-part-abc" / "deep").mkdir(parents=True)
    (tmp_path / ".lmr-guard-part-def").write_bytes(b"half")
    (tmp_path / ".lmr-guard-part-link").symlink_to(tmp_path.parent)
    (tmp_path / ".lmr-guard-demo").touch()  # The mark of a demo.
    with staging(tmp_path / "out") as first, staging(tmp_path / "out") as second:
        names = {entry.name for entry in tmp_path.iterdir()}
        assert names == {first.name, second.name, ".lmr-guard-part-link", ".lmr-guard-demo"}


def test_a_run_at_work_in_the_same_folder_is_named(tmp_path: Path) -> None:
    message = r"got .lmr-guard-part-.* in .*; another run is at work there"
    with staging(tmp_path), pytest.raises(ConfigError, match=message), staging(tmp_path):
        pytest.fail("it was entered")


def test_a_name_that_no_file_system_takes_is_a_usage_error(tmp_path: Path) -> None:
    expected = pytest.raises(ConfigError, match="expected an output directory, got File name too")
    with expected, staging(tmp_path / ("x" * 300) / "out"):
        pytest.fail("it was entered")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none/r.json", r"expected a folder for r.json, got no such folder: .*none"),
        ("model.onnx/r.json", r"expected a folder for r.json, got a file: .*model.onnx"),
        (
            "model.onnx",
            "expected nothing or an earlier record of lmr-guard at .*model.onnx, got so",
        ),
        ("package.json", "expected nothing or an earlier record"),
        ("list.json", "expected nothing or an earlier record"),
        ("folder", "expected nothing or an earlier record"),
        ("dangling", "expected nothing or an earlier record"),
        ("pipe", "expected nothing or an earlier record"),
    ],
)
def test_a_record_overwrites_nothing_but_a_record(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a\xff")
    (tmp_path / "package.json").write_text('{"name": "mine"}')
    (tmp_path / "list.json").write_text('["schema_version"]')
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=message):
        require_place(tmp_path / name)


def test_a_record_may_replace_a_record(tmp_path: Path) -> None:
    place = tmp_path / "r.json"
    require_place(place)
    REPORT.write(place)
    require_place(place)
    write_json(suspicion_record(Suspicion(None, (1.0, 2.0), Method.HINDERED)), place)
    require_place(place)


@pytest.mark.parametrize("text", ['{"schema_version": "1.0"}', '{"agreement": 1.0}', "[" * 10**5])
def test_a_record_does_not_replace_what_only_looks_like_one(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ConfigError, match="expected nothing or an earlier record of lmr-guard"):
        require_place(tmp_path / "r.json")


def test_a_folder_that_cannot_be_written_is_no_place_for_a_record() -> None:
    if not Path("/proc/self").is_dir() or os.access("/proc/self", os.W_OK):
        pytest.skip("no folder here that nobody may write to")
    with pytest.raises(ConfigError, match=r"expected a folder that can be written for r.json"):
        require_place(Path("/proc/self/r.json"))


@pytest.mark.parametrize("error", [StageError("no"), KeyboardInterrupt("no"), ValueError("no")])
def test_nothing_stays_behind_whatever_happens(error: BaseException, tmp_path: Path) -> None:
    def work() -> None:
        with staging(tmp_path / "out") as stage:
            (stage / "file").write_bytes(b"x")
            raise error

    with pytest.raises(type(error), match="no"):
        work()
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_taken_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_bytes(b"")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name, message in {
        "full": "expected an empty output directory, got x in",
        "full/x": "expected an output directory, got a file at",
        "full/x/y": "expected an output directory, got a file at",
        "dangling": "expected an output directory, got a file at",
    }.items():
        with pytest.raises(ConfigError, match=message), staging(tmp_path / name):
            pytest.fail("it was entered")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "full"]
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["x"]


def test_an_output_that_cannot_be_written_is_a_usage_error() -> None:
    place = Path("/proc/self")
    if not place.is_dir():
        pytest.skip("no file system here that nobody may write to")
    expected = pytest.raises(ConfigError, match="output directory that can be written, got")
    with expected, staging(place / "out"):
        pytest.fail("it was entered")


def wrapped(path: Path) -> None:
    """Fails as a library does that hides what the system said."""
    try:
        path.write_bytes(bytes(5000))
    except OSError as error:
        raise RuntimeError("serialisation failed") from error


@pytest.mark.parametrize("write", [lambda path: path.write_bytes(bytes(5000)), wrapped])
def test_a_full_disk_is_one_line_and_leaves_nothing(write: object, tmp_path: Path) -> None:
    assert callable(write)
    with (
        room_for(1000),
        pytest.raises(StageError, match=r"got a full disk at .*; nothing was written") as caught,
        staging(tmp_path / "out") as stage,
    ):
        write(stage / "file")
    assert caught.value.exit_code is ExitCode.FAILED
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_while_publishing_leaves_nothing(tmp_path: Path) -> None:
    artifact = staged(tmp_path / "m", bytes(5000))
    with room_for(1000), pytest.raises(StageError, match="got File too large; choose a folder"):
        publish(artifact, verdict(artifact, Outcome.PASS), tmp_path / "out.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_publishing_copies_the_verified_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000
    artifact = staged(tmp_path / "m", data)
    got = publish(artifact, verdict(artifact, Outcome.PASS), tmp_path / "out.onnx")
    assert got == Artifact(tmp_path / "out.onnx", artifact.sha256, len(data))
    assert got.path.read_bytes() == data
    assert stat.S_IMODE(got.path.stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ((), ExitCode.INCOMPLETE),
        ((Outcome.PASS, Outcome.INCOMPLETE), ExitCode.INCOMPLETE),
        ((Outcome.PASS, Outcome.INCOMPLETE, Outcome.FAIL), ExitCode.REFUSED),
    ],
)
def test_a_verdict_that_did_not_pass_refuses(
    outcomes: tuple[Outcome, ...], code: ExitCode, tmp_path: Path
) -> None:
    artifact = staged(tmp_path / "m")
    with pytest.raises(ExportRefused, match=r"expected a passing verdict for out.onnx") as caught:
        publish(artifact, verdict(artifact, *outcomes), tmp_path / "out.onnx")
    assert caught.value.exit_code is code
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_refusal_leaves_what_was_published_before(tmp_path: Path) -> None:
    artifact = staged(tmp_path / "m")
    with atomic(tmp_path / "out.onnx") as file:
        file.write(b"old")
    other = Verdict("0" * 64, verdict(artifact, Outcome.PASS).findings)
    with pytest.raises(ExportRefused, match="expected the verified bytes"):
        publish(artifact, other, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == b"old"


def test_a_staged_file_that_is_gone_is_an_input_error(tmp_path: Path) -> None:
    artifact = staged(tmp_path / "m")
    artifact.path.unlink()
    with pytest.raises(InputError, match=r"expected the staged file .*, got nothing there"):
        publish(artifact, verdict(artifact, Outcome.PASS), tmp_path / "out.onnx")


def built(folder: Path, name: str, outcome: Outcome, size: int = 5) -> Variant:
    """A staged file of that many bytes and the record of its verification."""
    artifact = staged(folder / f"{name}.onnx", name[:1].encode() * size)
    return Variant(
        name=name,
        sha256=artifact.sha256,
        bytes=size,
        clean_accuracy=Rate(0, 0),
        triggers=(),
        achieved=Achieved(),
        provider="CPUExecutionProvider",
        verdict=verdict(artifact, outcome),
    )


def folders(tmp_path: Path) -> tuple[Path, Path]:
    stage, out = tmp_path / "staged", tmp_path / "out"
    stage.mkdir()
    out.mkdir()
    return stage, out


@pytest.mark.parametrize(
    ("publishes", "expected"), [("all", ["float32", "int8"]), ("smallest", ["int8"])]
)
def test_variants_that_may_ship_are_published_and_the_records_say_where(
    publishes: str, expected: list[str], tmp_path: Path
) -> None:
    stage, out = folders(tmp_path)
    variants = [
        built(stage, "float32", Outcome.PASS, 9),
        built(stage, "l1-0.6", Outcome.FAIL, 1),
        built(stage, "int8", Outcome.PASS, 3),
    ]
    policy = Policy(publish=publishes)  # type: ignore[arg-type]
    told = publish_variants(variants, stage, out, policy)
    shipped = {v.name: f"{v.name}.onnx" for v in variants if v.name in expected}
    assert told == [replace(v, published=shipped.get(v.name)) for v in variants]
    assert sorted(p.name for p in out.iterdir()) == sorted(shipped.values())
    for name in shipped.values():
        assert (out / name).read_bytes() == (stage / name).read_bytes()


@pytest.mark.parametrize("int8", [Outcome.FAIL, Outcome.INCOMPLETE, None])
def test_where_a_required_variant_did_not_pass_nothing_is_published(
    int8: Outcome | None, tmp_path: Path
) -> None:
    stage, out = folders(tmp_path)
    variants = [built(stage, "float32", Outcome.PASS)]
    if int8 is not None:
        variants.append(built(stage, "int8", int8))
    assert publish_variants(variants, stage, out, Policy()) == variants
    assert list(out.iterdir()) == []


def test_a_variant_whose_file_changed_is_not_published(tmp_path: Path) -> None:
    stage, out = folders(tmp_path)
    variants = [built(stage, "float32", Outcome.PASS)]
    (stage / "float32.onnx").write_bytes(b"other")
    with pytest.raises(ExportRefused, match=r"expected the verified bytes .* for float32.onnx"):
        publish_variants(variants, stage, out, Policy(require=("float32",)))
    assert list(out.iterdir()) == []


KILLED_LATE = """
import os, shutil, signal, sys
from pathlib import Path
from lmr_guard.release.publish import finish, staging
shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
with staging(Path(sys.argv[1])) as stage:
    out = stage / "out"
    out.mkdir()
    (out / "report.json").write_text("{}")
    finish(out, Path(sys.argv[1]))
"""


def test_a_kill_after_the_last_step_leaves_a_result_that_the_same_command_tidies_around(
    tmp_path: Path,
) -> None:
    into = tmp_path / "into"
    command = [sys.executable, "-c", KILLED_LATE, str(into)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ConfigError, match=r"expected an empty output directory, got report.json"):
        staging(into).__enter__()
    assert [entry.name for entry in tmp_path.rglob("*")] == ["into", "report.json"]


def test_a_staging_folder_that_another_run_swept_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = tempfile.mkdtemp, []

    def swept(**named: str) -> str:
        made.append(make(**named))
        if len(made) == 1:
            sweep(tmp_path)
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", swept)
    with staging(tmp_path / "into") as stage:
        assert len(made) == 2
        sweep(tmp_path)
        assert stage.is_dir()
