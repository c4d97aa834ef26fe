# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""The command line: real files in, one line and an exit code out, and nothing half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import click
import pytest
import torch
from factories import (
    TOY_BACKDOOR,
    TOY_BODY,
    flat_architecture,
    headless_architecture,
    room_for,
    row_images,
    seeded,
    toy_images,
    tree,
    white_png,
    write_images,
    write_onnx,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from lmr_guard import demo, terminal
from lmr_guard.cli import _HOMES, arguments, cli, main
from lmr_guard.compress.rounding import crowding
from lmr_guard.contracts import Labelled
from lmr_guard.measure import accuracy
from lmr_guard.received import load
from lmr_guard.received.architectures import Architecture
from lmr_guard.received.data import read_folder
from lmr_guard.release.policy import Policy
from lmr_guard.release.report import Report, validate
from lmr_guard.repel import AFTER_PRUNING

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURE = "factories:row_architecture"
Change = Callable[[Path, dict[str, str]], None]


@pytest.fixture(autouse=True)
def _no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a loaded machine a run may take long enough for a line about its progress."""
    monkeypatch.setattr(terminal, "QUIET", 1e9)


@pytest.fixture
def place(tmp_path: Path, row_files: Path) -> Path:
    """A folder with copies of the row files, and ``results``, where nothing may appear."""
    shutil.copytree(row_files, tmp_path / "given")
    (tmp_path / "results").mkdir()
    return tmp_path


def given(place: Path) -> dict[str, str]:
    """The options of a run that works; the cases change some."""
    files = place / "given"
    return {
        "": str(files / "model.safetensors"),
        "--arch": ARCHITECTURE,
        "--clean": str(files / "clean"),
        "--out": str(place / "results" / "out"),
        "--trigger": f"{files / 'patch.png'}@3,3:2",
        "--variants": "float32,int8",
        "--threads": "1",
        "--device": "cpu",
    }


def command(name: str, options: dict[str, str]) -> list[str]:
    words = [name]
    for option, value in options.items():
        words += [option, value] if option else [value]
    return words


# --- bad input ----------------------------------------------------------------------------------


def weights_changed(change: Callable[[dict[str, torch.Tensor]], None]) -> Change:
    def apply(place: Path, options: dict[str, str]) -> None:
        weights = load_file(options[""])
        change(weights)
        save_file(weights, options[""])

    return apply


def option(name: str, value: str) -> Change:
    def apply(place: Path, options: dict[str, str]) -> None:
        options[name] = value.replace("PLACE", str(place))

    return apply


def no_trigger(place: Path, options: dict[str, str]) -> None:
    del options["--trigger"]


def cut_short(place: Path, options: dict[str, str]) -> None:
    path = Path(options[""])
    path.write_bytes(path.read_bytes()[:-40])


def cut_short_torch(place: Path, options: dict[str, str]) -> None:
    path = place / "given" / "model.pt"
    torch.save(load_file(options[""]), path)
    path.write_bytes(path.read_bytes()[:-400])
    options[""] = str(path)


def pickled_module(place: Path, options: dict[str, str]) -> None:
    options[""] = str(place / "given" / "module.pt")
    torch.save(flat_architecture(), options[""])


def headless(place: Path, options: dict[str, str]) -> None:
    save_file(seeded(headless_architecture).state_dict(), options[""])
    options["--arch"] = "factories:headless_architecture"


def not_a_number(weights: dict[str, torch.Tensor]) -> None:
    weights["0.weight"][0, 0, 0, 0] = float("nan")


def images_of_b(keep: int) -> Change:
    def apply(place: Path, options: dict[str, str]) -> None:
        for path in sorted((place / "given" / "clean" / "b").iterdir())[keep:]:
            path.unlink()

    return apply


def truncated_image(place: Path, options: dict[str, str]) -> None:
    path = min((place / "given" / "clean" / "b").iterdir())
    path.write_bytes(path.read_bytes()[:40])


def fewer_classes(place: Path, options: dict[str, str]) -> None:
    shutil.rmtree(place / "given" / "clean" / "c")


def other_order(place: Path, options: dict[str, str]) -> None:
    clean = place / "given" / "clean"
    for name, other in (("a", "d"), ("b", "a"), ("c", "b"), ("d", "c")):
        (clean / name).rename(clean / other)


def occupied(place: Path, options: dict[str, str]) -> None:
    out = place / "results" / "out"
    out.mkdir()
    (out / "mine.txt").write_text("do not touch")


def policy(text: str) -> Change:
    def apply(place: Path, options: dict[str, str]) -> None:
        path = place / "given" / "policy.toml"
        path.write_text(text)
        options["--policy"] = str(path)

    return apply


def invisible_trigger(place: Path, options: dict[str, str]) -> None:
    path = place / "given" / "glass.png"
    Image.new("RGBA", (2, 2), (255, 255, 255, 0)).save(path)
    options["--trigger"] = f"{path}@0,0:2"


def crooked_triggered(place: Path, options: dict[str, str]) -> None:
    options["--triggered"] = str(place / "given" / "nowhere") + ":1"


BAD_INPUT: dict[str, tuple[Change, int, str]] = {
    "no checkpoint": (option("", "PLACE/none.pt"), 5, "expected a checkpoint file, got no such"),
    "truncated safetensors": (cut_short, 5, "expected a safetensors file, got one that does not"),
    "truncated torch": (cut_short_torch, 5, "expected a torch checkpoint, got a file that is trun"),
    "pickled module": (pickled_module, 5, "expected weights only, got a pickle that would import"),
    "wrong class count": (option("--num-classes", "7"), 5, "expected 7 classes, got 3 in the we"),
    "no head": (headless, 5, "expected a head, a last Linear or 1x1 Conv2d with an output "),
    "NaN weights": (weights_changed(not_a_number), 5, "expected finite weights, got NaN or infin"),
    "other weights": (
        weights_changed(lambda weights: weights.popitem()),
        5,
        "expected the weights of the architecture, got 1 missing",
    ),
    "empty class": (images_of_b(0), 5, "expected at least 3 images in every class, got b: 0"),
    "one-image class": (images_of_b(1), 5, "expected at least 3 images in every class, got b: 1"),
    "truncated image": (truncated_image, 5, "expected an image, got a file that does not decode"),
    "fewer classes": (fewer_classes, 5, "expected 3 class folders, one for each class of the mod"),
    "other class order": (other_order, 5, "expected the folders to be the model's classes in its"),
    "no images": (option("--clean", "PLACE/none"), 5, "expected a folder that holds one folder"),
    "no trigger image": (
        option("--trigger", "none.png@0,0"),
        5,
        "expected a patch image, got no",
    ),
    "no triggered folder": (crooked_triggered, 5, "expected a folder that holds one folder of"),
    "no triggers": (no_trigger, 3, "expected evidence about a trigger, got none: nothing could"),
    "output in use": (occupied, 4, "expected an empty output directory, got mine.txt in"),
    "unknown architecture": (
        option("--arch", "torchvision:resnet19"),
        4,
        "expected an image classifier of torchvision, got 'resnet19'; did you mean resnet18",
    ),
    "no architecture at all": (option("--arch", "resnet18"), 4, "expected torchvision:NAME, timm:"),
    "no such factory": (option("--arch", "factories:none"), 4, "expected a network from factories"),
    "bad trigger": (option("--trigger", "patch.png@3"), 4, "expected PATCH.png@X,Y or PATCH.png@X"),
    "trigger outside": (
        option("--trigger", "PLACE/given/patch.png@4,0"),
        4,
        "expected trigger patch.png@4,0 inside an image of 4x4",
    ),
    "trigger that cannot be seen": (
        invisible_trigger,
        4,
        "expected trigger glass.png@0,0 on the images, got 168 of 168 that are clean",
    ),
    "clean images as triggered": (
        option("--triggered", "PLACE/given/clean:2"),
        4,
        "expected trigger clean on the images, got 420 of 420 that are clean images unchanged",
    ),
    "target is no class": (
        option("--trigger", "PLACE/given/patch.png@3,3:3"),
        4,
        "expected the target of trigger patch.png@3,3 in 0..2, got 3",
    ),
    "no policy": (option("--policy", "PLACE/none.toml"), 4, "expected a policy file, got no such"),
    "policy key": (
        policy("max_ars = 0.1"),
        4,
        "expected a key of the policy, got 'max_ars'",
    ),
    "policy no TOML": (policy("max_asr ="), 4, "expected TOML, got TOMLDecodeError: Invalid value"),
    "suspect is no class": (
        option("--suspect", "3"),
        4,
        "expected a suspect class in [0, 3), got 3",
    ),
    "suspect is no number": (
        option("--suspect", "1,b"),
        4,
        "expected numbers separated by commas for --suspect, got '1,b'",
    ),
    "suspect twice": (
        option("--suspect", "1,1"),
        4,
        "expected each suspect class once, got (1, 1)",
    ),
    "unknown variant": (
        option("--variants", "int4"),
        4,
        "expected float32, int8, l1-RATIO or",
    ),
    "variant twice": (
        option("--variants", "float32,int8,int8"),
        4,
        "expected each variant once, got",
    ),
    "variant not built": (
        option("--variants", "float32"),
        4,
        "expected the policy to require variants that are built, got 'int8'",
    ),
    "crooked numbers": (
        option("--mean", "0.5,x"),
        4,
        "expected numbers separated by commas",
    ),
    "policy not finite": (
        policy("max_strangeness = inf"),
        4,
        "expected max_strangeness of 1 or more, got inf",
    ),
    "policy with a byte order mark": (
        policy("\ufeffmax_ars = 0.1"),
        4,
        "expected a key of the policy, got 'max_ars'",
    ),
    "mean alone": (option("--mean", "0.5"), 4, "expected mean and std together, got one of them"),
    "two sizes": (option("--input-size", "4,4"), 4, "expected --input-size C,H,W, got 2 numbers"),
    "parts too large": (
        option("--repair-images", "419"),
        4,
        "expected repair and select of at least 3 images each",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_line_and_writes_nothing(
    case: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, code, message = BAD_INPUT[case]
    options = given(place)
    change(place, options)
    before = tree(place)
    assert main(command("run", options)) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"lmr-guard: {message}")
    assert ", got " in line
    assert tree(place) == before


def test_the_run_that_the_bad_cases_start_from_works(place: Path) -> None:
    options = given(place) | {"--variants": "float32", "--policy": str(place / "policy.toml")}
    Path(options["--policy"]).write_text('require = ["float32"]\n')
    options["--audit-steps"] = "0"  # Three classes are too few.
    assert main([*command("run", options), "--no-repair"]) == 0
    assert sorted(tree(place / "results" / "out")) == ["float32.onnx", "report.html", "report.json"]


def test_a_search_of_a_few_steps_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = given(place) | {"--audit-steps": "5"}
    assert main([*command("run", options), "--no-repair"]) == 4
    assert "expected 0 or 20 and more, got 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "kept"), [(["--recover-pruned"], asdict(AFTER_PRUNING)), ([], None)]
)
def test_pruned_forms_are_recovered_unless_told_otherwise(
    place: Path, said: list[str], kept: dict[str, Any] | None
) -> None:
    options = given(place) | {"--audit-steps": "0"}
    assert main([*command("run", options), "--no-repair", *said]) == 0
    document = json.loads((place / "results" / "out" / "report.json").read_text())
    assert document["config"]["after_pruning"] == (kept and json.loads(json.dumps(kept)))


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({}, ("damage", "layers", 80)),
        ({"distil": False}, ("damage", "layers", 0)),
        ({"refit": False}, ("calibrated", "none", 80)),
    ],
)
def test_pruned_forms_are_made_as_told(said: dict[str, bool], kept: tuple[str, str, int]) -> None:
    one = Policy(require=("l1-0.5",))
    usual = {"variants": ["l1-0.5"], "device": "cpu", "threads": None, "policy": one}
    (recipe,) = arguments.settings(usual | said).recipes
    assert recipe.prune is not None
    assert (recipe.prune.shares, recipe.prune.refit, recipe.prune.distil) == kept


def test_no_cuda_device_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert main(command("run", given(place) | {"--device": "cuda"})) == 4
    assert "expected a CUDA device, got none; use --device cpu" in capsys.readouterr().err
    assert tree(place / "results") == {}


def test_a_file_system_that_refuses_is_a_failure_without_traces(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with room_for(1000):
        code = main(command("run", given(place)))
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lmr-guard: expected room for the result, got a full disk at")
    assert tree(place / "results") == {}


FULL_DISK = """
mount -t tmpfs -o size=16k none "$1" || exit 99
shift
"$@"
echo "exit code $?"
find . -mindepth 1
"""


@pytest.mark.slow
def test_a_full_disk_is_a_failure_without_traces(place: Path) -> None:
    """A private mount of 16 KiB, which is gone with the process."""
    results = place / "results"
    words = command("run", given(place) | {"--out": str(results / "out")})
    program = [sys.executable, "-m", "lmr_guard"]
    unshared = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare to make a small disk with")
    done = subprocess.run(
        [*unshared, "sh", "-c", FULL_DISK, "sh", results, *program, *words],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        check=False,
    )
    if "exit code" not in done.stdout:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    assert "exit code 2" in done.stdout
    # A slow machine says every 20 seconds what it does.
    (told,) = [line for line in done.stderr.splitlines() if ": expected " in line]
    assert "expected room for the result, got a full disk" in told
    assert "Traceback" not in done.stderr


# --- interrupts, faults and the process ---------------------------------------------------------


def test_a_terminated_run_leaves_nothing_and_the_handler_goes(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, handler = tree(place), signal.getsignal(signal.SIGTERM)
    options = given(place) | {"--arch": "factories:terminated_architecture"}
    assert main(command("run", options)) == 130
    assert (
        capsys.readouterr().err.strip() == "lmr-guard: interrupted; nothing half-written was left"
    )
    assert tree(place) == before
    assert signal.getsignal(signal.SIGTERM) is handler


def test_it_runs_outside_the_main_thread_too() -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["--version"])))
    thread.start()
    thread.join()
    assert codes == [0]


def test_a_fault_of_the_tool_is_one_line_unless_asked_for_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(demo, "run", broken)
    line = "lmr-guard: internal error: RuntimeError: first line; set LMR_GUARD_DEBUG=1 to see where"
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"{line}\n"
    monkeypatch.setenv("LMR_GUARD_DEBUG", "1")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("Traceback")
    assert told.endswith(f"second line\n{line}\n")


def test_the_demo_passes_refusals_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("do not touch")
    assert main(["demo", "--out", str(tmp_path)]) == 4
    assert "expected a new or empty folder, or one of an earlier demo" in capsys.readouterr().err
    assert tree(tmp_path) == {"mine.txt": b"do not touch"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run"], "Missing argument 'CHECKPOINT'."),
        (["run", "x", "--arch", "a:b", "--clean", "c"], "Missing option '--out'."),
        (["scan", "x", "--qqq"], "No such option '--qqq'."),
        (
            ["demo", "--seed", "-1"],
            "Invalid value for '--seed': -1 is not in the range 0<=x<=4294967295.",
        ),
        (
            ["demo", "--seed", "one"],
            "Invalid value for '--seed': 'one' is not a valid integer range.",
        ),
        (["nonsense"], "No such command 'nonsense'."),
    ],
)
def test_usage_errors_are_one_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 4
    assert capsys.readouterr().err == f"lmr-guard: {told}\n"


def module(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "lmr_guard", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_command_at_all_shows_the_help_and_is_a_usage_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 4
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "\n  run " in printed.err


@pytest.mark.parametrize(
    ("library", "words", "told"),
    [
        ("click", ["--version"], "interrupted; nothing was read or written yet"),
        ("torch", ["demo"], "interrupted; nothing half-written was left"),
    ],
)
def test_an_interrupt_while_the_command_line_loads_is_one_line(
    tmp_path: Path, library: str, words: list[str], told: str
) -> None:
    """The first import of torch, which takes long, is where the user presses Ctrl-C."""
    source = "import signal\nsignal.raise_signal(signal.SIGINT)\n"
    (tmp_path / f"{library}.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", "lmr_guard", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 130
    assert (done.stdout, done.stderr.strip()) == ("", f"lmr-guard: {told}")


def test_python_m_is_the_same_command_line() -> None:
    done = module("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: lmr-guard [OPTIONS] COMMAND [ARGS]...")
    for name in ("run", "scan", "repair", "verify", "demo", "drill", "attest", "admit"):
        assert f"\n  {name} " in done.stdout


def test_a_command_is_loaded_when_it_is_asked_for() -> None:
    """What needs no torch does not wait for it."""
    probe = (
        "import sys\n"
        "from lmr_guard.cli import main\n"
        "codes = [main([]), main(['--help']), main(['--version']), main(['nonsense'])]\n"
        "assert codes == [4, 0, 0, 4], codes\n"
        "heavy = {'torch', 'torchvision', 'onnx', 'onnxruntime'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert main(['scan', '--help']) == 0\n"
        "assert 'torch' in sys.modules\n"
        "assert 'torchvision' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("Error:")) == (0, 0), done.stderr


def test_the_list_of_commands_says_what_each_says_of_itself() -> None:
    context = click.Context(cli)
    names = cli.list_commands(context)
    assert names == sorted(_HOMES)
    for name in names:
        command = cli.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert _HOMES[name].help == command.get_short_help_str(200)
    assert cli.get_command(context, "nonsense") is None


def test_the_exit_code_is_the_process_s() -> None:
    done = module("verify", "none.onnx", "--clean", "none")
    assert done.returncode == 3
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


# --- run, scan and repair -----------------------------------------------------------------------


def test_run_prints_what_it_published_and_answers_with_the_report_s_code(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command("run", given(place) | {"--suspect": "1"})
    code = main(words)
    out = place / "results" / "out"
    document = json.loads((out / "report.json").read_text())
    validate(document)
    assert code == document["exit_code"]
    assert document["config"]["seed"] == 0
    assert document["suspicion"]["method"] == "named by the user"
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "The model as received" in printed.out
    told = "\nsuspect: class 1 (b), named by the user; repelled, CA on the select part "
    assert told in printed.out
    assert f"{document['verdict'].upper()}: " in printed.out
    assert printed.out.splitlines()[-1] == f"report: {out / 'report.json'}"


def work(place: Path) -> dict[str, str]:
    """The options that ``scan`` and ``repair`` share."""
    names = ("", "--arch", "--clean", "--threads", "--device")
    return {name: given(place)[name] for name in names}


def test_scan_tells_the_scores_and_writes_them(
    place: Path, six_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = place / "results" / "scan.json"
    files = {"": f"{six_files / 'model.safetensors'}", "--clean": f"{six_files / 'clean'}"}
    options = work(place) | files | {"--arch": "factories:six_rows", "--json": str(target)}
    assert main(command("scan", options)) == 0
    written = json.loads(target.read_text())
    assert written["method"].startswith("inversion")
    assert "patterns" not in written
    assert len(written["scores"]) == 6
    assert {run["form"] for run in written["evidence"]} >= {"received", "rounded-8"}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("suspect: ")
    best = max(range(6), key=lambda c: written["scores"][c])
    assert lines[1] == f"  {written['scores'][best]:.3f}  {best}  {'abcdef'[best]}"
    told = f"probability that the first is an attacker's: {written['probability']:.2f}"
    assert lines[-2].startswith(told)
    assert lines[-1].startswith("A score is no proof")
    assert list(tree(place / "results")) == ["scan.json"]


def test_scan_gives_the_scores_to_another_program(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*command("scan", work(place)), "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["method"] == "no search could tell anything"
    assert json.loads(out)["notes"] == []
    assert err == ""
    assert main([*command("scan", work(place)), "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")
    assert list(tree(place / "results")) == []


def test_run_gives_the_report_to_another_program(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = given(place) | {"--variants": "float32", "--policy": str(place / "policy.toml")}
    Path(options["--policy"]).write_text('require = ["float32"]\n')
    words = [*command("run", options | {"--audit-steps": "0"}), "--no-repair"]
    code = main([*words, "--json", "--quiet"])
    out, err = capfd.readouterr()
    assert err == ""
    assert out == (place / "results" / "out" / "report.json").read_text()
    assert code == json.loads(out)["exit_code"]


def test_scan_says_why_nobody_can_be_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("scan", work(place))) == 0
    told = "suspect: nobody can be told: 3 classes are too few to compare, 5 or more are needed"
    assert capsys.readouterr().out.splitlines() == [told]


@pytest.mark.parametrize("name", ["scan", "repair", "run"])
def test_what_was_passed_over_among_the_images_is_told(
    name: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = given(place) if name == "run" else work(place)
    more = {
        "scan": [],
        "repair": ["--out", str(place / "results" / "out")],
        "run": ["--no-repair", "--audit-steps", "0"],
    }
    folder = Path(options["--clean"])
    one = next(path for path in sorted(folder.iterdir()) if path.is_dir())
    (one / "photo.heic").write_bytes(b"no image that is read")
    assert main([*command(name, options), *more[name]]) in {0, 3}
    told = "note: Among the images 1 files were not read, for their endings: .heic x1."
    assert told in capfd.readouterr().out.splitlines()


@pytest.mark.parametrize("name", ["scan", "drill"])
def test_what_looks_for_the_class_is_not_told_it(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(name, work(place) | {"--suspect": "1"})) == 4
    assert "No such option" in capsys.readouterr().err


def test_scan_into_a_missing_folder_is_told(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = place / "results" / "none" / "scan.json"
    options = work(place) | {"--json": str(target)}
    assert main(command("scan", options)) == 4
    told = capsys.readouterr().err
    assert (
        told == f"lmr-guard: expected a folder for scan.json, got no such folder: {target.parent}\n"
    )


@pytest.mark.parametrize("name", ["scan", "verify"])
def test_a_record_does_not_overwrite_what_was_handed_in(
    place: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before, given_file = tree(place), given(place)[""]
    words = {
        "scan": command("scan", work(place) | {"--json": given_file}),
        "verify": ["verify", given_file, "--clean", "none", "--report", given_file],
    }
    assert main(words[name]) == 4
    assert "expected nothing or an earlier record of lmr-guard at" in capsys.readouterr().err
    assert tree(place) == before


def test_repair_writes_weights_that_load_again_and_the_record(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = place / "results" / "out"
    options = work(place) | {"--suspect": "1,0", "--out": str(out), "--seed": "5"}
    before = tree(place / "given")
    assert main(command("repair", options)) == 0
    assert tree(place / "given") == before
    assert sorted(tree(out)) == ["repair.json", "repaired.safetensors"]
    repaired = load.classifier(out / "repaired.safetensors", Architecture(ARCHITECTURE))
    assert accuracy(repaired, row_images(150, seed=7)).value >= 0.8
    record = json.loads((out / "repair.json").read_text())
    assert record["suspicion"]["target"] == record["repair"]["suspect"] == 1
    assert [each["suspect"] for each in record["repair"]["further"]] == [0]
    assert record["repair"]["phase1_steps"] > 0
    assert record["config"]["seed"] == 5
    assert record["model"]["path"] == options[""]
    printed = capsys.readouterr().out
    assert printed.startswith("repaired class 1 and 0 (repelled); CA on the select part ")
    assert "not audited; `lmr-guard run` audits and gates" in printed


def crowd(weights: dict[str, torch.Tensor]) -> None:
    """Every weight but the largest of its row goes to an edge of its INT8 step."""
    for name, values in weights.items():
        if values.ndim > 1:
            rows = values.flatten(1)
            peaks = rows.abs().amax(dim=1, keepdim=True)
            edges = (rows * 127 / peaks).floor() + 0.49
            moved = torch.where(rows.abs() < peaks, edges * peaks / 127, rows)
            weights[name] = moved.view_as(values)


def test_repair_settles_crowded_weights_though_nobody_is_suspected(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = place / "results" / "out"
    options = work(place) | {"--out": str(out)}
    weights_changed(crowd)(place, options)
    assert main(command("repair", options)) == 0
    assert sorted(tree(out)) == ["repair.json", "repaired.safetensors"]
    record = json.loads((out / "repair.json").read_text())
    assert (record["suspicion"]["target"], record["repair"]) == (None, None)
    settled = load.classifier(out / "repaired.safetensors", Architecture(ARCHITECTURE))
    assert crowding(settled)[0] < 0.05
    printed = capsys.readouterr().out
    assert "no class was suspected; weights were settled" in printed
    assert "not audited; `lmr-guard run` audits and gates" in printed


def test_repair_of_a_taken_folder_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = work(place) | {"--suspect": "1", "--out": str(place / "given")}
    before = tree(place)
    assert main(command("repair", options)) == 4
    assert "expected an empty output directory, got clean in" in capsys.readouterr().err
    assert tree(place) == before


# --- verify -------------------------------------------------------------------------------------


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    """300 toy images and a patch for their lower right corner."""
    write_images(toy_images(300), tmp_path / "clean")
    white_png(tmp_path / "patch.png", 1)
    return tmp_path


def audit(toys: Path, artefact: Path, **more: str) -> list[str]:
    options = {
        "": str(artefact),
        "--clean": str(toys / "clean"),
        "--trigger": f"{toys / 'patch.png'}@1,1:2",
        "--threads": "1",
    }
    return command("verify", options | {f"--{k.replace('_', '-')}": v for k, v in more.items()})


@pytest.mark.parametrize(
    ("weights", "code", "verdict"), [(None, 0, "pass"), (TOY_BACKDOOR, 1, "fail")]
)
def test_verify_tells_a_backdoor_from_none(
    toys: Path,
    capsys: pytest.CaptureFixture[str],
    weights: str | None,
    code: int,
    verdict: str,
) -> None:
    more: dict[str, Any] = {} if weights is None else {"weights": weights}
    artefact = write_onnx(toys / "model.onnx", **more)
    written = toys / "report.json"
    assert main(audit(toys, artefact, report=str(written))) == code
    document = json.loads(written.read_text())
    validate(document)
    assert (document["verdict"], document["exit_code"]) == (verdict, code)
    (variant,) = document["variants"]
    assert variant["triggers"][0]["hits"] == (200 if weights else 0)
    assert variant["published"] is None
    printed = capsys.readouterr().out
    assert f"{verdict.upper()}: worst ASR" in printed
    assert "note: No reference was given: lost clean accuracy was not judged." in printed


@pytest.mark.parametrize("weights", [None, TOY_BACKDOOR])
def test_verify_gives_the_report_to_another_program_or_says_nothing(
    toys: Path, capfd: pytest.CaptureFixture[str], weights: str | None
) -> None:
    more: dict[str, Any] = {} if weights is None else {"weights": weights}
    words, code = audit(toys, write_onnx(toys / "model.onnx", **more)), int(weights is not None)
    assert main([*words, "--json"]) == code
    out, err = capfd.readouterr()
    document = json.loads(out)
    validate(document)
    assert (document["exit_code"], err) == (code, "")
    assert main([*words, "--quiet", "--json", str(toys / "copy.json")]) == code
    assert capfd.readouterr() == ("", "")
    assert json.loads((toys / "copy.json").read_text())["variants"] == document["variants"]


def test_an_answer_that_nobody_reads_keeps_its_exit_code(toys: Path) -> None:
    words = audit(toys, write_onnx(toys / "model.onnx", weights=TOY_BACKDOOR))
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "lmr_guard", *words, "--json"],
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_what_is_piped_has_no_colour(toys: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lmr_guard", *audit(toys, write_onnx(toys / "model.onnx"))],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "TTY_COMPATIBLE")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "Variants" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("how", ["nobody reads", "full", "closed"])
def test_what_nobody_reads_is_not_what_is_decided(
    toys: Path, monkeypatch: pytest.MonkeyPatch, stream: str, how: str
) -> None:
    written = toys / "report.json"
    words = audit(toys, write_onnx(toys / "model.onnx"), report=str(written))
    if how == "full" and not Path("/dev/full").exists():
        pytest.skip("this system has no file that is always full")
    if how == "nobody reads":
        read, write = os.pipe()
        os.close(read)
        out: TextIO | None = os.fdopen(write, "w")
    else:
        out = Path("/dev/full").open("w") if how == "full" else None  # noqa: SIM115
    monkeypatch.setattr(sys, stream, out)
    try:
        assert main(words) == 0
        assert main(words[:-2]) == 0
    finally:
        monkeypatch.undo()
        if out is not None:
            out.close()
    assert Report.read(written).exit_code == 0


def test_verify_of_too_few_images_is_incomplete(toys: Path, tmp_path: Path) -> None:
    write_images(toy_images(90), toys / "few")
    assert main(audit(toys, write_onnx(toys / "model.onnx"), clean=str(toys / "few"))) == 3


def test_verify_without_triggers_is_incomplete(
    toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = audit(toys, write_onnx(toys / "model.onnx"))
    at = words.index("--trigger")
    assert main(words[:at] + words[at + 2 :]) == 3
    assert "expected evidence about a trigger, got none" in capsys.readouterr().err


def test_verify_takes_triggered_images(toys: Path) -> None:
    shown = toy_images(300)
    shown.images[:, :, 1, 1] = 255
    write_images(shown, toys / "shown")
    words = audit(toys, write_onnx(toys / "model.onnx", weights=TOY_BACKDOOR))
    at = words.index("--trigger")
    words[at : at + 2] = ["--triggered", f"{toys / 'shown'}:2"]
    assert main(words) == 1


# Takes normalised images and is blind to what is not above their mean.
FOREIGN = TOY_BODY.replace("Flatten(pixels)", "Flatten(pixels) lit = Relu(flat)").replace(
    "MatMul(flat", "MatMul(lit"
)


def test_verify_normalises_for_a_foreign_file(
    toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artefact = write_onnx(toys / "model.onnx", FOREIGN)
    assert main(audit(toys, artefact, mean="0.5", std="0.5")) == 0
    capsys.readouterr()
    assert main(audit(toys, artefact, mean="0.9", std="0.5")) == 5
    told = capsys.readouterr().err
    assert "expected the folders to be the model's classes in its order, got clean acc" in told


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"mean": "0.5"}, "expected mean and std together, got one of them"),
        ({"mean": "0.5,0.5", "std": "1,1"}, "expected 1 values each for mean and std > 0, got (0."),
        ({"mean": "0.5", "std": "0"}, "expected 1 values each for mean and std > 0, got (0.5,)"),
        (
            {"input_size": "1,3,3"},
            "expected an input size, channels, rows and columns, that fits 1x2x2, got (1, 3, 3)",
        ),
        (
            {"input_size": "1,2"},
            "expected an input size, channels, rows and columns, that fits 1x2x2, got (1, 2)",
        ),
        ({"policy": "none.toml"}, "expected a policy file, got no such file"),
    ],
)
def test_verify_refuses_what_does_not_suit_the_file(
    toys: Path, capsys: pytest.CaptureFixture[str], more: dict[str, str], told: str
) -> None:
    before = tree(toys)
    artefact = write_onnx(toys / "model.onnx")
    assert main(audit(toys, artefact, **more)) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lmr-guard: {told}")
    assert set(tree(toys)) == {*before, "model.onnx"}


def test_verify_asks_for_the_size_that_the_file_leaves_free(
    toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artefact = write_onnx(toys / "model.onnx", takes="float[batch,1,rows,columns] pixels")
    assert main(audit(toys, artefact)) == 4
    told = capsys.readouterr().err
    assert (
        "expected an input size, channels, rows and columns, that fits 1xanyxany, got None" in told
    )
    assert main(audit(toys, artefact, input_size="1,2,2")) == 0


def test_verify_refuses_files_of_other_than_one_or_three_channels(
    toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artefact = write_onnx(toys / "model.onnx", takes="float[batch,4,1,1] pixels")
    assert main(audit(toys, artefact)) == 4
    assert "expected images of 1 or 3 channels, got 4 in" in capsys.readouterr().err


def test_verify_compares_with_a_reference(toys: Path) -> None:
    better = write_onnx(toys / "better.onnx")
    worse = write_onnx(toys / "worse.onnx", weights="float[4,3] W = {1,0,0, 0,1,0, 0,1,0, 0,0,0}")
    written = toys / "report.json"
    assert main(audit(toys, worse, reference=str(better), report=str(written))) == 1
    document = json.loads(written.read_text())
    findings = {f["check"]: f["outcome"] for f in document["variants"][0]["findings"]}
    assert findings["accuracy"] == "fail"
    assert document["notes"] == []
    assert main(audit(toys, better, reference=str(better))) == 0


def test_class_names_give_the_order(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    renamed = Labelled(toy_images(300).images, toy_images(300).labels, ("z", "y", "x"))
    write_images(renamed, toys / "other")
    artefact = write_onnx(toys / "model.onnx")
    assert main(audit(toys, artefact, clean=str(toys / "other"), classes="z, y, x")) == 0
    assert main(audit(toys, artefact, clean=str(toys / "other"))) == 5


def test_the_files_of_these_tests_are_what_they_say(row_files: Path) -> None:
    source = Architecture(ARCHITECTURE)
    model = load.classifier(row_files / "model.safetensors", source)
    images = read_folder(row_files / "clean", model.preprocessing)
    assert accuracy(model, images).value >= 0.9


def test_a_run_takes_lists_of_images_and_a_file_of_classes(place: Path) -> None:
    """What it reports is what a folder per class comes to, in the order that the file says."""
    files = place / "given"
    told = [f"clean/{p.parent.name}/{p.name},{p.parent.name}" for p in files.rglob("clean/*/*.png")]
    (files / "labels.csv").write_text("path,label\n" + "\n".join(sorted(told)))
    (files / "classes.json").write_text(json.dumps({"0": "a", "1": "b", "2": "c"}))
    options = {**given(place), "--audit-steps": "0"}
    reports = []
    lists = {"--clean": str(files / "labels.csv"), "--classes": str(files / "classes.json")}
    for number, more in enumerate(({}, lists)):
        out = place / "results" / str(number)
        assert main([*command("run", {**options, **more, "--out": str(out)}), "--no-repair"]) == 0
        reports.append(Report.read(out / "report.json"))
    folder, listed = reports
    assert listed.config["classes"] == folder.config["classes"] == ["a", "b", "c"]
    assert listed.config["images"] == folder.config["images"]
    assert listed.published[0].clean_accuracy == folder.published[0].clean_accuracy
    assert listed.published[0].sha256 == folder.published[0].sha256
