# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""What an export takes where the network is traced, and where a graph of its kind is filled."""

import argparse
import statistics
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from examples.lab.benchmarks.layouts import NETWORKS
from examples.lab.benchmarks.subjects import time_of
from examples.lab.kit.networks import with_seed
from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.onnxfile.export import Exporter

__all__ = ["traced_and_filled"]


def traced_and_filled(options: argparse.Namespace) -> dict[str, Any]:
    """Of each network: seconds of an export by trace, and the median share of it by filling.

    Both compare the file with torch and write it; rounds take turns. The bytes are compared too.
    """
    found: dict[str, Any] = {}
    for name, make, side, _ in NETWORKS[: 1 if options.tiny else None]:
        shape = Preprocessing(height=side, width=side)
        first, second = (Classifier(with_seed(make, seed), shape, 10).eval() for seed in (0, 1))
        seconds, shares, same = [], [], True
        with TemporaryDirectory() as folder:
            warm, path = Exporter(), Path(folder) / "model.onnx"
            warm.write(first, path)
            for _ in range(options.rounds):
                traced = time_of(partial(Exporter().write, second, path), "cpu")
                alone = path.read_bytes()
                filled = time_of(partial(warm.write, second, path), "cpu")
                same = same and path.read_bytes() == alone
                seconds.append(traced)
                shares.append(filled / traced)
        found[name] = {
            "seconds, traced": round(statistics.median(seconds), 2),
            "filled over traced": [round(f(shares), 3) for f in (statistics.median, min, max)],
            "same bytes": same,
        }
    return found
