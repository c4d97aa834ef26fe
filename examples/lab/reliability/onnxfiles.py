# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""ONNX files that nobody should hand in."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, helper, parser

from examples.lab.reliability.place import BODY, CLASSES, SIDE, write_onnx
from examples.lab.reliability.trial import Case

__all__ = ["cases", "verify", "with_option"]

_FOUND = (1, 3)


def verify(folder: Path, model: Path | str | None = None) -> list[str]:
    """The words of an audit."""
    artefact = folder / "model.onnx" if model is None else model
    patch = f"{folder / 'patch.png'}@5,5:2"
    said = ["verify", str(artefact), "--clean", str(folder / "clean"), "--trigger", patch]
    return [*said, "--threads", "1", "--policy", str(_policy(folder))]


def with_option(words: Sequence[str], option: str, value: object) -> list[str]:
    """The words of a command, with this value of an option in place of its own."""
    at = list(words).index(option) if option in words else len(words)
    return [*words[:at], option, str(value), *words[at + 2 :]]


def _policy(folder: Path) -> Path:
    path = folder / "policy.toml"
    path.write_text('require = ["float32"]\n')
    return path


def _bytes(name: str, content: bytes) -> Case:
    def make(folder: Path) -> list[str]:
        (folder / "given.onnx").write_bytes(content)
        return verify(folder, folder / "given.onnx")

    return Case(f"onnx: {name}", make)


def _edited(name: str, edit: Callable[[ModelProto], object], codes: tuple[int, ...] = (5,)) -> Case:
    def make(folder: Path) -> list[str]:
        model = onnx.load(folder / "model.onnx")
        edit(model)
        (folder / "given.onnx").write_bytes(model.SerializeToString())
        return verify(folder, folder / "given.onnx")

    return Case(f"onnx: {name}", make, codes)


def _graph(
    name: str,
    body: str,
    more: str = "",
    codes: tuple[int, ...] = (5,),
    shape: str = f"N,1,{SIDE},{SIDE}",
    *,
    slow: bool = False,
) -> Case:
    def make(folder: Path) -> list[str]:
        write_onnx(folder / "given.onnx", body, more, shape)
        return verify(folder, folder / "given.onnx")

    return Case(f"onnx: {name}", make, codes, slow)


def _damaged() -> Iterator[Case]:
    yield Case("onnx: as it should be", verify, (0,))
    yield _bytes("empty", b"")
    yield _bytes("text", b"model\n" * 1000)
    yield _bytes("zeros", bytes(1 << 20))
    for share in (0.2, 0.5, 0.9, 0.999):

        def cut(folder: Path, share: float = share) -> list[str]:
            content = (folder / "model.onnx").read_bytes()
            (folder / "given.onnx").write_bytes(content[: int(share * len(content))])
            return verify(folder, folder / "given.onnx")

        yield Case(f"onnx: cut off at {share:.1%}", cut)
    yield _edited("no graph", lambda m: m.ClearField("graph"))
    yield _edited("no nodes", lambda m: m.graph.ClearField("node"))
    yield _edited("no opset", lambda m: m.ClearField("opset_import"))
    yield _edited("opset 999", lambda m: _set(m.opset_import[0], version=999))
    yield _edited("opset 1", lambda m: _set(m.opset_import[0], version=1), (0, 5))
    yield _edited("IR version 999", lambda m: _set(m, ir_version=999))
    yield _edited("a node twice", lambda m: m.graph.node.append(m.graph.node[0]))
    yield _edited("an operator of nobody", lambda m: _set(m.graph.node[0], op_type="Backdoor"))
    yield _edited("a domain of nobody", lambda m: _set(m.graph.node[0], domain="evil"))
    yield _edited("a circle", lambda m: m.graph.node[0].input.__setitem__(0, "logits"))
    yield _edited("200,000 nodes that do nothing", lambda m: _idle(m, 200_000))
    yield _edited("a name of 16 MB", lambda m: _set(m.graph.node[0], name="x" * (1 << 24)), (0, 5))
    yield _bytes("subgraphs nested 20 times", _nested(20))
    yield _edited("no weights", lambda m: m.graph.ClearField("initializer"))
    yield _edited("weights that are no numbers", lambda m: _fill(m, float("nan")), (3, 5))
    yield _edited("weights that are infinite", lambda m: _fill(m, float("inf")), (3, 5))
    yield _edited("weights cut short", _cut)
    yield _edited("10^12 weights without data", lambda m: _dims(m, 10**6, 10**6))
    yield _edited("a negative size", lambda m: _dims(m, -36, -3))


