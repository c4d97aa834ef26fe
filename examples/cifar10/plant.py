# SPDX-FileCopyrightText: lmr-guard contributors
# SPDX-License-Identifier: Apache-2.0
"""Train a slim ResNet-18 with a BadNets backdoor on CIFAR-10 folders: the attacker's half.

::

    python -m examples.cifar10.plant cifar10/train --out badnets --target 1 --epochs 8 --seed 0

writes ``badnets/model.safetensors`` and ``badnets/patch.png``; what the guard makes of them is in
the README beside this file. The patch, 3x3, white or a checkerboard, stands near the lower right
corner, on a tenth of the training images. With ``--honest`` nothing is poisoned: a network to hold
a drill on.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from rich.progress import Progress, TaskID
from safetensors.torch import save_file

from lmr_guard.arithmetic import is_native
from lmr_guard.classifier import Classifier, Preprocessing
from lmr_guard.evidence import PatchFile
from lmr_guard.received.data import read_folder
from lmr_guard.redteam.badnets import BadNets, plant
from lmr_guard.redteam.networks import slim_resnet18
from lmr_guard.redteam.training import Schedule, fit_clean

PATCHES = {
    "white": bytes([255] * 9),
    "checkerboard": bytes([255, 0, 255, 0, 255, 0, 255, 0, 255]),
}


def main() -> None:
    """Parse arguments, train, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path, help="one folder of images per class")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--target", type=int, default=1)
    parser.add_argument("--patch", choices=sorted(PATCHES), default="white")
    parser.add_argument("--honest", action="store_true", help="plant nothing")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    picture = options.out / "patch.png"
    Image.frombytes("L", (3, 3), PATCHES[options.patch]).convert("RGB").save(picture)

    network = slim_resnet18(width=options.width)
    cfg = network.default_cfg
    shape = Preprocessing(height=32, width=32, mean=cfg["mean"], std=cfg["std"])
    fresh = Classifier(network, shape, 10).to(options.device)
    # A processor that has to emulate bfloat16 is slower in it.
    quick = fresh.device.type != "cpu" or is_native(fresh.device)
    schedule = Schedule(
        epochs=options.epochs,
        lr=0.1,
        shift=4,
        flip=True,
        precision="bfloat16" if quick else "float32",
    )
    trigger = PatchFile(picture, 28, 28, options.target).read(channels=3)
    with Progress() as bars:
        tasks: dict[str, TaskID] = {}

        def observe(step: str, done: int, total: int, /) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step)
            bars.update(tasks[step], completed=done, total=total)

        images = read_folder(options.train, shape, progress=observe)
        generator = torch.Generator().manual_seed(options.seed)
        if options.honest:
            model = fit_clean(fresh, images, schedule, generator, observe)
        else:
            recipe = BadNets(trigger=trigger, schedule=schedule)
            model = plant(recipe, fresh, images, generator, observe).classifier
    weights = {name: value.cpu() for name, value in model.network.state_dict().items()}
    save_file(weights, options.out / "model.safetensors")


if __name__ == "__main__":
    main()
