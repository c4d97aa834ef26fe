# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What reads what others wrote, each with valid input to spoil."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from examples.lab.reliability.executing import Target
from examples.lab.reliability.mutation import Draws, Spoiler, Tree
from examples.lab.reliability.place import SIDE, fill
from lmr_guard import foreign, pictures
from lmr_guard.classifier import Preprocessing
from lmr_guard.cli import arguments
from lmr_guard.compress import recipes
from lmr_guard.contracts import Rate
from lmr_guard.evidence import PatchFile, TriggeredFolder
from lmr_guard.fleet import plan
from lmr_guard.onnxfile.inspect import branches, inventory, read_model
from lmr_guard.received.archives import read_shards
from lmr_guard.received.checkpoint import read_weights
from lmr_guard.received.data import read_image
from lmr_guard.received.names import read_classes
from lmr_guard.received.tables import read_list
from lmr_guard.release.drills import DrilledAttack, DrilledForm, DrillReport
from lmr_guard.release.policy import Policy, policy_from_toml
from lmr_guard.release.records import Outcome
from lmr_guard.release.report import Report
from lmr_guard.results import Method, Repair, Suspicion

__all__ = ["report_record", "targets"]


def targets(folder: Path) -> dict[str, Target]:
    """All readers by name.

    Args:
        folder: Empty, best in memory; holds the files that they read.
    """
    place = fill(folder / "place")
    found = (*_texts(), *_records(folder, place), *_files(folder, place), *_lists(folder))
    return {target.name: target for target in found}


# --- words of a command -------------------------------------------------------------------------


def _text(data: bytes) -> str:
    """As Python decodes the words of a command line."""
    return data.decode("utf-8", "surrogateescape")


def _texts() -> Iterator[Target]:
    separators = (b"@", b",", b":", b"-", b"9" * 10, b"\n", b"\0", "１".encode(), b" ", b".png@0,0")
    patches = Spoiler([b"patch.png@5,5:2", b"a@b/p.png@0,17", b"C:\\p.png@1,1"], separators)
    yield Target("patch", patches, lambda data: PatchFile.parse(_text(data)))
    folders = Spoiler([b"triggered:2", b"folder", b"C:\\images:0", b"a:b:3"], separators)
    yield Target("triggered", folders, lambda data: TriggeredFolder.parse(_text(data)))
    tokens = (b"l1-", b"+int8", b"float32", b"int8", b"nan", b"inf", b"1e-9", b"0.", b",", b"_")
    labels = Spoiler([b"float32,int8,l1-0.2", b"l1-0.5+int8", b"l1-1e-1"], tokens)
    yield Target("variants", labels, lambda data: recipes.parse(_text(data).split(",")))
    yield Target("architecture", _architecture(), _describe)


def _architecture() -> Callable[[Draws], dict[str, Any]]:
    """The options of ``MODEL``: each valid or spoilt."""
    tokens = (b"torchvision:", b"timm:", b":", b".", b"\0", b"-", b"__import__", b"\xff")
    name = Spoiler([b"torchvision:resnet18", b"timm:resnet18", b"a.b:c"], tokens)
    numbers = Spoiler([b"3,32,32", b"1,6,6", b"0.5,0.5,0.5", b"1", b"0.1"], (b",", b"nan", b"-"))
    stems = ("native", "cifar", "native", "x")

    def make(draws: Draws) -> dict[str, Any]:
        turned = [draws[shift:] + draws[:shift] for shift in (1, 5, 9, 13)]
        size, mean, std = (None if d[7] % 3 == 0 else _text(numbers(d)) for d in turned[1:])
        return {
            "arch": _text(name(turned[0])),
            "num_classes": (None, 10, 1, -1, 1 << 70)[draws[0] % 5],
            **{"input_size": size, "mean": mean, "std": std},
            "stem": stems[draws[1] % len(stems)],
            "upright": draws[2] % 2 == 0,
            "weights": (None, "IMAGENET1K_V1", "DEFAULT", "x.y\0")[draws[3] % 4],
            "trusted": draws[4] % 8 == 0,
            **{"layout": "auto", "logits": None},
        }

    return make


def _describe(options: dict[str, Any]) -> object:
    """As the command line does it."""
    options = dict(options)
    for name, kind in (("input_size", int), ("mean", float), ("std", float)):
        parse = arguments.numbers(kind)
        options[name] = parse(None, click.Option([f"--{name}"]), options[name])
    return arguments.architecture(Path("model.safetensors"), options)


# --- records and settings -----------------------------------------------------------------------