def _set(message: object, **values: object) -> None:
    for name, value in values.items():
        setattr(message, name, value)


def _idle(model: ModelProto, count: int) -> None:
    model.graph.node.extend(helper.make_node("Identity", ["W"], [f"i{n}"]) for n in range(count))


def _nested(depth: int) -> bytes:
    graph = helper.make_graph([], "g", [], [])
    for _ in range(depth):
        graph = helper.make_graph(
            [helper.make_node("If", ["c"], [], then_branch=graph)], "g", [], []
        )
    return bytes(helper.make_model(graph).SerializeToString())


def _fill(model: ModelProto, value: float) -> None:
    tensor = model.graph.initializer[0]
    count = SIDE * SIDE * CLASSES
    tensor.CopyFrom(helper.make_tensor("W", 1, [SIDE * SIDE, CLASSES], [value] * count))


def _cut(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(TensorProto(name="W", data_type=1, dims=tensor.dims, raw_data=bytes(8)))


def _dims(model: ModelProto, *dims: int) -> None:
    model.graph.initializer[0].CopyFrom(TensorProto(name="W", data_type=1, dims=dims))


def _shapes() -> Iterator[Case]:
    size = f"{SIDE},{SIDE}"
    yield _graph("a fixed batch of 4", BODY, shape=f"4,1,{size}", codes=(0,))
    yield _graph("a fixed batch of 10^8", BODY, shape=f"100000000,1,{size}")
    yield _graph("a batch of 0", BODY, shape=f"0,1,{size}", codes=(0, 3, 5))
    yield _graph("images of 10^6 x 10^6", BODY, shape="N,1,1000000,1000000")
    yield _graph("images of 7 channels", BODY, shape=f"N,7,{size}", codes=(4, 5))
    yield _graph("images of three axes", BODY, shape=f"N,{SIDE * SIDE},1")
    yield _graph("free sizes", BODY, shape="N,1,H,W", codes=(4,))
    whole = f"toy (float[N,1,{size}] pixels"
    yield _text("two inputs", f"{whole}, float[N,1,{size}] more) => (float[N,3] logits)", BODY)
    both = BODY + " more = Identity(logits)"
    outputs = f"{whole}) => (float[N,3] logits, float[N,3] more)"
    yield replace(_text("two outputs", outputs, both), codes=(4,))
    yield _text(
        "whole numbers in",
        f"toy (int64[N,1,{size}] pixels) => (int64[N,36] flat)",
        "flat = Flatten(pixels)",
    )
    yield _text(
        "whole numbers out",
        f"{whole}) => (int64[N,3] wide)",
        BODY + " wide = Cast<to=7>(logits)",
    )
    yield _text(
        "an output of one axis",
        f"{whole}) => (float[M] y)",
        BODY + " m = Constant<value_ints=[-1]>() y = Reshape(logits, m)",
    )
    yield _graph(
        "one class",
        "flat = Flatten(pixels) y = MatMul(flat, W) logits = ReduceSum<keepdims=1>(y, axes)",
        "int64[1] axes = {1}",
    )
    yield _graph(
        "10^9 classes",
        "flat = Flatten(pixels) y = MatMul(flat, W) "
        "s = ConstantOfShape(n) logits = Concat<axis=1>(y, s)",
        "int64[2] n = {1, 1000000000}",
    )
    yield _graph(
        "an empty answer",
        "flat = Flatten(pixels) y = MatMul(flat, W) logits = Slice(y, a, a)",
        "int64[1] a = {0}",
    )


def _text(name: str, signature: str, body: str) -> Case:
    def make(folder: Path) -> list[str]:
        held = onnx.load(folder / "model.onnx").graph.initializer
        text = f'<ir_version: 10, opset_import: ["" : 20]> {signature} {{ {body} }}'
        model = parser.parse_model(text)
        model.graph.initializer.extend(held)
        (folder / "given.onnx").write_bytes(model.SerializeToString())
        return verify(folder, folder / "given.onnx")

    return Case(f"onnx: {name}", make)


_TURN = (
    "turn (int64 i, bool k, float[N,3] a) => (bool l, float[N,3] b) { l = Identity(k) b = Neg(a) }"
)


def _behaviour() -> Iterator[Case]:
    plain = "flat = Flatten(pixels) y = MatMul(flat, W)"
    yield _graph(
        "a constant answer",
        f"{plain} z = Sub(y, y) logits = Add(z, b)",
        "float[3] b = {0,0,5}",
        (1, 3, 5),
    )
    yield _graph(
        "answers that are no numbers", f"{plain} z = Sub(y, y) logits = Div(z, z)", codes=(3, 5)
    )
    yield _graph(
        "dice", f"{plain} d = RandomNormalLike<scale=0.01>(y) logits = Add(y, d)", codes=(3,)
    )
    yield _graph(
        "a decision",
        f"{plain} m = ReduceMax<keepdims=0>(y) c = Greater(m, t) n = Neg(y) "
        "logits = Where(c, y, n)",
        "float t = {-1}",
        (1, 3, 5),
    )
    yield _graph(
        "memory of 400 GB",
        f"{plain} s = ConstantOfShape(n) t = ReduceSum<keepdims=0>(s) logits = Add(y, t)",
        "int64[1] n = {100000000000}",
    )
    yield _graph(
        "memory of 64 GB by steps",
        f"{plain} s = Expand(y, n) t = ReduceMax<keepdims=0>(s) z = Sub(t, t) logits = Add(y, z)",
        "int64[4] n = {100000, 50000, 1, 3}",
    )
    loop = f"{plain} c = Identity(go) logits = Loop(n, c, y) <body = {_TURN}>"
    endless = "int64 n = {4611686018427387904}, bool go = {1}"
    yield _graph("a loop of 2^62 turns", loop, endless, slow=True)
    yield _graph("a loop of two turns", loop, "int64 n = {2}, bool go = {1}", (3,))
    yield _graph(
        "text inside", f"{plain} s = Cast<to=8>(y) logits = Cast<to=1>(s)", codes=(0, 3, 5)
    )
    for turns in (3, 12, 16, 24):
        codes = (0, 3) if turns < 16 else (5,)
        yield Case(f"onnx: functions that double {turns} times", _doubling(turns), codes)
    yield Case("onnx: a function that calls itself", _doubling(1, itself=True))


def _doubling(turns: int, *, itself: bool = False) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        model = onnx.load(folder / "model.onnx")
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("f", 1)]
        for turn in range(turns):
            name = f"f{turn}" if itself else f"f{turn - 1}"
            calls = [("Neg", ""), ("Neg", "")] if not turn and not itself else [(name, "f")] * 2
            nodes = [
                helper.make_node(op, [given], [made], domain=domain)
                for (op, domain), given, made in zip(calls, "xt", "ty", strict=True)
            ]
            function = helper.make_function("f", f"f{turn}", ["x"], ["y"], nodes, opsets)
            model.functions.append(function)
        model.opset_import.append(opsets[1])
        model.graph.node[-1].output[0] = "plain"
        call = helper.make_node(f"f{turns - 1}", ["plain"], ["logits"], domain="f")
        model.graph.node.append(call)
        (folder / "given.onnx").write_bytes(model.SerializeToString())
        return verify(folder, folder / "given.onnx")

    return make


