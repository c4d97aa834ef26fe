# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""An honest digit classifier and a folder of clean images, to hold a fire drill on.

::

    python -m examples.drill.honest --out honest --seed 0

writes ``honest/model.safetensors`` and ``honest/clean``; the README beside this file goes on.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from lmr_guard import demo
from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.redteam.networks import digits_resnet
from lmr_guard.redteam.training import Schedule, fit_clean


def main(arguments: list[str] | None = None) -> None:
    """Parse arguments, train, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=15)
    options = parser.parse_args(arguments)
    trained_on, users = demo.digits(options.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = digits_resnet()
    shape = Preprocessing(channels=1, height=16, width=16, mean=(0.0,), std=(1.0,))
    fresh = Classifier(network, shape, len(users.classes))
    schedule = Schedule(epochs=options.epochs, batch=64, shift=1)
    generator = torch.Generator().manual_seed(options.seed)
    model = fit_clean(fresh, trained_on, schedule, generator)
    demo.write_folder(users, options.out / "clean")
    save_file(model.network.state_dict(), options.out / "model.safetensors")


if __name__ == "__main__":
    main()
