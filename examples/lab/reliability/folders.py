# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Folders of models, ONNX files as models and plans of fleets that nobody should hand in."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path

import torch
from safetensors.torch import save, save_file

from examples.lab.reliability.place import BODY, SIDE, write_onnx
from examples.lab.reliability.trial import Case

__all__ = ["cases"]

_TIMM = "test_efficientnet"
_DEEP = b"[" * 100_000
_SIDE = 32


def _zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _circle(path: Path) -> None:
    path.symlink_to(path.name)


def _put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


# --- folders of the hub -------------------------------------------------------------------------


@cache
def _weights() -> bytes:
    import timm

    torch.manual_seed(0)
    return save(timm.create_model(_TIMM, num_classes=3).state_dict())


def _config() -> dict[str, object]:
    """As timm writes it."""
    told = {"input_size": [3, _SIDE, _SIDE], "mean": [0.5] * 3, "std": [0.2] * 3, "crop_pct": 1.0}
    return {"architecture": _TIMM, "num_classes": 3, "pretrained_cfg": told}


def _model(
    name: str,
    change: Callable[[Path], object],
    codes: tuple[int, ...] = (5,),
) -> Case:
    """A folder of timm that was right, but for its random weights, before ``change``."""

    def make(folder: Path) -> list[str]:
        held = folder / "model"
        held.mkdir()
        (held / "config.json").write_text(json.dumps(_config()))
        (held / "model.safetensors").write_bytes(_weights())
        change(held)
        return ["scan", str(held), "--clean", str(folder / "clean")]

    return Case(f"folder: {name}", make, codes)


def _told(**values: object) -> Callable[[Path], object]:
    """Other values in the description."""
    return lambda held: (held / "config.json").write_text(json.dumps({**_config(), **values}))


def _pretrained(**values: object) -> Callable[[Path], object]:
    own = _config()["pretrained_cfg"]
    assert isinstance(own, Mapping)
    return _told(pretrained_cfg={**own, **values})