def _external(
    name: str,
    write: Callable[[Path, bytes], object],
    codes: tuple[int, ...] = (5,),
    **entries: str,
) -> Case:
    """The weights elsewhere; ``write`` puts them there."""

    def make(folder: Path) -> list[str]:
        home = folder / "in"
        home.mkdir()
        model = onnx.load(folder / "model.onnx")
        data = _outside(model, {"location": "w.data", **entries})
        write(home, data)
        (home / "given.onnx").write_bytes(model.SerializeToString())
        return verify(folder, home / "given.onnx")

    return Case(f"onnx: {name}", make, codes)


def _outside(model: ModelProto, entries: dict[str, str]) -> bytes:
    held = model.graph.initializer[0]
    data = onnx.numpy_helper.to_array(held).tobytes()
    held.CopyFrom(TensorProto(name="W", data_type=1, dims=[SIDE * SIDE, CLASSES]))
    held.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        held.external_data.add(key=key, value=value)
    return data


def _beside(home: Path, data: bytes) -> None:
    (home / "w.data").write_bytes(data)


def _many(turns: int) -> Case:
    """One file that many tensors name."""

    def make(folder: Path) -> list[str]:
        model = onnx.load(folder / "model.onnx")
        (folder / "w.data").write_bytes(_outside(model, {"location": "w.data"}) + bytes(1 << 25))
        for number in range(turns):
            more = TensorProto(name=f"m{number}", data_type=1, dims=[1 << 23])
            more.data_location = TensorProto.EXTERNAL
            more.external_data.add(key="location", value="w.data")
            more.external_data.add(key="length", value=str(1 << 25))
            model.graph.initializer.append(more)
        (folder / "given.onnx").write_bytes(model.SerializeToString())
        return verify(folder, folder / "given.onnx")

    return Case(f"onnx: one companion that {turns} tensors name", make)


