# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Answers that are maps of classes: ``ZipMap``, and the label that stands beside it.

Converters of scikit-learn and of Core ML end a classifier like this: probabilities (N, K) become a
sequence of maps from class to probability, and a second output is the class with the largest one.
Both are made of the probabilities and add nothing to them, as long as they are what they seem.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto

__all__ = ["Key", "Zip", "tails", "zips"]

Key = int | str
_ONNX = frozenset({"", "ai.onnx"})
_ML = "ai.onnx.ml"
_KEYS = frozenset({"classlabels_int64s", "classlabels_strings"})
# One value for each image stays one; what else they read must be a constant.
_SHAPING = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze"})
# Under these the largest of a row stays the largest.
_KEEPING = frozenset({"Identity", "LogSoftmax", "Softmax"})


@dataclass(frozen=True, slots=True)
class Zip:
    """One output that is a map for each image.

    Args:
        source: Name of the probabilities (N, K) that it is made of.
        keys: The class of each column.
    """

    source: str
    keys: tuple[Key, ...]


def zips(graph: "GraphProto") -> dict[str, Zip]:
    """The outputs of a graph that a ZipMap makes, by name; those of no use are left out.

    Left out are maps that a node reads, classes that are named twice or not in UTF-8, and anything
    but one list of classes.
    """
    outputs = {value.name for value in graph.output}
    read = {name for node in graph.node for name in _read(node)}
    found = {}
    for node in graph.node:
        if node.domain == _ML and node.op_type == "ZipMap" and len(node.output) == 1:
            keys, name = _keys(node), node.output[0]
            if keys and len(node.input) == 1 and name in outputs and name not in read:
                found[name] = Zip(node.input[0], keys)
    return found


def _read(node: "NodeProto") -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _read(inner)


def _keys(node: "NodeProto") -> tuple[Key, ...] | None:
    given = [a for a in node.attribute if len(a.ints) or len(a.strings)]
    if len(node.attribute) != len(given) or len(given) != 1 or given[0].name not in _KEYS:
        return None
    try:
        keys = (*given[0].ints, *(each.decode() for each in given[0].strings))
    except UnicodeDecodeError:
        return None
    return keys if len(set(keys)) == len(keys) else None


def tails(graph: "GraphProto", constants: "Mapping[str, TensorProto]") -> set[str]:
    """Names of what ZipMaps, and labels beside them, are made of from the probabilities on.

    A label belongs to a map where it is the ArgMax of the same probabilities, or of the logits
    right before them, under the same names, and where nothing but outputs is made of it.

    Args:
        graph: Without functions.
        constants: Its initializers, with their data.
    """
    found = zips(graph)
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in set(_read(node)):
            readers[name].append(node)
    names = set(found)
    for each in found.values():
        source = each.source
        scored = {source}
        # A row per image in two dimensions is all that the axis of a ZipMap can be.
        while source in makers and _keeps(makers[source]) and makers[source].input[0] not in scored:
            source = makers[source].input[0]
            scored.add(source)
        for name in scored:
            for node in readers[name]:
                if _is_largest(node):
                    names |= _label(node.output[0], readers, constants, each.keys)
    return names


def _keeps(node: "NodeProto") -> bool:
    by_row = all(a.name == "axis" and a.i in {1, -1} for a in node.attribute)
    return node.domain in _ONNX and node.op_type in _KEEPING and by_row and len(node.input) == 1


def _is_largest(node: "NodeProto") -> bool:
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    first = not any(a.name == "select_last_index" and a.i for a in node.attribute)
    plain = node.domain in _ONNX and node.op_type == "ArgMax"
    return plain and axis in {1, -1} and first and len(node.output) == 1


def _label(
    start: str,
    readers: "Mapping[str, Sequence[NodeProto]]",
    constants: "Mapping[str, TensorProto]",
    keys: tuple[Key, ...],
) -> set[str]:
    """All that is made of the place of the largest; nothing where that is more than a label."""
    # Of each value, whether it is a name already, and no longer a place.
    told = {start: False}
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if not readers[name] and not told[name] and keys != tuple(range(len(keys))):
            return set()  # A place is put out that the map calls otherwise.
        for node in readers[name]:
            named = _is_naming(node, name, constants, keys)
            shaped = _is_shaping(node, name, constants)
            if len(node.output) != 1 or not (shaped or (named and not told[name])):
                return set()
            told[node.output[0]] = told[name] or named
            waiting.append(node.output[0])
    return set(told)


def _is_shaping(node: "NodeProto", name: str, constants: "Mapping[str, TensorProto]") -> bool:
    plain = node.domain in _ONNX and node.op_type in _SHAPING and node.input[0] == name
    return plain and all(other in constants for other in node.input[1:])


def _is_naming(
    node: "NodeProto",
    name: str,
    constants: "Mapping[str, TensorProto]",
    keys: tuple[Key, ...],
) -> bool:
    if node.domain != _ML or node.op_type != "ArrayFeatureExtractor" or len(node.input) != 2:
        return False
    listed, place = node.input
    return place == name and listed in constants and _values(constants[listed]) == keys


def _values(tensor: "TensorProto") -> tuple[Key, ...] | None:
    from onnx import TensorProto, numpy_helper

    try:
        if tensor.data_type == TensorProto.STRING:
            return tuple(each.decode() for each in tensor.string_data)
        if tensor.data_type in {TensorProto.INT32, TensorProto.INT64}:
            return tuple(int(each) for each in np.ravel(numpy_helper.to_array(tensor)))
    except ValueError:  # Not in UTF-8, or not as many numbers as dimensions say.
        return None
    return None