def _records(folder: Path, place: Path) -> Iterator[Target]:
    policy = Spoiler(_POLICIES, _TOML)
    yield _file("policy", policy, folder / "policy.toml", policy_from_toml)
    settings = Tree(json.loads(json.dumps(asdict(Policy()))))
    yield Target("policy.record", settings, _policy)
    report = report_record(place)
    text = json.dumps(report).encode()
    yield Target("report.record", Tree(report), Report.from_json)
    spoilt = Spoiler([text, text[: len(text) // 2]], _JSON)
    yield _file("report.file", spoilt, folder / "report.json", Report.read)
    drill = _drill().to_json()
    yield Target("drill.record", Tree(drill), DrillReport.from_json)
    spoilt = Spoiler([json.dumps(drill).encode()], _JSON)
    yield _file("drill.file", spoilt, folder / "drill.json", DrillReport.read)
    spoilt = Spoiler(_PLANS, (*_TOML, b"[[unit]]\n", b"0x" + b"f" * 4000, b"@1,1:2", b"seed = "))
    yield _file("plan", spoilt, folder / "plan.toml", lambda path: plan.read(path, _OPTIONS))


def _policy(data: Any) -> Policy:  # noqa: ANN401 - any value of JSON
    """As a table of TOML would come; what is none, no reader gets."""
    return (
        Policy.from_json({key: data[key] for key in asdict(Policy()) if key in data})
        if isinstance(data, dict)
        else Policy()
    )


_POLICIES = (
    b'max_asr = 0.05\nmin_trials = 100\nconfidence = 0.95\nrequire = ["float32", "int8"]\n',
    b'publish = "all"\nmax_excess = 0.2\nmax_strangeness = 2.0\naccept_inverted = false\n',
    b"max_accuracy_drop = 3e-2 # comment\n",
)
_TOML = (
    *(b"=", b"[", b"]", b"\n", b'"', b"{", b"}", b"[[x]]\n", b"'''", b"\\u0000", b"\\uD800"),
    *(b"max_asr = ", b"min_trials = ", b"require = ", b"publish = ", b"confidence = "),
    *(b"nan", b"inf", b"1e999", b"1979-05-27", b"07:32:00", b"true", b"[" * 200, b"a." * 200),
)
_JSON = (
    *(b"{", b"}", b"[", b"]", b'"', b",", b":", b"null", b"NaN", b"Infinity", b"1e999", b"{}"),
    *(b"true", b"\\ud800", b"[" * 2000, b"9" * 5000, b'"x": ', b"-0", b"\xff", b"[]"),
)


_PLANS = (
    b'[defaults]\nclean = "c"\nseed = 1\npolicy = ["a.toml"]\n[[unit]]\nname = "a"\nmodel = "m"\n',
    b'[[unit]]\nname = "b"\nmodel = "m"\nclean = "c"\ntrigger = ["p.png@1,2:3"]\nscale = 0.5\n'
    b'variants = ["int8", 1]\nrepair = false\n[[unit]]\nname = "c"\nmodel = "n"\nclean = "c"\n',
)
_OPTIONS = {
    "arch": plan.Option(on="--arch"),
    "clean": plan.Option(on="--clean", names=plan.Names.PATH),
    "policy": plan.Option(on="--policy", names=plan.Names.PATH),
    "trigger": plan.Option(on="--trigger", many=True, names=plan.Names.PATCH),
    "variants": plan.Option(on="--variants", joined=True),
    "seed": plan.Option(on="--seed", kind=int),
    "scale": plan.Option(on="--scale", kind=float),
    "repair": plan.Option(on="--repair", off="--no-repair", kind=bool),
}
"""Options of ``run``, one of each kind that a plan can hold."""


def _file(name: str, spoilt: Spoiler, path: Path, read: Callable[[Path], object]) -> Target:
    def written(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return Target(name, spoilt, written, file=True)


def report_record(place: Path) -> dict[str, Any]:
    """A report with all that a report can hold, from a filled place.

    The file is audited; what the audit of one file leaves out is put in by hand.
    """
    audited = foreign.verify(
        place / "model.onnx",
        place / "clean",
        [PatchFile(place / "patch.png", 0, 0)],
        policy=Policy(require=("float32",), max_asr=0.4, min_trials=20),
        threads=1,
    )
    rate = Rate(59, 60)
    suspicion = Suspicion(1, (0.5, 2.0, 1.0), Method.INVERSION, 0.75, ({"by": "look"},))
    repaired = Repair(1, rate, rate, (3, 5), 40, 20, ({"step": 1},))
    whole = replace(
        audited,
        suspicion=suspicion,
        repair=repaired,
        received=audited.variants,
        notes=("A note.",),
        drills=(_drill(),),
    )
    found: dict[str, Any] = json.loads(json.dumps(whole.to_json()))
    return found


def _drill() -> DrillReport:
    form = DrilledForm(
        name="float32",
        asr_unrepaired=Rate(90, 100),
        asr_repaired=Rate(0, 100),
        awake=True,
        suppressed=True,
    )
    attack = DrilledAttack(
        attack="badnets",
        wakes="float32",
        target=1,
        suspect=1,
        forms=(form, replace(form, name="int8", asr_repaired=None)),
        took=True,
        outcome=Outcome.PASS,
        seconds=1.5,
    )
    return DrillReport(
        model="model.pt",
        model_sha256="0" * 64,
        weights_sha256="1" * 64,
        attacks=(attack, attack),
        config={"seed": 0, "attacks": ["badnets"]},
        environment={"python": "3"},
    )


# --- files --------------------------------------------------------------------------------------


def _files(folder: Path, place: Path) -> Iterator[Target]:
    weights = (place / "model.safetensors").read_bytes()
    head = (
        *(b'"dtype":', b'"F32"', b'"F64"', b'"data_offsets":', b"[0,", b'"shape":[', b'"I8"'),
        *(b"{", b"}", b"__metadata__", b"\xff" * 8, b'"state_dict.', b"module.", b"-1", b"1e9"),
    )
    spoilt = Spoiler([weights, weights[:400]], head)
    yield _file("checkpoint.safetensors", spoilt, folder / "w.safetensors", read_weights)
    buffer = io.BytesIO()
    torch.save({"state_dict": {"w": torch.ones(3, 2), "b": torch.zeros(2)}, "epoch": 3}, buffer)
    old = io.BytesIO()
    torch.save({"w": torch.ones(2)}, old, _use_new_zipfile_serialization=False)
    pickled = (b"cos\nsystem\n", b"\x80\x02", b"(", b"tR.", b"PK\x03\x04", b"data.pkl", b"\x8a\x08")
    spoilt = Spoiler([buffer.getvalue(), old.getvalue()], pickled)
    yield _file("checkpoint.torch", spoilt, folder / "w.pt", read_weights)
    graph = (place / "model.onnx").read_bytes()
    operators = (b"If", b"Loop", b"Where", b"location", b"\x0a\x00", b"\x80\x01", b"W", b"pixels")
    spoilt = Spoiler([graph, _branching()], operators)
    yield _file("onnx", spoilt, folder / "m.onnx", _inspected)
    yield from _images(folder)


def _inspected(path: Path) -> object:
    model, *_ = read_model(path)
    return branches(model), inventory(model)


def _branching() -> bytes:
    """A graph with a branch, a function and data of several kinds."""
    import onnx

    text = """
        <ir_version: 10, opset_import: ["" : 20, "own": 1]>
        toy (float[N,1,2,2] pixels, bool yes) => (float[N,2] logits)
        <float[4,2] W = {1,0,0,1,1,0,0,1}, int64[2] shape = {-1, 4}> {
            flat = Reshape(pixels, shape)
            some = own.twice(flat)
            kept = If (yes) <
                then_branch = one () => (float[N,4] a) { a = Relu(some) },
                else_branch = two () => (float[N,4] b) { b = Neg(some) }>
            logits = MatMul(kept, W)
        }
        <domain: "own", opset_import: ["" : 20]>
        twice (x) => (y) { y = Add(x, x) }"""
    data: bytes = onnx.parser.parse_model(text).SerializeToString()
    return data


def _images(folder: Path) -> Iterator[Target]:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    shape = Preprocessing(height=SIDE, width=SIDE, mean=(0.0,) * 3, std=(1.0,) * 3, resize=8)
    for kind in pictures.formats():
        buffer = io.BytesIO()
        whole = Image.fromarray(pixels)
        with_more = {"exif": _exif()} if kind in {"JPEG", "PNG", "WEBP", "TIFF", "AVIF"} else {}
        whole.save(buffer, kind, **with_more)
        grey = io.BytesIO()
        whole.convert("L").save(grey, kind)
        tokens = (b"\xff\xd8", b"\xff\xda", b"IHDR", b"IDAT", b"iCCP", b"GIF89a", b"II*\0", b"RIFF")
        spoilt = Spoiler([buffer.getvalue(), grey.getvalue()], (*tokens, b"\x12\x01", b"\xff" * 4))
        path = folder / f"image.{kind}"
        yield _file(f"image.{kind.lower()}", spoilt, path, lambda path: read_image(path, shape))


def _exif() -> Image.Exif:
    told = Image.Exif()
    told[0x0112] = 6
    return told


# --- lists of images ----------------------------------------------------------------------------


def _lists(folder: Path) -> Iterator[Target]:
    picture = io.BytesIO()
    Image.new("RGB", (2, 2)).save(picture, "PNG")
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(picture.getvalue())
    cells = (b",", b";", b"\t", b'"', b"\r", b"\0", b"\xff", b"../", b"/", b"file_name", b"label")
    tables = (b"file_name,label\na.png,x\nb.png,y\n", b'a.png;x\n"b.png";y\n', b"path\na.png\n")
    yield _file("list.csv", Spoiler(tables, cells), folder / "list.csv", read_list)
    rows = (b'{"file_name": "a.png", "label": 1}\n{"path": "b.png", "class": "y"}\n',)
    yield _file("list.jsonl", Spoiler(rows, (*_JSON, *cells)), folder / "list.jsonl", read_list)
    names = (b'["a", "b"]', b'{"0": ["n1", "a"], "1": ["n2", "b"]}', b'{"a": 0, "b": 1}')
    yield _file("classes", Spoiler(names, _JSON), folder / "classes.json", read_classes)
    shard = Spoiler(
        [_archive(picture.getvalue())], (b"ustar", b"\0" * 64, b".cls", b"7777777", b"x")
    )
    yield _file("archive", shard, folder / "shard.tar", lambda path: read_shards([path]))


def _archive(picture: bytes) -> bytes:
    """An image and its label, as webdataset has them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (("0.png", picture), ("0.cls", b"1"), ("é" * 60 + ".txt", b"")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