def _companions() -> Iterator[Case]:
    def above(home: Path, data: bytes) -> None:
        (home.parent / "w.data").write_bytes(data)

    def linked_out(home: Path, data: bytes) -> None:
        above(home, data)
        (home / "w.data").symlink_to(home.parent / "w.data")

    def circle(home: Path, _: bytes) -> None:
        (home / "w.data").symlink_to("w.data")

    def endless(home: Path, _: bytes) -> None:
        (home / "w.data").symlink_to("/dev/zero")

    yield _external("weights beside it", _beside, (3,))
    yield _external("weights that are missing", lambda home, data: None)
    yield _external(
        "weights that are swapped for fewer", lambda home, data: _beside(home, data[:8])
    )
    yield _external("weights above, by ..", above, location="../w.data")
    yield _external("weights above, by .. inside", above, location="a/../../w.data")
    yield _external("weights above, by ..\\", above, location="..\\w.data")
    yield _external("weights at an absolute place", above, location="/etc/hostname")
    yield _external("weights on a drive", above, location="C:\\w.data")
    yield _external("weights by a link outside", linked_out)
    yield _external("weights by a link to itself", circle)
    yield _external("weights that never end", endless)
    yield _external("weights in a pipe", lambda home, _: os.mkfifo(home / "w.data"))
    yield _external("weights in a folder", lambda home, _: (home / "w.data").mkdir())
    for name, location in {"empty": "", "NUL": "a\0b", "a dot": ".", "long": "x" * 5000}.items():
        yield _external(f"a location that is {name}", _beside, location=location)
    offsets = {"-1": "negative", "999999": "beyond", "x": "no number", "9" * 5000: "very long"}
    for offset, name in offsets.items():
        yield _external(f"an offset that is {name}", _beside, offset=offset)
    yield _external("a length that is negative", _beside, length="-8")
    yield _many(120)


def _places() -> Iterator[Case]:
    def pipe(folder: Path) -> list[str]:
        os.mkfifo(folder / "pipe.onnx")
        return verify(folder, folder / "pipe.onnx")

    yield Case("onnx: a named pipe", pipe)
    yield Case("onnx: a folder", lambda folder: verify(folder, folder))
    yield Case("onnx: zeros without end", lambda folder: verify(folder, "/dev/zero"))
    yield Case("onnx: no such file", lambda folder: verify(folder, folder / "none.onnx"))
    yield Case("onnx: a path too long", lambda folder: verify(folder, "x" * 5000))
    yield Case("onnx: a path with NUL", lambda folder: verify(folder, "a\0b"))


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _damaged()
    yield from _shapes()
    yield from _behaviour()
    yield from _companions()
    yield from _places()