def _instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Something else under the name of a file."""

    def change(held: Path) -> None:
        (held / name).unlink(missing_ok=True)
        make(held / name)

    return change


_DESCRIPTIONS: dict[str, bytes] = {
    "no bytes": b"",
    "no JSON": b"{",
    "no UTF-8": b'{"a": "\xff"}',
    "a list": b"[]",
    "nothing": b"null",
    "an empty object": b"{}",
    "nested 100,000 times": _DEEP,
    "a number of 5000 digits": b'{"num_classes": ' + b"9" * 5000 + b"}",
    "2 MB": b'{"a": "' + b"a" * (2 << 20) + b'"}',
}


def _descriptions() -> Iterator[Case]:
    for name, content in _DESCRIPTIONS.items():
        code = 4 if name == "an empty object" else 5
        yield _model(
            f"a description: {name}",
            _instead("config.json", partial(_put, content=content)),
            (code,),
        )
    instead: dict[str, Callable[[Path], object]] = {
        "a named pipe": os.mkfifo,
        "zeros without end": _zeros,
        "a folder": Path.mkdir,
        "a link to itself": _circle,
        "missing": lambda _: None,
    }
    for name, make in instead.items():
        yield _model(f"a description: {name}", _instead("config.json", make))
        yield _model(f"weights: {name}", _instead("model.safetensors", make))
    yield _model("a network of nobody", _told(architecture="nobody"), (4,))
    yield _model("a network that leads out", _told(architecture="../../x"), (4,))
    yield _model("a network of the hub", _told(architecture="hf-hub:a/b"), (4,))
    yield _model("code of its own", _told(auto_map={"AutoModel": "x.Y"}), (4,))
    yield _model("weights elsewhere", _told(model_args={"pretrained": True}), (4,))
    for count in (0, -1, 1, 4, 10**6, 10**9, 10**300):
        codes = (4, 5)
        yield _model(f"{count:.3g} classes" if count < 10**9 else f"{len(str(count))} digits of "
                     "classes", _told(num_classes=count), codes)  # fmt: skip
    for name, size in {
        "no size": None,
        "a size of text": "3x32x32",
        "a negative size": [3, -1, 32],
        "a size of 2 axes": [32, 32],
        "40,000 x 40,000 pixels": [3, 40_000, 40_000],
        "900,000 x 900,000 pixels": [3, 900_000, 900_000],
        "7 channels": [7, 32, 32],
        "half a row": [3, 32.5, 32],
    }.items():
        yield _model(f"images of {name}", _pretrained(input_size=size), (4, 5))
    for name, values in {
        "that are NaN": [float("nan")] * 3,
        "of 0": [0.0] * 3,
        "that are text": ["a"] * 3,
        "of 300 digits": [10**300] * 3,
        "for two channels": [0.5] * 2,
    }.items():
        yield _model(f"deviations {name}", _pretrained(std=values), (4, 5))


def _sharded(name: str, index: object, codes: tuple[int, ...] = (5,)) -> Case:
    """Two shards, and an index of them."""

    def change(held: Path) -> None:
        whole = held / "model.safetensors"
        whole.rename(held / "model-00001-of-00002.safetensors")
        save_file({"z": torch.zeros(1)}, held / "model-00002-of-00002.safetensors")
        content = index if isinstance(index, bytes) else json.dumps(index).encode()
        (held / "model.safetensors.index.json").write_bytes(content)

    return _model(f"an index {name}", change, codes)


def _indices() -> Iterator[Case]:
    for name, where in {
        "that names a missing shard": "model-00003-of-00003.safetensors",
        "that leads out": "../model.safetensors",
        "of an absolute path": "/etc/hostname",
        "that names itself": "model.safetensors.index.json",
        "that names the description": "config.json",
        "of no name": "",
        "of a number": 3,
        "of NUL": "a\0b",
        "of half a character": "\ud800",
        "of a name of 5000 letters": "x" * 5000,
        "of a weight that the shard has not": "model-00002-of-00002.safetensors",
    }.items():
        yield _sharded(name, {"weight_map": {"conv_stem.weight": where}})
    yield _sharded("nested 100,000 times", _DEEP)
    yield _sharded("without weights", {"weight_map": {}})
    yield _sharded("that is a list", [1])
    yield _sharded("that is a list inside", {"weight_map": ["a"]})
    twice = (
        b'{"weight_map": {"a": "model-00001-of-00002.safetensors", '
        b'"a": "model-00002-of-00002.safetensors"}}'
    )
    yield _sharded("with a key twice", twice)
    yield _sharded("of 2 MB", b'{"weight_map": {"' + b"a" * (2 << 20) + b'": "x"}}')
    for name, make in {"a named pipe": os.mkfifo, "zeros without end": _zeros}.items():

        def change(held: Path, make: Callable[[Path], object] = make) -> None:
            (held / "model.safetensors").unlink()
            make(held / "shard.safetensors")
            told = {"weight_map": {"a": "shard.safetensors"}}
            (held / "model.safetensors.index.json").write_text(json.dumps(told))

        yield _model(f"an index of {name}", change)


def _transformers() -> Iterator[Case]:
    """One stands for each way that a description of transformers can go wrong."""
    small: dict[str, object] = {
        "model_type": "vit",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "image_size": SIDE,
        "patch_size": 3,
        "num_channels": 1,
        "id2label": {"0": "class0", "1": "class1", "2": "class2"},
    }
    for name, values, codes in (
        ("a kind of nobody", {"model_type": "nobody"}, (4,)),
        ("a kind that is a list", {"model_type": ["vit"]}, (4,)),
        ("other weights", {}, (5,)),
        ("a width of 10^6", {"hidden_size": 10**6, "intermediate_size": 10**6}, (5,)),
        ("images of 10^6 rows", {"image_size": 10**6}, (5,)),
    ):
        text = json.dumps({**small, **values}).encode()
        change = _instead("config.json", partial(_put, content=text))
        yield _model(f"transformers: {name}", change, codes)


# --- ONNX files as models -----------------------------------------------------------------------


def _onnx(name: str, write: Callable[[Path], object], codes: tuple[int, ...] = (5,)) -> Case:
    def make(folder: Path) -> list[str]:
        path = folder / "given.onnx"
        write(path)
        return ["scan", str(path), "--clean", str(folder / "clean")]

    return Case(f"onnx model: {name}", make, codes)


def _body(body: str, more: str = "", shape: str = f"N,1,{SIDE},{SIDE}") -> Callable[[Path], object]:
    return lambda path: write_onnx(path, body, more, shape)


def _onnx_models() -> Iterator[Case]:
    yield _onnx("no bytes", partial(_put, content=b""))
    yield _onnx("text", partial(_put, content=b"text " * 99))
    yield _onnx("a named pipe", os.mkfifo)
    yield _onnx("zeros without end", _zeros)
    yield _onnx("a link to itself", _circle)
    yield _onnx("cut off", lambda path: _put(path, write_onnx(path).read_bytes()[:-50]))
    chosen = "flat = Flatten(pixels) on = Greater(flat, T) y = Cast<to=1>(on) logits = MatMul(y, W)"
    yield _onnx("a step", _body(chosen, "float[1] T = {0.5}"), (3,))
    dice = "flat = Flatten(pixels) r = RandomNormalLike(flat) y = Add(flat, r) logits = MatMul(y,W)"
    yield _onnx("dice", _body(dice), (3,))
    yield _onnx("an operator of nobody", _body("flat = Flatten(pixels) logits = Nobody(flat, W)"))
    yield _onnx("rows of another size", _body(BODY, shape="N,1,7,7"))
    yield _onnx("weights that are NaN", _nan, (4,))
    packed = (
        "flat = Flatten(pixels) q = QuantizeLinear(flat, S, Z) y = DequantizeLinear(q, S, Z) "
        "logits = MatMul(y, W)"
    )
    yield _onnx("one that is quantised", _body(packed, "float S = {0.01}, uint8 Z = {0}"), (4,))
    huge = "c = ConstantOfShape(D) s = ReduceSum<keepdims=0>(c) flat = Flatten(pixels) "
    more = "int64[3] D = {50000, 50000, 50000}"
    yield _onnx(
        "a constant of 500 TB", _body(f"{huge} y = Add(flat, s) logits = MatMul(y, W)", more)
    )


def _nan(path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(write_onnx(path))
    (tensor,) = (each for each in model.graph.initializer if each.name == "W")
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0] = float("nan")
    tensor.CopyFrom(numpy_helper.from_array(values, "W"))
    path.write_bytes(model.SerializeToString())


# --- plans --------------------------------------------------------------------------------------

_UNIT = '[[unit]]\nname = "a"\nmodel = "model.safetensors"\nclean = "clean"\n'
_PLANS: dict[str, bytes] = {
    "no bytes": b"",
    "no TOML": b"[[unit",
    "no UTF-8": b"\xff\xfe",
    "NUL": b"\0",
    "lists nested 10,000 times": b"a = " + b"[" * 10_000,
    "2 MB": b"#" * (2 << 20),
    "no units": b"unit = []",
    "units that are text": b"unit = 'a'",
    "a unit that is text": b"unit = ['a']",
    "defaults that are text": b"defaults = 'a'\n" + _UNIT.encode(),
    "a key of nobody": b"[x]\ny = 1\n" + _UNIT.encode(),
    "an option of nobody": _UNIT.encode() + b"modle = 'x'",
    "no name": b"[[unit]]\nmodel = 'm'\nclean = 'c'",
    "no model": b"[[unit]]\nname = 'm'\nclean = 'c'",
    "no images": b"[[unit]]\nname = 'm'\nmodel = 'c'",
    "a name that leads out": _UNIT.replace('"a"', '"../../x"').encode(),
    "an absolute name": _UNIT.replace('"a"', '"/tmp/x"').encode(),
    "a name of 5000 letters": _UNIT.replace('"a"', f'"{"x" * 5000}"').encode(),
    "a name that is a number": _UNIT.replace('"a"', "3").encode(),
    "a name with an escape": _UNIT.replace('"a"', '"\\u001b[2J"').encode(),
    "a unit twice": 2 * _UNIT.encode(),
    "a unit twice but for case": _UNIT.encode() + _UNIT.replace('"a"', '"A"').encode(),
    "a seed of 5000 digits": _UNIT.encode() + b"seed = " + b"9" * 5000,
    "a seed of text": _UNIT.encode() + b"seed = 'a'",
    "a trigger of nobody": _UNIT.encode() + b"trigger = ['x']",
    "policies that are numbers": _UNIT.encode() + b"policy = [1]",
    "no policies": _UNIT.encode() + b"policy = []",
    "a key twice": _UNIT.encode() + b"name = 'b'",
    "a share that is NaN": _UNIT.encode() + b"repair_images = nan",
}


def _plans() -> Iterator[Case]:
    def given(name: str, write: Callable[[Path], object]) -> Case:
        def make(folder: Path) -> list[str]:
            write(folder / "plan.toml")
            return ["fleet", str(folder / "plan.toml"), "--out", str(folder / "out")]

        return Case(f"plan: {name}", make, (4,))

    for name, content in _PLANS.items():
        yield given(name, partial(_put, content=content))
    yield given("a named pipe", os.mkfifo)
    yield given("zeros without end", _zeros)
    yield given("a folder", lambda path: path.mkdir())
    yield given("no such file", lambda _: None)
    yield given("a link to itself", _circle)


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _descriptions()
    yield from _indices()
    yield from _transformers()
    yield from _onnx_models()
    yield from _plans()
